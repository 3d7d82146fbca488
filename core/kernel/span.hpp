// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "core/ops/numerics.hpp"

namespace moe_diag {

// A cache that steps of a span read: columns of a stage, of all positions so far.
struct SpanCache {
  Cache cache;
  Site from;       // the stage whose rows go into it
  int column = 0;  // the first one that does
};

// Steps of one layer that a kernel computes as one, and all that it reads for that.
struct Span {
  int layer = -1;  // -1: of the whole model
  Program steps;
  Stage output;                        // of the last step
  std::vector<Site> inputs;            // stages read by a step and written by none before it, and where they stand
  std::vector<const Weight*> weights;  // of all steps, biases too; each once
  std::vector<SpanCache> caches;       // given of the positions before the rows; each once

  // Roundings of the engine whose kernel it is, which are computed and not tolerated.
  const Reads* reads = nullptr;  // null: products read activations as they are
  std::vector<DType> storage;    // of each stage; empty: nothing is rounded

  // The experts that the rows have chosen: an input, or written by a step; no stage when nothing is of an expert.
  Stage choice;
  // Whether the choice is an input, so that it can be edited.
  bool reads_choice() const;
};

// The span of a name that stands for more than one step, and of all of a model's experts.
inline constexpr std::string_view ffn_span = "moe_ffn";

// `words` is a stage, two stages with ".." between them, or moe_ffn: from the first step that reads the choice of
// experts to the one that adds them up. `layer` is not looked at where the stages are of no layer. Throws Error(usage)
// for a name that the model lacks, and for steps that no case can be written of: that read tokens or a state, that
// begin or end among the scores of keys, or whose choice of experts may be another by right.
Span find_span(const Model& model, const Program& program, std::string_view words, int layer);

// Takes the roundings of an engine: `reads` and `stored` are names of rows in docs/numerics.md, or empty. Throws
// Error(usage) for other names, and for rows that are no whole number of blocks.
void round_as(std::string_view reads, std::string_view stored, const ModelConfig& config, Span& span);

}  // namespace moe_diag
