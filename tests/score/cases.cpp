// SPDX-License-Identifier: MIT
#include "tests/score/cases.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace moe_diag::score {
namespace {

using Kind = FaultSpec::Kind;

// In what forms a kind is planted, beside its plainest at all positions.
std::vector<std::string> forms_of(Kind kind) {
  std::vector<std::string> forms = {"", ", positions: last"};
  switch (kind) {
    case Kind::nan:
    case Kind::inf: forms.emplace_back(", index: 2, positions: 1"); break;
    case Kind::scale: forms.insert(forms.end(), {", factor: -1", ", factor: 0.5", ", factor: 1.0625"}); break;
    case Kind::bitflip: forms.insert(forms.end(), {", bit: 31", ", bit: 20, index: 2"}); break;
    case Kind::rope_theta: forms.emplace_back(", theta: 1e5"); break;
    case Kind::quantise_activations: forms.emplace_back(", block: 32"); break;
    default: break;
  }
  return forms;
}

std::vector<Site> sites_of(Stage stage, int layers) {
  if (info(stage).scope != Scope::layer) return {{stage, -1}};
  std::vector<Site> sites;
  for (int layer = 0; layer < layers; ++layer) sites.push_back({stage, layer});
  return sites;
}

bool reads_f32(const Program& program, Site site) {
  const Step& step = *find_step(program, site);
  return std::all_of(step.weights.begin(), step.weights.end(),
                     [](const Weight* weight) { return weight->type == BlockType::f32; });
}

bool reads_one_row(const Program& program, Site site) { return find_step(program, site)->weights[0]->rows == 1; }

}  // namespace

std::string Planting::text(const std::string& lane) const {
  const std::string layer = site.layer < 0 ? "" : fmt::format(", layer: {}", site.layer);
  return fmt::format("{{inject: {}, stage: {}{}{}, lane: {}}}", name_of(kind), name_of(site.stage), layer, more, lane);
}

std::vector<Planting> all_plantings(const Model& model) {
  std::vector<Planting> plantings;
  const Program program = build_program(model);
  for (const FaultInfo& fault : fault_table)
    for (const Stage stage : model.config().stages) {
      if (!fits(fault.kind, stage)) continue;
      for (const Site site : sites_of(stage, model.config().layers))
        for (std::string form : forms_of(fault.kind)) {
          // A weight in F32 has no other K-quant to be read as.
          if (fault.kind == Kind::wrong_type && reads_f32(program, site)) form += ", type: BF16";
          if (fault.kind == Kind::transpose && reads_one_row(program, site)) continue;
          plantings.push_back({fault.kind, site, form});
        }
    }
  return plantings;
}

std::string_view right_cause(Kind kind, Stage stage) {
  const bool choice = is(stage, Role::choice);
  switch (kind) {
    case Kind::nan:
    case Kind::inf: return "nonfinite_origin";
    case Kind::scale: return "scale";
    case Kind::zero: return "zero";
    case Kind::bitflip: return "bitflip";
    case Kind::wrong_expert: return choice ? "routing_real" : "wrong_tensor";
    case Kind::drop_top_expert: return "dropped_expert";
    case Kind::uniform_weights: return "uniform_weights";
    case Kind::swap_tie: return "routing_real";
    case Kind::wrong_type: return "wrong_type";
    case Kind::skip_norm:
    case Kind::skip_qk_norm: return "skipped";
    case Kind::rope_theta: return "rope_theta";
    case Kind::rope_interleaved: return "permutation";
    case Kind::quantise_activations: return "rounded_activations";
    case Kind::transpose: return "transposed";
    case Kind::off_by_one_position: return "shifted_position";
    case Kind::stale_kv: return "stale_kv";
  }
  return "";
}

}  // namespace moe_diag::score
