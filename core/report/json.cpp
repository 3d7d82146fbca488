// SPDX-License-Identifier: MIT
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <utility>

#include "core/api/abi.hpp"
#include "core/report/host.hpp"
#include "core/report/report.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::ordered_json;

Json number(double v) {
  if (std::isnan(v)) return "nan";
  if (std::isinf(v)) return v > 0 ? "inf" : "-inf";
  return v;
}

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json site_json(Site site) {
  Json j;
  j["stage"] = name_of(site.stage);
  j["layer"] = site.layer < 0 ? Json(nullptr) : Json(site.layer);
  return j;
}

Json bound_json(const Bound& bound) { return {{"kind", name_of(bound.kind)}, {"value", number(bound.value)}}; }

Json number_or_null(const std::optional<double>& v) { return v ? number(*v) : Json(nullptr); }

Json fault_json(IdFault fault) { return fault == IdFault::none ? Json(nullptr) : Json(name_of(fault)); }

Json flip_json(const Flip& flip) {
  return {{"expert", flip.expert},
          {"instead_of", flip.instead_of},
          {"margin", number_or_null(flip.margin)},
          {"logit_error", number_or_null(flip.error)},
          {"kind", name_of(flip.kind)},
          {"fault", fault_json(flip.fault)},
          {"fault_of_other", fault_json(flip.fault_of_other)},
          {"text", choice_text(flip)}};
}

Json lane_json(const Verdict& verdict, int lane) {
  return lane < 0 ? Json(nullptr) : Json(verdict.contract->lanes[static_cast<std::size_t>(lane)].name);
}
Json prompt_id(const Verdict& verdict, int prompt) {
  return verdict.contract->prompts[static_cast<std::size_t>(prompt)].id;
}
Json index_or_null(std::int64_t index) { return index < 0 ? Json(nullptr) : Json(index); }

Json nonfinite_json(const Nonfinite& n) {
  return {{"nan", n.nan},
          {"inf", n.inf},
          {"values", n.values},
          {"position", index_or_null(n.position)},
          {"expert", index_or_null(n.expert)},
          {"element", index_or_null(n.element)}};
}

Json ranges_json(const std::vector<Range>& ranges) {
  Json list = Json::array();
  for (const auto& [first, last] : ranges) list.push_back({first, last});
  return list;
}

Json footprint_json(const Footprint& print) {
  Json j;
  j["text"] = print.text;
  j["wrong"] = print.wrong;
  j["compared"] = print.compared;
  j["positions"] = print.positions;
  j["compared_positions"] = print.compared_positions;
  j["columns"] = ranges_json(print.columns);
  j["tensors"] = Json::array();
  for (const Footprint::OfTensor& tensor : print.tensors)
    j["tensors"].push_back({{"tensor", tensor.name},
                            {"type", tensor.type},
                            {"columns", ranges_json(tensor.columns)},
                            {"all_columns", {tensor.all.first, tensor.all.second}}});
  j["experts"] = Json::array();
  for (const Footprint::Part& part : print.experts)
    j["experts"].push_back({{"expert", part.expert}, {"rows", part.rows}, {"all_rows", part.all_rows}});
  j["compared_experts"] = print.ran;
  return j;
}

Json blocks_json(const UnsoundBlocks& b) {
  return {{"tensor", b.tensor},
          {"type", name_of(b.type)},
          {"expert", index_or_null(b.expert)},
          {"blocks", b.blocks},
          {"nan", b.nan},
          {"inf", b.inf},
          {"first", {{"block", b.first}, {"row", b.row}, {"columns", {b.column, b.column + b.columns - 1}}}}};
}

Json divergence_json(const Verdict& verdict, std::size_t index) {
  const Divergence& d = verdict.diagnosis.divergences[index];
  Json j = site_json(d.site);
  j["cause"] = name_of(d.cause);
  j["text"] = text_or_null(d.text);
  j["lane"] = lane_json(verdict, d.lane);
  j["prompt"] = prompt_id(verdict, d.prompt);
  j["position"] = d.position;
  j["expert"] = index_or_null(d.expert);
  j["recorded"] = text_or_null(d.recorded);
  j["tensors"] = d.tensors;
  j["kernel"] = text_or_null(d.kernel);
  j["factor"] = d.cause == Cause::scale ? number(d.factor) : Json(nullptr);
  const bool has_error = payload_of(d.site.stage) == Payload::values;
  j["step_error"] = has_error ? number(d.error) : Json(nullptr);
  j["expected_error"] = has_error ? number(d.expected) : Json(nullptr);
  j["nonfinite"] = d.nonfinite.count() > 0 ? nonfinite_json(d.nonfinite) : Json(nullptr);
  j["flip"] = d.flip ? flip_json(*d.flip) : Json(nullptr);
  j["footprint"] = d.footprint.compared > 0 ? footprint_json(d.footprint) : Json(nullptr);
  j["blocks"] = Json::array();
  for (const UnsoundBlocks& blocks : d.blocks) j["blocks"].push_back(blocks_json(blocks));
  j["falsifiers"] = Json::array();
  for (const Judgement& judgement : verdict.judgements)
    if (judgement.explanation.divergence == static_cast<int>(index)) j["falsifiers"].push_back(judgement.spec->id);
  return j;
}

Json explanation_json(const Judgement& judgement) {
  if (judgement.outcome != Outcome::falsified) return nullptr;
  const Explanation& e = judgement.explanation;
  return {{"cause", name_of(e.cause)}, {"divergence", index_or_null(e.divergence)}, {"text", text_or_null(e.text)}};
}

Json curve_json(const Verdict& verdict, const Curve& curve) {
  Json j{{"lane", lane_json(verdict, curve.lane)}, {"stage", name_of(curve.stage)}, {"layers", Json::array()}};
  for (const CurvePoint& p : curve.points)
    j["layers"].push_back({{"layer", p.layer},
                           {"free_error", number(p.free_error)},
                           {"worst_step", name_of(p.worst_step)},
                           {"step_error", number(p.step_error)},
                           {"expected_error", number(p.expected)}});
  return j;
}

void add_diagnosis(Json& j, const Verdict& verdict) {
  const Diagnosis& diagnosis = verdict.diagnosis;
  j["explained"] = diagnosis.made;
  j["not_explained"] = text_or_null(diagnosis.reason);
  j["divergences"] = Json::array();
  for (std::size_t i = 0; i < diagnosis.divergences.size(); ++i)
    j["divergences"].push_back(divergence_json(verdict, i));
  j["curves"] = Json::array();
  for (const Curve& curve : diagnosis.curves) j["curves"].push_back(curve_json(verdict, curve));
  j["nonfinite_timeline"] = Json::array();
  for (const NonfiniteSite& at : diagnosis.nonfinite) {
    Json site = site_json(at.site);
    site["lane"] = lane_json(verdict, at.lane);
    site["prompt"] = prompt_id(verdict, at.prompt);
    site.update(nonfinite_json(at.counts));
    j["nonfinite_timeline"].push_back(std::move(site));
  }
  j["coverage"] = Json::array();
  for (const LayerCoverage& c : verdict.coverage)
    j["coverage"].push_back({{"layer", c.layer}, {"experts", c.run()}, {"rows", c.rows}});
}

Json sample_json(const Verdict& verdict, const Sample& s) {
  const bool has_site = s.position != whole_pass;
  Json j = has_site ? site_json(s.site) : Json{{"stage", nullptr}, {"layer", nullptr}};
  j["prompt"] = verdict.contract->prompts[static_cast<std::size_t>(s.prompt)].id;
  j["position"] = has_site ? Json(s.position) : Json(nullptr);
  const PromptReport& prompt = verdict.prompts[static_cast<std::size_t>(s.prompt)];
  const auto at = static_cast<std::size_t>(s.position);
  j["token"] = at < prompt.tokens.size() ? Json(prompt.tokens[at]) : Json(nullptr);
  j["token_text"] = at < prompt.texts.size() ? text_or_null(prompt.texts[at]) : Json(nullptr);
  j["expert"] = s.expert < 0 ? Json(nullptr) : Json(s.expert);
  j["value"] = number(s.value);
  j["bound"] = bound_json(s.bound);
  for (const Flip& flip : s.flips) j["flips"].push_back(flip_json(flip));
  if (s.measure.count > 0) {
    const Measure& m = s.measure;
    j["values"] = m.count;
    j["nonfinite_lane"] = m.nonfinite_a;
    j["nonfinite_against"] = m.nonfinite_b;
    j["max_abs_diff"] = number(m.max_diff());
    j["max_abs_diff_at"] = m.max_index;
    j["rel_l2"] = number(m.rel_l2());
    j["cosine_similarity"] = number(m.cosine());
  }
  return j;
}

Json prompt_json(const PromptSpec& spec, const PromptReport& report) {
  Json j;
  j["id"] = spec.id;
  j["tokens"] = spec.tokens;
  const auto generated = report.tokens.end() - report.generated;
  j["generated"] = std::vector<std::int32_t>(generated, report.tokens.end());
  j["texts"] = report.texts.empty() ? Json(nullptr) : Json::array();
  for (const std::string& text : report.texts) j["texts"].push_back(text_or_null(text));
  j["stopped"] = text_or_null(report.stopped);
  return j;
}

Json not_judged_json(const Verdict& verdict, const NotJudged& not_judged) {
  if (not_judged.samples == 0) return nullptr;
  const Sample& first = not_judged.first;
  Json j{{"samples", not_judged.samples}, {"lane", lane_json(verdict, not_judged.lane)}};
  j["prompt"] = prompt_id(verdict, first.prompt);
  j["position"] = first.position;
  j.update(site_json(first.site));
  j["expert"] = index_or_null(first.expert);
  return j;
}

Json judgement_json(const Verdict& verdict, const Judgement& judgement) {
  const FalsifierSpec& spec = *judgement.spec;
  Json j;
  j["id"] = spec.id;
  j["claim"] = spec.claim;
  j["line"] = spec.where.line;
  j["outcome"] = name_of(judgement.outcome);
  j["allowed"] = judgement.allowed;
  j["reason"] = judgement.reason.empty() ? Json(nullptr) : Json(judgement.reason);
  j["explanation"] = explanation_json(judgement);
  j["lane"] = spec.lane;
  j["against"] = spec.against.empty() ? Json(nullptr) : Json(spec.against);
  j["tags"] = spec.tags;
  j["metric"] = name_of(spec.metric);
  j["to"] = spec.metric == Metric::identical ? Json(name_of(spec.to)) : Json(nullptr);
  j["digest"] = text_or_null(spec.digest);
  j["bound"] = bound_json(spec.bound);
  j["samples"] = judgement.samples;
  j["failing"] = judgement.failing;
  j["skipped_experts"] = judgement.skipped_experts;
  j["samples_without_floor"] = judgement.without_floor;
  j["samples_undecided"] = judgement.undecided;
  j["not_judged"] = not_judged_json(verdict, judgement.not_judged);
  j["flips"] = nullptr;
  if (spec.metric == Metric::routing_real_flips)
    for (FlipKind kind : {FlipKind::tie, FlipKind::drift, FlipKind::real})
      j["flips"][std::string(name_of(kind))] = judgement.count(kind);
  const auto holds = bound_that_holds(judgement);
  j["would_have_held"] = holds ? bound_json(*holds) : Json(nullptr);
  const SiteResult* worst = judgement.worst();
  j["worst"] = worst ? sample_json(verdict, worst->worst) : Json(nullptr);
  const SiteResult* first = judgement.leading_failure();
  j["first_failing"] = first ? sample_json(verdict, first->first_failing) : Json(nullptr);
  j["sites"] = Json::array();
  for (const SiteResult& s : judgement.sites) {
    if (s.samples == 0) continue;
    Json site = sample_json(verdict, s.worst);
    site["samples"] = s.samples;
    site["failing"] = s.failing;
    j["sites"].push_back(std::move(site));
  }
  j["remarks"] = judgement.remarks;
  j["spreads"] = Json::array();
  for (const Spread& s : judgement.spreads)
    j["spreads"].push_back({{"prompt", verdict.contract->prompts[static_cast<std::size_t>(s.prompt)].id},
                            {"median", number(s.median)},
                            {"lowest", number(s.lowest)},
                            {"highest", number(s.highest)},
                            {"repeats", s.repeats}});
  j["controls_apply"] = has_stage(spec.metric);
  j["controls"] = Json::array();
  for (const ControlResult& c : judgement.controls)
    j["controls"].push_back({{"fault", c.fault}, {"tripped", c.tripped}, {"message", c.message}});
  j["seconds"] = judgement.seconds;
  return j;
}

std::string absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.lexically_normal().string();
}

// What is said once a document.
Json header(std::string_view tool_version) {
  const HostInfo host = host_info();
  Json j;
  j["schema_version"] = verdict_schema_version;
  j["tool"] = {
      {"name", "moe-diag"}, {"version", tool_version}, {"plugin_abi", abi_version}, {"build", MOE_DIAG_BUILD_STAMP}};
  j["host"] = {{"name", host.name}, {"system", host.system}, {"cpu", host.cpu}, {"cores", host.cores}};
  return j;
}

void add_what_ran(Json& j, const Verdict& verdict) {
  const Contract& contract = *verdict.contract;
  j["started"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(verdict.started));
  j["contract"] = {{"path", contract.path},        {"absolute_path", absolute(contract.path)},
                   {"digest", contract.digest},    {"set", Json::array()},
                   {"id", contract.metadata.id},   {"version", contract.metadata.version},
                   {"falsifiers", contract.stated}};
  for (const auto& [key, value] : contract.overrides) j["contract"]["set"].push_back(key + '=' + value);
  const ModelReport& m = verdict.model;
  j["model"] = {{"source", text_or_null(m.source)},
                {"bytes", m.bytes},
                {"digest", text_or_null(m.digest)},
                {"layers", m.layers},
                {"experts", m.experts},
                {"experts_used", m.used},
                {"absent", text_or_null(m.absent)}};
  j["lanes"] = Json::array();
  for (const LaneReport& l : verdict.lanes)
    j["lanes"].push_back({{"name", l.name},
                          {"oracle", l.name == contract.oracle},
                          {"backend", l.backend},
                          {"numerics", l.numerics},
                          {"device", l.device},
                          {"instruction_set", l.instruction_set},
                          {"inputs", text_or_null(l.inputs)},
                          {"routing", text_or_null(l.routing)},
                          {"absent", text_or_null(l.absent)},
                          {"plain_operators", text_or_null(l.plain_operators)},
                          {"engine", text_or_null(l.engine)},
                          {"kernel", text_or_null(l.kernel)},
                          {"base", text_or_null(l.base)}});
  j["prompts"] = Json::array();
  for (std::size_t p = 0; p < contract.prompts.size(); ++p)
    j["prompts"].push_back(prompt_json(contract.prompts[p], verdict.prompts[p]));
}

Json first_divergence_json(const Verdict& verdict) {
  const Judgement* first = verdict.first_divergence();
  if (!first) return nullptr;
  Json j = sample_json(verdict, first->leading_failure()->first_failing);
  j["falsifier"] = first->spec->id;
  j["tensors"] = verdict.tensors;
  return j;
}

void add_verdict(Json& j, const Verdict& verdict) {
  add_what_ran(j, verdict);
  j["baseline"] = text_or_null(verdict.baseline);
  j["moved"] = Json::array();
  for (const Moved& m : verdict.moved) {
    Json site = site_json(m.site);
    site["falsifier"] = verdict.judgements[m.falsifier].spec->id;
    site["prompt"] = prompt_id(verdict, m.prompt);
    site["before"] = number(m.before);
    site["now"] = number(m.now);
    site["times"] = number(m.times);
    j["moved"].push_back(std::move(site));
  }
  j["planted"] = verdict.planted;
  j["injected"] = verdict.injected;
  for (const auto& [key, allowed] :
       {std::pair{"captured_nothing", false}, std::pair{"captured_nothing_allowed", true}}) {
    j[key] = Json::array();
    for (const NotCaptured& missing : verdict.captured_nothing)
      if (missing.allowed == allowed) j[key].push_back(missing.what);
  }
  j["failure"] = text_or_null(verdict.failure);
  j["outcomes"] = Json::object();
  for (Outcome o : {Outcome::held, Outcome::falsified, Outcome::vacuous, Outcome::untested})
    j["outcomes"][std::string(name_of(o))] = verdict.count(o);
  j["outcomes"]["untested_allowed"] = verdict.count_allowed();
  j["first_divergence"] = first_divergence_json(verdict);
  add_diagnosis(j, verdict);
  j["falsifiers"] = Json::array();
  for (const Judgement& judgement : verdict.judgements) j["falsifiers"].push_back(judgement_json(verdict, judgement));
  j["sinks_completed"] = verdict.outputs;
  j["sink_outputs"] = verdict.sink_outputs;
  const Timing& t = verdict.timing;
  j["seconds"] = {{"open", t.open},       {"forward", t.forward},   {"solo", t.solo},     {"evidence", t.evidence},
                  {"explain", t.explain}, {"controls", t.controls}, {"digest", t.digest}, {"total", t.total}};
}

std::string dumped(const Json& j) { return j.dump(2, ' ', false, Json::error_handler_t::replace) + '\n'; }

}  // namespace

std::string json_report(const Verdict& verdict, std::string_view tool_version) {
  Json j = header(tool_version);
  add_verdict(j, verdict);
  return dumped(j);
}

std::string json_report(std::span<const Verdict> verdicts, std::string_view tool_version) {
  Json j = header(tool_version);
  j["verdicts"] = Json::array();
  for (const Verdict& verdict : verdicts) {
    Json one;
    add_verdict(one, verdict);
    j["verdicts"].push_back(std::move(one));
  }
  return dumped(j);
}

}  // namespace moe_diag
