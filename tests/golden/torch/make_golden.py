# SPDX-License-Identifier: MIT
"""Writes small .pt files with torch, and expected.json with their values: the input of tests/python/torch_files_test.py.

    python3 make_golden.py [folder]      needs torch 2.11 and numpy; no GPU

expected.json has for each file `tensors`, by the name that moe_diag.convert gives them, as [type of safetensors, shape, bytes
in hexadecimal], and `metadata`. The files in refused/ are real ones that have to be refused.
"""
import collections
import json
import math
import pathlib
import sys

import numpy as np
import torch

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
         torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "U8"}


def dtypes():
    values = torch.tensor([[0.0, 1.5, -2.25], [3.0, -0.125, 100.0]])
    saved = {str(dtype).split(".")[1]: values.abs().to(dtype) if dtype == torch.uint8 else values.to(dtype) for dtype in TYPES}
    saved["bfloat16"] = torch.tensor([[0, 0x3F81, -0x8000], [0x7F80, 0x7FC1, 1]], dtype=torch.int16).view(torch.bfloat16)
    return saved, saved, {}


def views():
    base = torch.arange(24, dtype=torch.float32)
    table = base.view(4, 6)
    saved = {
        "transposed": table.t(),
        "sliced": table[1:3, 2:5],
        "stepped": base[1::5],
        "expanded": torch.tensor([1.0, 2.0, 3.0]).expand(4, 3),
        "heads": table.view(4, 2, 3).transpose(0, 1).to(torch.bfloat16).transpose(1, 2),
        "row": table[3],
        "scalar": base[7],
        "scalar_bf16": torch.tensor(-1.5, dtype=torch.bfloat16),
        "scalar_bool": torch.tensor(True),
        "empty": torch.zeros(0, 4),
        "empty_slice": table[2:2],
        "one": table[1:2, 3:4],
    }
    return saved, saved, {}


def nested():
    one, two, three = torch.tensor([1.0, 2.0]), torch.tensor([[3]]), torch.tensor([4.0], dtype=torch.float16)
    marked = torch.tensor([7.0])
    marked.note = "an attribute"
    saved = collections.OrderedDict(
        layers=[(one, two), {"out": three, 5: one}],
        parameter=torch.nn.Parameter(one),
        marked=marked,
        shape=torch.Size([2, 3]),
        ids=[5, -6, 1 << 40],
        rows=[[1, 2], [3]],
        count=3,
        text="gr\u00fc\u00df",
        half=0.5,
        big=1 << 63,
        yes=True,
        nothing=None,
        mixed=["a", 1],
        none_in=(one, None),
        empty_list=[],
        empty_dict={},
        dtype=torch.bfloat16,
        device=torch.device("cuda", 1),
    )
    integers = {"shape": [2, 3], "ids": [5, -6, 1 << 40], "rows.0": [1, 2], "rows.1": [3], "count": 3}
    tensors = {"layers.0.0": one, "layers.0.1": two, "layers.1.out": three, "layers.1.5": one, "parameter": one, "marked": marked,
               "none_in.0": one, **{name: torch.tensor(value) for name, value in integers.items()}}
    metadata = {"text": "gr\u00fc\u00df", "half": 0.5, "big": 1 << 63, "yes": True, "nothing": None, "mixed": ["a", 1],
                "none_in.1": None, "empty_list": [], "empty_dict": {}, "dtype": "torch.bfloat16", "device": "cuda:1"}
    return saved, tensors, metadata


def sglang():
    value = torch.linspace(-2, 2, 8).view(2, 4).to(torch.bfloat16)
    numbers = {"step": 1, "rank": 0, "dump_index": 17, "layer_id": 3}
    texts = {"name": "moe_out", "recompute_status": "disabled", "dims": "t h"}
    saved = {"value": value, "meta": {**numbers, **texts, "sglang_parallel_info": {"tp_rank": 0, "tp_size": 1}}}
    tensors = {"value": value, **{f"meta.{name}": torch.tensor(number) for name, number in numbers.items()},
               "meta.sglang_parallel_info.tp_rank": torch.tensor(0), "meta.sglang_parallel_info.tp_size": torch.tensor(1)}
    return saved, tensors, {f"meta.{name}": text for name, text in texts.items()}


def sglang_pass():
    saved = {"model.embed_tokens": torch.ones(2, 2, dtype=torch.bfloat16), "model.layers.0.mlp": [torch.zeros(2), torch.ones(2)]}
    embedded, mlp = saved.values()
    return saved, {"model.embed_tokens": embedded, "model.layers.0.mlp.0": mlp[0], "model.layers.0.mlp.1": mlp[1]}, {}


def lone():
    tensor = torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)
    return tensor, {"data": tensor}, {}


def state_dict():
    model = torch.nn.Sequential(torch.nn.Linear(2, 1))
    return model.state_dict(), dict(model.state_dict()), {}  # an OrderedDict with the attribute _metadata


def refused(folder):
    """Real files in the old format, with unknown names, or of types that moe-diag does not compare."""
    ones = torch.ones(2)
    torch.save(ones, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"x": ones.to(torch.float8_e4m3fn)}, folder / "float8.pt")
    torch.save({"x": ones.to(torch.complex64)}, folder / "complex.pt")
    torch.save({"x": torch._neg_view(ones)}, folder / "negated.pt")
    torch.save({"x": np.float64(1.5)}, folder / "numpy.pt")


def described(tensor):
    bits = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()  # bf16 has no numpy, bytes have
    assert bits.nbytes == math.prod(tensor.shape) * tensor.element_size()
    return [TYPES[tensor.dtype], list(tensor.shape), bits.tobytes().hex()]


def main(folder):
    torch.manual_seed(7)
    expected = {}
    for make in (dtypes, views, nested, sglang, sglang_pass, lone, state_dict):
        saved, tensors, metadata = make()
        torch.save(saved, folder / f"{make.__name__}.pt")
        expected[f"{make.__name__}.pt"] = {"tensors": {name: described(t) for name, t in tensors.items()}, "metadata": metadata}
    saved, *_ = nested()
    torch.save(saved, folder / "protocol_4.pt", pickle_protocol=4)
    expected["protocol_4.pt"] = expected["nested.pt"]
    torch.serialization.set_crc32_options(False)
    torch.save(lone()[0], folder / "no_checksums.pth")
    expected["no_checksums.pth"] = expected["lone.pt"]
    torch.serialization.set_crc32_options(True)
    (folder / "refused").mkdir(exist_ok=True)
    refused(folder / "refused")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(file)}" for name, file in expected.items())
    (folder / "expected.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent)
