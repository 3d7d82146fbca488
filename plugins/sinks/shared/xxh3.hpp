// SPDX-License-Identifier: MIT
#pragma once

#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>  // the same functions, with the widest vectors that the processor has
#endif

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace moe_diag {

class Xxh3 {
 public:
  Xxh3() : state_(XXH3_createState()) { XXH3_64bits_reset(state_.get()); }
  void update(const void* data, std::size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  std::uint64_t digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

inline std::string digest_text(std::uint64_t digest) { return fmt::format("{:016x}", digest); }

// Writes and digests piece by piece: the second finds in the cache what the first has read from memory.
template <class File>
void write_digested(File& file, Xxh3& hash, const void* data, std::size_t bytes) {
  constexpr std::size_t piece = 1 << 18;
  for (std::size_t at = 0; at < bytes; at += piece) {
    const std::byte* from = static_cast<const std::byte*>(data) + at;
    hash.update(from, std::min(piece, bytes - at));
    file.write(from, std::min(piece, bytes - at));
  }
}

}  // namespace moe_diag
