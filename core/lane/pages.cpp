// SPDX-License-Identifier: MIT
#include "core/lane/pages.hpp"

#include <sys/mman.h>

#include <new>

namespace moe_diag {

std::byte* Pages::mapped(std::size_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  ::madvise(memory, bytes, MADV_HUGEPAGE);
  return static_cast<std::byte*>(memory);
}

void Pages::Unmap::operator()(std::byte* memory) const { ::munmap(memory, bytes); }

}  // namespace moe_diag
