// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/contract/reader.hpp"

namespace moe_diag {

// The parts of a contract file. Each reads its part into `contract`, which holds the parts named before it in
// parse_contract(), and leaves its mistakes with the value.
void read_prompts(const Value& value, Contract& contract);
void read_lanes(const Value& value, Contract& contract);
// The keys of a lane that is a recording; none where it computes.
std::optional<ReplaySpec> read_replay(Map& map, const Contract& contract);
// Gives each lane with `as` the words of that lane's engine.
void check_replays(const std::vector<Entry>& entries, Contract& contract);
void read_oracle(const Value& value, Contract& contract);
// Adds the lane of what is expected, too.
void read_step(const Value& value, Contract& contract);
void read_sinks(const Value& value, Contract& contract);
void read_capture(const Value& value, Contract& contract);
void read_falsifiers(const Value& value, Contract& contract);

// The threshold that stands in the map of `owner`, "a falsifier"; none after a mistake.
std::optional<Bound> read_bound(Map& map, std::string_view owner, std::optional<Metric> metric);
// The thresholds of a falsifier for some of its stages and types of weights. The stages it looks at are known.
void read_overrides(Map& map, FalsifierSpec& spec, std::optional<Metric> metric);
// The keys `to` and `repeat`, and whether the lane can be alone. False when it is not known what `identical` compares
// with.
bool read_alone(Map& map, FalsifierSpec& spec, std::optional<Metric> metric, const Contract& contract);
// Refuses the keys that a metric of whole passes does not take.
void refuse_stage_keys(Map& map, Metric metric);
// Whether the falsifier's metric can be computed at the stage: `identical` looks at what it compares, too.
bool fits(const FalsifierSpec& spec, Metric metric, Stage stage);
std::string fitting_stages(const FalsifierSpec& spec, Metric metric, Stages stages);

// The name of a block type.
std::optional<BlockType> read_block_type(const Value& value);

void read_planted(const Value& value, Contract& contract);
// A fault, in the lane of the falsifier it controls; without one (null), in the lane its own key `lane` names. None
// after a mistake.
std::optional<FaultSpec> read_fault(const Value& value, const Contract& contract, const FalsifierSpec* falsifier);
// Why the falsifier cannot see the fault whatever the model; empty when it may.
std::string blind_to(const FalsifierSpec& falsifier, const FaultSpec& fault, const Contract& contract);

std::vector<std::string> lane_names(const Contract& contract);
const LaneSpec* find_lane(const Contract& contract, std::string_view name);
// A lane of the contract by name; a mistake and empty otherwise.
std::string read_lane_name(const Value& value, const Contract& contract);
// The ids of the prompts that a falsifier names, by their own id or by that of the entry they come from.
std::vector<std::string> read_prompt_ids(const Value& value, const Contract& contract);
// Names out of `known`, each at most once; `all` stands for all of them.
std::vector<std::string> read_names(const Value& value, std::string_view what, const std::vector<std::string>& known);

// Layers, positions or experts: a word, a number or a list.
std::optional<IndexSelection> read_layers(const Value& value);
// Checked against the prompts named, or all when there are none.
std::optional<IndexSelection> read_positions(const Value& value, const Contract& contract,
                                             const std::vector<std::string>& prompts);
// The prompts of those ids; all when there are none.
std::vector<const PromptSpec*> prompts_of(const Contract& contract, const std::vector<std::string>& ids);

// One stage word as the contract writes it; a mistake and none when there is no such stage.
std::optional<StagePick> read_stage_word(const Value& word, Stages stages);
// Adds a mistake when layers are given but all stages are of the whole model.
void check_layers(const Value& layers, const std::vector<Stage>& stages);

}  // namespace moe_diag
