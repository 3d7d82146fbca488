// SPDX-License-Identifier: MIT
#include "core/run/open_model.hpp"

#include <fmt/format.h>

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
