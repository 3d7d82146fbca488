// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/contract/contract.hpp"
#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// What `judge MODEL DUMP` is told of a recording; empty: it is found out.
struct RecordingJudge {
  std::string model, dump;  // paths
  std::string layers;       // as contracts write them; empty: all
  std::string lane;         // of a capture of this project
  std::string map;          // of another tool's files
  std::string numerics, reads, weights, stored, kv_cache;
  bool cut_ok = false, zeros_ok = false;
  double at_most = 10;  // errors in units of their floor
};

// How the engine computes: as told, else as the dump says, else as fits its products.
struct ChosenNumerics {
  std::string numerics, reads, weights, kv_cache;  // all but the first may be empty
  std::string variants;                            // as a contract writes them; may be empty
  std::string text;                                // for people: what it was chosen by
};
ChosenNumerics numerics_of(const RecordingJudge& judge, const Recording& recording, const Model& model,
                           const Program& program);

// A contract that judges the recording: its lanes are the engine, a judge in f64 that computes every step from what the
// engine had, and a peer in f32, whose distance from the judge is what the engine's roundings make. Its claims are
// those that the recorded stages allow.
std::string recording_contract(const RecordingJudge& judge, const ChosenNumerics& numerics, const Model& model,
                               const Recording& recording);

}  // namespace moe_diag
