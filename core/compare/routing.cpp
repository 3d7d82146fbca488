// SPDX-License-Identifier: MIT
#include "core/compare/routing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/compare/chosen.hpp"
#include "core/ops/values.hpp"

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
  double epsilon() const { return precision_of(logits_.dtype).epsilon(); }
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
  double smallest() const { return precision_of(logits_.dtype).smallest; }

  const Tensor& logits_;
  const int row_;
  double top_ = -std::numeric_limits<double>::infinity(), size_ = 1;
};

// The slots of a row whose experts the other row does not share, best first.
std::vector<std::size_t> not_shared(const ChosenRow& row, const ChosenRow& other) {
  std::vector<std::size_t> slots;
  for (std::size_t slot = 0; slot < row.ids().size(); ++slot)
    if (!row.shares(slot, other)) slots.push_back(slot);
  return slots;
}

IdFault fault_of(const ChosenRow& row, std::size_t slot) {
  if (!row.exists(row.ids()[slot])) return IdFault::does_not_exist;
  return row.is_good(slot) ? IdFault::none : IdFault::named_twice;
}

std::optional<double> known(double value) { return is_finite(value) ? std::optional(value) : std::nullopt; }

void explain(const Logits& a, const Logits& b, Flip& flip) {
  const int expert = flip.expert, instead_of = flip.instead_of;
  flip.margin = known(b.weighed(instead_of) - b.weighed(expert));
  flip.error =
      known(std::fabs(a.value(expert) - b.value(expert)) + std::fabs(a.value(instead_of) - b.value(instead_of)));
  const double equal = units * std::max(a.epsilon(), b.epsilon()) * std::max(a.size(), b.size());
  const double against_a = a.weighed(instead_of) - a.weighed(expert);
  // Written so that a NaN explains nothing.
  const bool explained = flip.margin && flip.error && against_a <= equal && *flip.margin >= -equal;
  if (explained) flip.kind = *flip.margin <= equal ? FlipKind::tie : FlipKind::drift;
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

std::string_view name_of(IdFault fault) {
  switch (fault) {
    case IdFault::none: return "none";
    case IdFault::named_twice: return "named_twice";
    case IdFault::does_not_exist: return "does_not_exist";
  }
  return "unknown";
}

std::vector<Flip> flips_of_row(const Routing& routing, int row) {
  const ChosenRow ids_a(routing.ids_a, row, routing.experts), ids_b(routing.ids_b, row, routing.experts);
  const std::vector<std::size_t> only_a = not_shared(ids_a, ids_b), only_b = not_shared(ids_b, ids_a);
  std::vector<Flip> flips(only_a.size());  // as many as only_b: both rows have as many slots, and share as many
  for (std::size_t i = 0; i < flips.size(); ++i) {
    Flip& flip = flips[i];
    flip.expert = ids_a.ids()[only_a[i]];
    flip.instead_of = ids_b.ids()[only_b[i]];
    flip.fault = fault_of(ids_a, only_a[i]);
    flip.fault_of_other = fault_of(ids_b, only_b[i]);
    flip.times = ids_a.times(flip.expert);
    flip.times_of_other = ids_b.times(flip.instead_of);
    flip.experts = routing.experts;
  }
  if (flips.empty() || !routing.logits_a || !routing.logits_b) return flips;
  const Logits a(routing.logits_a, row), b(routing.logits_b, row);
  for (Flip& flip : flips)
    if (!flip.is_misnamed()) explain(a, b, flip);
  return flips;
}

std::vector<Flip> misnamed_of_row(const Tensor& ids_a, const Tensor& ids_b, int row, int experts) {
  std::vector<Flip> flips = flips_of_row({ids_a, ids_b, {}, {}, experts}, row);
  flips.erase(std::remove_if(flips.begin(), flips.end(), [](const Flip& flip) { return !flip.is_misnamed(); }),
              flips.end());
  return flips;
}

std::string choice_text(const Flip& flip) {
  const auto fault_text = [&](int id, IdFault fault, int times) {
    if (fault == IdFault::does_not_exist)
      return fmt::format("expert {} does not exist (the model has experts 0 to {})", id, flip.experts - 1);
    return fmt::format("expert {} is named {}", id, times == 2 ? "twice" : fmt::format("{} times", times));
  };
  if (!flip.is_misnamed()) return fmt::format("expert {} instead of {}", flip.expert, flip.instead_of);
  const std::string own = flip.fault == IdFault::none ? fmt::format("expert {} is chosen", flip.expert)
                                                      : fault_text(flip.expert, flip.fault, flip.times);
  if (flip.fault_of_other == IdFault::none) return fmt::format("{}, expert {} is missing", own, flip.instead_of);
  return fmt::format("{}; in the lane beside it, {}", own,
                     fault_text(flip.instead_of, flip.fault_of_other, flip.times_of_other));
}

std::string text_of(const Flip& flip) {
  if (flip.is_misnamed()) return choice_text(flip);
  const auto number = [](const std::optional<double>& x) { return x ? fmt::format("{:.3g}", *x) : "not known"; };
  return fmt::format("{}, margin {}, logit error {}: {}", choice_text(flip), number(flip.margin), number(flip.error),
                     name_of(flip.kind));
}

}  // namespace moe_diag
