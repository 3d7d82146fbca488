// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/contract/section.hpp"
#include "core/file/bounded_file.hpp"
#include "core/file/npy_file.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t largest_file = std::size_t{256} << 20;
constexpr std::size_t most_dimensions = 4;

// The array as it is in memory. Throws Error(usage).
GivenValues values_in(const std::string& path, Stage stage) {
  const std::string file = read_bounded(path, largest_file);
  const NpyArray array = parse_npy(file);
  const bool indices = payload_of(stage) == Payload::indices;
  if (indices ? array.type != "<i4" : array.type != "<f4" && array.type != "<f8")
    throw Error(ErrorKind::usage, fmt::format("its type is '{}', expected {}", array.type,
                                              indices ? "'<i4': ids of experts" : "'<f4' or '<f8': values"));
  if (array.shape.empty() || array.shape.size() > most_dimensions || array.count() == 0)
    throw Error(ErrorKind::usage, fmt::format("it has {} elements in {} dimensions, expected rows of {}", array.count(),
                                              array.shape.size(), name_of(stage)));
  GivenValues values;
  values.stage = stage;
  values.dtype = indices ? DType::i32 : array.type == "<f4" ? DType::f32 : DType::f64;
  for (const std::int64_t size : array.shape) values.shape.dims[static_cast<std::size_t>(values.shape.rank++)] = size;
  values.bytes.resize(array.data.size());
  std::memcpy(values.bytes.data(), array.data.data(), array.data.size());
  return values;
}

// A map of stages to files.
std::vector<GivenValues> read_values(const Value& value, const Contract& contract) {
  std::vector<GivenValues> all;
  for (const Entry& entry : Map(value).entries()) {
    const auto pick = read_stage_word(entry.key, contract.stages);
    const auto name = entry.value.text();
    if (!pick || !name) continue;
    if (!pick->named) {
      entry.key.refuse(fmt::format("expected the name of one stage, found '{}'", shown(entry.name())));
      continue;
    }
    const std::filesystem::path path(*name);
    try {
      const std::string file = path.is_relative() ? (std::filesystem::path(contract.folder) / path).string() : *name;
      all.push_back(values_in(file, pick->stages.front()));
      all.back().file = file;
      all.back().where = entry.value.node().where;
    } catch (const Error& e) {
      entry.value.refuse(fmt::format("{}: {}", shown(*name), e.what()));
    }
  }
  return all;
}

// The positions of the one prompt that are computed: a run without gaps.
void read_computed(const Value& value, const Contract& contract, StepSpec& step) {
  const auto positions = read_positions(value, contract, {});
  if (!positions || contract.prompts.empty() || contract.prompts.front().tokens.empty()) return;
  const std::vector<int> picked = positions->resolve(contract.prompts.front().length());
  step.first = picked.front();
  step.count = static_cast<int>(picked.size());
  if (picked.back() != step.first + step.count - 1)
    value.refuse("a step is computed in one pass, which has no gaps: give one range of positions");
}

void check_prompt(const Value& value, const Contract& contract) {
  if (contract.prompts.size() > 1)
    value.refuse(fmt::format("a step is computed of one prompt, the contract has {}", contract.prompts.size()));
  for (const PromptSpec& prompt : contract.prompts)
    if (prompt.generate > 0 || prompt.chunk > 0)
      value.refuse(
          fmt::format("nothing is generated or cut into chunks when one step is computed: remove '{}' from "
                      "the prompt '{}'",
                      prompt.generate > 0 ? "generate" : "chunk", shown(prompt.id)));
}

}  // namespace

void read_step(const Value& value, Contract& contract) {
  Map map(value);
  StepSpec step;
  step.where = value.node().where;
  check_prompt(value, contract);
  const std::size_t before = value.mistakes().count();
  if (const auto positions = map.require("positions")) read_computed(*positions, contract, step);
  if (const auto inputs = map.find("inputs")) step.inputs = read_values(*inputs, contract);
  if (const auto expected = map.find("expected")) {
    step.expected = read_values(*expected, contract);
    if (find_lane(contract, recorded_lane))
      expected->refuse(fmt::format("a lane is called '{}', as what is expected is: rename the lane", recorded_lane));
    LaneSpec& lane = contract.lanes.emplace_back();
    lane.name = recorded_lane;
    lane.backend = "recorded";
    lane.recorded = true;
    lane.where = expected->node().where;
  }
  map.finish();
  if (value.mistakes().count() == before) contract.step = std::move(step);
}

}  // namespace moe_diag
