// SPDX-License-Identifier: MIT
// The mistakes of a rotation: other positions, other pairs, another base, and angles that are scaled. Numbers are
// solved from the angles by which the lane turned the pairs of its heads.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/ops/rope.hpp"
#include "core/ops/sizes.hpp"
#include "core/ops/variant.hpp"

namespace moe_diag {
namespace {

using host::Values;

constexpr std::array well_known_thetas{1e4, 5e5, 1e6, 1e7};
constexpr double pi = 3.14159265358979323846;

const RopeParams& params_of(const Operands& o) { return o.step.as<RopeParams>(); }

// The heads that a unit is made of: they may stand among others.
Values heads_of(const Operands& o, const StepUnit& unit) {
  const Values row = o.input(0, unit);
  const auto from = row.begin() + params_of(o).offset;
  return {from, from + unit.size};
}

// To three digits: bases are round numbers, and a fit is not exact.
double to_three_digits(double x) {
  const double unit = std::pow(10, std::floor(std::log10(x)) - 2);
  return std::round(x / unit) * unit;
}

// The turn of pair (i, i + h/2) of all heads of a row.
struct Turned {
  double angle = 0;  // in -pi..pi
  double size = 1;   // what it was multiplied with beside
};

Turned turned(const Operands& o, const StepUnit& unit, const Values& x, std::int64_t i) {
  const std::int64_t h = params_of(o).head_dim;
  double along = 0, across = 0, squares = 0;
  for (std::int64_t head = 0; head < unit.size; head += h) {
    const double re = x[host::at(head + i)], im = x[host::at(head + i + h / 2)];
    const double turned_re = value_at(o.c.a, unit.in_a(head + i));
    const double turned_im = value_at(o.c.a, unit.in_a(head + i + h / 2));
    along += re * turned_re + im * turned_im;
    across += re * turned_im - im * turned_re;
    squares += re * re + im * im;
  }
  return {std::atan2(across, along), std::hypot(along, across) / squares};
}

// The row that fails farthest from position 0.
const StepUnit& farthest(const Operands& o, const FailingUnits& failing) {
  return **std::max_element(failing.begin(), failing.end(),
                            [&](const StepUnit* x, const StepUnit* y) { return o.position(*x) < o.position(*y); });
}

// Rows at several positions, of which one at least is turned: one alone has any offset and any factor.
bool has_several_positions(const Operands& o, const FailingUnits& failing) {
  return o.position(*failing.front()) != o.position(*failing.back());
}

// Units rotated as at other positions, or otherwise.
HypothesisList::Row rotated(const Operands& o, std::int64_t shift, host::RopeOptions options) {
  return [o, shift, options](const StepUnit& unit) {
    return host::rope(heads_of(o, unit), params_of(o).head_dim, o.position(unit) + shift, options);
  };
}

// ---- another base --------------------------------------------------------------------------------------------------

// Whether another theta turns each pair that the model's own turns. Where it does not, a rotation that leaves such
// pairs out looks the same: a partial one, or one with its angles scaled.
bool turns_the_same_pairs(const Operands& o, const FailingUnits& failing, double theta) {
  constexpr double seen = 1e-5;  // radians, beyond the error that is explained in f32
  const double h = params_of(o).head_dim, own = params_of(o).theta;
  const double position = o.position(farthest(o, failing));
  const auto turned = [&](double base, double pair) { return position * std::pow(base, -2 * pair / h) > seen; };
  for (double pair = 1; pair < h / 2; ++pair)
    if (turned(own, pair) && !turned(theta, pair)) return false;
  return true;
}

// From the pair that turned farthest while surely less than half a circle, in the first row that fails. One pair alone
// always fits some theta.
std::optional<double> fitted_theta(const Operands& o, const StepUnit& unit) {
  constexpr double least_theta = 100;
  constexpr std::int64_t least_pairs = 3;  // the first of them turns by the position, whatever theta is
  const std::int64_t pairs = params_of(o).head_dim / 2;
  const double h = static_cast<double>(2 * pairs);
  if (pairs < least_pairs) return std::nullopt;
  const auto p = static_cast<double>(o.position(unit));
  const Values x = heads_of(o, unit);
  for (std::int64_t i = 1; p > 0 && i < pairs; ++i) {
    const auto pair = static_cast<double>(i);
    if (p * std::pow(least_theta, -2 * pair / h) >= pi) continue;
    const double theta = std::pow(turned(o, unit, x, i).angle / p, -h / (2 * pair));
    if (std::isfinite(theta) && theta >= least_theta) return to_three_digits(theta);
    return std::nullopt;
  }
  return std::nullopt;
}

// ---- angles of each pair -------------------------------------------------------------------------------------------

// A rotation of the pairs (i, i + h/2) of each head.
struct Rotation {
  std::vector<double> turns;  // radians a position
  double size = 1;            // what all are multiplied with

  Values of(const Values& x, double position) const {
    const std::size_t half = turns.size();
    Values out(x.size());
    for (std::size_t i = 0; i < half; ++i) {
      const double c = size * std::cos(position * turns[i]), s = size * std::sin(position * turns[i]);
      for (std::size_t a = i; a < x.size(); a += 2 * half) {
        out[a] = x[a] * c - x[a + half] * s;
        out[a + half] = x[a + half] * c + x[a] * s;
      }
    }
    return out;
  }
  bool is_near(const Rotation& other, double position) const {
    constexpr double same = 1e-6;  // radians
    for (std::size_t i = 0; i < turns.size(); ++i)
      if (std::fabs(turns[i] - other.turns[i]) * position > same) return false;
    return std::fabs(size - other.size) <= same;
  }
};

// The rotation by theta^(-2i/n).
Rotation by_theta(double theta, std::size_t half, double n) {
  Rotation rotation{std::vector<double>(half)};
  for (std::size_t i = 0; i < half; ++i) rotation.turns[i] = std::pow(theta, -2.0 * static_cast<double>(i) / n);
  return rotation;
}

void add_rotation(const Operands& o, std::string text, Rotation rotation, HypothesisList& list) {
  list.add(StepCause::rotation, std::move(text), [o, rotation = std::move(rotation)](const StepUnit& unit) {
    return rotation.of(heads_of(o, unit), o.position(unit));
  });
}

// The angles of one row of the lane. They tell at little cost which rotations are worth a hypothesis.
class Measured {
 public:
  Measured(const Operands& o, const StepUnit& unit)
      : position_(o.position(unit)),
        error_(unit.expected),
        own_(by_theta(params_of(o).theta, half_of(o), params_of(o).head_dim)) {
    const Values x = heads_of(o, unit);
    for (std::size_t i = 0; i < own_.turns.size(); ++i)
      pairs_.push_back(turned(o, unit, x, static_cast<std::int64_t>(i)));
  }
  const Rotation& own() const { return own_; }
  double position() const { return position_; }
  double angle(std::size_t pair) const { return pairs_[pair].angle; }
  double error() const { return error_; }

  bool fits(const Rotation& rotation) const {
    const double reach = this->reach();
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      const double off = std::remainder(position_ * rotation.turns[i] - pairs_[i].angle, 2 * pi);
      if (!(std::fabs(off) <= reach && std::fabs(pairs_[i].size - rotation.size) <= reach)) return false;
    }
    return true;
  }

  // Whether the rotation turns the pairs as the model does, as far as can be told: only its size is another.
  bool turns_as_own(const Rotation& rotation) const {
    for (std::size_t i = 0; i < own_.turns.size(); ++i)
      if (position_ * std::fabs(rotation.turns[i] - own_.turns[i]) > reach()) return false;
    return true;
  }

  // The factor that the positions have, from the pairs that the model turns by less than an eighth of a circle.
  double factor() const {
    double along = 0, all = 0;
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      const double angle = position_ * own_.turns[i];
      if (angle >= pi / 4) continue;
      along += angle * pairs_[i].angle;
      all += angle * angle;
    }
    return along / all;
  }

  // The positions further on that the pairs turned, from a slow pair: it tells some thousands to a hundredth.
  std::optional<int> offset() const {
    constexpr double slow = 1e-3, too_slow = 1e-5;  // radians a position
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
      if (own_.turns[i] > slow || own_.turns[i] < too_slow) continue;
      const double offset = pairs_[i].angle / own_.turns[i] - position_;
      if (!(std::fabs(offset - std::round(offset)) < 0.1)) return std::nullopt;
      return static_cast<int>(std::round(offset));
    }
    return std::nullopt;
  }

 private:
  double reach() const { return std::max(1e-3, 4 * error_); }
  static std::size_t half_of(const Operands& o) { return host::at(params_of(o).head_dim / 2); }

  double position_;
  double error_;  // relative, that the values are expected to have
  Rotation own_;
  std::vector<Turned> pairs_;
};

// ---- scaled angles -------------------------------------------------------------------------------------------------

// A whole number of quarters, as factors of positions are, or its inverse; nothing when it is none. `error`: of x.
std::optional<double> quarters_of(double x, double error) {
  const double near = std::max(1e-4, 2 * error);
  for (const double value : {std::round(4 * x) / 4, 4 / std::round(4 / x)})
    if (value > 0 && std::isfinite(value) && std::fabs(value / x - 1) < near) return value;
  return std::nullopt;
}

void add_divided_positions(const Operands& o, const FailingUnits& failing, const Measured& measured,
                           HypothesisList& list) {
  if (!has_several_positions(o, failing)) return;
  const double factor = measured.factor();
  if (!(factor > 0)) return;
  const auto divisor = quarters_of(1 / factor, measured.error());
  if (!divisor || *divisor == 1) return;
  Rotation rotation = measured.own();
  for (double& turn : rotation.turns) turn /= *divisor;
  if (!measured.fits(rotation)) return;
  list.add(StepCause::rotation,
           *divisor > 1 ? fmt::format("the positions are divided by {:.6g}", *divisor)
                        : fmt::format("the positions are multiplied by {:.6g}", 1 / *divisor),
           rotated(o, 0, {.theta = params_of(o).theta, .divisor = *divisor}));
}

// A form of YaRN that fits. Two contexts that turn the pairs by the same angles are both named; two factors that do are
// no explanation.
struct Yarn {
  double factor = 0;
  std::vector<int> contexts;
  bool is_rounded = true, has_magnitude = true;
  Rotation rotation;

  std::string text() const {
    std::string of;
    for (const int context : contexts) of += fmt::format("{}{}", of.empty() ? "" : " or ", context);
    return fmt::format("YaRN with factor {:.6g} and an original context of {}{}{}", factor, of,
                       has_magnitude ? "" : ", without its magnitude factor",
                       is_rounded ? "" : ", its bounds not rounded");
  }
};

// Fast pairs as they are, slow ones divided by the factor, a ramp between the pairs that turn 32 times and once over
// the original context. Source: transformers, modeling_rope_utils.py (_compute_yarn_parameters).
Rotation yarn(const Rotation& own, double theta, double factor, int context, bool is_rounded, bool has_magnitude) {
  const auto h = static_cast<double>(2 * own.turns.size());
  const auto pair_that_turns = [&](double times) {
    return h * std::log(context / (times * 2 * pi)) / (2 * std::log(theta));
  };
  double low = pair_that_turns(32), high = pair_that_turns(1);
  if (is_rounded) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, h - 1);
  Rotation rotation = own;
  for (std::size_t i = 0; i < rotation.turns.size(); ++i) {
    const double slow = std::clamp((static_cast<double>(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
    rotation.turns[i] *= 1 - slow + slow / factor;
  }
  rotation.size = has_magnitude ? 1 + 0.1 * std::log(factor) : 1;
  return rotation;
}

std::vector<Yarn> yarns_of(const Operands& o, const Measured& measured) {
  std::vector<Yarn> found;
  for (const double factor : {2.0, 4.0, 8.0, 16.0, 32.0, 40.0, 64.0})
    for (const bool has_magnitude : {true, false})
      for (const bool is_rounded : {true, false})
        for (int context = 64; context <= 1 << 18; context *= 2) {
          Yarn own{factor,
                   {context},
                   is_rounded,
                   has_magnitude,
                   yarn(measured.own(), params_of(o).theta, factor, context, is_rounded, has_magnitude)};
          if (!measured.fits(own.rotation) || measured.turns_as_own(own.rotation)) continue;
          const auto same = std::find_if(found.begin(), found.end(), [&](const Yarn& other) {
            return other.rotation.is_near(own.rotation, measured.position());
          });
          if (same == found.end())
            found.push_back(std::move(own));
          else if (same->factor != factor)
            same->factor = 0;
          else if (same->is_rounded == is_rounded)
            same->contexts.push_back(context);
        }
  return found;
}

void add_yarn(const Operands& o, const Measured& measured, HypothesisList& list) {
  for (const Yarn& own : yarns_of(o, measured))
    if (own.factor > 0) add_rotation(o, own.text(), own.rotation, list);
}

// ---- some columns only ---------------------------------------------------------------------------------------------

void add_partial(const Operands& o, const Measured& measured, HypothesisList& list) {
  const std::int64_t h = params_of(o).head_dim;
  const double theta = params_of(o).theta;
  for (const std::int64_t n : {h / 4, h / 2, h / 4 * 3}) {
    if (n < 2 || n % 2 != 0 || n >= h) continue;
    const std::string first = fmt::format("only the first {} of {} columns of a head are rotated", n, h);
    const auto add = [&](std::string text, double base) {
      list.add(StepCause::rotation, std::move(text), rotated(o, 0, {.theta = base, .columns = n}));
    };
    add(fmt::format("{}, by the angles of a head of {}", first, n), theta);
    add(first, std::pow(theta, static_cast<double>(n) / static_cast<double>(h)));
    for (const std::int64_t size : {h, n}) {
      Rotation rotation = by_theta(theta, host::at(h / 2), static_cast<double>(size));
      std::fill(rotation.turns.begin() + n / 2, rotation.turns.end(), 0.0);
      if (!measured.fits(rotation)) continue;
      add_rotation(o,
                   fmt::format("only the first {} of {} pairs of a head are rotated{}", n / 2, h / 2,
                               size == h ? "" : fmt::format(", by the angles of a head of {}", n)),
                   rotation, list);
    }
  }
}

// ---- positions -----------------------------------------------------------------------------------------------------

void add_positions(const Operands& o, const FailingUnits& failing, const Measured& measured, HypothesisList& list) {
  const double theta = params_of(o).theta;
  const int first = o.c.first_position, first_wrong = o.position(*failing[0]);
  // One row alone that starts again turns by nothing, as one that is not rotated does.
  if (failing.size() == 1 && (o.c.a.shape[0] == 1 ? first > 0 : first_wrong > std::max(first, 1)))
    list.add(StepCause::shifted_position, "rotated as at position 0: not at all, or the positions start again",
             [o](const StepUnit& unit) { return heads_of(o, unit); });
  else
    list.add(StepCause::skipped, "not rotated", [o](const StepUnit& unit) { return heads_of(o, unit); });
  if (first > 1 && o.c.a.shape[0] > 1)
    list.add(StepCause::shifted_position, "the positions start again at 0 with the chunk", rotated(o, -first, {theta}));
  if (failing.size() > 1 && first_wrong > std::max(first, 1))
    list.add(StepCause::shifted_position, fmt::format("the positions start again at 0 after every {}", first_wrong),
             [o, theta, first_wrong](const StepUnit& unit) {
               return host::rope(heads_of(o, unit), params_of(o).head_dim, o.position(unit) % first_wrong, {theta});
             });
  list.add(StepCause::shifted_position, "rotated by the angle of the position before", rotated(o, -1, {theta}));
  list.add(StepCause::shifted_position, "rotated by the angle of the position after", rotated(o, 1, {theta}));
  const auto offset = measured.offset();
  if (!offset || std::abs(*offset) < 2 || !has_several_positions(o, failing)) return;
  list.add(
      StepCause::shifted_position,
      fmt::format("rotated by the angle of the position {} {} it", std::abs(*offset), *offset < 0 ? "before" : "after"),
      rotated(o, *offset, {theta}));
}

// ---- named variants ------------------------------------------------------------------------------------------------

// The frequency that explains the lane's angle best, among those up to two units in the last place from `inverse`:
// libraries do not round powers exactly.
float fitted(float inverse, double position, double angle) {
  const auto off = [&](float x) { return std::fabs(std::remainder(position * double{x} - angle, 2 * pi)); };
  float best = inverse;
  for (const float towards : {0.0F, 2.0F}) {
    float other = inverse;
    for (int units = 0; units < 2; ++units) {
      other = std::nextafter(other, towards);
      if (off(other) < off(best)) best = other;
    }
  }
  return best;
}

void add_variants(const Operands& o, const Measured& measured, HypothesisList& list) {
  const RopeParams& params = params_of(o);
  for (const RopeAngles angles : {RopeAngles::exact, RopeAngles::multiplied})
    list.add(StepCause::variant, text_of(angles), rotated(o, 0, {.theta = params.theta, .angles = angles}));
  std::vector<float> inverses = host::inverse_frequencies(params.head_dim, params.theta);
  for (std::size_t i = 1; i < inverses.size(); ++i)
    inverses[i] = fitted(inverses[i], measured.position(), measured.angle(i));
  for (const RopeAngles angles : {RopeAngles::f32, RopeAngles::f32_bf16})
    list.add(StepCause::variant, text_of(angles), [o, inverses, angles](const StepUnit& unit) {
      const std::vector<host::Turn> turns =
          host::turns_in_f32(inverses, static_cast<double>(o.position(unit)), angles == RopeAngles::f32_bf16);
      return host::turned(heads_of(o, unit), params_of(o).head_dim, turns, host::RopePairs::halves);
    });
}

}  // namespace

void add_rope_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const double theta = params_of(o).theta;
  const Measured measured(o, farthest(o, failing));
  add_positions(o, failing, measured, list);
  add_variants(o, measured, list);
  list.add(StepCause::permutation, "rotates pairs (2i, 2i + 1) instead of (i, i + h/2)",
           rotated(o, 0, {.theta = theta, .pairs = host::RopePairs::neighbours}));
  std::vector<double> thetas(well_known_thetas.begin(), well_known_thetas.end());
  if (const auto fitted = fitted_theta(o, *failing[0])) thetas.push_back(*fitted);
  for (double other : thetas)
    if (other != theta && turns_the_same_pairs(o, failing, other))
      list.add(StepCause::rope_theta, fmt::format("rotated with theta {:.6g} instead of {:.6g}", other, theta),
               rotated(o, 0, {other}));
  constexpr std::size_t least_pairs = 3;
  if (measured.own().turns.size() < least_pairs) return;
  Rotation other_way = measured.own();
  for (double& turn : other_way.turns) turn = -turn;
  add_rotation(o, "rotated the other way", other_way, list);
  add_divided_positions(o, failing, measured, list);
  add_partial(o, measured, list);
  add_yarn(o, measured, list);
}

}  // namespace moe_diag
