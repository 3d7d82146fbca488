// SPDX-License-Identifier: MIT
#include "core/kernel/output_mistakes.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/values.hpp"

namespace moe_diag {
namespace {

// The relative error of a row of the output against `factor` times a row of what was expected.
double error_against(const JudgedCase& judged, std::int64_t row, std::int64_t other, double factor) {
  const host::Values a = host::values_of(judged.out.tensor(), row, 1);
  const host::Values b = host::values_of(judged.expected.tensor(), other, 1);
  double off = 0, all = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double p = factor * b[i];
    off += (a[i] - p) * (a[i] - p);
    all += p * p;
  }
  return off == 0 ? 0 : std::sqrt(off / all);
}

double allowed_of(const JudgedCase& judged, std::int64_t row) {
  return judged.allowed()[static_cast<std::size_t>(row)];
}

bool is_zero(const JudgedCase& judged) {
  for (const std::int64_t row : judged.failing_rows())
    for (const double a : host::values_of(judged.out.tensor(), row, 1))
      if (a != 0) return false;
  return true;
}

// Which row of what was expected each failing row is; empty where one of them is none or several.
std::vector<std::int64_t> rows_found(const JudgedCase& judged) {
  std::vector<std::int64_t> found;
  for (const std::int64_t row : judged.failing_rows()) {
    std::vector<std::int64_t> same;
    for (std::int64_t other = 0; other < judged.of->rows && same.size() < 2; ++other)
      if (error_against(judged, row, other, 1) <= std::min(allowed_of(judged, row), allowed_of(judged, other)))
        same.push_back(other);
    if (same.size() != 1 || same[0] == row) return {};
    found.push_back(same[0]);
  }
  return found;
}

std::string order_text(const JudgedCase& judged) {
  constexpr std::size_t most_pairs = 4;
  const std::vector<std::int64_t> found = rows_found(judged), rows = judged.failing_rows();
  if (found.empty()) return "";
  const bool by_one = std::equal(found.begin(), found.end(), rows.begin(),
                                 [&](std::int64_t f, std::int64_t row) { return f == (row + 1) % judged.of->rows; });
  if (by_one && found.size() > 1) return fmt::format("row r holds what belongs to row (r + 1) mod {}", judged.of->rows);
  std::vector<std::string> pairs;
  for (std::size_t i = 0; i < found.size() && i < most_pairs; ++i)
    pairs.push_back(fmt::format("row {} holds what belongs to row {}", rows[i], found[i]));
  return fmt::format("rows are in other places: {}{}", fmt::join(pairs, ", "),
                     found.size() > most_pairs ? fmt::format(", and {} more", found.size() - most_pairs) : "");
}

// One factor on all values, by the least squares.
std::string factor_text(const JudgedCase& judged) {
  constexpr double least = 3;                // allowed errors that the factor is off from 1
  constexpr std::int64_t least_values = 16;  // that one factor does not explain by chance
  if (static_cast<std::int64_t>(judged.footprint.rows.size()) * judged.expected.shape.row() < least_values) return "";
  double products = 0, squares = 0;
  for (const std::int64_t row : judged.failing_rows()) {
    const host::Values a = host::values_of(judged.out.tensor(), row, 1);
    const host::Values b = host::values_of(judged.expected.tensor(), row, 1);
    for (std::size_t i = 0; i < a.size(); ++i) products += a[i] * b[i];
    squares += host::dot(b, b);
  }
  const double factor = products / squares;
  if (!std::isfinite(factor) || factor == 0) return "";
  for (const std::int64_t row : judged.failing_rows()) {
    const double allowed = allowed_of(judged, row);
    if (!(error_against(judged, row, row, factor) <= allowed) || std::fabs(factor - 1) < least * allowed) return "";
  }
  return fmt::format("all values are multiplied by {:.6g}", factor);
}

}  // namespace

std::string output_cause(const JudgedCase& judged) {
  if (is_zero(judged)) return "only zeros were written";
  for (const std::string& text : {order_text(judged), factor_text(judged)})
    if (!text.empty()) return text;
  return "";
}

}  // namespace moe_diag
