// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/model/model.hpp"
#include "core/model/program.hpp"

namespace moe_diag::score {

// A fault at a site of a model, as `run --inject` takes it but for the lane.
struct Planting {
  FaultSpec::Kind kind;
  Site site;
  std::string more;  // ", positions: last"

  std::string text(const std::string& lane) const;
};

// Every kind of fault at every site it fits, in each of its forms.
std::vector<Planting> all_plantings(const Model& model);

// Whether a report may call a fault of this kind at that stage so.
bool is_right_cause(std::string_view cause, FaultSpec::Kind kind, Stage stage);

}  // namespace moe_diag::score
