# SPDX-License-Identifier: MIT
"""make_corpus.py FOLDER: writes the corpus of fuzz_model, a small right model and files that are wrong in one place.

Where a fuzzer finds a file that crashes the target, that file joins the folder under the name of what it shows."""

import copy
import math
import pathlib
import struct
import sys

U32, F32, BOOL, TEXT, ARRAY, U64 = 4, 6, 7, 8, 9, 10
HUGE = 2**64 - 1


def text(value):
    return struct.pack("<Q", len(value)) + value


class Model:
    """One layer, hidden size 4, a head of 4, 2 experts of width 2, 3 tokens: every part of the file can be changed."""

    def __init__(self):
        p = "qwen3moe."
        self.magic, self.version = b"GGUF", 3
        self.tensor_count = self.key_count = None  # None: as many as there are
        self.keys = {"general.architecture": (TEXT, text(b"qwen3moe"))}
        for key, value in (("block_count", 1), ("context_length", 64), ("embedding_length", 4),
                           ("attention.head_count", 1), ("attention.head_count_kv", 1), ("attention.key_length", 4),
                           ("attention.value_length", 4), ("expert_count", 2), ("expert_used_count", 1),
                           ("expert_feed_forward_length", 2)):  # fmt: skip
            self.keys[p + key] = (U32, struct.pack("<I", value))
        self.keys[p + "attention.layer_norm_rms_epsilon"] = (F32, struct.pack("<f", 1e-6))
        self.keys[p + "rope.freq_base"] = (F32, struct.pack("<f", 1e6))
        self.tensors = []  # name, dimensions, type, offset (None: behind the one before)
        for name, dims in (("token_embd", (4, 3)), ("blk.0.attn_norm", (4,)), ("blk.0.attn_q", (4, 4)),
                           ("blk.0.attn_k", (4, 4)), ("blk.0.attn_v", (4, 4)), ("blk.0.attn_q_norm", (4,)),
                           ("blk.0.attn_k_norm", (4,)), ("blk.0.attn_output", (4, 4)), ("blk.0.ffn_norm", (4,)),
                           ("blk.0.ffn_gate_inp", (4, 2)), ("blk.0.ffn_gate_exps", (4, 2, 2)),
                           ("blk.0.ffn_up_exps", (4, 2, 2)), ("blk.0.ffn_down_exps", (2, 4, 2)),
                           ("output_norm", (4,)), ("output", (4, 3))):  # fmt: skip
            self.tensors.append([f"{name}.weight".encode(), list(dims), 0, None])

    def u32(self, key, value):
        self.keys[key] = (U32, struct.pack("<I", value))

    def array(self, key, element, count, values=b""):
        self.keys[key] = (ARRAY, struct.pack("<IQ", element, count) + values)

    def bytes(self):
        keys = b""
        for key, (kind, value) in self.keys.items():
            keys += text(key.encode()) + struct.pack("<I", kind) + value
        table, end = b"", 0
        for name, dims, kind, offset in self.tensors:
            at = end if offset is None else offset
            table += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)
            end += (4 * min(math.prod(dims), 64) + 31) // 32 * 32
        counts = (len(self.tensors) if self.tensor_count is None else self.tensor_count,
                  len(self.keys) if self.key_count is None else self.key_count)  # fmt: skip
        head = self.magic + struct.pack("<IQQ", self.version, *counts) + keys + table
        return head + bytes(-len(head) % 32 + end)


def tensor(name=b"blk.0.attn_norm.weight", dims=(4,), kind=0, at=None):
    """Changes the second tensor."""
    return lambda m: m.tensors.__setitem__(1, [name, list(dims), kind, at])


def edits():
    """Name of the file and what is done to the model in it."""
    p = "qwen3moe."
    yield "right", lambda m: None
    yield "tied_output", lambda m: m.tensors.pop()
    yield "version_2", lambda m: setattr(m, "version", 2)
    yield "big_endian", lambda m: setattr(m, "version", 3 << 24)
    yield "magic", lambda m: setattr(m, "magic", b"GGML")
    yield "tensors_beyond_the_file", lambda m: setattr(m, "tensor_count", HUGE)
    yield "keys_beyond_the_file", lambda m: setattr(m, "key_count", HUGE)
    yield "one_tensor_too_many", lambda m: setattr(m, "tensor_count", len(m.tensors) + 1)
    yield "text_of_all_bytes", lambda m: m.keys.update({"a": (TEXT, struct.pack("<Q", HUGE))})
    yield "text_past_the_end", lambda m: m.keys.update({"a": (TEXT, struct.pack("<Q", HUGE - 8) + b"x")})
    yield "array_of_all_bytes", lambda m: m.array("a", U64, HUGE // 8 + 1)
    yield "array_of_arrays", lambda m: m.array("a", ARRAY, 1, struct.pack("<IQ", U32, 1))
    yield "array_of_unknown_type", lambda m: m.array("a", 99, 1)
    yield "value_of_unknown_type", lambda m: m.keys.update({"a": (99, b"")})
    yield "texts_that_end_early", lambda m: m.array(
        "tokenizer.ggml.tokens", TEXT, 3, text(b"a") + struct.pack("<Q", HUGE))  # fmt: skip
    yield "tokens_fewer", lambda m: m.array("tokenizer.ggml.tokens", TEXT, 2, text(b"a") + text(b"\xff\x00\xe2"))
    yield "tokens", lambda m: m.array("tokenizer.ggml.tokens", TEXT, 3, b"".join(
        text(t) for t in (b"", b"\xc4\xa0the\xe2\x82", b"\x00" * 200)))  # fmt: skip
    yield "tokens_are_numbers", lambda m: m.array("tokenizer.ggml.tokens", U32, 3, bytes(12))
    for value in (0, 3, 1 << 31, (1 << 32) - 1):
        yield f"alignment_{value}", lambda m, v=value: m.u32("general.alignment", v)
    yield "alignment_is_text", lambda m: m.keys.update({"general.alignment": (TEXT, text(b"32"))})
    for key in ("block_count", "embedding_length", "attention.head_count", "expert_count",
                "expert_feed_forward_length"):  # fmt: skip
        for value in (0, (1 << 31) - 1, (1 << 32) - 1):
            yield f"{key}_{value}", lambda m, k=key, v=value: m.u32(p + k, v)
    yield "heads_overflow", lambda m: [m.u32(p + k, 1 << 20) for k in (
        "attention.head_count", "attention.key_length", "attention.value_length")]  # fmt: skip
    yield "layers_without_tensors", lambda m: m.u32(p + "block_count", 1 << 24)
    yield "part_of_no_stage", lambda m: m.keys.update({"moe_diag.part.stage": (TEXT, text(b"nothing"))})
    yield "part_of_a_late_layer", lambda m: [
        m.keys.update({"moe_diag.part.stage": (TEXT, text(b"attn_norm"))}),
        m.u32("moe_diag.part.layer", HUGE >> 32)]  # fmt: skip
    yield "dimension_0", tensor(dims=[0])
    yield "dimensions_0", tensor(dims=[])
    yield "dimensions_5", tensor(dims=[1] * 5)
    yield "dimensions_overflow", tensor(dims=[1 << 32, 1 << 32])
    yield "dimension_negative", tensor(dims=[HUGE])
    yield "bytes_overflow", tensor(dims=[256, 1 << 54], kind=12)
    yield "rows_of_no_block", tensor(dims=[4], kind=12)
    yield "type_unknown", tensor(kind=4000000000)
    yield "type_removed", tensor(kind=4)
    yield "name_twice", tensor(name=b"token_embd.weight")
    yield "name_empty", tensor(name=b"")
    yield "name_of_control_characters", tensor(name=b"\x00\x1b[2J\n" * 40)
    yield "offset_unaligned", tensor(at=7)
    yield "offset_wraps", tensor(at=HUGE - 31)
    yield "offset_at_the_end", tensor(at=1 << 20)
    yield "overlap", tensor(at=0)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    right = Model()
    for name, edit in edits():
        model = copy.deepcopy(right)
        edit(model)
        (folder / f"{name}.gguf").write_bytes(model.bytes())
    whole = right.bytes()
    for size in (0, 3, 23, 100, 700, len(whole) - 1):
        (folder / f"cut_after_{size}.gguf").write_bytes(whole[:size])


if __name__ == "__main__":
    main()
