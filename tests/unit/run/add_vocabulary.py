# SPDX-License-Identifier: MIT
"""Copies a model and gives it token texts: add_vocabulary.py FROM TO TOKENIZER TEXT...; TEXT is Python's escape form.

Written with the gguf package, so that what reads it was not made by whoever writes it.
"""
import sys

import gguf


def main() -> None:
    source, target, tokenizer, *texts = sys.argv[1:]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "qwen3moe")
    own = {"general.architecture", "tokenizer.ggml.model"}
    for name, field in reader.fields.items():
        if name not in own and not name.startswith("GGUF."):
            writer.add_key_value(name, field.contents(), field.types[0])
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list([text.encode("latin-1").decode("unicode_escape").encode("latin-1") for text in texts])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
