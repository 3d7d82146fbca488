// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/file/safetensors_file.hpp"
#include "core/kernel/span.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {

// Stages of one architecture, as the forward pass goes.
struct InForwardOrder {
  bool operator()(Stage a, Stage b) const { return a.index() < b.index(); }
};

// Values of stages in double, for the same rows. No step of a span reads another row than its own.
struct SpanValues {
  std::vector<int> positions;                             // of the rows
  std::map<Stage, host::Values, InForwardOrder> of = {};  // [rows, ...]

  std::int64_t rows() const { return static_cast<std::int64_t>(positions.size()); }
  const host::Values& at(Stage stage) const { return of.at(stage); }
  // The values of one row.
  host::Values row(Stage stage, std::int64_t r) const;
};

// The same of some rows, in that order.
SpanValues rows_of(const SpanValues& values, const std::vector<std::int64_t>& rows);

// The inputs of a step, out of the values.
StepInputs inputs_of(const Step& step, const SpanValues& values);

// Computes the steps of a span from the one of that index on with the plain operators, and writes their outputs.
// Throws Error(environment) where the inputs do not fit the steps.
void compute_steps(const Span& span, const ModelConfig& config, std::size_t from, SpanValues& values);

// A stage of the values in that type; ids of experts in int32.
StoredTensor stored(const SpanValues& values, Site site, const ModelConfig& config, DType dtype);
// The values of a tensor as doubles, row after row.
void put(const StoredTensor& tensor, Stage stage, SpanValues& values);

}  // namespace moe_diag
