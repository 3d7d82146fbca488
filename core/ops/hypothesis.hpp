// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/api/model.hpp"
#include "core/ops/step_case.hpp"

namespace moe_diag {

// A wrong computation that may be what the lane did, and what it gives. One of the two functions is set.
struct Hypothesis {
  StepCause cause = StepCause::plain_operator;
  std::string text;
  double factor = 1;
  double work = 1;  // multiplications an element

  // All elements of a unit; empty when the computation is not possible there.
  std::function<host::Values(const StepUnit&)> row = {};
  // Chosen elements of units of one part: [units, elements].
  std::function<host::Values(const FailingUnits&, std::span<const std::int64_t>)> elements = {};
};

// A step and what it read. Cheap to copy: every hypothesis keeps one.
struct Operands {
  const StepCase& c;
  const Step& step;
  const ModelConfig& config;

  std::int64_t position(const StepUnit& unit) const { return c.first_position + unit.row; }

  // The part of input i that a unit reads: its row, or its slot of that row.
  host::Values input(std::size_t i, const StepUnit& unit) const {
    const host::Values row = host::values_of(c.in[i], unit.row, 1);
    if (unit.slot < 0) return row;
    const auto width = static_cast<std::ptrdiff_t>(row.size()) / config.used;
    const auto from = row.begin() + unit.slot * width;
    return {from, from + width};
  }
};

// The hypotheses of an operator, each a computation of whole units.
class HypothesisList {
 public:
  using Row = std::function<host::Values(const StepUnit&)>;

  // Hypotheses added from now on take that many multiplications an element.
  void set_work(std::int64_t work) { work_ = static_cast<double>(work); }
  void add(StepCause cause, std::string text, Row row, double factor = 1) {
    Hypothesis h{cause, std::move(text), factor};
    h.work = work_;
    h.row = std::move(row);
    list_.push_back(std::move(h));
  }
  std::vector<Hypothesis> take() { return std::move(list_); }

 private:
  double work_ = 1;
  std::vector<Hypothesis> list_;
};

}  // namespace moe_diag
