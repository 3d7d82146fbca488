// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/gguf/file_state.hpp"

namespace moe_diag {

// A named stretch of a mapped file, for the message when reading it fails.
struct NamedRange {
  std::string name;
  std::size_t first = 0, last = 0;  // bytes of the file, end excluded
};

// A whole file, mapped read-only; nothing is read before somebody looks.
//
// The file may shrink, or its disk fail, while it is mapped. The kernel then sends SIGBUS to the thread that reads, and
// nothing can be unwound from there. So while a MappedFile lives, such a read ends the process with a message that
// names the file and the range, and exit code 4.
class MappedFile {
 public:
  // Throws Error: absent when there is no such file, environment when it is empty, no regular file, or unreadable.
  static MappedFile open(const std::string& path);

  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;
  ~MappedFile();

  const std::string& path() const;
  std::span<const std::byte> bytes() const;
  const FileState& state() const;  // when it was opened

  // What the message calls parts of the file, in ascending order; called once, by the thread that opened the file and
  // before it hands the bytes to others.
  void name_ranges(std::vector<NamedRange> ranges);

 private:
  struct Impl;
  explicit MappedFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// True for an address in any living MappedFile. For signal handlers: SIGBUS at such an address is the file's fault.
bool lies_in_mapped_file(const void* address);

}  // namespace moe_diag
