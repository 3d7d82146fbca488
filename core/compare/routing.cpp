// SPDX-License-Identifier: MIT
#include "core/compare/routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "core/compare/values.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double units = 8;  // in the last place

// One lane's logits of a row, as its choice sees them.
class Logits {
 public:
  Logits(const Tensor& logits, int row) : logits_(logits), row_(row) {
    for (int e = 0; e < experts(); ++e)
      if (const double v = value(e); is_finite(v)) {
        top_ = std::max(top_, v);
        size_ = std::max(size_, std::fabs(v));
      }
  }

  int experts() const { return static_cast<int>(logits_.shape.row()); }
  double size() const { return size_; }  // of the largest, at least 1
  double epsilon() const {
    return logits_.dtype == DType::f64 ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  }
  double value(int expert) const {
    if (expert < 0 || expert >= experts()) return nan;
    return with_values(logits_, row_ * logits_.shape.row() + expert,
                       [](const auto* p) { return static_cast<double>(*p); });
  }
  // Not below what still has a probability that is a normal number.
  double weighed(int expert) const {
    const double v = value(expert), lowest = top_ + std::log(smallest());
    return v < lowest ? lowest : v;
  }

 private:
  double smallest() const {
    return logits_.dtype == DType::f64 ? std::numeric_limits<double>::min() : std::numeric_limits<float>::min();
  }

  const Tensor& logits_;
  const int row_;
  double top_ = -std::numeric_limits<double>::infinity(), size_ = 1;
};

std::span<const std::int32_t> ids_of_row(const Tensor& ids, int row) {
  return {ids.as<std::int32_t>() + row * ids.shape.row(), static_cast<std::size_t>(ids.shape.row())};
}

// Those of `ids` that are not among `others`, in their order.
std::vector<std::int32_t> only_in(std::span<const std::int32_t> ids, std::span<const std::int32_t> others) {
  std::vector<std::int32_t> only;
  for (std::int32_t id : ids)
    if (std::find(others.begin(), others.end(), id) == others.end()) only.push_back(id);
  return only;
}

Flip flip_of(const Logits& a, const Logits& b, int expert, int instead_of) {
  Flip flip{expert, instead_of, b.weighed(instead_of) - b.weighed(expert), nan, FlipKind::real};
  flip.error = std::fabs(a.value(expert) - b.value(expert)) + std::fabs(a.value(instead_of) - b.value(instead_of));
  const double equal = units * std::max(a.epsilon(), b.epsilon()) * std::max(a.size(), b.size());
  const double against_a = a.weighed(instead_of) - a.weighed(expert);
  // Written so that a NaN explains nothing.
  const bool explained = is_finite(flip.error) && against_a <= equal && flip.margin >= -equal;
  if (explained) flip.kind = flip.margin <= equal ? FlipKind::tie : FlipKind::drift;
  return flip;
}

}  // namespace

std::string_view name_of(FlipKind kind) {
  switch (kind) {
    case FlipKind::tie: return "tie";
    case FlipKind::drift: return "drift";
    case FlipKind::real: return "real";
  }
  return "unknown";
}

std::vector<Flip> flips_of_row(const Routing& routing, int row) {
  const auto ids_a = ids_of_row(routing.ids_a, row), ids_b = ids_of_row(routing.ids_b, row);
  const std::vector<std::int32_t> intruders = only_in(ids_a, ids_b), dropped = only_in(ids_b, ids_a);
  if (intruders.empty() && dropped.empty()) return {};
  const Logits a(routing.logits_a, row), b(routing.logits_b, row);
  std::vector<Flip> flips;
  // There are as many of one as of the other, unless a lane names an expert twice: a flip without a counterpart is
  // real.
  for (std::size_t i = 0; i < std::max(intruders.size(), dropped.size()); ++i)
    flips.push_back(flip_of(a, b, i < intruders.size() ? intruders[i] : -1, i < dropped.size() ? dropped[i] : -1));
  return flips;
}

std::string text_of(const Flip& flip) {
  return fmt::format("expert {} instead of {}, margin {:.3g}, logit error {:.3g}: {}", flip.expert, flip.instead_of,
                     flip.margin, flip.error, name_of(flip.kind));
}

}  // namespace moe_diag
