// SPDX-License-Identifier: MIT
// Whatever the bytes of a safetensors file, they are read or refused: nothing is read beyond their end, and only an
// Error of usage comes out.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "core/api/error.hpp"
#include "core/file/safetensors_file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const moe_diag::SafetensorsFile file = moe_diag::parse_safetensors(bytes);
    for (const moe_diag::SafeTensor& tensor : file.tensors)
      if (const char* end = tensor.data.data() + tensor.data.size(); end > bytes.data() + size) std::abort();
    for (const moe_diag::SafeTensor& tensor : file.tensors) moe_diag::stored(tensor);
  } catch (const moe_diag::Error& e) {
    if (e.kind() != moe_diag::ErrorKind::usage || *e.what() == '\0') std::abort();
  }
  return 0;
}
