# SPDX-License-Identifier: MIT
"""moe-diag in Python: judge a kernel, read captures, read and write safetensors. Needs numpy.

    import moe_diag

    moe_diag.check_kernel(my_kernel, "cases")      # the cases of `moe-diag cases`: docs/judge-a-kernel.md
    moe_diag.open_capture("out")                   # what the sinks wrote: docs/captures-in-python.md
    moe_diag.load_safetensors("in.safetensors")    # bf16, f16 and f8 without further packages

help(moe_diag.kernel), help(moe_diag.captures) and help(moe_diag.tensors) say more.
"""

from .captures import Capture, CaptureError, Failure, Tensor, open_capture
from .kernel import Case, KernelFalsified, ProgramError, Report, check_kernel, open_cases
from .tensors import SafetensorsError, from_bits, load_safetensors, save_safetensors, to_bits

__version__ = "0.1.0"  # of the moe-diag that it belongs to
__all__ = [
    "Capture", "CaptureError", "Case", "Failure", "KernelFalsified", "ProgramError", "Report", "SafetensorsError", "Tensor",
    "check_kernel", "from_bits", "load_safetensors", "open_capture", "open_cases", "save_safetensors", "to_bits",
]  # fmt: skip
