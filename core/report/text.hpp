// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Pieces that several reports are made of.

// "HELD", "FALSIFIED", ...: all of a verdict in a word or two.
std::string_view word_of(const Verdict& verdict);
// "HELD: quickstart 1.0.0: 6 held, 0 falsified, 0 vacuous, 0 untested"
std::string headline(const Verdict& verdict);

// "prompt short, position 0, layer 2, moe_expert_out, expert 1"
std::string place_text(const Verdict& verdict, const Sample& sample);
// Of a prompt's token: "308 ' the'", or the number alone where the model has no text for it.
std::string token_text(const PromptReport& prompt, std::size_t at);
// "rel_l2" or "identical to rerun"
std::string metric_text(const FalsifierSpec& spec);
// "at_most 1e-05"
std::string bound_text(const Bound& bound);

// Where a falsifier that is falsified first fails, how badly, and what would have held; a line each, indented by two.
// With the tensors of the step when it is the first divergence of all.
std::string divergence_text(const Verdict& verdict, const Judgement& judgement);

// What makes a run another than its contract says, a line each: planted faults and --set.
std::string changed_text(const Verdict& verdict);

// In a sentence: what is to be said of a falsifier that did not hold.
std::string reason_text(const Verdict& verdict, const Judgement& judgement);

// "f32, stored as hf": with what its engine rounds besides.
std::string numerics_text(const LaneReport& lane);
// "cpu f32 on cpu, 2 threads, avx512": what a lane computes in.
std::string lane_text(const LaneReport& lane);

// "1 prompt", "2 prompts"
std::string counted(std::size_t number, std::string_view what);

}  // namespace moe_diag
