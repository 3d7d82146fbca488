# SPDX-License-Identifier: MIT
"""check_my_name.py OUT: compares what the sink wrote with what numpy computes from the capture of the npy sink."""

import json
import pathlib
import sys

import numpy

out = pathlib.Path(sys.argv[1])
mine = numpy.load(out / "my_name.npy")
found = {tuple(int(number) for number in row[:5]): row[5] for row in mine}

manifest = json.loads((out / "dump" / "manifest.json").read_text())
prompts = [prompt["id"] for prompt in manifest["prompts"]]
lanes = [lane["name"] for lane in manifest["lanes"]]
# Both in forward order: names of the stages here, their numbers in the sink's rows.
names = list(dict.fromkeys(tensor["stage"] for tensor in manifest["tensors"]))
numbers = dict(zip(names, sorted({stage for _, _, _, stage, _ in found}), strict=True))

compared = 0
for tensor in manifest["tensors"]:
    values = numpy.load(out / "dump" / tensor["file"]).astype(float)
    expected = numpy.sqrt((values.reshape(len(values), -1) ** 2).mean(axis=1))
    layer = -1 if tensor["layer"] is None else tensor["layer"]
    for position, rms in zip(tensor["positions"], expected, strict=True):
        row = prompts.index(tensor["prompt"]), lanes.index(tensor["lane"]), layer, numbers[tensor["stage"]], position
        assert numpy.isclose(found[row], rms, rtol=1e-12, atol=0), (row, found[row], rms)
        compared += 1

assert compared == len(mine) > 0, f"{compared} rows expected, {len(mine)} found"
print(f"{compared} rows agree with numpy")
