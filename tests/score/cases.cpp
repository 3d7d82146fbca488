// SPDX-License-Identifier: MIT
#include "tests/score/cases.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moe_diag::score {
namespace {

using Kind = FaultSpec::Kind;

// The forms that a kind is planted in at a stage, beside its plainest at all positions and at the last one.
std::vector<std::string> more_forms_of(Kind kind, Stage stage) {
  std::vector<std::string> forms;
  for (const std::string& form : form_names(kind, stage)) forms.push_back(", form: " + form);
  switch (kind) {
    case Kind::nan:
    case Kind::inf: return {", index: 2, positions: 1"};
    case Kind::scale: return {", factor: -1", ", factor: 0.5", ", factor: 1.0625"};
    case Kind::bitflip: return {", bit: 31", ", bit: 20, index: 2"};
    case Kind::rope_theta: return {", theta: 1e5"};
    case Kind::quantise_activations: return {", block: 32"};
    case Kind::eps: return {", eps: 1e-5"};
    case Kind::rope_scaled: return {", factor: 4"};
    case Kind::position_restart: return {", every: 3"};
    case Kind::window: return {", keys: 3"};
    case Kind::softmax_scale: return {", times: 2"};
    case Kind::partial_sum:
      if (!fault_at::product(stage)) return {", times: 2"};
      return {", times: 2", ", part: 0..64", ", part: 0..64, times: 2"};
    case Kind::accumulate: return {", type: F16"};
    case Kind::cache_type: return {", type: F16", ", type: BF16", ", type: Q4_0"};
    default: return forms;
  }
}

std::vector<std::string> forms_of(Kind kind, Stage stage) {
  // No value of the model is beyond what F16 holds.
  const std::string always = kind == Kind::f16_overflow ? ", limit: 1e-6" : "";
  std::vector<std::string> forms = {always, always + ", positions: last"};
  for (std::string& more : more_forms_of(kind, stage)) forms.push_back(std::move(more));
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
        for (std::string form : forms_of(fault.kind, stage)) {
          // A weight in F32 has no other K-quant to be read as.
          if (fault.kind == Kind::wrong_type && reads_f32(program, site)) form += ", type: BF16";
          if (fault.kind == Kind::transpose && reads_one_row(program, site)) continue;
          if (fault.kind == Kind::wrong_scale && reads_f32(program, site)) continue;
          plantings.push_back({fault.kind, site, form});
        }
    }
  return plantings;
}

bool is_right_cause(std::string_view cause, Kind kind, Stage stage) {
  const bool choice = is(stage, Role::choice);
  switch (kind) {
    case Kind::nan:
    case Kind::inf:
    case Kind::f16_overflow: return cause == "nonfinite_origin";
    case Kind::scale:
    case Kind::softmax_scale: return cause == "scale";
    case Kind::zero: return cause == "zero";
    case Kind::bitflip: return cause == "bitflip";
    case Kind::wrong_expert: return cause == (choice ? "routing_real" : "wrong_tensor");
    case Kind::drop_top_expert: return cause == "dropped_expert";
    case Kind::uniform_weights: return cause == "uniform_weights";
    case Kind::swap_tie:
    case Kind::duplicate_ids: return cause == "routing_real";
    case Kind::wrong_type: return cause == "wrong_type";
    case Kind::skip_norm:
    case Kind::skip_qk_norm: return cause == "skipped";
    case Kind::rope_theta: return cause == "rope_theta";
    case Kind::rope_interleaved:
    case Kind::wrong_scale:
    case Kind::gate_up: return cause == "permutation";
    case Kind::quantise_activations: return cause == "rounded_activations";
    case Kind::transpose: return cause == "transposed";
    case Kind::off_by_one_position:
    case Kind::position_restart: return cause == "shifted_position";
    case Kind::stale_kv: return cause == "stale_kv";
    case Kind::eps: return cause == "eps";
    case Kind::norm:
    case Kind::activation:
    case Kind::gating: return cause == "function";
    case Kind::renormalisation: return cause == "skipped" || cause == "function";  // the model's shares, or its own
    case Kind::rope_partial:
    case Kind::rope_scaled: return cause == "rotation";
    case Kind::window: return cause == "window";
    // One expert that is missing is one that is dropped.
    case Kind::partial_sum: return cause == "partial_sum" || (!fault_at::product(stage) && cause == "dropped_expert");
    case Kind::accumulate: return cause == "accumulation";
    case Kind::cache_type: return cause == "cache_type";
  }
  return false;
}

}  // namespace moe_diag::score
