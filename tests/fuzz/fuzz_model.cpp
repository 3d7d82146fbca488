// SPDX-License-Identifier: MIT
// Whatever the bytes of a model file, they are read or refused: nothing is read beyond their end, and only an Error of
// the environment comes out. CONTRIBUTING.md says how to fuzz; corpus/ is replayed by ctest.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "core/api/error.hpp"
#include "core/gguf/gguf_file.hpp"
#include "core/model/model.hpp"
#include "core/model/vocabulary.hpp"

namespace {

// The bytes as a file without a place on disk; its end is followed by nothing that may be read.
class MemoryFile {
 public:
  MemoryFile(const std::uint8_t* data, std::size_t size) : file_(::memfd_create("model", 0)) {
    if (file_ < 0 || ::write(file_, data, size) != static_cast<ssize_t>(size)) std::abort();
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(file_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

// A refusal is of the file: never of the caller, and it says something.
void check(const moe_diag::Error& e) {
  if (e.kind() != moe_diag::ErrorKind::environment || *e.what() == '\0') std::abort();
}

void read_table(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  try {
    const auto file = moe_diag::GgufFile::parse(bytes, "fuzz");
    for (const auto& tensor : file.tensors())
      if (tensor.bytes > size || tensor.offset > size - tensor.bytes) std::abort();
  } catch (const moe_diag::Error& e) {
    check(e);
  }
}

void read_model(const std::string& path) {
  try {
    const auto model = moe_diag::Model::open(path);
    for (const auto& weight : model.view().weights)
      if (model.place_of(weight).offset + weight.bytes() > model.bytes()) std::abort();
    const auto vocabulary = model.vocabulary();
    for (std::int64_t token = 0; !vocabulary.quoted_text(token).empty(); ++token) {
    }
  } catch (const moe_diag::Error& e) {
    check(e);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read_table(data, size);
  if (size > 0) read_model(MemoryFile(data, size).path());
  return 0;
}
