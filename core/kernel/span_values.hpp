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

// Values of stages in double, for the same rows. A span without caches reads no other row than the one it computes; in
// one with caches the rows are consecutive positions.
struct SpanValues {
  std::vector<int> positions;                             // of the rows
  std::map<Stage, host::Values, InForwardOrder> of = {};  // [rows, ...]
  std::map<std::size_t, host::Values> earlier = {};       // by index of a cache: of the positions before the rows

  std::int64_t rows() const { return static_cast<std::int64_t>(positions.size()); }
  int first() const { return positions.empty() ? 0 : positions.front(); }
  int total() const;  // positions up to the last of the rows
  const host::Values& at(Stage stage) const { return of.at(stage); }
  // The values of one row.
  host::Values row(Stage stage, std::int64_t r) const;
};

// The same of some rows, in that order; of stages that have values of their own for each key nothing that can be used.
SpanValues rows_of(const SpanValues& values, const std::vector<std::int64_t>& rows);

// The inputs of a step, out of the values.
StepInputs inputs_of(const Step& step, const ModelConfig& config, const SpanValues& values);

// The columns of a stage's values that go into a cache.
host::Values cached_columns(const host::Values& values, std::int64_t rows, int column, std::int64_t width);

// An output of a step, of what the span's engine reads; and values of a stage as that engine stores them.
host::Values unrounded(const Span& span, const Step& step, const ModelConfig& config, const StepInputs& inputs,
                       const Fault* fault, std::size_t output);
host::Values kept(const Span& span, Stage stage, host::Values values);
// Both.
host::Values computed(const Span& span, const Step& step, const ModelConfig& config, const StepInputs& inputs,
                      const Fault* fault, std::size_t output);

// Computes the steps of a span from the one of that index on with the plain operators, and writes their outputs.
// Throws Error(environment) where the inputs do not fit the steps.
void compute_steps(const Span& span, const ModelConfig& config, std::size_t from, SpanValues& values);

Shape shape_of(const SpanCache& cache, std::int64_t rows, const ModelConfig& config);
// The cache of a layer in that type, [positions before the rows, ...].
StoredTensor stored(const SpanValues& values, const SpanCache& cache, const ModelConfig& config, DType dtype);
// A stage of the values in that type; ids of experts in int32.
StoredTensor stored(const SpanValues& values, Site site, const ModelConfig& config, DType dtype);
// The values of a tensor as doubles, row after row.
void put(const StoredTensor& tensor, Stage stage, SpanValues& values);

}  // namespace moe_diag
