// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <stdexcept>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/ops/block_scales.hpp"
#include "core/ops/matrix.hpp"
#include "core/ops/operator.hpp"
#include "core/plan/plan.hpp"

namespace moe_diag {
namespace {

using Kind = FaultSpec::Kind;

std::string experts_mistake(const FaultSpec& fault, const ModelConfig& config) {
  const bool needs_unchosen =
      fault.kind == Kind::swap_tie || (fault.kind == Kind::wrong_expert && is(fault.stage, Role::choice));
  if ((fault.kind == Kind::wrong_expert && config.experts == 1) || (needs_unchosen && config.used == config.experts))
    return fmt::format("there is no other expert, the model uses {} of {}", config.used, config.experts);
  if (fault.kind == Kind::uniform_weights && config.used == 1 && info(fault.stage).sums_to_one)
    return "the weight of one expert alone is 1 in any case, and the model uses one";
  const bool needs_two =
      fault.kind == Kind::duplicate_ids || (fault.kind == Kind::partial_sum && !fault_at::product(fault.stage));
  if (needs_two && config.used == 1) return "the model uses one expert, which has no other beside it";
  if (fault.expert >= config.experts)
    return fmt::format("expert {} is not there, the model has experts 0 to {}", fault.expert, config.experts - 1);
  return "";
}

std::string rope_mistake(const FaultSpec& fault, const Program& program) {
  const Step* step = find_step(program, {fault.stage, fault.layer});
  if (fault.kind == Kind::rope_theta && step &&
      static_cast<float>(fault.theta) == static_cast<float>(step->as<RopeParams>().theta))
    return fmt::format("{} is the model's own theta: give another", fault.theta);
  if (fault.kind == Kind::rope_interleaved && step && step->as<RopeParams>().head_dim == 2)
    return "a head has 2 values, and they are one pair in any case";
  if (fault.kind != Kind::rope_partial || !step) return "";
  const int h = step->as<RopeParams>().head_dim, columns = columns_rotated(fault, h);
  if (columns >= 2 && columns % 2 == 0 && columns < h) return "";
  return fmt::format("{} of {} columns of a head: give an even number, at least 2 and below {}", columns, h, h);
}

std::string norm_mistake(const FaultSpec& fault, const Step& step, const ModelConfig& config) {
  const RmsNormParams& params = step.as<RmsNormParams>();
  const std::int64_t row = config.shape_of({fault.stage, fault.layer}, 1, 1).row();
  if (form_of(fault) == Fault::Form::whole_row && row == params.width)
    return "a row is one head, and has one norm in any case";
  if (fault.kind == Kind::eps && static_cast<float>(fault.eps) == static_cast<float>(params.eps))
    return fmt::format("{} is the model's own eps: give another", fault.eps);
  return "";
}

// The terms that a partial sum is about: some that are there, and not all.
std::string part_mistake(const FaultSpec& fault, const Step& step, const ModelConfig& config) {
  const int terms = terms_of_sum(step, config);
  const std::string_view what = fault_at::product(fault.stage) ? "columns" : "slots of experts";
  try {
    const std::vector<int> part = part_of(fault, terms);
    if (static_cast<int>(part.size()) < terms) return "";
    return fmt::format("part {} is all {} {}: leave some out of it", fault.part ? fault.part->text() : "of half", terms,
                       what);
  } catch (const std::out_of_range&) {
    return fmt::format("part {} is not there, the sum is of {} {}, 0 to {}", fault.part->text(), terms, what,
                       terms - 1);
  }
}

std::string cache_mistake(const FaultSpec& fault, const Step& step, const ModelConfig& config) {
  const std::int64_t width = config.cache_width(step.caches[0].cache, step.layer);
  const int block = info(type_kept(fault)).elements;
  if (width % block == 0) return "";
  return fmt::format("rows of {} have {} values, no whole number of blocks of {}", name_of(step.caches[0].cache), width,
                     name_of(type_kept(fault)));
}

std::string scale_mistake(const Step& step) {
  std::string types;
  for (const Weight* weight : step.weights) {
    if (host::has_scales(*weight, weight->type)) return "";
    types += fmt::format("{}{} is {}", types.empty() ? "" : ", ", weight->name, name_of(weight->type));
  }
  return fmt::format("it changes nothing, a row has no two scales: {}", types);
}

std::string gating_mistake(const FaultSpec& fault, const ModelConfig& config, const Step& step) {
  const bool is_one = form_of(fault) == Fault::Form::softmax && config.used == 1;
  return is_one && step.as<TopkParams>().renormalised ? "the weight of one expert alone is 1 in any case" : "";
}

std::string type_mistake(const FaultSpec& fault, const Step& step) {
  std::set<std::string_view> types;
  bool changes = false;
  for (const Weight* weight : step.weights) {
    const BlockType type = type_read(fault, weight->type);
    types.insert(name_of(weight->type));
    changes = changes || type != weight->type;
    if (!host::can_read(*weight, type))
      return fmt::format("{} cannot be read as {}: its rows have {} values, and a block has {}", weight->name,
                         name_of(type), weight->cols, info(type).elements);
  }
  if (changes) return "";
  const std::string_view remedy = fault.type ? "name another 'type'" : "name a 'type' to read it as";
  return fmt::format("it changes nothing, the weight there is {}: {}", fmt::join(types, ", "), remedy);
}

std::string block_mistake(const FaultSpec& fault, const Step& step) {
  const Weight& weight = *step.weights[0];
  if (weight.cols % fault.block == 0) return "";
  return fmt::format("the rows that {} is multiplied with have {} values, which is no whole number of blocks",
                     weight.name, weight.cols);
}

std::string positions_mistake(const FaultSpec& fault, const Contract& contract) {
  const bool changes = std::any_of(contract.prompts.begin(), contract.prompts.end(), [&](const PromptSpec& prompt) {
    return !positions_changed(fault, prompt.length()).empty();
  });
  if (changes) return "";
  const int first = first_changed(fault);
  return first <= 1 ? "it changes nothing at position 0"
                    : fmt::format("it changes nothing at positions 0 to {}, and no prompt reaches further", first - 1);
}

std::string index_mistake(const FaultSpec& fault, const Contract& contract, const ModelConfig& config) {
  for (const PromptSpec& prompt : contract.prompts) {
    const std::int64_t row = config.shape_of({fault.stage, fault.layer}, 1, prompt.length()).count();
    if (fault.index >= row)
      return fmt::format("element {} is not there, a row of {} has {} values with prompt '{}'", fault.index,
                         name_of(fault.stage), row, prompt.id);
  }
  return "";
}

std::string what_is_wrong(const FaultSpec& fault, const Contract& contract, const ModelConfig& config,
                          const Program& program) {
  if (fault.layer >= config.layers)
    return fmt::format("layer {} is not there, the model has layers 0 to {}", fault.layer, config.layers - 1);
  if (std::string why = experts_mistake(fault, config); !why.empty()) return why;
  if (std::string why = rope_mistake(fault, program); !why.empty()) return why;
  if (std::string why = positions_mistake(fault, contract); !why.empty()) return why;
  const Step* step = find_step(program, {fault.stage, fault.layer});
  if (!step) return "nothing is computed there";
  if (fault.kind == Kind::wrong_type) return type_mistake(fault, *step);
  if (fault.kind == Kind::transpose && step->weights.size() == 1 && step->weights[0]->rows == 1)
    return fmt::format("{} has one row: read transposed it is the same", step->weights[0]->name);
  if (fault.kind == Kind::quantise_activations) return block_mistake(fault, *step);
  if (fault.kind == Kind::eps || fault.kind == Kind::norm) return norm_mistake(fault, *step, config);
  if (fault.kind == Kind::partial_sum) return part_mistake(fault, *step, config);
  if (fault.kind == Kind::cache_type) return cache_mistake(fault, *step, config);
  if (fault.kind == Kind::wrong_scale) return scale_mistake(*step);
  if (fault.kind == Kind::gating) return gating_mistake(fault, config, *step);
  return index_mistake(fault, contract, config);
}

}  // namespace

std::string mistake_of(const FaultSpec& fault, const Contract& contract, const ModelConfig& config,
                       const Program& program) {
  const std::string why = what_is_wrong(fault, contract, config, program);
  return why.empty() ? "" : fmt::format("fault '{}': {}", fault.text, why);
}

}  // namespace moe_diag
