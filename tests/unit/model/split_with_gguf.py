# SPDX-License-Identifier: MIT
"""Writes a model file anew, in parts, with the gguf package. split_with_gguf.py MODEL OUT.gguf TENSORS_A_PART [first]

`first`: the first part has no tensors. Prints the parts, a line each.
"""
import sys

import gguf


def main() -> None:
    reader = gguf.GGUFReader(sys.argv[1])
    writer = gguf.GGUFWriter(
        sys.argv[2], "qwen3moe", split_max_tensors=int(sys.argv[3]), small_first_shard="first" in sys.argv[4:]
    )
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    parts = writer.print_plan()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(*parts, sep="\n")


if __name__ == "__main__":
    main()
