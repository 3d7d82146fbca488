// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/model/program.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// A way in which an engine's products may read their operands, and how far the recorded outputs are off when products
// are computed so.
struct FittedNumerics {
  std::string numerics;        // the named ones that do so; empty: `reads` and `weights` say it beside f32
  std::string reads, weights;  // rows of docs/numerics.md
  double error = 0;            // rel_l2, rms over the products looked at
};

struct NumericsFit {
  std::vector<FittedNumerics> tried;  // the best first; of those that are as good, the simplest
  int products = 0;                   // that were looked at; 0: none has its inputs and its output recorded

  bool is_known() const { return products > 0; }
  const FittedNumerics& best() const { return tried.front(); }
};

// Tries the rows of the tables at a few rows and columns of the products in the first layers that are recorded.
NumericsFit fit_numerics(const Recording& recording, const Program& program);

// "bf16 fits: 8 matmuls differ by 2.1e-04, by 3.4e-03 with f32"
std::string text_of(const NumericsFit& fit);

// The coarsest type that all values of a stage are exact in, of those that were looked at: f32 where none is coarser.
DType type_of_values(const Recording& recording, Stage stage);

}  // namespace moe_diag
