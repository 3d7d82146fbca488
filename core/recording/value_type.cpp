// SPDX-License-Identifier: MIT
#include "core/recording/value_type.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/api/tensor.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t fewest = 64, most = 4096;  // values to judge by

struct Magnitudes {
  double rms = 0;
  double span = 0;  // octaves between the 1st and the 99th percentile
  double tail = 0;  // and between the 75th and the 99th

  bool is_sound() const { return span >= 4 && span <= 16 && rms >= 1e-6 && rms <= 1e4; }
};

std::optional<Magnitudes> magnitudes_of(std::vector<double> values) {
  std::erase_if(values, [](double v) { return v == 0 || !std::isfinite(v); });
  if (values.size() < fewest) return std::nullopt;
  Magnitudes m;
  for (double& v : values) {
    m.rms += v * v;
    v = std::fabs(v);
  }
  m.rms = std::sqrt(m.rms / static_cast<double>(values.size()));
  std::sort(values.begin(), values.end());
  const auto percentile = [&](std::size_t p) { return std::log2(values[(values.size() - 1) * p / 100]); };
  m.span = percentile(99) - percentile(1);
  m.tail = percentile(99) - percentile(75);
  return m;
}

std::optional<Magnitudes> magnitudes_as(Element element, const std::byte* data, std::size_t bytes) {
  std::vector<double> values(std::min(bytes / size_of(element), most));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = value_at(element, data, static_cast<std::int64_t>(i));
  return magnitudes_of(std::move(values));
}

}  // namespace

std::optional<std::string> ValueSample::why_not(Element declared) const {
  const Element other = declared == Element::bf16 ? Element::f16 : Element::bf16;
  const auto* data = reinterpret_cast<const std::byte*>(bits_.data());
  const auto found = magnitudes_as(declared, data, bits_.size() * 2);
  const auto read_other = magnitudes_as(other, data, bits_.size() * 2);
  if (!found || !read_other || !read_other->is_sound()) return std::nullopt;
  const bool is_other = declared == Element::f16 ? found->span < 2 : found->span > 32 && found->tail > 6;
  if (!is_other) return std::nullopt;
  return fmt::format(
      "read as {}, 98 of 100 values span {:.1f} octaves, rms {:.2g}; read as {} they span {:.1f}, rms {:.2g}, as "
      "activations do: {} taken for {}?",
      name_of(declared), found->span, found->rms, name_of(other), read_other->span, read_other->rms, name_of(other),
      name_of(declared));
}

void RowSums::add(const std::byte* row, std::int64_t values) {
  Sums sums;
  for (std::int64_t i = 0; i < values; ++i) {
    sums.bf16 += value_at(Element::bf16, row, i);
    sums.f16 += value_at(Element::f16, row, i);
  }
  if (std::isfinite(sums.bf16) || std::isfinite(sums.f16)) rows_.push_back(sums);
}

std::optional<std::string> RowSums::why_not(Element declared) const {
  constexpr double nearly = 0.05, far = 0.2;  // from 1
  if (rows_.empty()) return std::nullopt;
  for (const Sums& row : rows_) {
    const double found = declared == Element::bf16 ? row.bf16 : row.f16;
    const double other = declared == Element::bf16 ? row.f16 : row.bf16;
    if (std::fabs(found - 1) <= far || !(std::fabs(other - 1) <= nearly)) return std::nullopt;
  }
  const Sums& row = rows_.front();
  return fmt::format("its rows sum to {:.3g} as {} and to {:.3g} as {}, expected 1: {} taken for {}?",
                     declared == Element::bf16 ? row.bf16 : row.f16, name_of(declared),
                     declared == Element::bf16 ? row.f16 : row.bf16,
                     name_of(declared == Element::bf16 ? Element::f16 : Element::bf16),
                     name_of(declared == Element::bf16 ? Element::f16 : Element::bf16), name_of(declared));
}

bool looks_like_16_bits(std::span<const std::byte> bytes) {
  for (const Element element : {Element::bf16, Element::f16})
    if (const auto m = magnitudes_as(element, bytes.data(), bytes.size()); m && m->is_sound()) return true;
  return false;
}

bool looks_like_f32(std::span<const std::byte> bytes) {
  const auto m = magnitudes_as(Element::f32, bytes.data(), bytes.size());
  return m && m->is_sound() && !looks_like_16_bits(bytes);
}

}  // namespace moe_diag
