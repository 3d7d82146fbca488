// SPDX-License-Identifier: MIT
#include "core/kernel/span.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "core/api/error.hpp"
#include "core/contract/selection.hpp"
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
bool has_keys(const Step& step) {
  const auto of_keys = [](Stage stage) { return is(stage, Role::key_values); };
  return std::any_of(step.in.begin(), step.in.end(), of_keys) || std::any_of(step.out.begin(), step.out.end(), of_keys);
}

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
    if (reads_cache(step))
      refuse(fmt::format("steps that read a cache are not written as cases yet: {} reads one", name));
    if (has_keys(step))
      refuse(fmt::format("steps of attention over keys are not written as cases yet: {} is one", name));
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
  return choice && std::any_of(steps.begin(), steps.end(), [this](const Step& s) { return reads(s, choice); });
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
  add_weights(span);
  return span;
}

}  // namespace moe_diag
