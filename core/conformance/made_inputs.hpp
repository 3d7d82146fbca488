// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/conformance/tried_models.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {

// The values that a step is given.
enum class Making : std::uint8_t { random, large, tiny, denormal, constant, zeros };

inline constexpr Making extremes[] = {Making::large, Making::tiny, Making::denormal, Making::constant, Making::zeros};

struct InputSpec {
  Making values = Making::random;
  bool one_choice = false;  // all rows choose the same experts, so that the others have no row
  double scale = 1e10;      // of large values; one over it: of tiny ones

  std::string text() const;  // "random inputs, all rows of the same experts"
};

// Rows of passes: the last of these only in models for whole passes.
inline constexpr int row_counts[] = {1, 2, 7, 16, 33, 257};
inline constexpr int most_rows = 257;
inline constexpr int skewed_rows = 33, extreme_rows = 7;
inline int rows_of(const TriedModel& model) { return model.is_whole ? most_rows : 33; }

std::vector<std::int32_t> made_tokens(const ModelConfig& config, int rows);

// The inputs of a step of a pass from position 0, as values of f32: probabilities where it reads some, different
// experts in each row. Inputs of fewer rows are the first of more, but where a row has a value for each key.
StepInputs made_inputs(const TriedModel& model, const Step& step, int rows, const InputSpec& spec);

// The same with all outputs in double. May have more rows than asked for; those asked for come first.
struct PlainStep {
  StepInputs inputs;
  std::vector<host::Values> out;  // as Step::out
};
// Kept once computed, for the processes that follow.
const PlainStep& plain_step(const TriedModel& model, std::size_t step, int rows, const InputSpec& spec);

// The rows of a cached input that go into the cache.
host::Values cached_columns(const TriedModel& model, const Step& step, std::size_t input, const host::Values& whole,
                            std::size_t rows);

// Whether the step reads which experts were chosen.
bool has_choice(const Step& step);
// Whether rows of the step's inputs or outputs are as long as the sequence.
bool has_keys(const Step& step);

}  // namespace moe_diag
