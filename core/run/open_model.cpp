// SPDX-License-Identifier: MIT
#include "core/run/open_model.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/recording/recordings.hpp"

namespace moe_diag {

SyntheticSpec spec_of(const ModelSource& source) {
  SyntheticSpec spec;
  spec.preset = source.synthetic;
  spec.layers = source.layers;
  spec.seed = source.seed;
  spec.router_scale = source.router_scale;
  if (!source.quant.empty()) spec.quant = source.quant;
  return spec;
}

std::shared_ptr<const Model> open_model(const Contract& contract, ModelCache* cache) {
  const ModelSource& source = contract.model;
  if (!source.unset_variable.empty())
    throw Error(ErrorKind::absent,
                fmt::format("{}: the variable {} is not set", contract.at(source.where), source.unset_variable));
  const SyntheticSpec spec = spec_of(source);
  const bool is_file = source.synthetic.empty();
  const std::string name = is_file ? source.gguf : to_string(spec);
  if (cache && cache->model && cache->source == name) return cache->model;
  if (cache) cache->model.reset();  // two need not fit into memory
  auto model = std::make_shared<const Model>(is_file ? Model::open(source.gguf) : Model::synthetic(spec));
  if (cache) *cache = {name, model};
  return model;
}

void resolve_recorded_prompts(Contract& contract, ModelCache* cache) {
  const bool any = std::any_of(contract.prompts.begin(), contract.prompts.end(),
                               [](const PromptSpec& prompt) { return !prompt.recording.empty(); });
  if (!any) return;
  std::shared_ptr<const Model> model;
  try {
    model = open_model(contract, cache);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::absent) throw;
    return;  // the run says why nothing can be judged
  }
  take_recorded_prompts(contract, Recordings(contract, model->config()));
}

ModelReport report_of(const Model& model, const Contract& contract) {
  ModelReport report;
  report.source = model.source();
  report.bytes = model.bytes();
  report.layers = model.config().layers;
  report.experts = model.config().experts;
  report.used = model.config().used;
  if (!contract.model.stands_in_for.empty())
    report.source += fmt::format(" ({} is not set)", contract.model.stands_in_for);
  return report;
}

}  // namespace moe_diag
