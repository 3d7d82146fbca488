// SPDX-License-Identifier: MIT
#include "core/kernel/case_cause.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "core/api/error.hpp"
#include "core/compare/explain_step.hpp"
#include "core/kernel/allowed_error.hpp"
#include "core/kernel/mistakes.hpp"
#include "core/kernel/output_mistakes.hpp"

namespace moe_diag {
namespace {

constexpr double clearly_better = 3;    // times less than without the mistake, or than with another one
constexpr std::size_t first_rows = 16;  // that every mistake is tried on; one that explains these has to explain all
constexpr std::size_t most_named = 3;   // mistakes that explain it equally well

// A row that fails, of one of several cases, and where it stands among the values that are computed for it.
struct FailingRow {
  const JudgedCase* of = nullptr;
  std::int64_t row = 0;
  std::size_t at = 0;

  double allowed() const { return of->allowed()[static_cast<std::size_t>(row)]; }
};

std::vector<FailingRow> failing_rows_of(const std::vector<JudgedCase*>& judged) {
  std::vector<FailingRow> rows;
  for (const JudgedCase* c : judged)
    for (const std::int64_t row : c->failing_rows()) rows.push_back({c, row});
  return rows;
}

std::vector<FailingRow> evenly(const std::vector<FailingRow>& rows, std::size_t count) {
  if (rows.size() <= count) return rows;
  std::vector<FailingRow> some;
  for (std::size_t i = 0; i < count; ++i) some.push_back(rows[i * (rows.size() - 1) / (count - 1)]);
  return some;
}

bool is_finite_row(const FailingRow& r) {
  for (const JudgedVector& v : r.of->vectors)
    if (v.row == r.row && v.nonfinite > 0) return false;
  return true;
}

host::Values values_of_rows(const StoredTensor& tensor, std::int64_t count) {
  return count == 0 ? host::Values{} : host::values_of(tensor.tensor(), 0, count);
}

// The values of all rows up to the last that fails: in a span with caches each reads those before it. Cases of one
// layer whose caches hold as many positions have the same rows.
SpanValues values_up_to_last(const Span& span, const ModelConfig& config, std::vector<FailingRow>& rows) {
  const FailingRow& last =
      *std::max_element(rows.begin(), rows.end(), [](const auto& x, const auto& y) { return x.row < y.row; });
  const JudgedCase& of = *last.of;
  SpanValues values;
  for (std::int64_t r = 0; r <= last.row; ++r) values.positions.push_back(of.of->first + static_cast<int>(r));
  for (const Site& site : span.inputs)
    values.of[site.stage] = values_of_rows(*of.input(name_of(site.stage)), values.rows());
  for (const SpanCache& cache : span.caches)
    values.earlier[cache.cache.index()] = values_of_rows(*of.input(name_of(cache.cache)), of.of->first);
  for (FailingRow& r : rows) r.at = static_cast<std::size_t>(r.row);
  compute_steps(span, config, 0, values);
  return values;
}

// The values that the steps make of the rows' inputs.
SpanValues right_values(const Span& span, const ModelConfig& config, std::vector<FailingRow>& rows) {
  if (!span.caches.empty()) return values_up_to_last(span, config, rows);
  SpanValues values;
  for (FailingRow& r : rows) {
    r.at = values.positions.size();
    values.positions.push_back(r.of->of->first + static_cast<int>(r.row));
  }
  for (const Site& site : span.inputs)
    for (const FailingRow& r : rows) {
      const host::Values one = host::values_of(r.of->input(name_of(site.stage))->tensor(), r.row, 1);
      host::Values& all = values.of[site.stage];
      all.insert(all.end(), one.begin(), one.end());
    }
  compute_steps(span, config, 0, values);
  return values;
}

// The rest of each row's error under a prediction, in allowed errors.
std::vector<double> left_by(const std::vector<FailingRow>& rows, const host::Values& predicted) {
  std::vector<double> left;
  for (const FailingRow& r : rows) {
    const host::Values found = host::values_of(r.of->out.tensor(), r.row, 1);
    const std::size_t width = found.size();
    double off = 0, all = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const double p = predicted[r.at * width + i];
      off += (found[i] - p) * (found[i] - p);
      all += p * p;
    }
    left.push_back(off == 0 ? 0 : std::sqrt(off / all) / r.allowed());
  }
  return left;
}

double rms(const std::vector<double>& errors) {
  double squares = 0;
  for (const double e : errors) squares += e * e;
  return std::sqrt(squares / static_cast<double>(errors.size()));
}

// The rms of what is left where all rows are explained.
std::optional<double> explained(const std::vector<FailingRow>& rows, const host::Values& predicted,
                                const host::Values& right) {
  if (predicted.size() != right.size() || predicted.empty()) return std::nullopt;
  const std::vector<double> left = left_by(rows, predicted);
  const bool all = std::all_of(left.begin(), left.end(), [](double e) { return e <= 1; });
  if (!all || !(rms(left) * clearly_better <= rms(left_by(rows, right)))) return std::nullopt;
  return rms(left);
}

struct Found {
  std::string text;
  double left = 0;
};

// Mistakes that explain the rows, each with what it leaves.
std::vector<Found> explaining(const Span& span, const Model& model, const Program& program,
                              std::vector<FailingRow> rows, const std::vector<Found>* among) {
  const ModelConfig& config = model.config();
  const SpanValues right = right_values(span, config, rows);
  std::vector<Found> found;
  for (const SpanMistake& m : span_mistakes(span, config, program, right)) {
    const auto is_it = [&](const Found& f) { return f.text == m.text; };
    if (among && std::none_of(among->begin(), among->end(), is_it)) continue;
    if (const auto left = explained(rows, output_with(m, span, config, right), right.at(span.output)))
      found.push_back({m.text, *left});
  }
  return found;
}

// One, or those that explain the rows as well as the best does; empty: none, or too many.
std::string text_of(std::vector<Found> found) {
  constexpr double negligible = 0.1;  // left, in allowed errors: rounding that tells nothing
  if (found.empty()) return "";
  double best = std::numeric_limits<double>::infinity();
  for (const Found& f : found) best = std::min(best, f.left);
  std::vector<std::string> texts;
  for (const Found& f : found)
    if (f.left <= clearly_better * std::max(best, negligible)) texts.push_back(f.text);
  if (texts.size() > most_named) return "";
  return fmt::format("{}", fmt::join(texts, "; or, which explains it as well: "));
}

// The cause that all rows have in common; empty: none.
std::string cause_in(const Span& span, const Model& model, const Program& program,
                     const std::vector<FailingRow>& rows) {
  std::vector<Found> found = explaining(span, model, program, evenly(rows, first_rows), nullptr);
  if (rows.size() > first_rows && !found.empty()) found = explaining(span, model, program, rows, &found);
  return text_of(std::move(found));
}

void explain_together(const Span& span, const Model& model, const Program& program,
                      const std::vector<JudgedCase*>& open) {
  const std::string common = cause_in(span, model, program, failing_rows_of(open));
  for (JudgedCase* c : open) {
    c->cause = common;
    if (common.empty() && open.size() > 1) c->cause = cause_in(span, model, program, failing_rows_of({c}));
  }
}

// Cases with other caches have other rows.
void explain_span(const Span& span, const Model& model, const Program& program, const std::vector<JudgedCase*>& open) {
  std::map<int, std::vector<JudgedCase*>> groups;
  for (JudgedCase* c : open) groups[span.caches.empty() ? 0 : c->of->first].push_back(c);
  for (const auto& [first, group] : groups) explain_together(span, model, program, group);
}

// One step has an explanation of its own.
std::string cause_of_one_step(const CaseIndex& index, const Span& span, const Model& model, const Program& program,
                              const JudgedCase& judged) {
  StepCase c;
  c.step = &span.steps[0];
  c.stage = span.output;
  for (std::size_t i = 0; i < c.step->in.size(); ++i) c.in[i] = judged.input(name_of(c.step->in[i]))->tensor();
  c.a = judged.out.tensor();
  c.b = judged.expected.tensor();
  if (is_per_expert(c.stage)) c.routing_a = c.routing_b = judged.choice.tensor();
  c.numerics = kernel_numerics(index.numerics, span, judged.out.dtype);
  c.oracle = expected_numerics(span);
  c.first_position = judged.of->first;
  const StepExplanation e = explain_step(c, model, program);
  if (e.cause == StepCause::none || e.cause == StepCause::plain_operator) return "";
  return e.text.empty() ? std::string(name_of(e.cause)) : fmt::format("{}: {}", name_of(e.cause), e.text);
}

// The cause that needs no look at the steps: values that are not finite.
void note_nonfinite(JudgedCase& judged) {
  const std::vector<FailingRow> rows = failing_rows_of({&judged});
  const auto finite = static_cast<std::size_t>(std::count_if(rows.begin(), rows.end(), is_finite_row));
  if (finite == 0)
    judged.cause = "nonfinite_origin: the inputs are finite, the output is not";
  else if (finite < rows.size())
    judged.unexplained = "some rows that fail are finite, and some are not";
}

bool is_open(const JudgedCase& judged) { return judged.cause.empty() && judged.unexplained.empty(); }

}  // namespace

void explain_cases(const CaseIndex& index, const Model& model, const Program& program, const Span& span,
                   const std::vector<JudgedCase*>& judged) {
  std::vector<JudgedCase*> open;
  for (JudgedCase* c : judged) {
    note_nonfinite(*c);
    if (is_open(*c) && span.steps.size() == 1) c->cause = cause_of_one_step(index, span, model, program, *c);
    if (is_open(*c)) c->cause = output_cause(*c);
    if (is_open(*c)) open.push_back(c);
  }
  if (span.steps.size() > 1 && !open.empty()) explain_span(span, model, program, open);
  for (JudgedCase* c : open)
    if (c->cause.empty()) c->unexplained = "no mistake that was tried explains all that fails";
}

}  // namespace moe_diag
