# SPDX-License-Identifier: MIT
"""Compares a model file as the gguf package reads it with what the test says of it. read_with_gguf.py MODEL LISTING

LISTING holds JSON lines: {"name", "type", "shape", "values"}; values are the bits of the tensor's last row as float32.
"""
import json
import sys

import gguf
import numpy as np

KEYS = """general.architecture general.name general.file_type general.quantization_version tokenizer.ggml.model
qwen3moe.block_count qwen3moe.context_length qwen3moe.embedding_length qwen3moe.feed_forward_length
qwen3moe.attention.head_count qwen3moe.attention.head_count_kv qwen3moe.attention.key_length
qwen3moe.attention.value_length qwen3moe.attention.layer_norm_rms_epsilon qwen3moe.rope.freq_base
qwen3moe.expert_count qwen3moe.expert_used_count qwen3moe.expert_feed_forward_length qwen3moe.vocab_size""".split()


def main() -> None:
    reader = gguf.GGUFReader(sys.argv[1])
    missing = [key for key in KEYS if key not in reader.fields]
    assert not missing, f"keys missing: {missing}"
    with open(sys.argv[2], encoding="utf-8") as listing:
        expected = [json.loads(line) for line in listing]
    assert len(expected) > 10, f"only {len(expected)} tensors listed"
    assert [t.name for t in reader.tensors] == [e["name"] for e in expected], "other tensors, or another order"
    for tensor, entry in zip(reader.tensors, expected):
        assert tensor.tensor_type.name == entry["type"], f"{tensor.name}: {tensor.tensor_type.name}, {entry['type']}"
        assert tensor.shape.tolist() == entry["shape"], f"{tensor.name}: {tensor.shape.tolist()}, {entry['shape']}"
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        row = values.reshape(-1, entry["shape"][0])[-1].astype("<f4").view(np.uint32)
        assert np.array_equal(row, np.array(entry["values"], np.uint32)), f"{tensor.name}: other values"


if __name__ == "__main__":
    main()
