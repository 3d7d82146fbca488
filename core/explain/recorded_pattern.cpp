// SPDX-License-Identifier: MIT
#include "core/explain/recorded_pattern.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>
#include <span>

#include "core/ops/operator.hpp"
#include "core/recording/site_name.hpp"

namespace moe_diag {
namespace {

// Sites of one lane whose steps were examined, over all prompts.
struct Seen {
  std::set<Site> looked_at, spans, failing, far_off;  // far off: by more than any numerics make
  std::map<Site, std::vector<Site>> readers;          // of a site: what is written by steps that read it
};

Seen seen_of(const Plan& plan, const Examiner& examined, int lane) {
  constexpr double far = 0.1;
  Seen seen;
  for (const auto& [key, sites] : examined.findings()) {
    if (examined.subjects()[static_cast<std::size_t>(key.second)].lane != lane) continue;
    for (const auto& [site, finding] : sites) {
      if (!finding.is_seen) continue;
      const bool is_new = seen.looked_at.insert(site).second;
      if (finding.span) seen.spans.insert(site);
      if (finding.span)
        for (const Site& input : finding.span->from) seen.readers[input].push_back(site);
      else if (is_new)
        for (const Site& input : inputs_of(plan.program, site)) seen.readers[input].push_back(site);
      if (!finding.fails) continue;
      seen.failing.insert(site);
      if (!(finding.step_error < far)) seen.far_off.insert(site);
    }
  }
  return seen;
}

// A stage is read by steps that are all wrong.
bool is_wrong_for_readers(const Seen& seen, Site site) {
  const auto readers = seen.readers.find(site);
  return seen.far_off.count(site) > 0 && readers != seen.readers.end() &&
         std::all_of(readers->second.begin(), readers->second.end(),
                     [&](const Site& reader) { return seen.failing.count(reader) > 0; });
}

// A matmul with weights of a type that files are quantised to.
bool is_product_at(const Plan& plan, Site site) {
  const Step& step = *find_step(plan.program, site);
  return is_product(operator_of(step)) && std::any_of(step.weights.begin(), step.weights.end(),
                                                      [](const Weight* w) { return w->type != BlockType::f32; });
}

bool has_no_matrix(const Plan& plan, Site site) {
  const WeightRows rows = operator_of(*find_step(plan.program, site)).weights;
  return rows == WeightRows::none || rows == WeightRows::one;
}

// Nearly all products fail, and nearly nothing else does.
bool do_products_fail(const Plan& plan, const Seen& seen) {
  constexpr double nearly_all = 0.9, nearly_none = 0.1;
  constexpr int least = 4;
  int products = 0, wrong_products = 0, others = 0, wrong_others = 0;
  for (const Site& site : seen.looked_at) {
    const int fails = seen.failing.count(site) > 0;
    if (seen.spans.count(site) > 0) continue;
    if (is_product_at(plan, site))
      ++products, wrong_products += fails;
    else if (has_no_matrix(plan, site))
      ++others, wrong_others += fails;
  }
  return products >= least && others > 0 && wrong_products >= nearly_all * products &&
         wrong_others <= nearly_none * others;
}

Divergence* divergence_at(Verdict& verdict, int lane, Site site) {
  for (Divergence& d : verdict.diagnosis.divergences)
    if (d.lane == lane && d.site == site) return &d;
  return nullptr;
}

// Layers as they are recorded where the stage is; nothing where one of them is right.
bool is_wrong_everywhere(const Seen& seen, const std::set<Site>& wrong, Stage stage) {
  constexpr int least = 2;
  int layers = 0;
  for (const Site& site : seen.looked_at) {
    if (site.stage != stage) continue;
    const bool is_read = seen.readers.count(site) > 0;
    if (is_read ? wrong.count(site) == 0 : seen.far_off.count(site) == 0) return false;
    ++layers;
  }
  return layers >= least;
}

std::string name_wrong_stages(Verdict& verdict, const Seen& seen, int lane) {
  std::set<Site> wrong;
  for (const Site& site : seen.looked_at)
    if (is_wrong_for_readers(seen, site)) wrong.insert(site);
  std::vector<std::string_view> everywhere;
  for (const Site& site : wrong) {
    if (Divergence* d = divergence_at(verdict, lane, site)) {
      d->cause = Cause::recording;
      d->text = fmt::format("what reads it is wrong, too ({}): the recording is wrong there, not the engine",
                            text_of(seen.readers.at(site).front()));
    }
    for (const Site& reader : seen.readers.at(site))
      if (Divergence* d = divergence_at(verdict, lane, reader); d && wrong.count(reader) == 0) {
        d->cause = Cause::inherited;
        d->text = fmt::format("it reads {}, whose recording is wrong", text_of(site));
      }
    const std::string_view name = name_of(site.stage);
    if (is_wrong_everywhere(seen, wrong, site.stage) &&
        std::find(everywhere.begin(), everywhere.end(), name) == everywhere.end())
      everywhere.push_back(name);
  }
  if (everywhere.empty()) return "";
  return fmt::format(
      "the recording is wrong, and nothing is said of the engine: at every layer {} {} not what the step gives, nor "
      "what "
      "the next steps read; look at which tensor is written under that name, and in which order its rows are",
      fmt::join(everywhere, ", "), everywhere.size() > 1 ? "are" : "is");
}

std::string name_products(Verdict& verdict, const Plan& plan, const Seen& seen, int lane, const NumericsFit& fit) {
  constexpr double clearly = 5;  // times less
  const LaneSpec& spec = plan.contract->lanes[static_cast<std::size_t>(lane)];
  const EngineNumerics said = engine_of(spec);
  const auto own = std::find_if(fit.tried.begin(), fit.tried.end(), [&](const FittedNumerics& one) {
    return one.reads == (said.reads.empty() ? "exact" : said.reads) &&
           one.weights == (said.weights.empty() ? "as_stored" : said.weights);
  });
  const bool other_numerics = fit.is_known() && own != fit.tried.end() && fit.best().error * clearly < own->error;
  const std::string text =
      other_numerics
          ? fmt::format(
                "every product is off, and nothing else: the engine computes in other numerics than said; what "
                "fits is {}",
                text_of(fit))
          : std::string(
                "every product is off, and nothing else: the engine multiplied other weights than this file "
                "has; judge it with the file that it loaded, or one of the same types");
  for (const Site& site : seen.failing)
    if (Divergence* d = divergence_at(verdict, lane, site); d && is_product_at(plan, site)) {
      d->cause = other_numerics ? Cause::numerics : Cause::other_weights;
      d->text = text;
    }
  return text;
}

// Whether what is wrong is written by a step that reads keys or values, or by several of which one does.
bool reads_cache_at(const Plan& plan, const Divergence& d) {
  const auto reads = [&](Site site) { return reads_cache(*find_step(plan.program, site)); };
  const auto span = plan.spans->of(d.prompt, d.lane, d.site, {d.position, 1});
  return reads(d.site) || (span && std::any_of(span->inner.begin(), span->inner.end(), reads));
}

std::string name_cache(Verdict& verdict, const Plan& plan, int lane, const CacheFit& fit) {
  const FittedCache* best = fit.best();
  if (!best || !plan.contract->lanes[static_cast<std::size_t>(lane)].engine.kv_cache.empty()) return "";
  const std::string text =
      fmt::format("nothing is said of the engine's KV cache: {}; say kv_cache: {}", text_of(fit), best->kv_cache);
  bool is_all = true, is_any = false;
  for (Divergence& d : verdict.diagnosis.divergences) {
    const bool is_of_cache = d.lane == lane && reads_cache_at(plan, d);
    if (d.lane == lane) (is_of_cache ? is_any : is_all) = is_of_cache;
    if (!is_of_cache) continue;
    d.cause = Cause::numerics;
    d.text = text;
  }
  return is_any && is_all ? text : "";
}

// The failing calls are told from the others by a fact of theirs.
template <class Fact>
std::string told_by(const std::vector<RecordedCall>& calls, const std::set<int>& wrong, const std::set<int>& right,
                    std::string_view what, Fact fact) {
  std::set<std::string> of_wrong, of_right;
  for (const int call : wrong) of_wrong.insert(fact(calls[static_cast<std::size_t>(call)]));
  for (const int call : right) of_right.insert(fact(calls[static_cast<std::size_t>(call)]));
  const bool apart = std::none_of(of_wrong.begin(), of_wrong.end(),
                                  [&](const std::string& f) { return f.empty() || of_right.count(f) > 0; });
  if (!apart || of_right.empty()) return "";
  return fmt::format("wrong in calls of {} {} only, right in those of {}", what, fmt::join(of_wrong, ", "),
                     fmt::join(of_right, ", "));
}

std::string told_by_size(const std::vector<RecordedCall>& calls, const std::set<int>& wrong,
                         const std::set<int>& right) {
  std::set<int> of_wrong, of_right;
  for (const int call : wrong) of_wrong.insert(calls[static_cast<std::size_t>(call)].batch_rows);
  for (const int call : right) of_right.insert(calls[static_cast<std::size_t>(call)].batch_rows);
  if (of_right.empty() || of_wrong.empty()) return "";
  const std::string sizes = fmt::format("(wrong: {}; right: {})", fmt::join(of_wrong, ", "), fmt::join(of_right, ", "));
  if (*of_wrong.rbegin() < *of_right.begin())
    return fmt::format("wrong in calls of fewer than {} rows only {}", *of_right.begin(), sizes);
  if (*of_right.rbegin() < *of_wrong.begin())
    return fmt::format("wrong in calls of more than {} rows only {}", *of_right.rbegin(), sizes);
  return "";
}

}  // namespace

std::string name_recorded_patterns(Verdict& verdict, const Plan& plan, const Examiner& examined, int lane,
                                   const NumericsFit& fit, const CacheFit& cache) {
  const Seen seen = seen_of(plan, examined, lane);
  if (do_products_fail(plan, seen)) return name_products(verdict, plan, seen, lane, fit);
  if (const std::string why = name_cache(verdict, plan, lane, cache); !why.empty()) return why;
  return name_wrong_stages(verdict, seen, lane);
}

namespace {

// Whether the call went through any of the experts that are wrong at the site; at other stages every call did.
bool ran_wrong_experts(const Recording& recording, int request, int call, const Divergence& d) {
  std::set<int> wrong;
  for (const Footprint::Part& part : d.footprint.experts) wrong.insert(part.expert);
  if (wrong.empty() && d.expert >= 0) wrong.insert(d.expert);
  if (!is_per_expert(d.site.stage) || wrong.empty()) return true;
  const RecordedCall& of = recording.calls()[static_cast<std::size_t>(call)];
  std::vector<std::byte> memory;
  const Tensor chosen = recording.rows(request, d.site.sibling(Role::choice), {of.first, of.rows}, memory);
  if (!chosen) return false;
  const std::span ids(chosen.as<std::int32_t>(), static_cast<std::size_t>(chosen.shape.count()));
  return std::any_of(ids.begin(), ids.end(), [&](std::int32_t id) { return wrong.count(id) > 0; });
}

}  // namespace

std::string text_of_calls(const Verdict& verdict, const Divergence& d, const Recording& recording,
                          const std::vector<int>& requests) {
  if (2 * d.footprint.experts.size() < d.footprint.ran.size())
    return "";  // of some experts only: other calls may not have gone through them
  std::set<int> wrong, all;
  for (const Judgement& j : verdict.judgements)
    for (const SiteResult& site : j.sites) {
      const int request = requests[static_cast<std::size_t>(site.prompt)];
      if (!(site.site == d.site) || request < 0 ||
          j.spec->lane != verdict.contract->lanes[static_cast<std::size_t>(d.lane)].name)
        continue;
      for (const int position : site.failing_at) wrong.insert(recording.call_at(request, position));
      for (const int call : recording.requests()[static_cast<std::size_t>(request)].calls)
        if (ran_wrong_experts(recording, request, call, d)) all.insert(call);
    }
  std::set<int> right;
  std::set_difference(all.begin(), all.end(), wrong.begin(), wrong.end(), std::inserter(right, right.end()));
  if (wrong.empty() || right.empty()) return "";
  const std::vector<RecordedCall>& calls = recording.calls();
  std::string text = told_by_size(calls, wrong, right);
  const auto add = [&](std::string more) {
    if (!more.empty()) text += (text.empty() ? "" : "; ") + more;
  };
  add(told_by(calls, wrong, right, "mode", [](const RecordedCall& call) { return call.mode; }));
  add(told_by(calls, wrong, right, "kernel", [](const RecordedCall& call) { return call.kernel; }));
  add(told_by(calls, wrong, right, "rank",
              [](const RecordedCall& call) { return call.rank < 0 ? std::string() : std::to_string(call.rank); }));
  return text;
}

}  // namespace moe_diag
