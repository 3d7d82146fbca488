# SPDX-License-Identifier: MIT
"""Writes the cosines and sines of rotations as public implementations compute them, and Q8_0 as ggml's scalar code has it.

    python3 make_variants.py GGML_FOLDER [folder]     needs numpy and ml_dtypes, at the versions in versions.json

GGML_FOLDER holds libggml-base.so.0 and libggml-cpu.so.0, as a wheel of llama.cpp does. rope_*.npy are [positions, 128]
in float32: the cosines of the 64 pairs of a head, then the sines. rope_f32 and rope_f32_bf16 are the formulas of
transformers (modeling_rope_utils.py and Qwen3MoeRotaryEmbedding.forward) in numpy's float32; rope_multiplied is what
ggml_rope_ext gives for a head of ones and zeros. q8_0_scalar.npy is quantize_row_q8_0_ref of ../roundings/x.npy.
"""
import ctypes
import importlib.metadata
import json
import pathlib
import sys

import ml_dtypes
import numpy as np

HEAD, THETA = 128, 1e6
POSITIONS = np.array([0, 1, 7, 511, 4095, 40000], dtype=np.int32)
F32, I32, NEOX = 0, 26, 2  # of enum ggml_type and GGML_ROPE_TYPE_NEOX


def tables(angles: np.ndarray) -> np.ndarray:
    assert angles.dtype == np.float32
    exact = angles.astype(np.float64)  # cosf and sinf, rounded to the nearest
    return np.concatenate([np.cos(exact), np.sin(exact)], axis=1).astype(np.float32)


def transformers_f32() -> np.ndarray:
    inverse = np.float32(1.0) / np.float32(THETA) ** (np.arange(0, HEAD, 2, dtype=np.float32) / np.float32(HEAD))
    return tables(POSITIONS.astype(np.float32)[:, None] * inverse[None, :])


class Ggml:
    class Params(ctypes.Structure):
        _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

    def __init__(self, folder: str) -> None:
        self.base = ctypes.CDLL(f"{folder}/libggml-base.so.0", mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(f"{folder}/libggml-cpu.so.0", mode=ctypes.RTLD_GLOBAL)
        for name in ("ggml_init", "ggml_new_tensor_1d", "ggml_new_tensor_3d", "ggml_rope_ext", "ggml_new_graph",
                     "ggml_get_data"):
            getattr(self.base, name).restype = ctypes.c_void_p

    def rope(self) -> np.ndarray:
        base, v, count = self.base, ctypes.c_void_p, len(POSITIONS)
        context = v(base.ggml_init(self.Params(1 << 24, None, False)))
        x = v(base.ggml_new_tensor_3d(context, F32, *map(ctypes.c_int64, (HEAD, 1, count))))
        at = v(base.ggml_new_tensor_1d(context, I32, ctypes.c_int64(count)))
        head = np.concatenate([np.ones(HEAD // 2), np.zeros(HEAD // 2)]).astype(np.float32)
        ctypes.memmove(base.ggml_get_data(x), np.tile(head, count).tobytes(), 4 * HEAD * count)
        ctypes.memmove(base.ggml_get_data(at), POSITIONS.tobytes(), 4 * count)
        f = ctypes.c_float
        out = v(base.ggml_rope_ext(context, x, at, v(None), HEAD, NEOX, 0, f(THETA), f(1), f(0), f(1), f(0), f(0)))
        graph = v(base.ggml_new_graph(context))
        base.ggml_build_forward_expand(graph, out)
        assert self.cpu.ggml_graph_compute_with_ctx(context, graph, 1) == 0
        values = np.empty((count, HEAD), np.float32)
        ctypes.memmove(values.ctypes.data, base.ggml_get_data(out), values.nbytes)
        return values

    def q8_0(self, x: np.ndarray) -> np.ndarray:
        block = np.dtype([("d", "<f2"), ("q", "i1", 32)])
        blocks = np.empty(x.size // 32, block)
        self.base.quantize_row_q8_0_ref(x.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p),
                                        ctypes.c_int64(x.size))
        return (blocks["q"].astype(np.float64) * blocks["d"].astype(np.float64)[:, None]).reshape(x.shape)


def main() -> None:
    ggml, here = Ggml(sys.argv[1]), pathlib.Path(__file__).parent
    folder = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else here
    f32 = transformers_f32()
    made = {
        "positions": POSITIONS,
        "rope_f32": f32,
        "rope_f32_bf16": f32.astype(ml_dtypes.bfloat16).astype(np.float32),
        "rope_multiplied": ggml.rope(),
        "q8_0_scalar": ggml.q8_0(np.load(here.parent / "roundings" / "x.npy")),
    }
    for name, values in made.items():
        np.save(folder / f"{name}.npy", values)
    versions = {package: importlib.metadata.version(package) for package in ("numpy", "ml_dtypes")}
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
