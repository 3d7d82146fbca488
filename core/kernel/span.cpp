// SPDX-License-Identifier: MIT
#include "core/kernel/span.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "core/api/error.hpp"
#include "core/contract/selection.hpp"
#include "core/lane/rounded_lane.hpp"
#include "core/ops/operator.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorKind::usage, "--span: " + what); }

bool writes(const Step& step, Stage stage) {
  return std::find(step.out.begin(), step.out.end(), stage) != step.out.end();
}
bool reads(const Step& step, Stage stage) { return std::find(step.in.begin(), step.in.end(), stage) != step.in.end(); }
bool reads_role(const Step& step, Role role) {
  return std::any_of(step.in.begin(), step.in.end(), [role](Stage stage) { return is(stage, role); });
}
bool is_of_keys(Stage stage) { return is(stage, Role::key_values); }

Stage stage_called(std::string_view word, Stages stages) {
  std::optional<StagePick> pick;
  try {
    pick = pick_stages(word, stages);
  } catch (const std::invalid_argument&) {
    pick.reset();
  }
  if (pick && pick->named && pick->stages.size() == 1) return pick->stages[0];
  std::vector<std::string> known{std::string(ffn_span)};
  for (const Stage stage : stages) known.emplace_back(name_of(stage));
  refuse(unknown("stage", shown(word), known));
}

// The place of a step of the layer in the program; -1: none.
int place_of(const Program& program, int layer, Stage stage) {
  for (std::size_t i = 0; i < program.size(); ++i)
    if (program[i].layer == layer && writes(program[i], stage)) return static_cast<int>(i);
  return -1;
}

struct Places {
  int first = -1, last = -1;
  Stage output;
};

Places places_of_ffn(const Program& program, int layer) {
  Places places;
  for (std::size_t i = 0; i < program.size(); ++i) {
    const Step& step = program[i];
    if (step.layer != layer) continue;
    if (places.first < 0 && operator_of(step).weights == WeightRows::of_experts) places.first = static_cast<int>(i);
    if (!reads_role(step, Role::weighed_values)) continue;
    places.last = static_cast<int>(i);
    places.output = step.out[0];
  }
  if (places.first < 0 || places.last < places.first)
    refuse(fmt::format("{}: layer {} has no steps that read a choice of experts and add them up", ffn_span, layer));
  return places;
}

// Its layer, or -1 for a stage of no layer.
int layer_of(Stage stage, int layer) { return info(stage).scope == Scope::layer ? layer : -1; }

Places places_of(const Model& model, const Program& program, std::string_view words, int layer) {
  if (lower(words) == ffn_span) return places_of_ffn(program, layer);
  const std::size_t dots = words.find("..");
  const Stages stages = model.config().stages;
  const Stage first = stage_called(words.substr(0, dots), stages);
  const Stage last = dots == std::string_view::npos ? first : stage_called(words.substr(dots + 2), stages);
  if (layer_of(first, layer) != layer_of(last, layer))
    refuse(fmt::format("{}: {} and {} are not of the same layer", shown(words), name_of(first), name_of(last)));
  Places places{place_of(program, layer_of(first, layer), first), place_of(program, layer_of(last, layer), last), last};
  for (const auto& [stage, place] : {std::pair(first, places.first), std::pair(last, places.last)})
    if (place < 0) refuse(fmt::format("{}: layer {} has no {}", shown(words), layer, name_of(stage)));
  if (places.first > places.last)
    refuse(fmt::format("{}: {} comes before {}; write {}..{}", shown(words), name_of(last), name_of(first),
                       name_of(last), name_of(first)));
  return places;
}

// The steps between the places that the output follows from.
Program steps_of(const Program& program, const Places& places) {
  std::vector<Stage> needed{places.output};
  Program steps;
  for (int i = places.last; i >= places.first; --i) {
    const Step& step = program[static_cast<std::size_t>(i)];
    if (std::none_of(needed.begin(), needed.end(), [&](Stage stage) { return writes(step, stage); })) continue;
    needed.insert(needed.end(), step.in.begin(), step.in.end());
    steps.insert(steps.begin(), step);
  }
  return steps;
}

void check_steps(const Program& steps) {
  for (const Step& step : steps) {
    const std::string_view name = name_of(step.out[0]);
    if (has_state(step))
      refuse(
          fmt::format("steps that move a state on are not written as cases yet: {} does; end before it, or begin "
                      "behind it",
                      name));
    if (operator_of(step).weights == WeightRows::of_tokens)
      refuse(fmt::format("steps that read tokens are not written as cases yet: {} does", name));
    if (operator_of(step).chooses_experts && steps.size() > 1)
      refuse(
          fmt::format("{} chooses experts, near-ties of which a kernel may decide otherwise by right: end before it, "
                      "begin behind it, or name it alone",
                      name));
  }
}

void add_inputs(const Program& program, std::size_t first, Span& span) {
  std::vector<Stage> written;
  const auto is_in = [](const std::vector<Stage>& list, Stage stage) {
    return std::find(list.begin(), list.end(), stage) != list.end();
  };
  std::vector<Stage> wanted;
  for (const Step& step : span.steps) {
    for (const Stage stage : step.in)
      if (!is_in(written, stage) && !is_in(wanted, stage)) wanted.push_back(stage);
    written.insert(written.end(), step.out.begin(), step.out.end());
  }
  const bool of_experts = std::any_of(written.begin(), written.end(), [](Stage s) { return is_per_expert(s); });
  if (of_experts) span.choice = span.output.sibling(Role::choice);
  if (of_experts && !is_in(written, span.choice) && !is_in(wanted, span.choice)) wanted.push_back(span.choice);
  for (const Stage stage : wanted)
    for (std::size_t i = first; i-- > 0;)
      if (writes(program[i], stage)) {
        span.inputs.push_back(site_of(program[i], stage));
        break;
      }
}

// Behind the inputs: what is cached comes from stages of the same rows.
void add_caches(const Program& program, Span& span) {
  for (const Step& step : span.steps)
    for (const CacheUse& use : step.caches) {
      const Stage stage = step.in[static_cast<std::size_t>(use.input)];
      const auto is_it = [&](const SpanCache& c) { return c.cache == use.cache; };
      if (std::any_of(span.caches.begin(), span.caches.end(), is_it)) continue;
      const auto writer = std::find_if(program.begin(), program.end(),
                                       [&](const Step& s) { return s.layer == step.layer && writes(s, stage); });
      span.caches.push_back({use.cache, site_of(*writer, stage), use.column});
    }
}

// Scores and their softmax have a value for each key: their rows have another width in every case.
void check_keys(const Program& program, std::string_view words, const Span& span) {
  std::string first, last;
  for (const Step& step : program) {
    if (step.layer != span.layer || !reads_cache(step)) continue;
    if (first.empty()) first = name_of(step.out[0]);
    last = name_of(step.out[0]);
  }
  const auto check = [&](Stage stage, std::string_view does) {
    if (is_of_keys(stage))
      refuse(
          fmt::format("{}: {} {}, which has a value for each key and is not written as a case: expected a span with "
                      "all of attention in it; take {}..{}, or more",
                      shown(words), does, name_of(stage), first, last));
  };
  for (const Site& input : span.inputs) check(input.stage, "reads");
  check(span.output, "ends with");
}

void add_weights(Span& span) {
  const auto add = [&](const Weight* weight) {
    if (weight && std::find(span.weights.begin(), span.weights.end(), weight) == span.weights.end())
      span.weights.push_back(weight);
  };
  for (const Step& step : span.steps) {
    for (const Weight* weight : step.weights) add(weight);
    for (const Weight* bias : step.biases) add(bias);
  }
}

}  // namespace

bool Span::reads_choice() const {
  return choice &&
         std::any_of(steps.begin(), steps.end(), [this](const Step& s) { return moe_diag::reads(s, choice); });
}

Span find_span(const Model& model, const Program& program, std::string_view words, int layer) {
  const Places places = places_of(model, program, words, layer);
  Span span;
  span.output = places.output;
  if (payload_of(span.output) == Payload::indices)
    refuse(fmt::format("{} holds ids of experts, which are not judged as a kernel's output yet; take {}",
                       name_of(span.output), name_of(span.output.sibling(Role::choice_weights))));
  span.layer = program[static_cast<std::size_t>(places.last)].layer;
  span.steps = steps_of(program, places);
  const Stage begins_with = program[static_cast<std::size_t>(places.first)].out[0];
  if (!writes(span.steps.front(), begins_with))
    refuse(fmt::format("{}: {} does not follow from {}", shown(words), name_of(span.output), name_of(begins_with)));
  check_steps(span.steps);
  add_inputs(program, static_cast<std::size_t>(places.first), span);
  check_keys(program, words, span);
  add_caches(program, span);
  add_weights(span);
  return span;
}

void round_as(std::string_view reads, std::string_view stored, const ModelConfig& config, Span& span) {
  const auto names = [](const auto& rows) {
    std::vector<std::string> all;
    for (const auto& row : rows) all.emplace_back(row.name);
    return all;
  };
  EngineNumerics engine;
  engine.reads = reads;
  engine.stored = stored;
  if (!reads.empty() && !find_reads(reads))
    throw Error(ErrorKind::usage, "--reads: " + unknown("way to read activations", shown(reads), names(all_reads())));
  if (!stored.empty() && !find_storage_preset(stored))
    throw Error(ErrorKind::usage,
                "--stored: " + unknown("way to store stages", shown(stored), names(all_storage_presets())));
  if (const std::string why = obstacle_to_rounding(engine, span.steps, config); !why.empty())
    throw Error(ErrorKind::usage, "--" + why);
  if (!reads.empty() && reads != "exact") span.reads = find_reads(reads);
  if (!stored.empty()) span.storage = storage_of(engine, config.stages, Description{});
}

}  // namespace moe_diag
