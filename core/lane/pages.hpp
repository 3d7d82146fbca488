// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <memory>

namespace moe_diag {

// Memory that is taken from the system as far as it is touched, for what is touched once from end to end: in huge
// pages, where there are some. Page by page, making it ready costs as much as filling it.
class Pages {
 public:
  // Throws std::bad_alloc when there is no such memory.
  explicit Pages(std::size_t bytes) : memory_(mapped(bytes), {bytes}) {}

  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return memory_.get_deleter().bytes; }

 private:
  struct Unmap {
    std::size_t bytes = 0;
    void operator()(std::byte* memory) const;
  };
  static std::byte* mapped(std::size_t bytes);

  std::unique_ptr<std::byte, Unmap> memory_;
};

}  // namespace moe_diag
