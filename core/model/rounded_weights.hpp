// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/api/model.hpp"
#include "core/model/program.hpp"
#include "core/ops/numerics.hpp"

namespace moe_diag {

// A model whose products read rounded copies of its weights; all else reads the model's own. So any backend computes
// with them, as if the file had them.
class RoundedWeights {
 public:
  // Sizes only: the copies have no data until make(). The model, whose `program` it is, outlives this; `type` rounds.
  RoundedWeights(const ModelView& model, const Program& program, const WeightType& type);
  RoundedWeights(const RoundedWeights&) = delete;
  RoundedWeights& operator=(const RoundedWeights&) = delete;

  const ModelView& view() const { return view_; }
  const Program& program() const { return program_; }
  std::uint64_t bytes() const;  // of the copies

  // Rounds all of them, on all cores. Nothing when it was done before.
  void make();

 private:
  // A weight of the model and its copy.
  struct Copy {
    const Weight* from;
    std::size_t to;  // index into weights_
    std::unique_ptr<std::byte[]> memory;
  };
  void round(const Copy& copy) const;

  const host::WeightRounding rounding_;
  std::vector<Copy> copies_;
  std::vector<Weight> weights_;  // those of the model, with copies in the place of what products alone read
  ModelView view_;
  Program program_;
  bool is_made_ = false;
};

}  // namespace moe_diag
