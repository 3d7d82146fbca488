// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "core/ops/hypotheses.hpp"
#include "core/ops/matrix.hpp"
#include "core/text/numbers.hpp"

namespace moe_diag {
namespace {

using host::Matrix;
using host::Values;
using Elements = std::span<const std::int64_t>;
using MatrixOf = std::function<Matrix(const StepUnit&)>;  // what a unit is computed with
using Change = std::function<Values(const Values&)>;      // of what is multiplied; empty: none

constexpr std::int64_t few_elements = 4;  // that tell one expert's weights from another's
constexpr std::size_t few_units = 3;
constexpr std::size_t most_named = 4;  // experts in a text
constexpr std::size_t most_ties = 8;   // activations of one unit that are next to a border of their rounding

// What the step itself reads of a unit's expert, or of another one's.
Matrix own_matrix(const Weight& weight, const StepUnit& unit) { return Matrix(weight, std::max(unit.expert, 0)); }

// Chosen elements of units that read one matrix: its rows are decoded once.
Values products(const StepKnowledge& known, const Matrix& matrix, const FailingUnits& units, Elements elements,
                const Change& activations, const Change& weights) {
  const std::int64_t cols = matrix.weight->cols;
  std::vector<Values> x;
  for (const StepUnit* unit : units) {
    x.push_back(input_of(known, *unit, cols));
    if (activations) x.back() = activations(x.back());
  }
  Values out(units.size() * elements.size());
  const Weight* bias = known.step().bias(units[0]->part);
  const Values added = bias ? host::decode_row(Matrix(*bias), 0) : Values();
  for (std::size_t j = 0; j < elements.size(); ++j) {
    Values row = host::decode_row(matrix, elements[j]);
    if (weights) row = weights(row);
    const double constant = bias ? added[static_cast<std::size_t>(elements[j])] : 0;
    for (std::size_t i = 0; i < units.size(); ++i) out[i * elements.size() + j] = host::dot(row, x[i]) + constant;
  }
  return out;
}

// The same of units that read several.
Values all_products(const StepKnowledge& known, const MatrixOf& matrix_of, const FailingUnits& units, Elements elements,
                    const Change& activations, const Change& weights) {
  std::map<std::pair<const Weight*, std::int64_t>, std::vector<std::size_t>> together;
  for (std::size_t i = 0; i < units.size(); ++i) {
    const Matrix matrix = matrix_of(*units[i]);
    together[{matrix.weight, matrix.expert}].push_back(i);
  }
  Values out(units.size() * elements.size());
  for (const auto& [key, members] : together) {
    FailingUnits some;
    for (std::size_t i : members) some.push_back(units[i]);
    const Values values = products(known, matrix_of(*some[0]), some, elements, activations, weights);
    for (std::size_t m = 0; m < members.size(); ++m)
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(m * elements.size()), elements.size(),
                  out.begin() + static_cast<std::ptrdiff_t>(members[m] * elements.size()));
  }
  return out;
}

// The output of a unit when its operator reads that matrix.
Hypothesis with_matrix(const StepKnowledge& known, StepCause cause, std::string text, const MatrixOf& matrix_of) {
  Hypothesis h{cause, std::move(text)};
  const Operator& op = operator_of(known.step());
  if (!is_product(op)) {
    h.row = [&known, &op, matrix_of](const StepUnit& unit) {
      return op.with_matrix(known.step_case, unit, matrix_of(unit));
    };
    return h;
  }
  h.work = static_cast<double>(known.step().weights[0]->cols);
  h.elements = [&known, matrix_of](const FailingUnits& units, Elements elements) {
    return all_products(known, matrix_of, units, elements, {}, {});
  };
  return h;
}

bool same_shape(const Weight& a, const Weight& b) {
  return a.cols == b.cols && a.rows == b.rows && a.experts == b.experts;
}

// The same-named tensors of other layers, then the others of this layer, then those of no layer.
std::vector<const Weight*> tensors_alike(const StepKnowledge& known, const Weight& own, std::size_t part) {
  std::vector<const Weight*> same_name, same_layer, of_model;
  const Step& step = known.step();
  for (const Step& other : known.program)
    for (std::size_t i = 0; i < other.weights.size(); ++i) {
      const Weight* weight = other.weights[i];
      if (weight == &own || !same_shape(*weight, own)) continue;
      if (other.layer == step.layer)
        same_layer.push_back(weight);
      else if (other.layer < 0 || step.layer < 0)
        of_model.push_back(weight);
      else if (other.out[0] == step.out[0] && i == part)
        same_name.push_back(weight);
    }
  same_name.insert(same_name.end(), same_layer.begin(), same_layer.end());
  same_name.insert(same_name.end(), of_model.begin(), of_model.end());
  return same_name;
}

// ---- experts -------------------------------------------------------------------------------------------------------

// Elements spread evenly over `size`, at most `count`.
std::vector<std::int64_t> spread(std::int64_t size, std::int64_t count) {
  std::vector<std::int64_t> elements;
  for (std::int64_t i = 0; i < std::min(size, count); ++i) elements.push_back(i * size / std::min(size, count));
  return elements;
}

// Which expert's weights gave what each failing expert's slots hold.
class ExpertSearch {
 public:
  ExpertSearch(const StepKnowledge& known, const Weight& weight, const FailingUnits& failing)
      : known_(known), weight_(weight), elements_(spread(weight.rows, few_elements)) {
    for (const StepUnit* unit : failing)
      if (units_[unit->expert].size() < few_units) units_[unit->expert].push_back(unit);
  }

  // By failing expert; empty when one's values are no other expert's.
  std::map<int, int> find() const {
    std::map<int, int> found;
    std::int64_t shift = 1;
    for (const auto& [expert, units] : units_) {
      const auto guess = static_cast<int>((expert + shift) % weight_.experts);
      std::optional<int> used = gives(guess, units) ? std::optional(guess) : std::nullopt;
      for (int other = 0; !used && other < weight_.experts; ++other)
        if (other != expert && gives(other, units)) used = other;
      if (!used) return {};
      found[expert] = *used;
      shift = (*used - expert + weight_.experts) % weight_.experts;
    }
    return found;
  }

 private:
  bool gives(int expert, const FailingUnits& units) const {
    for (std::int64_t element : elements_) {  // one by one: nearly all experts are ruled out by the first
      const std::span<const std::int64_t> one(&element, 1);
      const Values values = products(known_, Matrix(weight_, expert), units, one, {}, {});
      for (std::size_t i = 0; i < units.size(); ++i) {
        const double a = value_at(known_.step_case.a, units[i]->in_a(element));
        if (!(std::fabs(a - values[i]) <= units[i]->tolerance(explained_error, std::fabs(values[i])))) return false;
      }
    }
    return true;
  }

  const StepKnowledge& known_;
  const Weight& weight_;
  std::vector<std::int64_t> elements_;
  std::map<int, FailingUnits> units_;
};

// One difference of ids when all have it; over the end only when some have it that way.
std::string experts_text(const std::map<int, int>& used, std::int64_t experts) {
  const auto all_differ_by = [&](auto difference) {
    const auto first = difference(*used.begin());
    const bool all = std::all_of(used.begin(), used.end(), [&](const auto& pair) { return difference(pair) == first; });
    return all && used.size() > 1 ? std::optional(first) : std::nullopt;
  };
  std::vector<int> ids;
  for (const auto& [expert, other] : used) ids.push_back(expert);
  const std::string who = fmt::format("experts {} computed with the weights of expert", numbers_text(ids));
  const auto signed_text = [](std::int64_t d) { return fmt::format("id {} {}", d < 0 ? '-' : '+', std::abs(d)); };
  if (const auto d = all_differ_by([](const auto& pair) { return std::int64_t{pair.second} - pair.first; }))
    return fmt::format("{} {}", who, signed_text(*d));
  if (const auto d = all_differ_by([&](const auto& pair) { return (pair.second - pair.first + experts) % experts; }))
    return fmt::format("{} ({}) mod {}", who, signed_text(*d * 2 > experts ? *d - experts : *d), experts);
  std::string text;
  std::size_t named = 0;
  for (const auto& [expert, other] : used) {
    if (named++ == most_named) return fmt::format("{}, and so on for {} experts", text, used.size());
    text += fmt::format("{}expert {} computed with the weights of expert {}", text.empty() ? "" : ", ", expert, other);
  }
  return text;
}

void add_experts(const StepKnowledge& known, const Weight& weight, const FailingUnits& failing,
                 std::vector<Hypothesis>& list) {
  if (operator_of(known.step()).weights != WeightRows::of_experts || !known.step_case.in[0]) return;
  const std::map<int, int> used = ExpertSearch(known, weight, failing).find();
  if (used.empty()) return;
  list.push_back(with_matrix(known, StepCause::wrong_tensor, experts_text(used, weight.experts),
                             [&weight, used](const StepUnit& unit) { return Matrix(weight, used.at(unit.expert)); }));
}

// ---- how the bytes are read ----------------------------------------------------------------------------------------

// Each expert's bytes as if they were the only one's: experts start where the file has them, rows lie by the type read.
std::shared_ptr<const std::vector<Weight>> experts_apart(const Weight& weight) {
  auto apart = std::make_shared<std::vector<Weight>>();
  for (std::int64_t e = 0; e < weight.experts; ++e) {
    Weight rest = weight;
    rest.data = weight.row(e, 0);
    rest.experts = weight.experts - e;
    apart->push_back(rest);
  }
  return apart;
}

void add_readings(const StepKnowledge& known, const Weight& weight, std::vector<Hypothesis>& list) {
  if (weight.rows > 1) {
    list.push_back(with_matrix(known, StepCause::transposed, fmt::format("{} read transposed", weight.name),
                               [&weight](const StepUnit& unit) {
                                 Matrix matrix = own_matrix(weight, unit);
                                 matrix.transposed = true;
                                 return matrix;
                               }));
  }
  for (const BlockInfo& other : block_table) {
    const BlockType type = other.type;
    if (type == weight.type || !host::can_read(weight, type)) continue;
    const std::string text = fmt::format("{} ({}) read as {}", weight.name, name_of(weight.type), name_of(type));
    list.push_back(with_matrix(known, StepCause::wrong_type, text, [&weight, type](const StepUnit& unit) {
      Matrix matrix = own_matrix(weight, unit);
      matrix.type = type;
      return matrix;
    }));
    if (weight.experts == 1) continue;
    list.push_back(with_matrix(known, StepCause::wrong_type, text + " within each expert",
                               [apart = experts_apart(weight), type](const StepUnit& unit) {
                                 Matrix matrix((*apart)[static_cast<std::size_t>(unit.expert)]);
                                 matrix.type = type;
                                 return matrix;
                               }));
  }
}

// ---- what is multiplied --------------------------------------------------------------------------------------------

// An activation that may be rounded to either side, and what that changes it by.
struct Tie {
  std::size_t at = 0;
  double change = 0;
};

// The activations so close to a border between two roundings that implementations differ: some divide, some multiply by
// an inverse, which they round once or twice, and a half goes to even or away from zero.
std::vector<Tie> ties_of(const Values& x, host::Rounding rounding) {
  const Values right = host::rounded(x, rounding);
  const auto block = static_cast<std::size_t>(host::block_of(rounding));
  const double closeness =
      block == 1 ? 0x1p-40 : 0x1p-21;  // only a half itself; what inverse and product are rounded by
  std::vector<Tie> ties;
  for (const double sign : {-1.0, 1.0}) {
    Values moved = x;
    for (std::size_t first = 0; first < x.size(); first += block) {
      double largest = 0;  // the scale of the block stays
      for (std::size_t i = first; i < first + block; ++i) largest = std::max(largest, std::fabs(x[i]));
      for (std::size_t i = first; i < first + block; ++i)
        if (block == 1 || std::fabs(x[i]) < largest * (1 - 2 * closeness)) moved[i] *= 1 + sign * closeness;
    }
    const Values other = host::rounded(moved, rounding);
    for (std::size_t i = 0; i < x.size(); ++i)
      if (other[i] != right[i]) ties.push_back({i, other[i] - right[i]});
  }
  return ties;
}

// Takes the side of each tie that the lane's values are closer to.
void settle_ties(const StepKnowledge& known, const Weight& weight, host::Rounding rounding, const FailingUnits& units,
                 Elements elements, Values& out) {
  for (std::size_t u = 0; u < units.size(); ++u) {
    const StepUnit& unit = *units[u];
    const std::vector<Tie> ties = ties_of(input_of(known, unit, weight.cols), rounding);
    if (ties.empty() || ties.size() > most_ties) continue;
    const std::span<double> values = std::span(out).subspan(u * elements.size(), elements.size());
    std::vector<Values> changes(ties.size());  // of each value
    for (const std::int64_t element : elements) {
      const Values row = host::decode_row(own_matrix(weight, unit), element);
      for (std::size_t t = 0; t < ties.size(); ++t) changes[t].push_back(ties[t].change * row[ties[t].at]);
    }
    for (const Values& change : changes) {
      double kept = 0, changed = 0;
      for (std::size_t j = 0; j < elements.size(); ++j) {
        const double off = value_at(known.step_case.a, unit.in_a(elements[j])) - values[j];
        kept += off * off;
        changed += (off - change[j]) * (off - change[j]);
      }
      for (std::size_t j = 0; changed < kept && j < elements.size(); ++j) values[j] += change[j];
    }
  }
}

void add_without_bias(const StepKnowledge& known, const Weight& bias, std::vector<Hypothesis>& list) {
  Hypothesis h{StepCause::skipped, fmt::format("{} was not added", bias.name)};
  const Values added = host::decode_row(Matrix(bias), 0);
  h.row = [&known, added](const StepUnit& unit) {
    Values row(static_cast<std::size_t>(unit.size));
    for (std::size_t i = 0; i < row.size(); ++i)
      row[i] = value_at(known.step_case.b, unit.in_b(static_cast<std::int64_t>(i))) - added[i];
    return row;
  };
  list.push_back(std::move(h));
}

void add_roundings(const StepKnowledge& known, const Weight& weight, std::vector<Hypothesis>& list) {
  using host::Rounding;
  const auto add = [&](std::string text, Rounding rounding, bool of_weights) {
    Hypothesis h{StepCause::rounded_activations, std::move(text), 1, static_cast<double>(weight.cols)};
    h.elements = [&known, &weight, rounding, of_weights](const FailingUnits& units, Elements elements) {
      const Change change = [rounding](const Values& x) { return host::rounded(x, rounding); };
      Values values = all_products(
          known, [&weight](const StepUnit& unit) { return own_matrix(weight, unit); }, units, elements, change,
          of_weights ? change : Change());
      if (!of_weights) settle_ties(known, weight, rounding, units, elements, values);
      return values;
    };
    list.push_back(std::move(h));
  };
  for (const Rounding rounding : {Rounding::bf16, Rounding::f16, Rounding::q8_0, Rounding::q8_1, Rounding::q8_k}) {
    if (weight.cols % host::block_of(rounding) != 0) continue;
    add(fmt::format("activations rounded to {}", names_of(rounding)), rounding, false);
    if (host::block_of(rounding) == 1)
      add(fmt::format("activations and weights rounded to {}", names_of(rounding)), rounding, true);
  }
}

}  // namespace

host::Values input_of(const StepKnowledge& known, const StepUnit& unit, std::int64_t cols) {
  const Values row = host::values_of(known.step_case.in[0], unit.row, 1);
  const bool own = static_cast<std::int64_t>(row.size()) != cols;
  const auto from = row.begin() + (own ? unit.slot * cols : 0);
  return {from, from + cols};
}

std::vector<Hypothesis> weight_hypotheses(const StepKnowledge& known, const FailingUnits& failing) {
  std::vector<Hypothesis> list;
  const Step& step = known.step();
  const bool has_input = operator_of(step).weights == WeightRows::of_tokens
                             ? known.step_case.tokens.size() == static_cast<std::size_t>(known.step_case.a.shape[0])
                             : static_cast<bool>(known.step_case.in[0]);
  if (step.weights.size() == 0 || !has_input) return list;
  const std::size_t part = failing[0]->part;
  const Weight& weight = *step.weights[part];
  for (const Weight* other : tensors_alike(known, weight, part))
    list.push_back(with_matrix(known, StepCause::wrong_tensor,
                               fmt::format("computed with {} instead of {}", other->name, weight.name),
                               [other](const StepUnit& unit) { return own_matrix(*other, unit); }));
  add_experts(known, weight, failing, list);
  if (const Weight* bias = step.bias(part)) add_without_bias(known, *bias, list);
  add_readings(known, weight, list);
  if (!is_product(operator_of(step))) return list;
  add_roundings(known, weight, list);
  for (Hypothesis& h : product_hypotheses(known, weight, failing)) list.push_back(std::move(h));
  return list;
}

std::vector<Hypothesis> operator_hypotheses(const StepKnowledge& known, const FailingUnits& failing) {
  const Operands o{known.step_case, known.step(), known.config};
  for (std::size_t i = 0; i < o.step.in.size(); ++i)
    if (!o.c.in[i]) return {};
  HypothesisList list;
  if (const Operator& op = operator_of(o.step); op.add_hypotheses) op.add_hypotheses(o, failing, list);
  return list.take();
}

}  // namespace moe_diag
