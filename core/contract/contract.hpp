// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/api/options.hpp"
#include "core/api/stage.hpp"
#include "core/contract/selection.hpp"

namespace moe_diag {

// A place in the contract file, 1-based.
struct Where {
  int line = 0, column = 0;
};

struct Metadata {
  std::string id, version, description;
  std::vector<std::string> references;
};

// Exactly one of `gguf` and `synthetic` is set.
struct ModelSource {
  std::string gguf;            // path, relative to the contract's folder resolved; variables expanded
  std::string unset_variable;  // name of a variable in `gguf` that is not set: the model is absent
  std::string synthetic;       // preset
  std::string quant;           // of a synthetic model; empty: its default
  int layers = 0;              // of a synthetic model; 0: its default
  std::uint64_t seed = 0;
  Where where;
};

struct PromptSpec {
  std::string id;
  std::vector<std::int32_t> tokens;
  Where where;
};

struct LaneSpec {
  std::string name, backend;
  std::string inputs;   // lane whose outputs replace this lane's after every step; empty: none
  std::string routing;  // lane whose routing replaces this lane's; empty: none
  Options options;      // `numerics` and all keys that are the backend's own
  Where where;
};

struct SinkSpec {
  std::string name, sink;
  Options options;  // all keys but `sink`
  Where where;
};

struct CaptureSpec {
  StageSelection stages;
  IndexSelection layers, positions;
  std::vector<std::string> lanes;  // resolved: never "all"
  std::vector<std::string> to;     // sink names
  Where where;
};

// A planted change of one lane.
struct FaultSpec {
  enum class Kind { nan, scale, wrong_expert };
  Kind kind = Kind::nan;
  Stage stage = Stage::embedding;
  int layer = -1;            // -1 for stages of the whole model
  std::string lane;          // of `run --inject`; controls take their falsifier's lane
  IndexSelection positions;  // default all
  int index = 0;             // nan: element of the row
  double factor = 2;         // scale
  std::string text;          // as written, for reports: "nan at moe_expert_out, layer 6"
  Where where;
};

enum class Metric {
  cosine_similarity,
  rel_l2,
  max_abs_diff,
  mismatch_fraction,
  nonfinite,
  argmax_agree,
  router_sum_error,
  routing_flips,
};

// The threshold of a falsifier.
struct Bound {
  enum class Kind { at_least, at_most, equals };
  Kind kind = Kind::at_most;
  double value = 0;

  // False for NaN, whatever the bound.
  bool holds(double v) const {
    switch (kind) {
      case Kind::at_least: return v >= value;
      case Kind::at_most: return v <= value;
      case Kind::equals: return v == value;
    }
    return false;
  }
};

struct FalsifierSpec {
  std::string id, claim;
  std::string lane, against;  // against: empty for metrics that look at one lane
  StageSelection stages;      // resolved to the stages that fit the metric
  IndexSelection layers, positions;
  std::vector<std::string> prompts;  // ids; empty: all
  Metric metric = Metric::cosine_similarity;
  Bound bound;
  double rtol = 0, atol = 0;  // mismatch_fraction
  std::vector<FaultSpec> controls;
  Where where;
};

// What a contract file says, checked against itself but not against a model.
struct Contract {
  std::string path;    // as given, for messages
  std::string folder;  // inputs are relative to it
  Metadata metadata;
  ModelSource model;
  std::vector<PromptSpec> prompts;
  std::string oracle;  // empty: none
  std::vector<LaneSpec> lanes;
  std::vector<CaptureSpec> capture;
  std::vector<SinkSpec> sinks;
  std::vector<FalsifierSpec> falsifiers;

  // "contracts/quickstart.yaml:12:5"
  std::string at(const Where& where) const {
    return path + ":" + std::to_string(where.line) + ":" + std::to_string(where.column);
  }
};

// `key.path=value`, as `--set` gives it; the value is YAML.
using Override = std::pair<std::string, std::string>;

// Reads a contract. Throws Error(usage) with every mistake found, one "file:line:column: message" per line.
Contract read_contract(const std::string& path, const std::vector<Override>& overrides = {});
// The same for text that is in memory; `path` is for messages and for the folder of relative inputs.
Contract parse_contract(const std::string& text, const std::string& path, const std::vector<Override>& overrides = {});

std::string_view name_of(Metric metric);
std::string_view name_of(FaultSpec::Kind kind);
std::string_view name_of(Bound::Kind kind);
// True when the metric compares with another lane.
bool needs_against(Metric metric);
// True when the metric can be computed at the stage; `why` (may be null) receives what it needs otherwise.
bool fits(Metric metric, Stage stage);

}  // namespace moe_diag
