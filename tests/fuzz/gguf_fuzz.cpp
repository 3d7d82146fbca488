// SPDX-License-Identifier: MIT
// Whatever the bytes, the reader reads or refuses them. For clang's libFuzzer, with tests/golden/hf/*.gguf as a corpus:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/gguf_fuzz.cpp core/gguf/gguf_file.cpp
//   -lfmt -o gguf_fuzz && ./gguf_fuzz -max_len=65536 CORPUS
// A crash it finds becomes a unit test in tests/unit/gguf.
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/api/error.hpp"
#include "core/gguf/gguf_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  try {
    const auto file = moe_diag::GgufFile::parse(bytes, "fuzz");
    for (const auto& tensor : file.tensors())
      if (tensor.offset + tensor.bytes > size) __builtin_trap();
  } catch (const moe_diag::Error&) {
    return 0;
  }
  return 0;
}
