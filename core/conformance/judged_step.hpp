// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/conformance/tried_models.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {

// A tensor that a lane showed, copied.
struct CopiedTensor {
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::byte> bytes;

  CopiedTensor() = default;
  explicit CopiedTensor(const Tensor& tensor);
  Tensor view() const { return {bytes.data(), dtype, shape}; }
  friend bool operator==(const CopiedTensor&, const CopiedTensor&) = default;
};

// One step as a lane computed it, for the rows of a pass or the last of them.
struct JudgedStep {
  const TriedModel* model = nullptr;
  const Step* step = nullptr;
  StepInputs inputs;                // as the lane had them
  std::vector<host::Values> right;  // each output in double; of these rows first
  std::vector<CopiedTensor> out;
  std::string what;      // "33 rows, random inputs"
  int skipped_row = -1;  // is not judged

  std::size_t rows() const { return inputs.positions.size(); }
};

// The mistake of a step: the operator, its types, rows and inputs, the first wrong value, expected and found, and
// the error that its numerics allow: `failing_error` times the predicted rounding, as in a run. Empty: it is right.
// `oracle`: how `right` was computed, where that is not plainly.
std::string failure_of(const JudgedStep& step, const LaneNumerics& lane, const LaneNumerics& oracle);

// "linear (Q4_K, qkv_matmul)"
std::string text_of(const Step& step, std::size_t output = 0);

// The index of the first value that differs, among those of rows that are compared; none: all have the same bytes, or
// are both NaN. Keys behind a row's own position are not compared.
std::optional<std::int64_t> first_difference(const CopiedTensor& a, const CopiedTensor& b, Stage stage,
                                             int first_position, int skipped_row = -1);

}  // namespace moe_diag
