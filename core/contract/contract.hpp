// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/backend.hpp"
#include "core/api/blocks.hpp"
#include "core/api/options.hpp"
#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"
#include "core/contract/metric_table.hpp"
#include "core/contract/override.hpp"
#include "core/contract/selection.hpp"
#include "core/contract/where.hpp"
#include "core/ops/fault.hpp"
#include "core/ops/numerics.hpp"

namespace moe_diag {

struct Metadata {
  std::string id, version, description;
  std::vector<std::string> references;
};

// Exactly one of `gguf` and `synthetic` is set.
struct ModelSource {
  std::string gguf;            // path, relative to the contract's folder resolved; variables expanded
  std::string unset_variable;  // name of a variable in `gguf` that is not set: the model is absent
  std::string stands_in_for;   // name of the unset variable in whose place the contract has this synthetic model
  std::string synthetic;       // preset
  std::string quant;           // of a synthetic model; empty: its default
  int layers = 0;              // of a synthetic model; 0: its default
  std::uint64_t seed = 0;
  double router_scale = 1;  // of a synthetic model
  Where where;
};

struct PromptSpec {
  std::string id;
  std::string entry;                 // id of the contract's entry: a file of tokens may hold several prompts
  std::string file;                  // path of the file of tokens; empty: they stand in the contract
  std::vector<std::int32_t> tokens;  // at least one
  int generate = 0;                  // how many tokens follow, each the one that the oracle finds most likely
  int chunk = 0;                     // tokens of the prompt in one pass; 0: all
  std::string recording;             // lane whose recording has it; empty: none
  int request = -1;                  // of that recording, by index
  std::vector<Stretch> calls;        // of a recording: the passes, some positions between them may be missing
  Where where;

  // Tokens of the prompt and generated ones. A token is -1 where the recording does not have it.
  int length() const { return static_cast<int>(tokens.size()) + generate; }
  bool has_tokens() const { return tokens.empty() || tokens.front() >= 0; }
};

// A recording of another engine, whose values a lane has.
struct ReplaySpec {
  std::string path;         // relative to the contract's folder resolved
  std::string lane;         // of a capture of this project; empty: its only one
  std::string map;          // of another tool's files: a path, or the name of a known one; empty: our own layouts
  bool cut_ok = false;      // complete calls of a recording that was cut are judged
  bool take_first = false;  // of positions computed twice, where tokens do not tell
  bool fused_shared_expert = false;
  bool zeros_ok = false;       // rows of 0 are what the engine computed
  bool fits_numerics = false;  // `numerics: auto`: those that fit its recorded products
  std::string fit;             // then, once the recording was looked at: how well they do
  std::vector<Stage> require;  // stages that it has to have
  Where where;
};

struct LaneSpec {
  std::string name, backend;
  std::string backend_at;            // place of the key `backend`, for messages
  std::string inputs;                // lane whose outputs replace this lane's after every step; empty: none
  std::string routing;               // lane whose routing replaces this lane's; empty: none
  std::string base;                  // lane that computes what the backend, a kernel, does not; empty: none is named
  Options options;                   // `numerics` and all keys that are the backend's own
  EngineNumerics engine;             // what its values are rounded to besides
  bool recorded = false;             // it computes nothing: its values are those of StepSpec::expected
  std::optional<ReplaySpec> replay;  // it computes nothing: its values are those of a recording
  std::string as;                    // lane whose reads, weights and storage it computes with
  Where where;
};

// Rows of a stage, out of an .npy file.
struct GivenValues {
  Stage stage;
  DType dtype = DType::f32;
  Shape shape;  // as in the file, position first
  std::vector<std::byte> bytes;
  std::string file;  // its path
  Where where;

  Tensor tensor() const { return {bytes.data(), dtype, shape}; }
};

// One step alone, on values that are given: what the contract computes where its model is a part of one.
struct StepSpec {
  int first = 0, count = 0;           // the positions that are computed, in one pass
  std::vector<GivenValues> inputs;    // what the step reads, and what its output is compared by
  std::vector<GivenValues> expected;  // what it should give: the values of the lane `recorded`
  Where where;

  int end() const { return first + count; }
};
inline constexpr std::string_view recorded_lane = "recorded";  // its name
// The backend that computes the other steps of a kernel where no lane is named for that.
inline constexpr std::string_view default_base = "cpu";

struct SinkSpec {
  std::string name, sink;
  std::string sink_at;  // place of the key `sink`, for messages
  Options options;      // all keys but `sink`
  Where where;
};

struct CaptureSpec {
  enum class When {
    always,
    falsified,  // only when a falsifier is: evidence, of what failed
  };
  StageSelection stages;
  IndexSelection layers, positions;
  std::vector<std::string> lanes;  // resolved: never "all"
  std::vector<std::string> to;     // sink names
  When when = When::always;
  Where where;
};

// A fault that a contract or a call plants in one lane.
struct FaultSpec : Fault {
  std::string lane;          // of `planted` and `run --inject`; controls take their falsifier's lane
  IndexSelection positions;  // default all; of stale_kv: the keys'
  // partial_sum: columns of K, or slots of experts, that are left out or added twice; none: the second half of them.
  std::optional<IndexSelection> part;
  std::string text;  // as written, for reports: "nan at moe_expert_out, layer 6"
  Where where;
};

// What `identical` compares a lane with: a pass of the lane alone, or digests in a file.
enum class Twin { untraced, rerun, threads, chunks, digest };

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

  friend bool operator==(const Bound&, const Bound&) = default;
};

// Thresholds for some of a falsifier's sites, in place of its own: for some stages, and for the steps that read a
// weight of one of these types.
struct StageBound {
  std::vector<Stage> stages;  // of the falsifier's
  Bound bound;
};
struct TypeBound {
  std::vector<BlockType> types;
  Bound bound;
  std::string path;  // of the entry, for messages: "falsifiers.ID.per_type.0"
  Where where;
};

struct FalsifierSpec {
  std::string id, claim;
  std::string lane, against;  // against: empty for metrics that look at one lane
  StageSelection stages;      // resolved to the stages that fit the metric
  // Restricts `stages` to sites that the recording of a lane has. `steps`: sites whose step reads recorded stages only.
  // `spans`: the other recorded sites. `all`: both. `no`: no restriction.
  enum class Recorded { no, all, steps, spans };
  Recorded recorded = Recorded::no;
  IndexSelection layers, positions;
  std::vector<std::string> prompts;       // ids; empty: all
  std::optional<IndexSelection> experts;  // only these, at stages that hold experts side by side; none: all
  Metric metric = Metric::cosine_similarity;
  Bound bound;
  std::vector<StageBound> per_stage;  // the first that matches a site is in force there,
  std::vector<TypeBound> per_type;    // these after those
  double rtol = 0, atol = 0;          // mismatch_fraction
  int k = 10;                         // topk_overlap
  double least_tested = 0.5;          // noise_ratio: share of samples that have to be judged where routing is open
  std::string floor;                  // noise_ratio: a lane; empty: the error expected of the lane's numerics
  Twin to = Twin::untraced;           // identical
  std::string digest;                 // path of the file `to: {digest: FILE}` names
  int repeat = 5;                     // seconds, tokens_per_second, capture_overhead
  std::vector<FaultSpec> controls;
  std::vector<std::string> tags;  // groups of falsifiers, for `run --only tag:NAME`
  Where where;
};

// What a contract file says, checked against itself but not against a model.
struct Contract {
  std::string path;    // as given, for messages
  std::string folder;  // inputs are relative to it
  Metadata metadata;
  ModelSource model;
  Stages stages;  // of the model's architecture; of all of them while the model is not there
  std::vector<PromptSpec> prompts;
  std::string oracle;  // empty: none
  std::vector<LaneSpec> lanes;
  std::optional<StepSpec> step;
  std::vector<FaultSpec> planted;  // in every run of the contract; each names its lane
  std::vector<CaptureSpec> capture;
  std::vector<SinkSpec> sinks;
  int queue_mb = 256;                      // MiB of captured tensors that may wait for sinks
  std::optional<std::uint64_t> max_bytes;  // that all sinks may write
  std::string max_bytes_at;                // its place, for messages
  std::vector<FalsifierSpec> falsifiers;
  std::size_t stated = 0;           // falsifiers in the file; fewer are left when some were selected
  std::string digest;               // 16 hex digits: xxh3 of the file's text
  std::vector<Override> overrides;  // that were applied to it

  std::size_t queue_bytes() const { return static_cast<std::size_t>(queue_mb) << 20; }
  // "contracts/quickstart.yaml:12:5"
  std::string at(const Where& where) const {
    return path + ":" + std::to_string(where.line) + ":" + std::to_string(where.column);
  }
};

// A mistake that only somebody else can see, such as a plugin that does not exist: "place: message".
struct OtherMistake {
  Where where;  // for the order of the messages
  std::string text;
};
// Looks at a contract that may have mistakes of its own: what could not be read is empty.
using OtherCheck = std::function<std::vector<OtherMistake>(const Contract&)>;

// Reads a contract. Throws Error(usage) with every mistake found, one "file:line:column: message" per line; those that
// `check` finds are among them.
Contract read_contract(const std::string& path, const std::vector<Override>& overrides = {},
                       const OtherCheck& check = {});
// The same for text that is in memory; `path` is for messages and for the folder of relative inputs.
Contract parse_contract(const std::string& text, const std::string& path, const std::vector<Override>& overrides = {},
                        const OtherCheck& check = {});

// Reads a fault as `run --inject` takes it: a control in YAML's flow form with a lane of the contract, as in
// "{inject: nan, stage: moe_expert_out, layer: 6, lane: cuda}". Throws Error(usage) with every mistake found.
FaultSpec parse_fault(const std::string& text, const Contract& contract);
// The fault in the form that parse_fault() takes.
std::string flow_text(const FaultSpec& fault);

// How the lane's engine computes: the rows of the tables that its numerics are, under the words that the lane adds.
EngineNumerics engine_of(const LaneSpec& lane);

std::string_view name_of(Metric metric);
std::string_view name_of(Bound::Kind kind);
std::string_view name_of(Twin to);
// True when the metric is of passes that the lane computes alone, after the lockstep run.
bool is_alone(Metric metric);
// True when the metric belongs to stages; false for what is measured of a whole pass.
bool has_stage(Metric metric);
// True when the metric can be computed at the stage.
bool fits(Metric metric, Stage stage);

}  // namespace moe_diag
