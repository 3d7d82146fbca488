// SPDX-License-Identifier: MIT
#include "core/compare/explain_step.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "core/compare/samples.hpp"
#include "core/compare/step_units.hpp"
#include "core/ops/hypotheses.hpp"
#include "core/ops/topk.hpp"

namespace moe_diag {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

constexpr double clearly_better = 3;       // times less than without the hypothesis, or than with a simpler one
constexpr double sampled_error = 16;       // of a few elements, which vary more than a row
constexpr double budget = 1 << 24;         // multiplications to check one hypothesis with
constexpr std::size_t few_units = 3;       // looked at first, with
constexpr std::int64_t few_elements = 16;  // of each
constexpr double least_rows = 64, least_elements = 64;  // looked at then, whatever the budget
constexpr std::int64_t all_elements = std::numeric_limits<std::int64_t>::max();

// At most `count` elements of a unit: three quarters spread evenly, and the largest the lane wrote, which outweigh all
// others when a weight was read as something else.
std::vector<std::int64_t> chosen_elements(const StepCase& c, const StepUnit& unit, std::int64_t count) {
  std::vector<std::int64_t> elements(static_cast<std::size_t>(std::min(unit.size, count)));
  if (unit.size <= count) {
    std::iota(elements.begin(), elements.end(), std::int64_t{0});
    return elements;
  }
  std::vector<std::int64_t> all(static_cast<std::size_t>(unit.size));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  const auto size_of = [&](std::int64_t i) {
    const double a = std::fabs(value_at(c.a, unit.in_a(i)));
    return std::isfinite(a) ? a : 0;
  };
  const auto largest = all.begin() + count / 4;
  std::partial_sort(all.begin(), largest, all.end(),
                    [&](std::int64_t i, std::int64_t j) { return size_of(i) > size_of(j); });
  std::copy(all.begin(), largest, elements.begin());
  const std::int64_t even = count - count / 4;
  for (std::int64_t i = 0; i < even; ++i) elements[static_cast<std::size_t>(count / 4 + i)] = i * unit.size / even;
  std::sort(elements.begin(), elements.end());
  elements.erase(std::unique(elements.begin(), elements.end()), elements.end());
  return elements;
}

// At most `count` of the units, the first and the last among them.
FailingUnits evenly(const FailingUnits& units, std::size_t count) {
  if (units.size() <= count) return units;
  FailingUnits some;
  for (std::size_t i = 0; i < count; ++i) some.push_back(units[i * (units.size() - 1) / (count - 1)]);
  return some;
}

// The unit with the largest value the lane wrote.
const StepUnit& loudest(const StepCase& c, const FailingUnits& units) {
  const StepUnit* found = units[0];
  double most = 0;
  for (const StepUnit* unit : units)
    for (std::int64_t i = 0; i < unit->size; ++i) {
      const double a = std::fabs(value_at(c.a, unit->in_a(i)));
      if (!(a > most) || !std::isfinite(a)) continue;
      most = a;
      found = unit;
    }
  return *found;
}

// A coarser type that all values the lane wrote are exact in, though its numerics need not be.
struct Storage {
  host::Rounding type;
  int bits, lowest;  // of the significand; exponent of the smallest normal number

  // How far a value may have been from what it was rounded to.
  double half_step(double stored) const {
    if (stored == 0 || !std::isfinite(stored)) return 0;
    return std::ldexp(0.5, std::max(std::ilogb(stored), lowest) - (bits - 1));
  }
};

std::optional<Storage> storage_of(const StepCase& c, const FailingUnits& units) {
  constexpr std::int64_t least_values = 64;  // that are not exact in it by chance
  if (c.a.dtype != DType::f32) return std::nullopt;
  for (const Storage& storage : {Storage{host::Rounding::bf16, 8, -126}, Storage{host::Rounding::f16, 11, -14}}) {
    std::int64_t count = 0;
    bool exact = true;
    for (const StepUnit* unit : units)
      for (std::int64_t i = 0; exact && i < unit->size; ++i) {
        const double a = value_at(c.a, unit->in_a(i));
        if (a == 0 || !std::isfinite(a)) continue;
        exact = host::rounded(host::Values{a}, storage.type)[0] == a;
        ++count;
      }
    if (exact && count >= least_values && differs_where_finite(c, units)) return storage;
  }
  return std::nullopt;
}

// The error of a unit. With a storage, of what is left when each value that the lane wrote is taken back, within half a
// step of its type, to the one that is predicted.
double error_of_unit(const StepCase& c, const StepUnit& unit, const std::vector<std::int64_t>& elements,
                     std::span<const double> predicted, const std::optional<Storage>& storage) {
  if (!storage) return error_of(c, unit, elements, predicted);
  host::Values reached(predicted.begin(), predicted.end());
  for (std::size_t k = 0; k < elements.size(); ++k) {
    const double a = value_at(c.a, unit.in_a(elements[k])), half = storage->half_step(a);
    if (std::isfinite(reached[k])) reached[k] = std::clamp(a, reached[k] - half, reached[k] + half);
  }
  return error_of(c, unit, elements, reached);
}

// Error of each unit under the hypothesis, in expected errors, over at most `count` elements.
std::vector<double> errors_of(const StepCase& c, const Hypothesis& h, const FailingUnits& units, std::int64_t count,
                              const std::optional<Storage>& storage) {
  std::vector<double> errors;
  if (h.row) {
    for (const StepUnit* unit : units) {
      const host::Values all = h.row(*unit);
      if (static_cast<std::int64_t>(all.size()) != unit->size) return std::vector<double>(units.size(), infinity);
      const auto elements = chosen_elements(c, *unit, count);
      host::Values chosen;
      for (std::int64_t i : elements) chosen.push_back(all[static_cast<std::size_t>(i)]);
      errors.push_back(error_of_unit(c, *unit, elements, chosen, storage));
    }
    return errors;
  }
  const auto elements = chosen_elements(c, loudest(c, units), count);
  const host::Values values = h.elements(units, elements);
  for (std::size_t i = 0; i < units.size(); ++i)
    errors.push_back(error_of_unit(c, *units[i], elements,
                                   std::span(values).subspan(i * elements.size(), elements.size()), storage));
  return errors;
}

// Whether a few elements of a few units rule nothing out. Nearly all hypotheses end here, at the first unit.
bool may_explain(const StepCase& c, const Hypothesis& h, const FailingUnits& units,
                 const std::optional<Storage>& storage) {
  const FailingUnits few = evenly(units, few_units);
  std::vector<std::int64_t> elements;
  if (!h.row) elements = chosen_elements(c, loudest(c, few), few_elements);
  return std::all_of(few.begin(), few.end(), [&](const StepUnit* unit) {
    if (h.row) return errors_of(c, h, {unit}, few_elements, storage)[0] <= sampled_error;
    return error_of_unit(c, *unit, elements, h.elements({unit}, elements), storage) <= sampled_error;
  });
}

double rms(const std::vector<double>& errors) {
  double squares = 0;
  for (double e : errors) squares += e * e;
  return std::sqrt(squares / static_cast<double>(errors.size()));
}

double rms_before(const StepCase& c, const FailingUnits& units, const std::optional<Storage>& storage) {
  std::vector<double> errors;
  for (const StepUnit* unit : units) {
    errors.push_back(unit->error);
    if (!storage || !std::isfinite(unit->error)) continue;
    std::vector<std::int64_t> elements(static_cast<std::size_t>(unit->size));
    std::iota(elements.begin(), elements.end(), std::int64_t{0});
    host::Values right;
    for (const std::int64_t i : elements) right.push_back(value_at(c.b, unit->in_b(i)));
    errors.back() = error_of_unit(c, *unit, elements, right, storage);
  }
  return rms(errors);
}

// What is left of the error when the hypothesis explains every unit; nothing when it does not.
std::optional<double> left_by(const StepCase& c, const Hypothesis& h, const FailingUnits& units,
                              const std::optional<Storage>& storage = std::nullopt) {
  const auto within = [](const std::vector<double>& errors, double bound) {
    return std::all_of(errors.begin(), errors.end(), [bound](double e) { return e <= bound; });
  };
  if (!may_explain(c, h, units, storage)) return std::nullopt;
  const double affordable = budget / h.work;  // elements
  std::vector<double> errors;
  if (h.row) {
    const double longest = static_cast<double>(units.back()->size);
    errors = errors_of(c, h, evenly(units, static_cast<std::size_t>(std::max(least_rows, affordable / longest))),
                       all_elements, storage);
  } else {
    const double each = affordable / static_cast<double>(units.size());
    errors = errors_of(c, h, units, static_cast<std::int64_t>(std::max(least_elements, each)), storage);
  }
  if (!within(errors, explained_error) || rms(errors) * clearly_better > rms_before(c, units, storage))
    return std::nullopt;
  return rms(errors);
}

// The simplest hypothesis that explains the units; `result` as it is when none does.
void choose(const StepCase& c, const FailingUnits& failing, std::vector<Hypothesis> all,
            const std::optional<Storage>& storage, StepExplanation& result) {
  std::stable_sort(all.begin(), all.end(), [](const auto& x, const auto& y) { return x.cause < y.cause; });
  bool named = false;
  for (const Hypothesis& h : all) {
    const auto left = left_by(c, h, failing, storage);
    if (!left) continue;
    if (named && (result.left <= 1 || *left * clearly_better > result.left)) continue;
    named = true;
    result.cause = h.cause;
    result.text = h.text;
    result.factor = h.factor;
    result.left = *left;
  }
}

void append(std::vector<Hypothesis> more, std::vector<Hypothesis>& all) {
  std::move(more.begin(), more.end(), std::back_inserter(all));
}

// The units of one part that fail, and what explains them.
StepExplanation explain_part(const StepKnowledge& known, const FailingUnits& failing) {
  const StepCase& c = known.step_case;
  StepExplanation result;
  result.cause = StepCause::plain_operator;
  result.error = result.left = rms_before(c, failing, std::nullopt);
  for (const StepUnit* unit : failing) result.expected = std::max(result.expected, unit->expected);
  std::vector<Hypothesis> all = value_hypotheses(known, failing);
  append(weight_hypotheses(known, failing), all);
  append(operator_hypotheses(known, failing), all);
  choose(c, failing, std::move(all), std::nullopt, result);
  if (result.cause != StepCause::plain_operator) return result;

  // Another computation whose result is rounded when it is stored. Values that rounding alone may explain show none.
  const auto storage = storage_of(c, failing);
  if (!storage || !(rms_before(c, failing, storage) > failing_error)) return result;
  all = weight_hypotheses(known, failing);
  append(operator_hypotheses(known, failing), all);
  choose(c, failing, std::move(all), storage, result);
  if (result.cause != StepCause::plain_operator)
    result.text += fmt::format("; the values written are rounded to {}", names_of(storage->type));
  return result;
}

// Several parts of one step are one cause only when it is the same for all.
StepExplanation joined(StepExplanation first, const StepExplanation& second) {
  first.error = std::max(first.error, second.error);
  if (first.cause != second.cause) {
    first.cause = StepCause::plain_operator;
    first.text.clear();
    first.left = first.error;
    return first;
  }
  first.left = std::max(first.left, second.left);
  if (first.text != second.text) first.text += "; " + second.text;
  return first;
}

constexpr double largest_f16 = 65504;

// Says of values that are not finite just where F16 ends that it does: where the right ones are beyond it, or where a
// product's inputs are. Empty where that is not so, or somewhere else as well.
std::string overflow_text(const StepKnowledge& known, const std::vector<StepUnit>& units) {
  const StepCase& c = known.step_case;
  const bool has_inputs = is_product(operator_of(known.step())) && c.in[0];
  bool of_output = true, of_input = has_inputs;
  double output = 0, input = 0;
  for (const StepUnit& unit : units) {
    bool overflowed = false;
    for (std::int64_t i = 0; i < unit.size; ++i) {
      const double b = std::fabs(value_at(c.b, unit.in_b(i)));
      const bool finite = is_finite(value_at(c.a, unit.in_a(i)));
      overflowed = overflowed || !finite;
      of_output = of_output && finite == (b <= largest_f16);
      output = std::max(output, b);
    }
    if (!has_inputs) continue;
    double largest = 0;
    for (const double x : input_of(known, unit, known.step().weights[unit.part]->cols))
      largest = std::max(largest, std::fabs(x));
    of_input = of_input && overflowed == (largest > largest_f16);
    input = std::max(input, largest);
  }
  if (of_output && output > largest_f16)
    return fmt::format("F16 ends at 65504, and the values that are not finite reach {:.4g}", output);
  if (of_input && input > largest_f16)
    return fmt::format("F16 ends at 65504, and the inputs of the rows that are not finite reach {:.4g}", input);
  return "";
}

// Experts chosen have no error of their own: a row fails when they are others.
StepExplanation explain_choice(const StepCase& c, const ModelConfig& config) {
  StepExplanation result;
  FootprintMaker footprint;
  bool without_best = true;
  for (int row = 0; row < static_cast<int>(c.a.shape[0]); ++row) {
    const int flips = routing_flips(c.a, c.b, row, config.experts);
    footprint.add_choice(c.first_position + row, flips, config.used);
    if (flips > 0) without_best = without_best && chose_without_best(c, config, row);
  }
  result.footprint = footprint.made();
  if (result.footprint.wrong == 0) return result;
  result.cause = without_best ? StepCause::dropped_expert : StepCause::plain_operator;
  if (without_best) result.text = "the best expert was passed over, the next ones chosen";
  return result;
}

// Which of several steps is wrong does not show in what the last of them gives.
StepExplanation explain_together(std::span<const Step> steps) {
  const std::string_view first = name_of(steps.front().out[0]), last = name_of(steps.back().out[0]);
  StepExplanation result;
  result.cause = StepCause::plain_operator;
  result.text = fmt::format("one kernel computes {0} to {1}: `moe-diag cases` with --span {0}..{1} looks into it alone",
                            first, last);
  return result;
}

bool have_same_factor(const StepExplanation& x, const StepExplanation& y) {
  constexpr double same_factor = 1e-3, errors = 4;
  const double reach = std::max(same_factor, errors * std::max(x.expected, y.expected));
  return std::fabs(x.factor - y.factor) <= reach * std::fabs(x.factor);
}

// A cause that does not explain all is none.
void take_back(StepExplanation& first, const std::string& fits) {
  first.text = fmt::format("nothing tried explains all of it: {}{}{} fits {}", name_of(first.cause),
                           first.text.empty() ? "" : ", ", first.text, fits);
  first.cause = StepCause::plain_operator;
  first.factor = 1;
}

}  // namespace

StepExplanation explain_step(const StepCase& c, const Model& model, const Program& program) {
  if (payload_of(c.stage) == Payload::indices) {
    check_case(c, model.config());
    return explain_choice(c, model.config());
  }
  const StepKnowledge known{c, model.config(), program};
  const std::vector<StepUnit> units = units_of(c, model.config());
  std::map<std::size_t, FailingUnits> parts;
  for (const StepUnit& unit : units)
    if (unit.fails) parts[unit.part].push_back(&unit);
  StepExplanation result;
  if (c.together.size() > 1) {
    result = explain_together(c.together);
    parts.clear();
  }
  for (const auto& [part, failing] : parts) {
    StepExplanation own = explain_part(known, failing);
    result = result.cause == StepCause::none ? std::move(own) : joined(std::move(result), own);
  }
  if (result.cause == StepCause::plain_operator && std::isinf(result.error)) result.text = overflow_text(known, units);
  FootprintMaker footprint;
  footprint.add(c, units);
  result.footprint = footprint.made();
  return result;
}

void add_later_pass(StepExplanation& first, const StepExplanation& later, int position) {
  const bool has_name = first.cause != StepCause::none && first.cause != StepCause::plain_operator;
  if (!has_name || later.cause == StepCause::none || (later.cause == first.cause && later.text == first.text)) return;
  if (first.text.find("from position ") != std::string::npos) return;  // one later pass is enough to say so
  if (later.cause == first.cause && have_same_factor(first, later)) {
    if (first.factor != 1) return;  // the same, but for what rounding makes of it
    first.text += fmt::format("; from position {} on, {}", position, later.text);
    return;
  }
  take_back(first, fmt::format("one pass, and not the values from position {} on", position));
}

void add_other_prompt(StepExplanation& first, const StepExplanation& other, const std::string& id) {
  const bool has_name = first.cause != StepCause::none && first.cause != StepCause::plain_operator;
  if (!has_name || other.cause == StepCause::none) return;
  if (other.cause != first.cause || !have_same_factor(first, other))
    take_back(first, fmt::format("this prompt, and not the values of prompt {}", id));
}

}  // namespace moe_diag
