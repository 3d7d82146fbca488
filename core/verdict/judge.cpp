// SPDX-License-Identifier: MIT
// A falsifier's way from YAML to verdict, of which the last stations are here. A contract says, for instance:
//
//   - id: STEP-ERROR
//     claim: every step, given the oracle's inputs, is as precise as f32 allows
//     lane: step      # the lane judged; compared with the oracle, unless `against` names another lane
//     stage: all      # where it is looked at; `layers`, `positions`, `prompts` and `experts` narrow it down
//     metric: rel_l2  # how values become a number
//     at_most: 1e-5   # the bound that each number has to meet
//
// 1. core/contract/falsifiers.cpp reads that into a FalsifierSpec, and refuses what could never fail.
// 2. core/plan/plan.cpp resolves it against the model: a WatchedFalsifier has sites, positions and indices of lanes.
// 3. Here: the Judge is a hook. The run asks wants(), and calls show() for each site as soon as the lanes wrote it.
// 4. core/verdict/sampling.cpp makes samples of each row: what two lanes' tensors measure
// (core/verdict/comparisons.cpp)
//    becomes the metric's value (core/verdict/metric_value.cpp). A sample knows its position and expert.
// 5. Here: add_sample() holds a sample against the bound. Of each site the worst is kept, and the first that fails.
// 6. Here: settle() decides the outcome. Reports read it from the verdict (core/verdict/verdict.hpp).
//
// One more metric is a row in core/contract/metric_table.hpp and a call in metric_value.cpp. A judge changes nothing of
// a run: it sees lanes only through what it is shown, and keeps numbers, never tensors.
#include "core/verdict/judge.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <span>

#include "core/ops/values.hpp"
#include "core/verdict/comparisons.hpp"
#include "core/verdict/sampling.hpp"
#include "core/verdict/site_results.hpp"
#include "core/verdict/unjudged.hpp"

namespace moe_diag {
namespace {

// The largest relative error of storing a layer's output in the lane.
double rounding_of_layers(const Lanes& lanes, int lane) {
  const Description& description = lanes[static_cast<std::size_t>(lane)].description;
  const Stage output = lanes.config().stages.of(Role::layer_output);
  switch (description.stored(output)) {
    case DType::bf16: return 0x1p-9;
    case DType::f16: return 0x1p-12;
    default: return 0x1p-25;
  }
}

}  // namespace

Judge::Judge(const Plan& plan, const Lanes& lanes, int only) : plan_(plan), lanes_(lanes) {
  for (std::size_t f = 0; f < plan.falsifiers.size(); ++f) {
    const WatchedFalsifier& watched = plan.falsifiers[f];
    const int inputs = lanes[static_cast<std::size_t>(watched.lane)].inputs;
    Judgement j;
    j.spec = watched.spec;
    j.is_local = inputs >= 0 && (watched.against < 0 || watched.against == inputs);
    j.reason = obstacle_to_judging(watched, plan.program, lanes);
    judged_.push_back(!is_alone(j.spec->metric) && j.reason.empty() &&
                      (only < 0 || static_cast<std::size_t>(only) == f));
    judgements_.push_back(std::move(j));
    const bool is_of_spans = watched.spec->metric == Metric::noise_ratio && watched.floor >= 0 && plan.spans;
    parts_.push_back(is_of_spans ? std::optional(PartGains(rounding_of_layers(lanes, watched.lane))) : std::nullopt);
  }
  floors_.resize(judgements_.size());
  missing_.resize(judgements_.size());
  ran_.resize(judgements_.size());
}

bool Judge::wants(int prompt, int lane, Site site) const {
  for (std::size_t f = 0; f < judged_.size(); ++f) {
    const WatchedFalsifier& watched = plan_.falsifiers[f];
    if (!judged_[f] || (watched.lane != lane && watched.against != lane && watched.floor != lane)) continue;
    if (watches(watched, prompt, site) || watches_logits(watched, prompt, site) ||
        watches_parts(watched, prompt, lane, site))
      return true;
  }
  return false;
}

// Flips are explained by the logits, which a lane keeps for as long as somebody looks at them.
bool Judge::watches_logits(const WatchedFalsifier& falsifier, int prompt, Site site) const {
  return falsifier.spec->metric == Metric::routing_real_flips && is(site.stage, Role::router_scores) &&
         watches(falsifier, prompt, site.sibling(Role::choice));
}

// What experts add to a layer is kept by the lane that computes it until the layer's output is seen.
bool Judge::watches_parts(const WatchedFalsifier& falsifier, int prompt, int lane, Site site) const {
  return falsifier.floor >= 0 && plan_.spans && lane == falsifier.against &&
         (is(site.stage, Role::weighed_values) || is(site.stage, Role::choice) || is(site.stage, Role::router_probs)) &&
         watches(falsifier, prompt, site.sibling(Role::layer_output));
}

void Judge::show(Sighting& sighting) {
  Comparisons compared(sighting, plan_.program, lanes_);  // of all falsifiers
  for (std::size_t f = 0; f < judged_.size(); ++f)
    if (judged_[f] && watches(plan_.falsifiers[f], sighting.prompt, sighting.site)) judge(f, sighting, compared);
}

// One falsifier, at the rows of the site that it watches.
void Judge::judge(std::size_t f, Sighting& sighting, Comparisons& compared) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  const std::vector<int>& positions = watched.positions[static_cast<std::size_t>(sighting.prompt)];
  const auto first = std::lower_bound(positions.begin(), positions.end(), sighting.position(0));
  const auto end = std::lower_bound(first, positions.end(), sighting.position(sighting.rows().count));
  if (first == end || !is_recorded(watched, sighting, compared) || !is_computed(f, sighting, compared)) return;
  if (const std::string what = lacking(watched, compared); !what.empty()) {
    missing_[f] = what;
    return;
  }
  if (is_beyond_prediction(watched, sighting)) {
    ++judgements_[f].several_steps;
    return;
  }
  const bool is_open = has_open_choice(watched, sighting);
  const auto start = std::chrono::steady_clock::now();
  result_at(judgements_[f], sighting.prompt, sighting.site);  // it was looked at, even if no sample comes of it
  for (auto position = first; position != end; ++position)
    take(f,
         sample_row(watched, compared, *position - sighting.position(0), is_open,
                    parts_[f] ? &floors_[f][sighting.site] : nullptr),
         sighting.site.layer);
  if (parts_[f] && !is_open && is(sighting.site.stage, Role::layer_output)) look_at_parts(f, sighting, compared);
  judgements_[f].seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

namespace {

host::Values row_of(const Tensor& tensor, int row) { return host::values_of(tensor, row, 1); }

host::Values difference(const host::Values& a, const host::Values& b) {
  host::Values out(a.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = a[i] - b[i];
  return out;
}

// Of the experts that a row chose, in its probabilities of all.
double sum_of_chosen(const Tensor& probs, int row, std::span<const std::int32_t> experts) {
  if (!probs) return 0;
  double sum = 0;
  for (const std::int32_t expert : experts) sum += value_at(probs, row * probs.shape.row() + expert);
  return sum;
}

}  // namespace

void Judge::look_at_parts(std::size_t f, Sighting& sighting, Comparisons& compared) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  const Stage added = sighting.site.stage.sibling(Role::weighed_values);
  const Tensor own = compared.tensor(watched.lane), right = compared.tensor(watched.against),
               peer = compared.tensor(watched.floor);
  const Tensor parts = added ? sighting.now(watched.against, added) : Tensor();
  const Tensor chosen = sighting.now(watched.against, Role::choice);
  const Tensor probs = sighting.now(watched.against, Role::router_probs);
  if (!own || !right || !peer || !parts || !chosen) return;
  const int ahead = sighting.rows().first - sighting.rows_of(added).first;
  const auto used = static_cast<std::size_t>(chosen.shape.row());
  for (int r = 0; r < sighting.rows().count; ++r) {
    const host::Values values = row_of(own, r), truth = row_of(right, r), beside = row_of(peer, r),
                       added_values = row_of(parts, r + ahead);
    const std::span experts(chosen.as<std::int32_t>() + static_cast<std::size_t>(r + ahead) * used, used);
    const host::Values error = difference(values, truth), floor = difference(beside, truth);
    const auto is_sound = [](const host::Values& v) { return std::all_of(v.begin(), v.end(), is_finite); };
    if (!is_sound(error) || !is_sound(floor) || !is_sound(added_values)) continue;
    parts_[f]->add(sighting.site, {sighting.prompt, sighting.position(r), sighting.pass.rows(), values, error, floor,
                                   experts, added_values, sum_of_chosen(probs, r + ahead, experts)});
  }
}

// Of a falsifier that speaks of what is recorded: whether this is, and as it says.
bool Judge::is_recorded(const WatchedFalsifier& watched, const Sighting& sighting, Comparisons& compared) const {
  using Recorded = FalsifierSpec::Recorded;
  const Recorded which = watched.spec->recorded;
  if (which == Recorded::no || !plan_.spans) return true;
  const Stretch rows{sighting.position(0), sighting.rows().count};
  for (const int lane : {watched.lane, watched.against})
    if (const auto span = lane < 0 ? std::nullopt : plan_.spans->of(sighting.prompt, lane, sighting.site, rows); span)
      return compared.tensor(lane) && (which == Recorded::all || span->is_one_step() == (which == Recorded::steps));
  return false;
}

// Of a falsifier about a recording: whether the lane it is held against had what the step reads.
bool Judge::is_computed(std::size_t f, const Sighting& sighting, Comparisons& compared) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  if (watched.spec->recorded == FalsifierSpec::Recorded::no || watched.against < 0 || compared.tensor(watched.against))
    return true;
  if (judgements_[f].not_computed++ == 0) judgements_[f].first_not_computed = sighting.site;
  return false;
}

// Over several steps that a recording shows only the end of, no rounding is predicted.
bool Judge::is_beyond_prediction(const WatchedFalsifier& watched, const Sighting& sighting) const {
  return watched.spec->metric == Metric::noise_ratio && watched.floor < 0 && plan_.spans &&
         plan_.spans->has_several(sighting.prompt, watched.lane, sighting.site,
                                  {sighting.position(0), sighting.rows().count});
}

// The experts between a recorded stage and the site were chosen by nobody who recorded it.
bool Judge::has_open_choice(const WatchedFalsifier& watched, const Sighting& sighting) const {
  if (!plan_.spans || watched.floor < 0) return false;
  const auto span =
      plan_.spans->of(sighting.prompt, watched.lane, sighting.site, {sighting.position(0), sighting.rows().count});
  return span && std::any_of(span->inner.begin(), span->inner.end(), [&](const Site& inner) {
           return is(inner.stage, Role::choice) && inner.layer == sighting.site.layer;
         });
}

void Judge::take(std::size_t f, const Sampled& row, int layer) {
  Judgement& judgement = judgements_[f];
  for (const Sample& sample : row.samples) add_sample(judgement, sample);
  for (const LeftOut& left_out : row.left_out) leave_out(judgement, left_out.sample, left_out.lane);
  for (int expert : row.experts) ran_[f].insert({layer, expert});
  for (std::size_t kind = 0; kind < row.flips.size(); ++kind) judgement.flips[kind] += row.flips[kind];
  judgement.skipped_experts += row.skipped_experts;
  judgement.without_floor += row.without_floor;
  judgement.undecided += row.undecided;
}

void add_sample(Judgement& j, const Sample& sample) {
  SiteResult& site = result_at(j, sample.prompt, sample.site);
  const bool fails = !sample.bound.holds(sample.value);  // as a NaN does, whatever the bound
  if (site.samples == 0 || is_more_telling(j.spec->metric, sample, site.worst)) site.worst = sample;
  if (fails && site.failing == 0) site.first_failing = sample;
  if (fails && (site.failing_at.empty() || site.failing_at.back() != sample.position))
    site.failing_at.push_back(sample.position);
  ++site.samples;
  ++j.samples;
  site.failing += fails;
  j.failing += fails;
}

bool Judge::saw_failing(int prompt, const std::vector<bool>& falsifiers) const {
  for (std::size_t f = 0; f < judgements_.size(); ++f)
    if (falsifiers[f] && fails_in(judgements_[f], prompt)) return true;
  return false;
}

void Judge::note_end(int prompt, int end, const std::string& why) {
  for (std::size_t f = 0; f < judged_.size(); ++f) {
    const std::vector<int>& positions = plan_.falsifiers[f].positions[static_cast<std::size_t>(prompt)];
    if (judged_[f] && !positions.empty() && positions.back() >= end) missing_[f] = why;
  }
}

// A sample for each part that stands out, in units of the bound.
void Judge::judge_parts(std::size_t f, Judgement& judgement) const {
  if (!parts_[f]) return;
  judgement.parts = parts_[f]->found();
  for (const PartGain& part : judgement.parts) {
    Sample sample;
    sample.prompt = part.prompt;
    sample.position = part.position;
    sample.site = part.site;
    sample.bound = plan_.falsifiers[f].bound_at(part.site);
    sample.value = sample.bound.value * part.times;
    add_sample(judgement, sample);
  }
}

std::vector<Judgement> Judge::judgements() const {
  std::vector<Judgement> list = judgements_;
  for (std::size_t f = 0; f < list.size(); ++f) {
    judge_parts(f, list[f]);
    std::string missing = missing_[f];
    if (missing.empty() && judged_[f]) missing = never_run_text(plan_.falsifiers[f], lanes_.config(), ran_[f]);
    if (const std::string left_out = left_out_text(list[f], *plan_.contract); !left_out.empty()) {
      if (list[f].failing > 0) list[f].remarks.push_back(left_out);
      missing = left_out + (missing.empty() ? "" : "; ") + missing;
    }
    if (list[f].several_steps > 0) {
      const std::string text = several_steps_text(list[f].several_steps);
      if (list[f].samples == 0)
        missing = text + (missing.empty() ? "" : "; ") + missing;
      else
        list[f].remarks.push_back(text);
    }
    if (const std::string text = not_computed_text(list[f]); !text.empty()) {
      if (list[f].samples == 0)
        missing = text + (missing.empty() ? "" : "; ") + missing;
      else
        list[f].remarks.push_back(text);
    }
    if (const std::string text = undecided_text(list[f]); !text.empty()) {
      const double share =
          static_cast<double>(list[f].samples) / static_cast<double>(list[f].samples + list[f].undecided);
      if (share < list[f].spec->least_tested)
        missing = text + (missing.empty() ? "" : "; ") + missing;
      else
        list[f].remarks.push_back(text);
    }
    settle(list[f], missing);
  }
  return list;
}

// Untested unless something is said here.
void settle(Judgement& j, const std::string& missing) {
  if (j.failing > 0) {
    j.outcome = Outcome::falsified;
  } else if (j.samples > 0 && missing.empty()) {
    j.outcome = Outcome::held;
  } else if (j.reason.empty()) {
    j.reason = missing.empty() ? "nothing was judged: no sample reached it" : missing;
  }
}

}  // namespace moe_diag
