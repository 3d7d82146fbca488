# SPDX-License-Identifier: MIT
"""read_capture.py CAPTURE EXPECTED.json: numpy reads every array of a capture and finds what was delivered."""
import json
import pathlib
import sys

import numpy as np

DTYPES = {"f32": "<f4", "f64": "<f8", "i32": "<i4", "f16": "<f2", "bf16": "|V2"}


def joined(expected):
    """The events of one site, one after the other."""
    sites = {}
    for event in expected:
        key = (event["prompt"], event["lane"], event["stage"], event["layer"])
        raw = pathlib.Path(event["raw"]).read_bytes()
        rows = np.frombuffer(raw, DTYPES[event["dtype"]]).reshape([len(event["positions"])] + event["row"])
        site = sites.setdefault(key, {"rows": [], "positions": []})
        site["rows"].append(rows)
        site["positions"] += event["positions"]
    return sites


def main(capture, expected_path):
    capture = pathlib.Path(capture)
    manifest = json.loads((capture / "manifest.json").read_text())
    sites = joined(json.loads(pathlib.Path(expected_path).read_text()))
    listed = set()
    for tensor in manifest["tensors"]:
        key = (tensor["prompt"], tensor["lane"], tensor["stage"], tensor["layer"])
        site = sites.pop(key)
        want = np.concatenate(site["rows"])
        got = np.load(capture / tensor["file"], allow_pickle=False)
        assert got.dtype.str == DTYPES[tensor["dtype"]] == want.dtype.str, (key, got.dtype, want.dtype)
        assert list(got.shape) == tensor["shape"] == list(want.shape), (key, got.shape, tensor["shape"], want.shape)
        assert got.tobytes() == want.tobytes(), (key, "bytes differ")
        assert tensor["positions"] == site["positions"], (key, tensor["positions"], site["positions"])
        listed.add(capture / tensor["file"])
    assert not sites, ("not in the manifest", list(sites))
    on_disk = set(path for path in capture.rglob("*") if path.is_file()) - {capture / "manifest.json"}
    assert on_disk == listed, ("on disk or in the manifest only", on_disk ^ listed)
    print("ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
