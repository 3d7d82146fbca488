# SPDX-License-Identifier: MIT
"""moe-diag in Python: judge a kernel, record an engine, read captures, read and write safetensors. Needs numpy.

    import moe_diag

    moe_diag.check_kernel(my_kernel, "cases")      # the cases of `moe-diag cases`: docs/judge-a-kernel.md
    moe_diag.open_capture("out")                   # what the sinks wrote: docs/captures-in-python.md
    moe_diag.load_safetensors("in.safetensors")    # bf16, f16 and f8 without further packages

    moe_diag.record(model, ids, "dump")            # a PyTorch model, for `moe-diag judge`: docs/record-tensors.md
    moe_diag.Recorder("dump", engine="my port")    # any other engine
    moe_diag.open_dump("dump")                     # what either wrote
    moe_diag.convert("dump")                       # files of torch.save to safetensors; also python -m moe_diag convert
    moe_diag.read_torch("dump/step=0.pt")          # one such file, without torch

help(moe_diag.kernel), help(moe_diag.captures), help(moe_diag.recorder), help(moe_diag.dumps), help(moe_diag.tensors) and
help(moe_diag.torch_files) say more.
"""

from .captures import Capture, CaptureError, Failure, Tensor, open_capture
from .convert import convert
from .dumps import Dump, DumpCall, DumpError, open_dump
from .kernel import Case, KernelFalsified, ProgramError, Report, check_kernel, open_cases
from .record import Recording, record
from .recorder import RecordError, Recorder
from .tensors import SafetensorsError, from_bits, load_safetensors, save_safetensors, to_bits
from .torch_files import TorchFileError, read_torch

__version__ = "0.1.0"  # of the moe-diag that it belongs to
__all__ = [
    "Capture", "CaptureError", "Case", "Dump", "DumpCall", "DumpError", "Failure", "KernelFalsified", "ProgramError", "RecordError",
    "Recorder", "Recording", "Report", "SafetensorsError", "Tensor", "TorchFileError", "check_kernel", "convert", "from_bits",
    "load_safetensors", "open_capture", "open_cases", "open_dump", "read_torch", "record", "save_safetensors", "to_bits",
]  # fmt: skip
