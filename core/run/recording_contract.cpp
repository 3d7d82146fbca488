// SPDX-License-Identifier: MIT
#include "core/run/recording_contract.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/contract/dump_map.hpp"
#include "core/recording/cache_fit.hpp"
#include "core/recording/numerics_fit.hpp"
#include "core/recording/spans.hpp"
#include "core/recording/variant_fit.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

// The text as a JSON string, which YAML reads as it is.
std::string quoted(const std::string& text) {
  using Json = nlohmann::json;
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string absolute(const std::string& path) { return fs::absolute(path).lexically_normal().string(); }

// The contract's id: made of the dump's name, of characters that an id may have.
std::string id_of(const std::string& dump) {
  fs::path path = fs::path(dump).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  std::string name = path.filename().string();
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') c = '_';
  constexpr std::size_t most = 60;
  return "judge-" + name.substr(0, most);
}

// `stored` as a map: each stage whose recorded values are all exact in bf16 or f16, with that type.
std::string stored_text(const Recording& recording) {
  std::string text;
  std::set<Stage, bool (*)(Stage, Stage)> stages(comes_before);
  for (const Site& site : recording.sites())
    if (payload_of(site.stage) == Payload::values) stages.insert(site.stage);
  for (const Stage stage : stages)
    if (const DType type = type_of_values(recording, stage); has_16_bits(type))
      text += fmt::format("{}{}: {}", text.empty() ? "" : ", ", name_of(stage), name_of(type));
  return text.empty() ? "" : "{" + text + "}";
}

// Whether the recorded values of all stages that the preset keeps in 16 bits are exact in that type.
bool is_kept_as(const Recording& recording, const std::string& preset) {
  const StoragePreset* row = find_storage_preset(preset);
  if (!row) return false;
  const std::vector<Site> sites = recording.sites();
  return std::all_of(sites.begin(), sites.end(), [&](const Site& site) {
    const DType type = row->of(info(site.stage));
    return payload_of(site.stage) == Payload::indices || !has_16_bits(type) ||
           type_of_values(recording, site.stage) == type;
  });
}

// Whether any recorded stage follows from recorded ones in one step, and whether any does not.
struct Shown {
  bool one_step = false, several = false, flips = false;
};
Shown shown_by(const Recording& recording, const Program& program, const ModelConfig& config) {
  Shown shown;
  const SpanFinder spans(program, recording);
  for (std::size_t r = 0; r < recording.requests().size(); ++r) {
    const RecordedRequest& request = recording.requests()[r];
    for (const Site& site : recording.sites())
      for (int position = request.first; position < request.end; ++position)
        if (recording.has(static_cast<int>(r), site, {position, 1})) {
          (spans.of(static_cast<int>(r), site, {position, 1}).is_one_step() ? shown.one_step : shown.several) = true;
          break;
        }
  }
  const Stage choice = config.stages.of(Role::choice), scores = config.stages.of(Role::router_scores);
  const std::vector<Site> sites = recording.sites();
  shown.flips = std::any_of(sites.begin(), sites.end(), [&](const Site& site) {
    return site.stage == choice && recording.has(Site{scores, site.layer});
  });
  return shown;
}

std::string claim(std::string_view id, std::string_view text, std::string_view stage, const std::string& layers,
                  const std::string& metric) {
  return fmt::format("  - id: {}\n    claim: {}\n    lane: engine\n    stage: {}\n{}    {}\n", id, text, stage,
                     layers.empty() ? "" : fmt::format("    layers: {}\n", layers), metric);
}

// Words for numerics, as engines call them; `by` says whose word it is.
std::optional<ChosenNumerics> numerics_called(const std::string& word, std::string_view by) {
  if (word == "fp8") return ChosenNumerics{"f32", "fp8_128", "fp8_block", "", "", fmt::format("fp8 by blocks, {}", by)};
  if (find_named_numerics(word)) return ChosenNumerics{word, "", "", "", "", fmt::format("{}, {}", word, by)};
  return std::nullopt;
}

ChosenNumerics numerics_of_products(const RecordingJudge& judge, const Recording& recording, const NumericsFit& fit) {
  const bool has_words = !judge.reads.empty() || !judge.weights.empty();
  if (auto told = numerics_called(judge.numerics, "as told"); told && !has_words) return *told;
  if (!judge.numerics.empty())
    return {judge.numerics, judge.reads, judge.weights, "", "", judge.numerics + ", as told"};
  if (auto said = numerics_called(recording.numerics(), "as the recording says"); said && !has_words) return *said;
  if (has_words) return {"f32", judge.reads, judge.weights, "", "", "as told"};
  if (!fit.is_known())
    return {"f32", "", "", "", "", "f32: no product is recorded with its input, so that nothing tells"};
  const FittedNumerics& best = fit.best();
  if (!best.numerics.empty()) return {best.numerics, "", "", "", "", text_of(fit)};
  return {"f32",       best.reads == "exact" ? "" : best.reads, best.weights == "as_stored" ? "" : best.weights, "", "",
          text_of(fit)};
}

}  // namespace

// What is recorded of attention tells the type of the cache, else the recording's own word counts. Variants are told
// by what is recorded alone.
ChosenNumerics numerics_of(const RecordingJudge& judge, const Recording& recording, const Model& model,
                           const Program& program) {
  const NumericsFit products = fit_numerics(recording, program);
  ChosenNumerics chosen = numerics_of_products(judge, recording, products);
  const bool is_told = !judge.numerics.empty() || !judge.reads.empty() || !judge.weights.empty() ||
                       numerics_called(recording.numerics(), "").has_value();
  if (!is_told && !products.is_known() && shown_by(recording, program, model.config()).several)
    throw Error(ErrorKind::usage,
                fmt::format("{}: nothing tells the numerics of the engine, and what is recorded spans several steps, "
                            "whose rounding they decide: say --numerics f32, bf16, q8_k, q8_1 or fp8, or record the "
                            "output of a matmul together with its input",
                            judge.dump));
  const CacheFit cache = fit_kv_cache(recording, model.config(), program);
  const FittedCache* best = cache.best();
  for (const FittedVariant& fit : fit_variants(recording, model.config(), program)) {
    chosen.variants +=
        fmt::format("{}{}: {}", chosen.variants.empty() ? "" : ", ", fit.variant->key, fit.variant->name);
    chosen.text += "; " + text_of(fit);
  }
  chosen.kv_cache = judge.kv_cache;
  if (!chosen.kv_cache.empty()) return chosen;
  if (best)
    chosen.text += "; " + text_of(cache);
  else if (cache.tried.empty() && !recording.kv_cache().empty())
    chosen.text += fmt::format("; a KV cache in {}, as the recording says", recording.kv_cache());
  chosen.kv_cache = best ? best->kv_cache : cache.tried.empty() ? recording.kv_cache() : "";
  return chosen;
}

std::string recording_contract(const RecordingJudge& judge, const ChosenNumerics& numerics, const Model& model,
                               const Recording& recording) {
  const ModelConfig& config = model.config();
  std::string engine = fmt::format("replay: {}, numerics: {}", quoted(absolute(judge.dump)), numerics.numerics);
  const auto add = [&](std::string_view key, const std::string& value) {
    if (!value.empty()) engine += fmt::format(", {}: {}", key, value);
  };
  add("lane", judge.lane);
  if (!judge.map.empty()) add("map", quoted(is_map_file(judge.map) ? absolute(judge.map) : judge.map));
  add("reads", numerics.reads);
  add("weights", numerics.weights);
  add("kv_cache", numerics.kv_cache);
  if (!numerics.variants.empty()) add("variant", "{" + numerics.variants + "}");
  const bool is_said = is_kept_as(recording, recording.stored());
  add("stored", !judge.stored.empty() ? judge.stored : is_said ? recording.stored() : stored_text(recording));
  if (judge.cut_ok) engine += ", cut_ok: true";
  if (judge.zeros_ok) engine += ", zeros_ok: true";

  std::string text = fmt::format(
      "# Judges a recording of another engine{}. Written by `moe-diag judge`; `moe-diag run` runs it again.\n"
      "metadata: {{id: {}, version: 1.0.0, description: {}}}\n"
      "model: {{gguf: {}}}\n"
      "prompts: [{{recording: engine}}]\n"
      "oracle: judge\n"
      "lanes:\n"
      "  engine: {{{}}}\n"
      "  judge: {{backend: cpu, numerics: f64, inputs: engine, as: engine}}  # every step again, from what the engine "
      "had\n"
      "  peer: {{backend: cpu, numerics: f32, inputs: engine}}  # beside the judge: what the engine's roundings make\n"
      "falsifiers:\n",
      recording.engine().empty() ? "" : ", " + recording.engine(), id_of(judge.dump),
      quoted("every recorded step of another engine"), quoted(absolute(judge.model)), engine);
  text += claim("FINITE", "the engine has no NaN or Inf where its own inputs give none", "recorded", judge.layers,
                "metric: nonfinite_beyond\n    equals: 0");
  const Shown shown = shown_by(recording, build_program(model), config);
  if (shown.one_step)
    text +=
        claim("STEPS", "every step errs no more than its numerics make it, given what the engine had", "steps",
              judge.layers, fmt::format("metric: noise_ratio\n    floor: expected\n    at_most: {}", judge.at_most));
  if (shown.several)
    text += claim("SPANS", "several steps together err no more than those of an engine of the same numerics", "spans",
                  judge.layers, fmt::format("metric: noise_ratio\n    floor: peer\n    at_most: {}", judge.at_most));
  if (shown.flips)
    text += claim("ROUTING", "experts are chosen by the engine's own logits", "recorded", judge.layers,
                  "metric: routing_real_flips\n    equals: 0");
  return text;
}

}  // namespace moe_diag
