# SPDX-License-Identifier: MIT
"""read_hdf5.py FILE EXPECTED.json [NPY_CAPTURE]: h5py reads every array of a capture and finds what was delivered, and
what the npy sink says of the same run."""
import json
import pathlib
import sys

import h5py
import numpy as np
import xxhash

from read_capture import DTYPES, joined


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def arrays_of(file):
    found = {}
    file.visititems(lambda name, item: found.__setitem__(name, item) if isinstance(item, h5py.Dataset) else None)
    return found


def check_arrays(arrays, sites):
    for name, array in arrays.items():
        key = (text(array.attrs["prompt"]), text(array.attrs["lane"]), text(array.attrs["stage"]))
        key += (int(array.attrs["layer"]) if "layer" in array.attrs else None,)
        folder = [] if key[3] is None else ["layer_%02d" % key[3]]
        assert name == "/".join([*key[:2], *folder, key[2]]), (name, key)
        site = sites.pop(key)
        want = np.concatenate(site["rows"])
        got = array[...]
        if want.dtype == "V2":  # bf16, which h5py reads as float32
            assert array.id.get_type().get_size() == 2, key
            got = (got.view("<u4") >> 16).astype("<u2").view("V2").reshape(got.shape)
        assert got.dtype.str == want.dtype.str, (key, got.dtype, want.dtype)
        assert got.shape == want.shape, (key, got.shape, want.shape)
        assert got.tobytes() == want.tobytes(), (key, "bytes differ")
        assert list(array.attrs["positions"]) == site["positions"], (key, "positions")
        assert text(array.attrs["xxh3"]) == xxhash.xxh3_64_hexdigest(want.tobytes()), (key, "digest")
    assert not sites, ("not in the file", list(sites))


def check_head(file, manifest):
    for key, value in manifest.items():
        if key in ("tensors", "tool_version"):
            continue
        found = file.attrs[key]
        if isinstance(value, int):
            assert int(found) == value, (key, found, value)
        else:
            assert (text(found) if isinstance(value, str) else json.loads(text(found))) == value, (key, found, value)


def main(path, expected_path, npy_capture=None):
    with h5py.File(path, "r") as file:
        assert file.attrs["complete"] == 1
        check_arrays(arrays_of(file), joined(json.loads(pathlib.Path(expected_path).read_text())))
        if npy_capture:
            check_head(file, json.loads((pathlib.Path(npy_capture) / "manifest.json").read_text()))
    print("ok")


main(*sys.argv[1:])
