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

// Arrays larger than this are written piece by piece.
inline constexpr std::uint64_t piece_bytes = 1 << 18;

// Hands out `data`, which goes to `offset` of a file, piece by piece as take(offset, from, bytes), each to be digested
// and then written: the second finds in the cache what the first has read from memory. Pieces end where pages of the
// file do, so that the system can take whole runs of pages.
template <class Take>
void in_pieces(std::uint64_t offset, const void* data, std::size_t bytes, Take&& take) {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const auto now = static_cast<std::size_t>(std::min<std::uint64_t>(bytes, piece_bytes - offset % piece_bytes));
    take(offset, from, now);
    offset += now;
    from += now;
    bytes -= now;
  }
}

}  // namespace moe_diag
