// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/recording/element.hpp"

namespace moe_diag {

// Tells bf16 from f16 by magnitudes. The logarithm of the same bits is 8 times as wide when they are read as bf16, for
// bf16 has 3 bits more of exponent. Activations span 8 octaves between the 1st and the 99th percentile when they are
// normally distributed; 4 to 16 count as sound. So sound bf16 read as f16 spans less than 2, and sound f16 read as bf16
// more than 32, and more than 6 between the 75th and the 99th percentile: there sound values span about 1, even where
// many are nearly 0, as behind SiLU. Some misreadings are not told: values that span more than 16 octaves, and f16 of a
// distribution without a tail. The rms alone does not tell: bf16 read as f16 has one between 1 and 2.
class ValueSample {
 public:
  // Values of 16 bits. Zeros and values that are not finite do not count.
  void add(std::uint16_t bits) { bits_.push_back(bits); }
  std::size_t size() const { return bits_.size(); }

  // Reason why the values are not of that type but of the other one; none: they may be, or there are too few of them.
  std::optional<std::string> why_not(Element declared) const;

 private:
  std::vector<std::uint16_t> bits_;
};

// The same for rows that sum to 1: a type is not theirs when the rows do not, and as the other type they do.
class RowSums {
 public:
  void add(const std::byte* row, std::int64_t values);
  std::optional<std::string> why_not(Element declared) const;

 private:
  struct Sums {
    double bf16 = 0, f16 = 0;
  };
  std::vector<Sums> rows_;
};

// Bytes that are sound values of 16 bits, and bytes that are sound f32 but not of 16 bits.
bool looks_like_16_bits(std::span<const std::byte> bytes);
bool looks_like_f32(std::span<const std::byte> bytes);

}  // namespace moe_diag
