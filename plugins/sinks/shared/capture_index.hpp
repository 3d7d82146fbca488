// SPDX-License-Identifier: MIT
#pragma once

// What the sinks that keep arrays have in common: which there are, and what is said of a capture as a whole.

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "core/api/error.hpp"
#include "core/api/event.hpp"

namespace moe_diag {

inline constexpr std::string_view capture_format = "moe-diag capture";
inline constexpr int capture_format_version = 1;

// One array of a capture so far.
struct CapturedArray {
  std::string path;  // <prompt>/<lane>/[layer_07/]<stage>
  DType dtype = DType::f32;
  Shape shape;             // dims[0] grows as rows are appended
  std::int64_t total = 0;  // rows that were announced
  std::vector<std::int32_t> positions;
  std::optional<std::uint64_t> digest;

  bool whole() const { return static_cast<std::int64_t>(positions.size()) >= total; }
  std::size_t bytes() const { return static_cast<std::size_t>(shape.count()) * size_of(dtype); }
};

// The arrays of a capture, prompt after prompt, lane after lane, then as the forward pass goes. What comes is checked
// against the run and against the rows before it.
class CaptureIndex {
 public:
  struct Key {
    int prompt = 0, lane = 0;
    Site site;

    friend bool operator<(const Key& a, const Key& b) {
      return std::tie(a.prompt, a.lane, a.site) < std::tie(b.prompt, b.lane, b.site);
    }
  };

  CaptureIndex() = default;
  // Refuses names of prompts and lanes that cannot be names of folders.
  explicit CaptureIndex(const RunInfo& run)
      : run_(run), layer_digits_(std::max<std::size_t>(2, std::to_string(run.model.config.layers).size())) {
    for (const PromptInfo& prompt : run.prompts) check_name("prompt", prompt.id);
    for (const LaneInfo& lane : run.lanes) check_name("lane", lane.name);
  }

  // The array that an event belongs to as it was before the event, and whether the event is its first. Throws Error
  // when the event contradicts what was there.
  std::pair<CapturedArray&, bool> at(const Event& event) {
    check(event);
    const auto [entry, fresh] = arrays_.try_emplace({event.prompt, event.lane, event.site});
    if (fresh)
      begin(entry->second, event);
    else
      check_rows(entry->second, event);
    return {entry->second, fresh};
  }
  // The event's rows are in the array now.
  static void add_rows(CapturedArray& array, const Event& event) {
    array.positions.insert(array.positions.end(), event.positions.begin(), event.positions.end());
    array.shape.dims[0] = static_cast<std::int64_t>(array.positions.size());
  }

  std::map<Key, CapturedArray>& arrays() { return arrays_; }
  const std::map<Key, CapturedArray>& arrays() const { return arrays_; }
  const RunInfo& run() const { return run_; }

  // Arrays that hold all that was announced.
  std::int64_t whole() const {
    return std::count_if(arrays_.begin(), arrays_.end(), [](const auto& entry) { return entry.second.whole(); });
  }

 private:
  static void check_name(std::string_view what, std::string_view name) {
    const bool control =
        std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 32; });
    if (!name.empty() && name[0] != '.' && name.find('/') == std::string_view::npos && name.size() <= 200 && !control)
      return;
    throw Error(ErrorKind::usage,
                fmt::format("{} '{}' cannot be the name of a folder of the capture; use letters, digits, "
                            "'-', '_' and '.', and do not start with '.'",
                            what, name));
  }

  void check(const Event& e) const {
    const auto refuse = [](const std::string& what) { throw Error(ErrorKind::environment, "event: " + what); };
    if (e.prompt < 0 || static_cast<std::size_t>(e.prompt) >= run_.prompts.size())
      refuse(fmt::format("prompt {} of {}", e.prompt, run_.prompts.size()));
    if (e.lane < 0 || static_cast<std::size_t>(e.lane) >= run_.lanes.size())
      refuse(fmt::format("lane {} of {}", e.lane, run_.lanes.size()));
    if (info(e.site.stage).scope == Scope::layer && (e.site.layer < 0 || e.site.layer >= run_.model.config.layers))
      refuse(fmt::format("{} of layer {}, the model has {}", name_of(e.site.stage), e.site.layer,
                         run_.model.config.layers));
    if (e.tensor.shape.rank < 1 || e.tensor.shape[0] != static_cast<std::int64_t>(e.positions.size()))
      refuse(fmt::format("{}: {} positions, {} rows", name_of(e.site.stage), e.positions.size(), e.tensor.shape[0]));
    if (!e.tensor.data && e.tensor.bytes() > 0) refuse(fmt::format("{}: no data", name_of(e.site.stage)));
  }

  void begin(CapturedArray& array, const Event& e) const {
    array.path = fmt::format("{}/{}/", run_.prompts[static_cast<std::size_t>(e.prompt)].id,
                             run_.lanes[static_cast<std::size_t>(e.lane)].name);
    if (info(e.site.stage).scope == Scope::layer)
      array.path += fmt::format("layer_{:0{}}/", e.site.layer, layer_digits_);
    array.path += name_of(e.site.stage);
    array.dtype = e.tensor.dtype;
    array.shape = e.tensor.shape;
    array.shape.dims[0] = 0;
    array.total = std::max(e.total, e.tensor.shape[0]);
  }

  // Later rows: another pass of the same prompt.
  void check_rows(const CapturedArray& array, const Event& e) const {
    const auto refuse = [&](const std::string& what) {
      throw Error(ErrorKind::environment, fmt::format("event: {}: {}", array.path, what));
    };
    Shape grown = e.tensor.shape;
    grown.dims[0] = array.shape[0];
    if (grown != array.shape || e.tensor.dtype != array.dtype)
      refuse(fmt::format("holds rows of {} {}, more came as {} {}; one array has one shape", name_of(array.dtype),
                         text_of(array.shape), name_of(e.tensor.dtype), text_of(e.tensor.shape)));
    if (!array.positions.empty() && !e.positions.empty() && e.positions.front() <= array.positions.back())
      refuse(fmt::format("position {} came after position {}; positions must ascend", e.positions.front(),
                         array.positions.back()));
    if (array.shape[0] + e.tensor.shape[0] > array.total)
      refuse(fmt::format("{} rows were announced, {} came", array.total, array.shape[0] + e.tensor.shape[0]));
  }

  static std::string text_of(const Shape& shape) {
    std::string text;
    for (int i = 0; i < shape.rank; ++i) text += fmt::format("{}{}", i ? "x" : "", shape[i]);
    return text;
  }

  RunInfo run_;
  std::size_t layer_digits_ = 2;
  std::map<Key, CapturedArray> arrays_;
};

using CaptureJson = nlohmann::ordered_json;

// As text; paths may hold bytes that are not UTF-8.
inline std::string dump(const CaptureJson& json) {
  return json.dump(-1, ' ', false, CaptureJson::error_handler_t::replace);
}

namespace capture_json {

// All tokens that there are: a sequence may have ended before it had all that were to be generated.
inline CaptureJson of(const PromptInfo& p) {
  const std::vector<std::int32_t> tokens(p.tokens.begin(), std::find(p.tokens.begin(), p.tokens.end(), -1));
  const std::size_t own = p.tokens.size() - static_cast<std::size_t>(p.generated);
  return {{"id", p.id}, {"tokens", tokens}, {"generated", tokens.size() - std::min(own, tokens.size())}};
}

inline CaptureJson of(const LaneInfo& l) {
  return {{"name", l.name},
          {"backend", l.backend},
          {"numerics", l.numerics},
          {"device", l.device},
          {"instruction_set", l.instruction_set},
          {"values", name_of(l.values)}};
}

inline CaptureJson of(const ModelConfig& c) {
  return {{"layers", c.layers},
          {"hidden", c.hidden},
          {"heads", c.heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"experts", c.experts},
          {"used", c.used},
          {"expert_width", c.expert_width},
          {"vocab", c.vocab},
          {"context", c.context},
          {"rms_eps", c.rms_eps},
          {"rope_theta", c.rope_theta},
          {"tied_output", c.tied_output}};
}

}  // namespace capture_json

// What is known in open() of a capture as a whole: what was run, by which lanes.
inline CaptureJson heading_of(const RunInfo& run) {
  CaptureJson lanes = CaptureJson::array();
  for (const LaneInfo& l : run.lanes)
    if (l.runs) lanes.push_back(capture_json::of(l));
  return {{"format", capture_format},
          {"format_version", capture_format_version},
          {"tool_version", run.tool_version},
          {"contract", {{"id", run.contract}, {"version", run.contract_version}}},
          {"lanes", lanes},
          {"planted", std::vector<std::string_view>(run.planted.begin(), run.planted.end())}};
}

// What is known in close() only: the model's digest, which is computed meanwhile, and the tokens that were generated.
inline CaptureJson outcome_of(const RunInfo& run) {
  CaptureJson prompts = CaptureJson::array();
  for (const PromptInfo& p : run.prompts) prompts.push_back(capture_json::of(p));
  return {{"model",
           {{"source", run.model.source},
            {"bytes", run.model.bytes},
            {"digest", run.model.digest()},
            {"config", capture_json::of(run.model.config)}}},
          {"prompts", prompts}};
}

// All of it.
inline CaptureJson manifest_of(const RunInfo& run) {
  CaptureJson manifest = heading_of(run);
  manifest.update(outcome_of(run));
  return manifest;
}

}  // namespace moe_diag
