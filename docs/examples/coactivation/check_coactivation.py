# SPDX-License-Identifier: MIT
"""check_coactivation.py OUT: counts again, with numpy, from the experts that the npy sink captured."""

import json
import pathlib
import sys

import numpy

out = pathlib.Path(sys.argv[1])
counts, totals = numpy.load(out / "coactivation.npy"), numpy.load(out / "coactivation_totals.npy")
manifest = json.loads((out / "dump" / "manifest.json").read_text())
lanes = [lane["name"] for lane in manifest["lanes"]]
config = manifest["model"]["config"]
assert counts.shape == (len(lanes), config["layers"], config["experts"], config["experts"]), counts.shape
assert counts.dtype == totals.dtype == numpy.int64, (counts.dtype, totals.dtype)

expected, tokens = numpy.zeros_like(counts), numpy.zeros_like(totals)
for tensor in manifest["tensors"]:
    site = lanes.index(tensor["lane"]), tensor["layer"]
    chosen = numpy.load(out / "dump" / tensor["file"])
    sent = numpy.eye(config["experts"], dtype=numpy.int64)[chosen].sum(axis=1)  # [tokens, experts], 0 or 1
    expected[site] += sent.T @ sent
    tokens[site] += len(chosen)

assert (counts == expected).all(), numpy.argwhere(counts != expected)
assert (totals == tokens).all() and tokens.min() > 0, (totals, tokens)
assert (numpy.trace(counts, axis1=2, axis2=3) == totals * config["used"]).all()
print(f"{counts.sum()} pairs of {totals.sum()} tokens agree with numpy")
