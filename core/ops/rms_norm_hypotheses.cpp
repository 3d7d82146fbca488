// SPDX-License-Identifier: MIT
// The mistakes of a norm: parts left out, other formulas, and another eps, which is solved from what the lane wrote.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/ops/rms_norm.hpp"
#include "core/ops/sizes.hpp"

namespace moe_diag {
namespace {

using host::Values;

constexpr double largest_eps = 0.1;      // in use
constexpr double nearest_factor = 1e-3;  // a factor so near to 1 is of no mistake but another eps

const RmsNormParams& params_of(const Operands& o) { return o.step.as<RmsNormParams>(); }
Values weight_of(const Operands& o) { return host::decode_row(host::Matrix(*o.step.weights[0]), 0); }

// The values that a unit is the norm of.
Values read_by(const Operands& o, const StepUnit& unit) {
  const Values row = o.input(0, unit);
  const auto from = row.begin() + params_of(o).offset;
  return {from, from + unit.size};
}

// ---- eps -----------------------------------------------------------------------------------------------------------

// A group of values that is normalised by itself.
struct Group {
  double mean_square = 0;  // of the values read
  double factor = 0;       // that the lane multiplied them with, beside the weight
  double expected = 0;     // relative error of that factor

  double eps() const { return 1 / (factor * factor) - mean_square; }
  double error_of_eps() const { return 2 * expected / (factor * factor); }
  // How far the factor is from another one, in expected errors.
  double off(double other) const { return std::fabs(factor / other - 1) / expected; }
};

std::vector<Group> groups_of(const Operands& o, const FailingUnits& failing) {
  const Values w = weight_of(o);
  std::vector<Group> groups;
  for (const StepUnit* unit : failing) {
    const Values x = read_by(o, *unit);
    for (std::size_t first = 0; first + w.size() <= x.size(); first += w.size()) {
      double squares = 0, along = 0, all = 0;
      for (std::size_t i = 0; i < w.size(); ++i) {
        const double weighted = x[first + i] * w[i];
        squares += x[first + i] * x[first + i];
        along += weighted * value_at(o.c.a, unit->in_a(static_cast<std::int64_t>(first + i)));
        all += weighted * weighted;
      }
      if (all > 0) groups.push_back({squares / static_cast<double>(w.size()), along / all, unit->expected});
    }
  }
  return groups;
}

// The eps of all groups, each counted by how well it tells.
struct Eps {
  double value = 0, error = 0;
};

std::optional<Eps> fitted_eps(const std::vector<Group>& groups) {
  double sum = 0, weights = 0, error = INFINITY;
  for (const Group& group : groups) {
    if (!(group.factor > 0)) return std::nullopt;
    const double own = group.error_of_eps();
    sum += group.eps() / (own * own);
    weights += 1 / (own * own);
    error = std::min(error, 2 * own);
  }
  const Eps eps{sum / weights, error};
  if (!(eps.value + eps.error >= 0) || eps.value > largest_eps) return std::nullopt;
  return eps;
}

// An eps and its name.
struct NamedEps {
  double value = 0;
  std::string text;
  bool is_well_known = false;
};

// The one well-known value within the error, or the fitted one to three digits. Where several are within it, the eps is
// too small to be told from none.
NamedEps named(const Eps& eps) {
  constexpr std::array well_known{0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2};
  std::vector<double> near;
  for (const double value : well_known)
    if (std::fabs(value - eps.value) <= eps.error) near.push_back(value);
  if (near.size() == 1) return {near[0], fmt::format("{:.6g}", near[0]), true};
  const double value = std::max(eps.value, 0.0);
  if (near.size() > 1) return {value, fmt::format("at most {:.1g}", value + eps.error), false};
  return {value, fmt::format("{:.3g}", value), false};
}

// Whether another eps explains the factors of all groups, and no common factor does: of that, one group, or several of
// one size, say nothing. A well-known eps that all of several groups have is no coincidence, when the factor is near 1.
bool is_evident(const std::vector<Group>& groups, const NamedEps& eps, double own_eps) {
  constexpr double explained = 4, told = 3;  // expected errors of a factor
  if (groups.size() < 2) return false;
  double common = 0;
  for (const Group& group : groups) common += group.factor * std::sqrt(group.mean_square + own_eps);
  common /= static_cast<double>(groups.size());
  double by_eps = 0, by_factor = 0;
  for (const Group& group : groups) {
    by_eps = std::max(by_eps, group.off(1 / std::sqrt(group.mean_square + eps.value)));
    by_factor = std::max(by_factor, group.off(common / std::sqrt(group.mean_square + own_eps)));
  }
  if (!(by_eps <= explained)) return false;
  return by_factor > told * std::max(by_eps, 1.0) || (eps.is_well_known && std::fabs(common - 1) < nearest_factor);
}

void add_eps(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const double own = params_of(o).eps;
  const std::vector<Group> groups = groups_of(o, failing);
  const auto fitted = fitted_eps(groups);
  if (!fitted || std::fabs(fitted->value - own) <= fitted->error) return;
  const NamedEps eps = named(*fitted);
  if (!is_evident(groups, eps, own)) return;
  list.add(StepCause::eps, fmt::format("computed with an eps of {} instead of {:.6g}", eps.text, own),
           [o, value = eps.value](const StepUnit& unit) {
             return host::rms_norm(read_by(o, unit), weight_of(o), {value, true});
           });
}

// ---- other formulas ------------------------------------------------------------------------------------------------

void add_formulas(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const auto add = [&](std::string text, host::NormOptions options) {
    options.eps = params_of(o).eps;
    list.add(StepCause::function, std::move(text),
             [o, options](const StepUnit& unit) { return host::rms_norm(read_by(o, unit), weight_of(o), options); });
  };
  add("multiplied by the weight + 1", {.plus_one = true});
  add("a layer norm: the mean is subtracted first", {.centred = true});
  const std::int64_t width = params_of(o).width, size = failing[0]->size;
  if (width >= size || size % width != 0) return;
  add(fmt::format("one norm over all {} heads instead of one for each", size / width), {.whole_row = true});
}

}  // namespace

void add_norm_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const auto norm = [o](bool normalise, bool weigh) {
    return [o, normalise, weigh](const StepUnit& unit) {
      const Values w = weigh ? weight_of(o) : Values(host::at(params_of(o).width), 1);
      return host::rms_norm(read_by(o, unit), w, {params_of(o).eps, normalise});
    };
  };
  list.add(StepCause::skipped, "not normalised: only multiplied by the weight", norm(false, true));
  list.add(StepCause::skipped, "normalised, but not multiplied by the weight", norm(true, false));
  list.add(StepCause::skipped, "the norm was left out: the input passed through", norm(false, false));
  add_formulas(o, failing, list);
  add_eps(o, failing, list);
}

bool may_be_eps(const StepCase& c, const FailingUnits& failing, double factor) {
  if (std::fabs(factor - 1) < nearest_factor) return true;
  if (!c.in[0]) return true;
  double eps = -1;
  for (const StepUnit* unit : failing) {
    const std::int64_t input = std::int64_t{unit->row} * c.in[0].shape.row() + c.step->as<RmsNormParams>().offset;
    const std::int64_t width = c.step->as<RmsNormParams>().width;
    for (std::int64_t first = 0; first < unit->size; first += width) {
      double squares = 0;
      for (std::int64_t i = 0; i < width; ++i) squares += std::pow(value_at(c.in[0], input + first + i), 2);
      squares /= static_cast<double>(width);
      if (eps < 0) eps = (squares + c.step->as<RmsNormParams>().eps) / (factor * factor) - squares;
      if (!(eps >= 0) || eps > largest_eps) return false;
      const double own = std::sqrt((squares + c.step->as<RmsNormParams>().eps) / (squares + eps));
      if (std::fabs(own - factor) > explained_error * unit->expected * std::fabs(factor)) return false;
    }
  }
  return true;
}

}  // namespace moe_diag
