// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>

#include "core/ops/hypotheses.hpp"
#include "core/text/numbers.hpp"

namespace moe_diag {
namespace {

using host::Values;

constexpr double bitflip_evidence = 64;     // times its tolerance an element must be off: no bit fits by chance
constexpr double fine_error = 1e-5;         // expected errors below this tell values of one row apart
constexpr std::size_t least_for_scale = 3;  // wrong elements; one factor always fits one element
constexpr std::size_t least_for_coarse_scale = 8;
constexpr double nearly_all = 0.7;

Values oracle_row(const StepCase& c, const StepUnit& unit) {
  Values row(static_cast<std::size_t>(unit.size));
  for (std::int64_t i = 0; i < unit.size; ++i) row[static_cast<std::size_t>(i)] = value_at(c.b, unit.in_b(i));
  return row;
}
Values lane_row(const StepCase& c, const StepUnit& unit) {
  Values row(static_cast<std::size_t>(unit.size));
  for (std::int64_t i = 0; i < unit.size; ++i) row[static_cast<std::size_t>(i)] = value_at(c.a, unit.in_a(i));
  return row;
}

// The elements that are wrong in more than a few rows: columns, or whole heads where rows differ in length.
class Region {
 public:
  Region(const StepCase& c, const FailingUnits& failing) {
    std::int64_t size = 0;
    for (const StepUnit* unit : failing) size = std::max(size, place(*unit, unit->size - 1) + 1);
    std::vector<std::size_t> times(static_cast<std::size_t>(size));
    for (const StepUnit* unit : failing) {
      const std::vector<std::int64_t> wrong = wrong_elements(c, *unit, 0);
      wrong_ += wrong.size();
      for (std::int64_t i : wrong) {
        all_zero_ = all_zero_ && value_at(c.a, unit->in_a(i)) == 0;
        ++times[static_cast<std::size_t>(place(*unit, i))];
      }
    }
    for (std::size_t count : times) held_.push_back(count > failing.size() / 8);
    const auto first = std::find(held_.begin(), held_.end(), true);
    const auto last = std::find(held_.rbegin(), held_.rend(), true).base();
    if (first == held_.end()) return;
    const auto held = static_cast<double>(std::count(first, last, true));
    if (held >= nearly_all * static_cast<double>(last - first)) std::fill(first, last, true);
  }
  std::size_t wrong() const { return wrong_; }
  bool all_zero() const { return all_zero_; }  // what the lane wrote there
  bool holds(const StepUnit& unit, std::int64_t i) const { return held_[static_cast<std::size_t>(place(unit, i))]; }

 private:
  static std::int64_t place(const StepUnit& unit, std::int64_t i) {
    return unit.segments.size() > 1 && unit.run() > 1 ? i / unit.run() : i;
  }
  std::vector<bool> held_;  // by place
  std::size_t wrong_ = 0;
  bool all_zero_ = true;
};

Hypothesis scaled(const StepCase& c, const Region& region, double factor) {
  Hypothesis h{factor == 0 ? StepCause::zero : StepCause::scale,
               factor == 0 ? std::string("zeros instead of values") : fmt::format("multiplied by {:.6g}", factor),
               factor};
  h.row = [&c, region, factor](const StepUnit& unit) {
    Values row = oracle_row(c, unit);
    for (std::int64_t i = 0; i < unit.size; ++i)
      if (region.holds(unit, i)) row[static_cast<std::size_t>(i)] *= factor;
    return row;
  };
  return h;
}

// The experts all of whose slots hold zeros alone, when others do not: those of a rank whose part was never added.
std::vector<int> zero_experts(const StepCase& c, const FailingUnits& failing) {
  std::map<int, std::int64_t> zeros;  // slots by expert
  for (const StepUnit* unit : failing) {
    if (unit->expert < 0) return {};
    const Values lane = lane_row(c, *unit);
    if (std::any_of(lane.begin(), lane.end(), [](double v) { return v != 0; })) return {};
    ++zeros[unit->expert];
  }
  std::map<int, std::int64_t> slots;
  for (std::int64_t i = 0; i < c.routing_a.shape.count(); ++i) ++slots[static_cast<int>(value_at(c.routing_a, i))];
  std::vector<int> experts;
  for (const auto& [expert, count] : zeros) {
    if (count != slots[expert]) return {};
    experts.push_back(expert);
  }
  return experts.size() > 1 && experts.size() < slots.size() ? experts : std::vector<int>();
}

// True when an input is kept in 16 bits: small values of a row are then off by more than its error says.
bool reads_coarse_values(const StepCase& c) {
  return std::any_of(c.step->in.begin(), c.step->in.end(),
                     [&](Stage stage) { return has_16_bits(c.numerics.stored(stage)); });
}

void add_scale(const StepCase& c, const FailingUnits& failing, std::vector<Hypothesis>& list) {
  const Region region(c, failing);
  if (region.all_zero()) {
    list.push_back(scaled(c, region, 0));
    if (const std::vector<int> experts = zero_experts(c, failing); !experts.empty())
      list.back().text = fmt::format("experts {} give zeros", numbers_text(experts));
    return;
  }
  const bool fine = failing[0]->expected < fine_error && !reads_coarse_values(c);
  if (region.wrong() < (fine ? least_for_scale : least_for_coarse_scale)) return;
  double ab = 0, bb = 0;
  for (const StepUnit* unit : failing)
    for (std::int64_t i = 0; i < unit->size; ++i) {
      if (!region.holds(*unit, i)) continue;
      const double a = value_at(c.a, unit->in_a(i)) / unit->rms, b = value_at(c.b, unit->in_b(i)) / unit->rms;
      ab += a * b;
      bb += b * b;
    }
  const double factor = ab / bb;
  const Operator& op = operator_of(*c.step);
  if (op.may_be_parameter && op.may_be_parameter(c, failing, factor)) return;
  if (!std::isfinite(factor) || factor == 0) return;
  list.push_back(scaled(c, region, factor));
  if (!op.part_of_factor) return;
  const std::string part = op.part_of_factor(*c.step, factor, explained_error * failing[0]->expected);
  if (!part.empty()) list.back().text += ": " + part;
}

// ---- one bit -------------------------------------------------------------------------------------------------------

// Element i of the tensor with a bit flipped. In its bytes: a NaN's do not survive a conversion.
double flipped(const Tensor& tensor, std::int64_t i, int bit) {
  return with_values(tensor, i, [bit](const auto* p) {
    auto value = *p;
    unsigned char bytes[sizeof value];
    std::memcpy(bytes, &value, sizeof value);
    bytes[bit / 8] = static_cast<unsigned char>(bytes[bit / 8] ^ 1u << bit % 8);
    std::memcpy(&value, bytes, sizeof value);
    return static_cast<double>(value);
  });
}

struct Flip {
  std::int64_t element = -1;
  int bit = -1;
};

// Infinity and the NaN of computations are one bit from 1.0 and 1.5: arithmetic makes them, too.
bool is_of_arithmetic(const Tensor& tensor, std::int64_t i) {
  const double value = value_at(tensor, i);
  if (std::isinf(value)) return true;
  if (!std::isnan(value)) return false;
  std::uint64_t bits = 0;
  std::memcpy(&bits, tensor.as<std::byte>() + static_cast<std::size_t>(i) * size_of(tensor.dtype),
              size_of(tensor.dtype));
  const int below_quiet_bit = precision_of(tensor.dtype).digits - 2;
  return bits << (64 - below_quiet_bit) == 0;
}

// The element of a unit that is farthest off, and the one bit that makes it right.
std::optional<Flip> flip_of(const StepCase& c, const StepUnit& unit) {
  if (c.a.dtype == DType::i32) return std::nullopt;
  Flip found;
  double worst = 0;
  for (std::int64_t i = 0; i < unit.size; ++i) {
    const double b = value_at(c.b, unit.in_b(i)), off = std::fabs(value_at(c.a, unit.in_a(i)) - b);
    const double errors = off / unit.tolerance(explained_error, std::fabs(b));
    if (errors <= worst) continue;
    found.element = i;
    worst = std::isnan(errors) ? INFINITY : errors;
  }
  if (worst < bitflip_evidence) return std::nullopt;
  const std::int64_t place = unit.in_a(found.element);
  if (is_of_arithmetic(c.a, place)) return std::nullopt;
  // The only value of a unit: twice or half of it is a factor as well as a bit.
  if (unit.size == 1 &&
      std::fabs(std::remainder(std::log2(std::fabs(value_at(c.a, place) / value_at(c.b, unit.in_b(0)))), 1)) < 1e-4)
    return std::nullopt;
  const double b = value_at(c.b, unit.in_b(found.element)), tolerance = unit.tolerance(explained_error, std::fabs(b));
  const int bits = 8 * static_cast<int>(size_of(c.a.dtype));
  for (int bit = 0; bit < bits; ++bit) {
    const double back = flipped(c.a, place, bit);
    if (!(std::fabs(back - b) <= tolerance)) continue;
    if (found.bit >= 0) return std::nullopt;
    found.bit = bit;
  }
  return found.bit < 0 ? std::nullopt : std::optional(found);
}

// Where an element lies in its row, or in its expert's slot.
std::string element_text(const StepCase& c, const StepUnit& unit, std::int64_t i) {
  const std::int64_t place = unit.in_a(i);
  if (is(c.stage, Role::key_values))
    return fmt::format("key {} of head {}", place % c.a.shape[2], place / c.a.shape[2] % c.a.shape[1]);
  const bool is_of_slot = unit.expert >= 0 && unit.slot >= 0;
  return fmt::format("element {}", is_of_slot ? i : place % c.a.shape.row());
}

void add_bitflip(const StepCase& c, const FailingUnits& failing, std::vector<Hypothesis>& list) {
  const auto first = flip_of(c, *failing[0]);
  if (!first) return;
  Hypothesis h{StepCause::bitflip,
               fmt::format("bit {} of {} is flipped", first->bit, element_text(c, *failing[0], first->element))};
  h.row = [&c, bit = first->bit](const StepUnit& unit) -> Values {
    const auto own = flip_of(c, unit);
    if (!own || own->bit != bit) return {};
    Values row = oracle_row(c, unit);
    row[static_cast<std::size_t>(own->element)] = value_at(c.a, unit.in_a(own->element));
    return row;
  };
  list.push_back(std::move(h));
}

// ---- other places --------------------------------------------------------------------------------------------------

void add_neighbours(const StepCase& c, std::vector<Hypothesis>& list) {
  if (is_per_expert(c.stage)) return;
  for (int shift : {-1, 1}) {
    Hypothesis h{StepCause::shifted_position,
                 fmt::format("each row holds the values of the position {} it", shift < 0 ? "before" : "after")};
    h.row = [&c, shift](const StepUnit& unit) -> Values {
      if (unit.row + shift < 0 || unit.row + shift >= c.b.shape[0]) return {};
      Values row(static_cast<std::size_t>(unit.size));
      for (std::int64_t i = 0; i < unit.size; ++i)
        row[static_cast<std::size_t>(i)] = value_at(c.b, unit.in_b(i) + shift * c.b.shape.row());
      return row;
    };
    list.push_back(std::move(h));
  }
}

// Values of a head of the stage, when its rows are heads side by side; 0 when they are not.
std::int64_t head_size(const StepKnowledge& known, const StepUnit& unit) {
  const Stage stage = known.step_case.stage;
  if (is(stage, Role::key_values)) return unit.run();
  return is_of_heads(stage) ? info(stage).head.size(known.config, known.step().layer) : 0;
}

using Places = std::vector<std::size_t>;  // element i holds what place [i] should

void add_places(const StepCase& c, std::string text, Places from, std::vector<Hypothesis>& list) {
  Hypothesis h{StepCause::permutation, std::move(text)};
  h.row = [&c, from = std::move(from)](const StepUnit& unit) -> Values {
    if (from.size() != static_cast<std::size_t>(unit.size)) return {};
    const Values right = oracle_row(c, unit);
    Values row(right.size());
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = right[from[i]];
    return row;
  };
  list.push_back(std::move(h));
}

double distance(const Values& a, std::size_t at_a, const Values& b, std::size_t at_b, std::size_t n) {
  double squares = 0, all = 0;
  for (std::size_t i = 0; i < n; ++i) {
    squares += (a[at_a + i] - b[at_b + i]) * (a[at_a + i] - b[at_b + i]);
    all += b[at_b + i] * b[at_b + i];
  }
  return std::sqrt(squares / all);
}

// The head whose values each head holds, found in one row; empty when one holds no head's.
Places heads_held(const StepCase& c, const StepUnit& unit, std::size_t size) {
  const Values a = lane_row(c, unit), b = oracle_row(c, unit);
  const std::size_t heads = a.size() / size;
  const auto is_near = [&](std::size_t own, std::size_t other) {
    return distance(a, own * size, b, other * size, size) <= explained_error * unit.expected;
  };
  Places held;
  for (std::size_t head = 0; head < heads; ++head) {
    std::size_t other = is_near(head, head) ? head : 0;
    while (other < heads && !is_near(head, other)) ++other;
    if (other == heads) return {};
    held.push_back(other);
  }
  return held;
}

void add_heads(const StepKnowledge& known, const FailingUnits& failing, std::vector<Hypothesis>& list) {
  const StepCase& c = known.step_case;
  const StepUnit& longest = *failing.back();
  const std::int64_t size = head_size(known, longest);
  if (size == 0 || longest.size < 2 * size) return;
  const Places held = heads_held(c, longest, static_cast<std::size_t>(size));
  std::string moved;
  std::size_t count = 0;
  for (std::size_t head = 0; head < held.size(); ++head)
    if (held[head] != head && ++count <= 4)
      moved += fmt::format("{}{} holds {}", count > 1 ? ", " : "", head, held[head]);
  if (count == 0) return;
  Hypothesis h{StepCause::permutation, fmt::format("heads changed places: {}{}", moved, count > 4 ? ", ..." : "")};
  h.row = [&c, &known, held](const StepUnit& unit) {
    const auto n = static_cast<std::size_t>(head_size(known, unit));
    const Values right = oracle_row(c, unit);
    Values row(right.size());
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = right[held[i / n] * n + i % n];
    return row;
  };
  list.push_back(std::move(h));
}

void add_layouts(const StepKnowledge& known, const FailingUnits& failing, std::vector<Hypothesis>& list) {
  const auto size = static_cast<std::size_t>(head_size(known, *failing[0]));
  if (size == 0 || failing[0]->run() != failing[0]->size) return;
  const auto all = static_cast<std::size_t>(failing[0]->size), heads = all / size, half = size / 2;
  Places apart(all), together(all), turned(all), back(all);
  for (std::size_t i = 0; i < all; ++i) {
    const std::size_t head = i / size * size, k = i % size;
    apart[i] = head + (k % half) * 2 + k / half;
    together[i] = head + k % 2 * half + k / 2;
    turned[i] = i % heads * size + i / heads;
    back[i] = k * heads + i / size;
  }
  const StepCase& c = known.step_case;
  add_places(c, "values of heads: pairs (2i, 2i + 1) stand at (i, i + h/2)", std::move(apart), list);
  add_places(c, "values of heads: pairs (i, i + h/2) stand at (2i, 2i + 1)", std::move(together), list);
  if (heads < 2) return;
  add_places(c, "heads and their values changed places: [h, heads] instead of [heads, h]", std::move(turned), list);
  add_places(c, "heads and their values changed places: [heads, h] read as [h, heads]", std::move(back), list);
}

// Finds for every wrong element another one that holds its value, in several rows at once.
class Matching {
 public:
  Matching(const StepCase& c, const FailingUnits& failing) {
    for (std::size_t i = 0; i < std::min<std::size_t>(failing.size(), 8); ++i) {
      units_.push_back(failing[i]);
      a_.push_back(lane_row(c, *failing[i]));
      b_.push_back(oracle_row(c, *failing[i]));
    }
  }

  // Empty when an element has no other, or none is needed.
  Places find() const {
    Places from(a_[0].size()), wrong;
    std::iota(from.begin(), from.end(), std::size_t{0});
    for (std::size_t i : from)
      if (!is_near(i, i)) wrong.push_back(i);
    if (wrong.size() < 2) return {};
    Places sorted = wrong;
    std::sort(sorted.begin(), sorted.end(), [&](std::size_t i, std::size_t j) { return b_[0][i] < b_[0][j]; });
    std::vector<bool> taken(from.size());
    for (std::size_t i : wrong) {
      const double reach = units_[0]->tolerance(explained_error, std::fabs(a_[0][i]));
      auto at = std::lower_bound(sorted.begin(), sorted.end(), a_[0][i] - reach,
                                 [&](std::size_t j, double value) { return b_[0][j] < value; });
      while (at != sorted.end() && (taken[*at] || !is_near(i, *at)) && b_[0][*at] <= a_[0][i] + reach) ++at;
      if (at == sorted.end() || taken[*at] || !is_near(i, *at)) return {};
      taken[*at] = true;
      from[i] = *at;
    }
    return from;
  }

 private:
  bool is_near(std::size_t i, std::size_t j) const {
    for (std::size_t u = 0; u < units_.size(); ++u)
      if (!(std::fabs(a_[u][i] - b_[u][j]) <= units_[u]->tolerance(explained_error, std::fabs(b_[u][j])))) return false;
    return true;
  }

  FailingUnits units_;
  std::vector<Values> a_, b_;
};

void add_matching(const StepCase& c, const FailingUnits& failing, std::vector<Hypothesis>& list) {
  const StepUnit& first = *failing[0];
  const bool same =
      std::all_of(failing.begin(), failing.end(), [&](const StepUnit* u) { return u->size == first.size; });
  if (!same || first.expected > fine_error || !std::isfinite(first.error)) return;
  Places from = Matching(c, failing).find();
  std::size_t moved = 0, shifted = 0;
  for (std::size_t i = 0; i < from.size(); ++i) {
    moved += from[i] != i;
    shifted += from[i] == (i + from[0]) % from.size();
  }
  if (moved == 0) return;
  std::string text = shifted == from.size() ? fmt::format("the values of a row moved by {} places", from[0])
                                            : fmt::format("{} values of a row changed places", moved);
  add_places(c, std::move(text), std::move(from), list);
}

// ---- rounding ------------------------------------------------------------------------------------------------------

using host::Rounding;

// The oracle's values, rounded. The lane rounded its own, which are off by the step's expected error:
// where that reaches across a border between two roundings, the side that the lane's value is on is taken.
class RoundedUnit {
 public:
  RoundedUnit(const StepCase& c, const StepUnit& unit, Rounding rounding)
      : unit_(unit),
        rounding_(rounding),
        block_(static_cast<std::size_t>(host::block_of(rounding))),
        exact_(oracle_row(c, unit)),
        lane_(lane_row(c, unit)),
        rounded_(host::rounded(exact_, rounding)) {}

  Values take() {
    if (rounding_ == Rounding::q8_0)
      for (std::size_t first = 0; first < exact_.size(); first += block_) choose_scale(first);
    std::vector<std::size_t> off;
    for (std::size_t i = 0; i < exact_.size(); ++i)
      if (!is_near(i, rounded_[i])) off.push_back(i);
    if (off.size() <= std::max<std::size_t>(1, exact_.size() / most_at_borders))
      for (const std::size_t i : off) choose_side(i);
    return std::move(rounded_);
  }

 private:
  double reach(std::size_t i) const { return unit_.tolerance(explained_error, std::fabs(exact_[i])); }
  bool is_near(std::size_t i, double value) const { return std::fabs(lane_[i] - value) <= reach(i); }

  // The block that starts there with one value moved.
  Values block_with(std::size_t first, std::size_t i, double by) const {
    Values some(exact_.begin() + static_cast<std::ptrdiff_t>(first),
                exact_.begin() + static_cast<std::ptrdiff_t>(first + block_));
    some[i - first] += by;
    return host::rounded(some, rounding_);
  }

  double distance_to_lane(std::size_t first, const double* values) const {
    double squares = 0;
    for (std::size_t i = 0; i < block_; ++i) squares += std::pow(lane_[first + i] - values[i], 2);
    return squares;
  }

  // The largest value gives the block's scale, which Q8_0 rounds to an f16. Scales of f32 move with the value.
  void choose_scale(std::size_t first) {
    const auto begin = exact_.begin() + static_cast<std::ptrdiff_t>(first);
    const auto largest =
        static_cast<std::size_t>(std::max_element(begin, begin + static_cast<std::ptrdiff_t>(block_),
                                                  [](double x, double y) { return std::fabs(x) < std::fabs(y); }) -
                                 exact_.begin());
    for (const double sign : {-1.0, 1.0}) {
      const Values other = block_with(first, largest, sign * reach(largest));
      if (distance_to_lane(first, other.data()) < distance_to_lane(first, &rounded_[first]))
        std::copy(other.begin(), other.end(), rounded_.begin() + static_cast<std::ptrdiff_t>(first));
    }
  }

  // Only where a step is large beside what the value may be off by: else every value would be next to some border.
  void choose_side(std::size_t i) {
    const std::size_t first = i / block_ * block_;
    const double quotient = block_ > 1 ? 0x1p-21 * std::fabs(exact_[i]) : 0;  // what dividing by the scale rounds
    for (const double sign : {-1.0, 1.0}) {
      const double other = block_with(first, i, sign * (reach(i) + quotient))[i - first];
      if (is_near(i, other) && std::fabs(other - rounded_[i]) >= 2 * most_at_borders * reach(i)) {
        rounded_[i] = other;
        return;
      }
    }
  }

  // Values within reach of a border are at most one in so many: a step is at least twice as many reaches.
  static constexpr std::size_t most_at_borders = 4;

  const StepUnit& unit_;
  const Rounding rounding_;
  const std::size_t block_;
  const Values exact_, lane_;
  Values rounded_;
};

void add_rounding(const StepCase& c, const FailingUnits& failing, std::vector<Hypothesis>& list) {
  for (const Rounding rounding : {Rounding::bf16, Rounding::f16, Rounding::q8_0, Rounding::q8_1, Rounding::q8_k}) {
    if (failing[0]->size % host::block_of(rounding) != 0 || failing[0]->run() != failing[0]->size) continue;
    Hypothesis h{StepCause::rounded_activations,
                 fmt::format("the values written are rounded to {}", names_of(rounding))};
    h.row = [&c, rounding](const StepUnit& unit) { return RoundedUnit(c, unit, rounding).take(); };
    list.push_back(std::move(h));
  }
}

}  // namespace

std::vector<Hypothesis> value_hypotheses(const StepKnowledge& known, const FailingUnits& failing) {
  const StepCase& c = known.step_case;
  std::vector<Hypothesis> list;
  if (!differs_where_finite(c, failing)) return list;
  add_scale(c, failing, list);
  add_bitflip(c, failing, list);
  add_neighbours(c, list);
  add_heads(known, failing, list);
  add_layouts(known, failing, list);
  add_matching(c, failing, list);
  add_rounding(c, failing, list);
  return list;
}

}  // namespace moe_diag
