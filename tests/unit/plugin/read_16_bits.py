# SPDX-License-Identifier: MIT
"""read_16_bits.py CAPTURE EXPECTED.json MODULES: moe_diag gives the values of bf16 as float32, and checks them."""
import json
import pathlib
import sys

import numpy as np

from read_capture import joined


def main(capture_path, expected_path, modules):
    sys.path.insert(0, modules)
    from moe_diag import open_capture

    capture = open_capture(capture_path)
    capture.check()
    types = set()
    for (prompt, lane, stage, layer), site in joined(json.loads(pathlib.Path(expected_path).read_text())).items():
        want = np.concatenate(site["rows"])
        got = capture[prompt, lane, layer, stage]
        types.add(capture.tensor(prompt, lane, layer, stage).dtype)
        if want.dtype == "V2":
            assert got.dtype == np.float32, (stage, got.dtype)
            assert not (np.asarray(got).view("<u4") & 0xFFFF).any(), stage
            got = (np.asarray(got).view("<u4") >> 16).astype("<u2")
        assert got.tobytes() == want.tobytes(), (prompt, lane, stage, layer)
    assert types == {"f16", "bf16", "i32"}, types
    print("ok")


main(*sys.argv[1:])
