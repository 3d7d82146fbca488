// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/api/model.hpp"

namespace moe_diag {

// A value beyond it is Inf in an engine that decodes weights to f16. No model needs one.
inline constexpr double largest_f16 = 65504;

// How many of some blocks are not sound. Of the float types each value is a block of its own.
struct BlockCounts {
  std::int64_t nan = 0;     // with a NaN among the scales; of a float type, that are NaN
  std::int64_t inf = 0;     // the same of Inf, of blocks without a NaN
  std::int64_t beyond = 0;  // finite, with a value beyond the largest f16
  std::int64_t zero = 0;    // whose scales are all zero
  std::int64_t first = -1;  // index of the first that is counted as nan, inf or beyond; -1: there is none
};

// The blocks of a tensor, or of one expert of it, when something is wrong with them.
struct UnsoundBlocks : BlockCounts {
  std::string tensor;
  BlockType type = BlockType::f32;
  int expert = -1;          // -1: the tensor has no experts
  std::int64_t blocks = 0;  // all there are
  // Where the first stands: in which row, and which columns it holds.
  std::int64_t row = -1, column = -1, columns = 0;

  bool is_all_zero() const { return zero == blocks; }
};

// "2 of 256 blocks hold NaN, the first is block 3: row 3, columns 0 to 255"
std::string text_of(const UnsoundBlocks& unsound);

// Told how many bytes of all have been looked at, by one thread at a time; what it throws ends the scan.
using ScanProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

// Looks at every block of these weights, in parallel: at the scales of quantised types and at the bits of floats.
// Returns the tensors and experts that have a NaN, an Inf or a value beyond the largest f16, or are zero throughout, in
// the order of the weights, then of the experts. Weights without data are left out.
std::vector<UnsoundBlocks> scan_weights(std::span<const Weight* const> weights, const ScanProgress& progress = {});

}  // namespace moe_diag
