#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Pairs of rows and what numpy says of them, written to metrics.json beside this file. Needs numpy only.

Divergences are in decimals of 120 digits, by the textbook formulas. Values are written as Python writes a double,
which reads back to the same bits; infinity is the text "inf".
"""

import decimal
import json
import pathlib

import numpy as np

decimal.getcontext().prec = 120
WIDE = np.longdouble


def exact(row):
    return [decimal.Decimal(x) for x in row.tolist()]


def softmax(row):
    e = [(x - max(row)).exp() for x in row]
    return [x / sum(e) for x in e]


def kl_of_logits(a, b):
    return float(sum(p * (p / q).ln() for p, q in zip(softmax(exact(b)), softmax(exact(a)))))


def kl_of_probs(a, b):
    terms = [(y * (y / x).ln() if x else decimal.Decimal("inf")) - y + x if y else x for x, y in zip(exact(a), exact(b))]
    return float(sum(terms))


def topk_overlap(a, b, k):
    best = [set(np.argsort(-x, kind="stable")[:k].tolist()) for x in (a, b)]
    return len(best[0] & best[1]) / k


def ulp(a, b):
    def rank(x):
        bits = x.astype(np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int(np.abs(rank(a) - rank(b)).max())


def rel_l2(a, b):
    a, b = a.astype(WIDE), b.astype(WIDE)
    return float(np.sqrt(np.sum((a - b) ** 2)) / np.sqrt(np.sum(b**2)))


def case(name, a, b, f32):
    """f32: which of the two rows a lane would hold as f32, "a", "b", "ab" or ""."""
    a, b = (x.astype(np.float32).astype(np.float64) if key in f32 else x for key, x in (("a", a), ("b", b)))
    pa, pb = (np.array([float(p) for p in softmax(exact(x))]) for x in (a, b))
    kl = kl_of_probs(pa, pb)
    return {
        "name": name,
        "f32": f32,
        "a": a.tolist(),
        "b": b.tolist(),
        "probs_a": pa.tolist(),
        "probs_b": pb.tolist(),
        "kl_of_logits": kl_of_logits(a, b),
        "kl_of_probs": kl if np.isfinite(kl) else "inf",
        "topk_overlap": {str(k): topk_overlap(a, b, k) for k in (1, 2, 5, 10, len(a)) if k <= len(a)},
        "ulp": ulp(a, b),
        "rel_l2": rel_l2(a, b),
    }


def main():
    rng = np.random.default_rng(20)
    rows = []
    for size in (1, 2, 12, 129, 300):
        b = rng.normal(0, 4, size)
        rows.append(case(f"unlike, {size}", rng.normal(0, 4, size), b, ""))
        rows.append(case(f"rounded to f32, {size}", b.copy(), b, "a"))
        rows.append(case(f"near, {size}", b + rng.normal(0, 1e-3, size), b, "ab"))
    b = rng.normal(0, 4, 40)
    rows.append(case("a large logit", np.where(np.arange(40) == 7, 1000.0, b), b, ""))
    rows.append(case("both have it", np.where(np.arange(40) == 7, 1000.0, b), np.where(np.arange(40) == 9, 990.0, b), ""))
    rows.append(case("few values, many equal", rng.integers(-2, 3, 40).astype(float), rng.integers(-2, 3, 40).astype(float), "a"))
    rows.append(case("tiny", rng.normal(0, 1e-40, 12), rng.normal(0, 1e-40, 12), "ab"))
    path = pathlib.Path(__file__).with_name("metrics.json")
    path.write_text(json.dumps(rows, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
