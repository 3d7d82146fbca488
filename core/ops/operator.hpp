// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/backend.hpp"
#include "core/api/model.hpp"
#include "core/api/step.hpp"
#include "core/ops/fault.hpp"
#include "core/ops/hypothesis.hpp"
#include "core/ops/matrix.hpp"
#include "core/ops/predicted.hpp"

namespace moe_diag {

// The rows of its weights that a step reads.
enum class WeightRows {
  none,        // it has no weights
  of_tokens,   // of a table: one for each token
  one,         // of one row: a factor for each value
  all,         // of matrices, whose products stand side by side in the output
  of_experts,  // of the matrices of the experts chosen, given in the second input
};

// The cost of a step: weights to be decoded, and multiplications with them.
struct Cost {
  double decoded = 0, products = 0;
  Cost& operator+=(const Cost& other) {
    decoded += other.decoded;
    products += other.products;
    return *this;
  }
};

// The inputs of a step for some rows of a pass, on the host.
struct StepInputs {
  std::vector<int> positions;  // of the rows
  int total = 0;               // length of the whole sequence
  std::array<host::Values, most_inputs>
      in;  // as Step::in, [rows, ...]; what is cached: of all positions up to the last
  std::array<host::Values, most_caches> states;  // as Step::caches: a state before the rows; zeros before position 0
  std::vector<std::int32_t> tokens;              // of the rows, for a step that reads tokens
  std::vector<int> stale;                        // positions that stale_kv is planted at
  std::vector<int> part;                         // terms of a sum that partial_sum is about
};

// The rows of one step, to be computed rightly or with a fault.
struct StepRows {
  const Step& step;
  const ModelConfig& config;
  const StepInputs& inputs;
  const Fault* fault;      // null: rightly
  std::size_t output = 0;  // which of the step's outputs

  bool is(Fault::Kind kind) const { return fault && fault->kind == kind; }
  std::size_t count() const { return inputs.positions.size(); }
  // The values of one row of an input.
  std::span<const double> row(std::size_t input, std::size_t r) const;
  // How the step reads a weight.
  host::Matrix matrix(const Weight& weight) const;
  // The first input as a matmul reads it: quantised where the fault says so.
  host::Values operand() const;

  // Appends what `of_row` makes of each row.
  template <class OfRow>
  host::Values by_row(OfRow of_row) const {
    host::Values out;
    for (std::size_t r = 0; r < count(); ++r) {
      const host::Values one = of_row(r);
      out.insert(out.end(), one.begin(), one.end());
    }
    return out;
  }
};

// All that is known of one operator. Each is defined in a file pair of its name, beside its plain computation in
// double; a null function means that the operator has nothing of the kind.
struct Operator {
  std::string_view name;
  WeightRows weights = WeightRows::none;
  // What a step has until its architecture sets it; of the type that the operator has.
  Params params = {};
  bool chooses_experts = false;
  bool adds_experts = false;       // a row of its output is the sum of what its experts give
  bool adds_biases = false;        // a step has those that the model has of its weights
  bool depends_on_values = false;  // what the rounding of its inputs does: they may cancel, or stand in an exponent

  // Square of the relative error that a step is expected to make: see expected_error(). `keys` is how many positions
  // the row attends to.
  double (*squared_error)(const Step&, const ModelConfig&, const PredictedNumerics&, int keys) = nullptr;

  // The cost of `rows` rows of a sequence of `total` positions.
  Cost (*cost)(const Step&, const ModelConfig&, double rows, int total) = nullptr;

  // An output, [rows, ...].
  host::Values (*compute)(const StepRows&) = nullptr;

  // The state that a cache holds behind the last row; of operators that move one on.
  host::Values (*next_state)(const StepRows&, std::size_t cache) = nullptr;

  // A unit's output had it been computed with that matrix; of operators that read weights and are no product.
  host::Values (*with_matrix)(const StepCase&, const StepUnit&, const host::Matrix&) = nullptr;

  // Mistakes that this operator may have made. All of its inputs are known.
  void (*add_hypotheses)(const Operands&, const FailingUnits&, HypothesisList&) = nullptr;

  // Whether values that are all off by this factor may come from a wrong parameter, which then has no better name.
  bool (*may_be_parameter)(const StepCase&, const FailingUnits&, double factor) = nullptr;

  // The part of the step that such a factor is, left out or applied twice; empty when it is none.
  std::string (*part_of_factor)(const Step&, double factor, double relative_error) = nullptr;
};

const Operator& operator_of(Op op);
inline const Operator& operator_of(const Step& step) { return operator_of(step.op); }

// True for a step that reads what other passes left.
inline bool reads_cache(const Step& step) { return step.caches.size() > 0; }

// True for a step that moves a state on: its outputs depend on all rows before, in their order.
inline bool has_state(const Step& step) {
  return std::any_of(step.caches.begin(), step.caches.end(),
                     [](const CacheUse& use) { return info(use.cache).is_state; });
}

// True for a product with matrices: it multiplies its first input.
inline bool is_product(const Operator& op) {
  return op.weights == WeightRows::all || op.weights == WeightRows::of_experts;
}

// How many terms a value of the step is the sum of: columns of the weights of a product, or slots of experts.
int terms_of_sum(const Step& step, const ModelConfig& config);

// An output of the step for those rows in double, [rows, ...]: as the fault makes it, or as it should be without one
// (null). Throws Error(environment) when the inputs do not fit the step.
host::Values compute(const Step& step, const ModelConfig& config, const StepInputs& inputs, const Fault* fault,
                     std::size_t output = 0);

// The cost of operators that read all of their weights, or none.
Cost cost_of_weights(const Step& step, const ModelConfig& config, double rows, int total);

}  // namespace moe_diag
