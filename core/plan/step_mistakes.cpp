// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>
#include <vector>

#include "core/forward/given_inputs.hpp"
#include "core/plan/plan.hpp"

namespace moe_diag {
namespace {

std::string names_of(const std::vector<Stage>& stages) {
  std::vector<std::string_view> names;
  for (Stage stage : stages) names.push_back(name_of(stage));
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string text_of(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(std::span(shape.dims).first(static_cast<std::size_t>(shape.rank)), ", "));
}

// The contract's step against the one step of the model.
class StepCheck {
 public:
  StepCheck(const Contract& contract, const ModelConfig& config, const Step& step)
      : contract_(contract), spec_(*contract.step), config_(config), step_(step) {}

  std::string mistakes() {
    const std::vector<Stage> out(step_.out.begin(), step_.out.end());
    check_stages("inputs", spec_.inputs, stages_given(step_), true);
    check_stages("expected", spec_.expected, out, false);
    return mistakes_;
  }

 private:
  void mistake(const Where& where, const std::string& what) {
    mistakes_ += fmt::format("{}{}: step.{}", mistakes_.empty() ? "" : "\n", contract_.at(where), what);
  }

  void check_stages(std::string_view key, const std::vector<GivenValues>& given, const std::vector<Stage>& known,
                    bool all) {
    std::vector<Stage> missing = known;
    for (const GivenValues& values : given) {
      if (std::find(known.begin(), known.end(), values.stage) == known.end()) {
        mistake(values.where, fmt::format("{}.{}: is not of the step that gives {}{}", key, name_of(values.stage),
                                          moe_diag::text_of(step_),
                                          known.empty() ? ": remove it" : ", which takes " + names_of(known)));
        continue;
      }
      missing.erase(std::remove(missing.begin(), missing.end(), values.stage), missing.end());
      check_values(key, values);
    }
    if (all && !missing.empty())
      mistake(spec_.where, fmt::format("{}: what the step reads is missing: {}", key, names_of(missing)));
  }

  void check_values(std::string_view key, const GivenValues& values) {
    const bool of_all = key == "inputs" && is_of_all_positions(step_, values.stage);
    const int rows = of_all ? spec_.end() : spec_.count;
    const Shape expected = config_.shape_of({values.stage, step_.layer}, rows, contract_.prompts.front().length());
    if (!(values.shape == expected)) {
      mistake(values.where, fmt::format("{}.{}: its shape is {}, expected {}: {} of {} positions", key,
                                        name_of(values.stage), text_of(values.shape), text_of(expected),
                                        name_of(values.stage), of_all ? "all" : "the step's"));
      return;
    }
    if (values.dtype != DType::i32) return;
    const std::span<const std::int32_t> ids(values.tensor().as<std::int32_t>(),
                                            static_cast<std::size_t>(values.shape.count()));
    const auto outside = std::find_if(ids.begin(), ids.end(), [&](int id) { return id < 0 || id >= config_.experts; });
    if (outside != ids.end())
      mistake(values.where, fmt::format("{}.{}: it holds expert {}, the model has experts 0 to {}", key,
                                        name_of(values.stage), *outside, config_.experts - 1));
  }

  const Contract& contract_;
  const StepSpec& spec_;
  const ModelConfig& config_;
  const Step& step_;
  std::string mistakes_;
};

}  // namespace

std::string text_of(const Step& step) {
  std::string text = step.layer < 0 ? "" : fmt::format("layer {}, ", step.layer);
  for (std::size_t i = 0; i < step.out.size(); ++i)
    text += fmt::format("{}{}", i > 0 ? " and " : "", name_of(step.out[i]));
  return text;
}

std::string step_mistakes(const Contract& contract, const Model& model, const Program& program) {
  if (!contract.step && !model.part()) return "";
  if (!model.part())
    return fmt::format(
        "{}: step: the model {} is whole: a step is computed of a part of one, as 'moe-diag repro' "
        "writes it",
        contract.at(contract.step->where), model.source());
  if (!contract.step)
    return fmt::format(
        "{}: model: {} is a part of a model, which has {} alone: say in 'step' what that is computed from",
        contract.at(contract.model.where), model.source(), text_of(program.front()));
  return StepCheck(contract, model.config(), program.front()).mistakes();
}

}  // namespace moe_diag
