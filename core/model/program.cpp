// SPDX-License-Identifier: MIT
#include "core/model/program.hpp"

#include <algorithm>
#include <vector>

namespace moe_diag {
Program build_program(const Model& model) {
  ProgramBuilder builder(model.config(),
                         [&](std::string_view role, int layer) { return model.find_weight(role, layer); });
  model.architecture().add_steps(builder);
  Program whole = builder.take();
  return model.part() ? Program{*find_step(whole, *model.part())} : whole;
}

const Step* find_step(const Program& program, Site site) {
  for (const Step& step : program)
    if (step.layer == site.layer && std::find(step.out.begin(), step.out.end(), site.stage) != step.out.end())
      return &step;
  return nullptr;
}

std::span<const Step> steps_up_to(const Program& program, Site site) {
  const Step* last = find_step(program, site);
  return last ? std::span(program.data(), last + 1) : std::span(program);
}

std::vector<Site> inputs_of(const Program& program, Site site) {
  std::vector<int> written(site.stage.siblings().size());  // in which layer each stage was written last
  std::vector<Site> inputs;
  for (const Step& step : program) {
    if (step.layer == site.layer && std::find(step.out.begin(), step.out.end(), site.stage) != step.out.end())
      for (Stage stage : step.in) inputs.push_back({stage, written[stage.index()]});
    for (Stage stage : step.out) written[stage.index()] = step.layer;
  }
  return inputs;
}

std::vector<Site> sites_that_depend_on(const Program& program, Site site) {
  std::vector<bool> touched(site.stage.siblings().size());  // as buffers are: one a stage, written anew in each layer
  std::vector<Site> reached;
  const auto is_touched = [&](Stage stage) { return touched[stage.index()]; };
  for (const Step& step : program) {
    const bool inherits = std::any_of(step.in.begin(), step.in.end(), is_touched);
    for (Stage stage : step.out) {
      const bool here = inherits || site_of(step, stage) == site;
      touched[stage.index()] = here;
      if (here) reached.push_back(site_of(step, stage));
    }
  }
  return reached;
}

}  // namespace moe_diag
