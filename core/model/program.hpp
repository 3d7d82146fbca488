// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/api/backend.hpp"
#include "core/api/step.hpp"
#include "core/model/model.hpp"
#include "core/ops/program.hpp"

namespace moe_diag {

// Of a part of a model: its one step.
Program build_program(const Model& model);

// The step that writes the stage, or null when the program has none there.
const Step* find_step(const Program& program, Site site);

// The program up to the step that writes the site, with it; all of it when none does.
std::span<const Step> steps_up_to(const Program& program, Site site);

// What the step that writes the site reads; empty when the program has no such step.
std::vector<Site> inputs_of(const Program& program, Site site);

// The sites whose values depend on the one given, itself first, in forward order.
std::vector<Site> sites_that_depend_on(const Program& program, Site site);

// Where a step's output stands.
inline Site site_of(const Step& step, Stage stage) { return {stage, step.layer}; }

}  // namespace moe_diag
