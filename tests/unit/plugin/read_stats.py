# SPDX-License-Identifier: MIT
"""read_stats.py STATS.json|STATS.csv EXPECTED.json: statistics equal numpy's in float64 to 1e-12."""
import csv
import json
import math
import pathlib
import sys

import numpy as np

DTYPES = {"f32": "<f4", "f64": "<f8", "i32": "<i4", "f16": "<f2", "bf16": "|V2"}
INTEGERS = ["count", "zeros", "nan", "inf", "rows", "distinct"]


def read(path):
    text = pathlib.Path(path).read_text()
    if path.endswith(".json"):
        return json.loads(text, parse_constant=lambda name: sys.exit(f"{name} is not JSON"))["sites"]
    sites = []
    for row in csv.DictReader(text.splitlines()):
        site = {k: (None if v == "" else v) for k, v in row.items()}
        for key in ["min", "max", "mean", "std", "l2", "rms", "absmax"]:
            site[key] = None if site[key] is None else float(site[key])
        for key in INTEGERS + ["layer"]:
            site[key] = None if site[key] is None else int(site[key])
        for name, prefix in [("absmax_at", "absmax"), ("first_nan", "nan"), ("first_inf", "inf")]:
            place = [site[prefix + "_position"], site[prefix + "_element"]]
            site[name] = None if place[0] is None else {"position": int(place[0]), "element": int(place[1])}
        sites.append(site)
    return sites


def place(values, row, positions, picked):
    where = np.flatnonzero(picked)
    return {"position": positions[where[0] // row], "element": int(where[0] % row)} if len(where) else None


def expected_values(values, row, positions):
    finite = values[np.isfinite(values)]
    want = {"count": values.size, "zeros": int((finite == 0).sum()),
            "nan": int(np.isnan(values).sum()), "inf": int(np.isinf(values).sum()),
            "first_nan": place(values, row, positions, np.isnan(values)),
            "first_inf": place(values, row, positions, np.isinf(values)),
            "absmax_at": None}
    if finite.size == 0:
        return want | dict.fromkeys(["min", "max", "mean", "std", "l2", "rms", "absmax"])
    absmax = np.abs(finite).max()
    want["absmax_at"] = place(values, row, positions, np.abs(values) == absmax)
    mean = math.fsum(finite) / finite.size
    return want | {"min": finite.min(), "max": finite.max(), "mean": mean, "std": np.std(finite),
                   "l2": np.linalg.norm(finite), "rms": np.sqrt(np.mean(finite * finite)), "absmax": absmax}


def main(stats, expected_path):
    events = {}
    for event in json.loads(pathlib.Path(expected_path).read_text()):
        key = (event["prompt"], event["lane"], event["stage"], event["layer"])
        raw = np.frombuffer(pathlib.Path(event["raw"]).read_bytes(), DTYPES[event["dtype"]])
        if event["dtype"] == "bf16":
            raw = (raw.view("<u2").astype("<u4") << 16).view("<f4")
        site = events.setdefault(key, {"values": [], "positions": [], "row": math.prod(event["row"]), "type": event["dtype"]})
        site["values"].append(raw)
        site["positions"] += event["positions"]
    for got in read(stats):
        key = (got["prompt"], got["lane"], got["stage"], got["layer"])
        site = events.pop(key)
        values = np.concatenate(site["values"])
        assert got["rows"] == len(site["positions"]), (key, got["rows"])
        if site["type"] == "i32":
            want = {"count": values.size, "min": int(values.min()), "max": int(values.max()),
                    "distinct": len(set(values.tolist()))}
        else:
            want = expected_values(values.astype(np.float64), site["row"], site["positions"])
        for name, value in want.items():
            if isinstance(value, float):
                scale = max(abs(value), want["rms"])
                assert got[name] is not None and abs(got[name] - value) <= 1e-12 * scale, (key, name, got[name], value)
            else:
                assert got[name] == value, (key, name, got[name], value)
    assert not events, ("missing", list(events))
    print("ok")


main(*sys.argv[1:])
