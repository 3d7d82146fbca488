// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "core/api/model.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// A [rows, cols] matrix of a weight: which bytes it is read from, and how. As the file says unless changed.
struct Matrix {
  explicit Matrix(const Weight& w, std::int64_t of_expert = 0) : weight(&w), expert(of_expert), type(w.type) {}

  const Weight* weight;
  std::int64_t expert;
  BlockType type;           // rows and experts lie as this type packs them; past the tensor's bytes all are zero
  bool transposed = false;  // element (r, c) is taken from place c * rows + r of the expert's elements
  int scale_shift = 0;      // groups of weights have the scale of the group so many places on; not where transposed
};

// Whether rows of the weight are whole blocks of the type: another one cannot be read.
bool can_read(const Weight& weight, BlockType type);

// Row r of the matrix: [cols].
Values decode_row(const Matrix& matrix, std::int64_t r);

}  // namespace moe_diag::host
