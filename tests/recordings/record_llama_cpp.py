#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs llama.cpp on a GGUF file and writes what its eval callback shows, as `moe-diag judge --map llama.cpp` reads it.

record_llama_cpp.py MODEL OUT [--calls "3 1 4 1; 5; 9"] [--flash] [--kv f16] [--pack]: a folder call_0, call_1 ... of npy files;
with --pack one safetensors file instead, whose tensors have the names of those files.

Needs PyPI llama-cpp-py-sync, which has llama.cpp itself (0.11739 was used) and glibc 2.38, and numpy.
"""

import argparse
import collections
import os
import re

import numpy
from cffi import FFI
from llama_cpp_py_sync import _cffi_bindings

# ggml.h of that version.
GGML = FFI()
GGML.cdef(
    """struct tensor { int32_t type; void* buffer; int64_t ne[4]; size_t nb[4]; int32_t op; int32_t op_params[16];
    int32_t flags; void* src[10]; void* view_src; size_t view_offs; void* data; char name[64]; void* extra; char padding[8]; };"""
)
TYPES = {0: numpy.float32, 1: numpy.float16, 26: numpy.int32}
CACHES = {"f32": 0, "f16": 1, "q8_0": 8}


def values_of(tensor):
    """The values as they are read by indices, slowest dimension first, without those of size 1 in front."""
    dtype = numpy.dtype(TYPES[tensor.type])
    shape, strides = list(tensor.ne)[::-1], list(tensor.nb)[::-1]
    extent = sum((n - 1) * stride for n, stride in zip(shape, strides)) + dtype.itemsize
    raw = numpy.frombuffer(GGML.buffer(tensor.data, extent), numpy.uint8)
    values = numpy.lib.stride_tricks.as_strided(raw[: dtype.itemsize].view(dtype), shape, strides).copy()
    while values.ndim > 1 and values.shape[0] == 1:
        values = values[0]
    return values


def record(model_path, calls, flash, kv):
    """{"call_0/ffn_moe_out-1.0.npy": array}: number of the call, name in the graph, how often the name came before."""
    ffi, lib = _cffi_bindings.get_ffi(), _cffi_bindings.get_lib()
    arrays, seen, number = {}, collections.Counter(), 0

    @ffi.callback("bool(struct ggml_tensor*, bool, void*)")
    def show(pointer, ask, _):
        tensor = GGML.cast("struct tensor*", int(ffi.cast("uintptr_t", pointer)))
        name = GGML.string(tensor.name).decode()
        if not ask and tensor.type in TYPES and re.fullmatch(r"[A-Za-z_]+(-\d+)?", name):
            arrays[f"call_{number}/{name}.{seen[name]}.npy"] = values_of(tensor)
            seen[name] += 1
        return True

    lib.llama_backend_init()
    model_params = lib.llama_model_default_params()
    model_params.use_extra_bufts = False  # weights stay as the file has them
    model = lib.llama_model_load_from_file(model_path.encode(), model_params)
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.cb_eval, params.flash_attn_type = show, int(flash)
    params.type_k = params.type_v = CACHES[kv]
    context = lib.llama_init_from_model(model, params)
    position = 0
    for number, tokens in enumerate(calls):
        seen.clear()
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position + i, 1, 0
            batch.logits[i] = i == len(tokens) - 1
        arrays[f"call_{number}/tokens.npy"] = numpy.array(tokens, numpy.int32)
        arrays[f"call_{number}/positions.npy"] = numpy.arange(position, position + len(tokens), dtype=numpy.int32)
        if lib.llama_decode(context, batch) != 0:
            raise SystemExit(f"llama.cpp could not compute call {number}")
        position += len(tokens)
    return arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--calls", default="3 1 4 1; 5; 9")
    parser.add_argument("--flash", action="store_true")
    parser.add_argument("--kv", choices=CACHES, default="f16")
    parser.add_argument("--pack", action="store_true")
    a = parser.parse_args()
    arrays = record(a.model, [[int(t) for t in call.split()] for call in a.calls.split(";")], a.flash, a.kv)
    if a.pack:  # without the scores of attention, which no map reads: they have a column for each position of the context
        from moe_diag import save_safetensors

        save_safetensors(a.out, {name: array for name, array in arrays.items() if "/kq" not in name or "/kqv_out" in name})
        return
    for name, array in arrays.items():
        os.makedirs(os.path.dirname(f"{a.out}/{name}"), exist_ok=True)
        numpy.save(f"{a.out}/{name}", array)


if __name__ == "__main__":
    main()
