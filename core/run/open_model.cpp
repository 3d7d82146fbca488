// SPDX-License-Identifier: MIT
#include "core/run/open_model.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/model/program.hpp"
#include "core/recording/cache_fit.hpp"
#include "core/recording/numerics_fit.hpp"
#include "core/recording/recordings.hpp"
#include "core/recording/variant_fit.hpp"

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

namespace {

void fit_numerics_of(LaneSpec& lane, const Recording& recording, const Model& model, const Contract& contract) {
  const Program program = build_program(model);
  const NumericsFit fit = fit_numerics(recording, program);
  if (!fit.is_known())
    throw Error(ErrorKind::usage,
                fmt::format("{}: lane '{}': numerics: auto: no matmul is recorded together with its input, so nothing "
                            "tells: say its numerics, such as bf16",
                            contract.at(lane.replay->where), lane.name));
  const FittedNumerics& best = fit.best();
  const Options said = std::exchange(lane.options, Options(lane.options.owner(), lane.options.where()));
  for (const Options::Entry& entry : said.entries())
    lane.options.add(entry.key,
                     entry.key != "numerics" ? entry.value
                     : best.numerics.empty() ? "f32"
                                             : best.numerics,
                     entry.where);
  if (best.numerics.empty() && best.reads != "exact") lane.engine.reads = best.reads;
  if (best.numerics.empty() && best.weights != "as_stored") lane.engine.weights = best.weights;
  lane.replay->fit = text_of(fit);
  if (lane.engine.variants.empty())
    for (const FittedVariant& variant : fit_variants(recording, model.config(), program)) {
      lane.engine.variants.emplace_back(variant.variant->key, variant.variant->name);
      lane.replay->fit += ", " + text_of(variant);
    }
  const CacheFit cache = fit_kv_cache(recording, model.config(), program);
  if (!cache.best() || !lane.engine.kv_cache.empty()) return;
  lane.engine.kv_cache = cache.best()->kv_cache;
  lane.replay->fit += ", " + text_of(cache);
}

// Lanes that compute as another one take its numerics over.
void fit_all_numerics(Contract& contract, const Recordings& recordings, const Model& model) {
  for (std::size_t i = 0; i < contract.lanes.size(); ++i) {
    LaneSpec& lane = contract.lanes[i];
    if (!lane.replay || !lane.replay->fits_numerics || !recordings.of(i)) continue;
    fit_numerics_of(lane, *recordings.of(i), model, contract);
    for (LaneSpec& other : contract.lanes)
      if (other.as == lane.name) other.engine = engine_of(lane);
  }
}

}  // namespace

void resolve_recordings(Contract& contract, ModelCache* cache) {
  const bool any = std::any_of(contract.prompts.begin(), contract.prompts.end(),
                               [](const PromptSpec& prompt) { return !prompt.recording.empty(); }) ||
                   std::any_of(contract.lanes.begin(), contract.lanes.end(),
                               [](const LaneSpec& lane) { return lane.replay && lane.replay->fits_numerics; });
  if (!any) return;
  std::shared_ptr<const Model> model;
  try {
    model = open_model(contract, cache);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::absent) throw;
    return;  // the run says why nothing can be judged
  }
  const Recordings recordings(contract, model->config());
  fit_all_numerics(contract, recordings, *model);
  take_recorded_prompts(contract, recordings);
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
