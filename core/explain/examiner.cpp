// SPDX-License-Identifier: MIT
#include "core/explain/examiner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/compare/measure.hpp"
#include "core/compare/step_units.hpp"
#include "core/model/program.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/predicted.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr std::size_t most_explained = 4;  // steps of one lane: each may take as long as a pass
constexpr int most_passes = 3;             // of a step that is explained: whether the cause of one is that of the next

// Rows [first, first + count) of a tensor.
Tensor rows_of(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  Tensor part = tensor;
  part.data = static_cast<const std::byte*>(tensor.data) +
              static_cast<std::size_t>(first * tensor.shape.row()) * size_of(tensor.dtype);
  part.shape.dims[0] = count;
  return part;
}

void count(double value, int position, int expert, std::int64_t element, Nonfinite& counts) {
  if (is_finite(value)) return;
  if (counts.count() == 0 || position < counts.position) {
    counts.position = position;
    counts.expert = expert;
    counts.element = element;
  }
  ++(std::isnan(value) ? counts.nan : counts.inf);
}

// Of the step's units, where the oracle is finite.
void count_nonfinite(const StepCase& c, const StepUnit& unit, Nonfinite& counts) {
  counts.values += unit.size;
  if (std::isfinite(unit.error)) return;
  for (std::int64_t i = 0; i < unit.size; ++i) {
    const std::int64_t at = unit.in_a(i);
    const std::int64_t element = unit.expert >= 0 ? i : at % c.a.shape.row();
    if (is_finite(value_at(c.b, unit.in_b(i))))
      count(value_at(c.a, at), c.first_position + unit.row, unit.expert, element, counts);
  }
}

bool is_row_finite(const Tensor& tensor, int row) {
  const std::int64_t size = tensor.shape.row();
  return moe_diag::count_nonfinite(tensor, row * size, size) == 0;
}

// Of the rows of a tensor where the oracle's are finite.
void count_nonfinite(const Tensor& tensor, const Tensor& truth, const Tensor& routing, int first_position,
                     Nonfinite& counts) {
  const std::int64_t size = tensor.shape.row(), width = routing ? size / routing.shape.row() : size;
  for (int row = 0; row < tensor.shape.dims[0]; ++row) {
    if (!is_row_finite(truth, row)) continue;
    counts.values += size;
    if (is_row_finite(tensor, row)) continue;
    for (std::int64_t i = row * size; i < (row + 1) * size; ++i)
      count(value_at(tensor, i), first_position + row, routing ? routing.as<std::int32_t>()[i / width] : -1, i % width,
            counts);
  }
}

void note_failure(int position, int expert, Finding& finding) {
  if (finding.fails && finding.position <= position) return;
  finding.fails = true;
  finding.position = position;
  finding.expert = expert;
}

}  // namespace

bool has_expected_error(const RunningLane& lane, const Program& program, const ModelConfig& config) {
  return expected_error(LaneNumerics(lane.description), program.front(), config, 1).has_value();
}

void Finding::note_free_error(double error) {
  const bool worse = !is_measured || std::isnan(error) || error > free_error;
  if (worse && !(is_measured && std::isnan(free_error))) free_error = error;
  is_measured = true;
}

double Finding::excess() const {
  if (!fails) return 0;
  if (!std::isfinite(step_error) || payload_of(site.stage) == Payload::indices) return 1;
  return std::clamp(step_error - (std::isnan(expected) ? 0 : expected), 0.0, 1.0);
}

Examiner::Examiner(const Parts& parts, std::vector<Subject> subjects, std::vector<SideBySide> compared,
                   std::vector<Stage> curves)
    : parts_(parts),
      subjects_(std::move(subjects)),
      compared_(std::move(compared)),
      curves_(std::move(curves)),
      explained_(subjects_.size()),
      kept_(parts.most_kept) {}

bool Examiner::draws(Stage stage) const { return std::find(curves_.begin(), curves_.end(), stage) != curves_.end(); }

bool Examiner::wants(int /*prompt*/, int lane, Site /*site*/) const {
  return lane == parts_.oracle || std::any_of(subjects_.begin(), subjects_.end(),
                                              [&](const Subject& s) { return s.lane == lane || s.fed == lane; });
}

bool Examiner::saw_failing_step(int prompt, int lane, Site up_to, int position) const {
  for (const auto& [key, sites] : findings_) {
    if (key.first != prompt || subjects_[static_cast<std::size_t>(key.second)].lane != lane) continue;
    for (const auto& [site, finding] : sites)
      if (finding.fails && finding.position <= position && !(up_to < site)) return true;
  }
  return false;
}

void Examiner::show(Sighting& sighting) {
  const Tensor truth = sighting.tensor(parts_.oracle);
  if (!truth) return;
  for (std::size_t s = 0; s < subjects_.size(); ++s) {
    Finding& finding = findings_[{sighting.prompt, static_cast<int>(s)}][sighting.site];
    finding.site = sighting.site;
    look_at_step(s, sighting, finding);
    look_at_lane(subjects_[s], sighting, finding);
  }
  compare_lanes(sighting);
}

StepCase Examiner::case_of(const Subject& subject, Sighting& sighting) const {
  StepCase c;
  c.step = find_step(parts_.lanes.program(static_cast<std::size_t>(subject.fed)), sighting.site);
  c.stage = sighting.site.stage;
  c.a = sighting.tensor(subject.fed);
  c.b = sighting.tensor(parts_.oracle);
  c.first_position = sighting.position(0);
  const RunningLane& fed = parts_.lanes[static_cast<std::size_t>(subject.fed)];
  c.numerics = LaneNumerics(fed.computes(sighting.site));
  c.oracle = LaneNumerics(parts_.lanes[static_cast<std::size_t>(parts_.oracle)].computes(sighting.site));
  c.together = fed.steps_with(sighting.site, *c.step);
  // The error to be expected of one value depends on what it is the sum of.
  if (c.a && is_product(operator_of(*c.step))) c.in[0] = sighting.now(parts_.oracle, c.step->in[0]);
  if (is_per_expert(c.stage)) {
    c.routing_a = sighting.now(subject.fed, Role::choice);
    c.routing_b = sighting.now(parts_.oracle, Role::choice);
  }
  return c;
}

void Examiner::look_at_step(std::size_t subject, Sighting& sighting, Finding& finding) {
  const Subject& s = subjects_[subject];
  StepCase c = case_of(s, sighting);
  if (!c.a || (is_per_expert(c.stage) && (!c.routing_a || !c.routing_b))) return;
  const bool is_choice = payload_of(c.stage) == Payload::indices;
  const bool is_span = look_at_span(s, sighting, finding);
  finding.is_seen = !(is_choice && is_span);  // nothing is held against a choice by logits that are not recorded
  if (is_span) return;
  if (is_choice) {
    for (RowFlip& row : flips_of(s.fed, sighting)) {
      if (row.flip.kind == FlipKind::real) {
        note_failure(row.position, row.flip.expert, finding);
        finding.times = std::numeric_limits<double>::infinity();
        finding.step_error = finding.expected = nan;
      }
      finding.step_flips.push_back(row);
    }
    for (int row = 0; row < static_cast<int>(c.a.shape[0]); ++row)
      finding.footprint.add_choice(c.first_position + row, routing_flips(c.a, c.b, row, parts_.model.config().experts),
                                   parts_.model.config().used);
  } else {
    if (needs_inputs(c.numerics, *c.step, c.oracle)) add_inputs(s, sighting, c);
    look_at_units(c, finding);
  }
  const bool is_new = finding.explained_passes == 0;
  const bool is_wrong_here = finding.footprint.is_wrong_in(c.first_position, static_cast<int>(c.a.shape[0]));
  const bool is_one_more = is_wrong_here && finding.explained_passes < most_passes;
  if (finding.fails && (is_new || is_one_more)) explain_or_keep(subject, sighting, c, finding);
}

// True where the recording shows this step's result only together with that of steps before it. The rounding of several
// steps is not predicted, so the error is noted and not judged here.
bool Examiner::look_at_span(const Subject& subject, Sighting& sighting, Finding& finding) const {
  if (!parts_.plan.spans) return false;
  std::optional<RecordedSpan> span = parts_.plan.spans->of(sighting.prompt, subject.lane, sighting.site,
                                                           {sighting.position(0), sighting.rows().count});
  if (!span || span->is_one_step()) return false;
  finding.span = std::move(span);
  finding.expected = nan;
  for (int row = 0; row < sighting.rows().count; ++row)
    if (const auto error = error_of(subject.lane, sighting, row, -1); error && !(*error <= finding.step_error))
      finding.step_error = *error;
  return true;
}

void Examiner::note_failing_span(const Sample& sample, int lane) {
  for (std::size_t s = 0; s < subjects_.size(); ++s) {
    if (subjects_[s].lane != lane) continue;
    const auto sites = findings_.find({sample.prompt, static_cast<int>(s)});
    if (sites == findings_.end()) continue;
    const auto at = sites->second.find(sample.site);
    if (at == sites->second.end() || !at->second.span) continue;
    Finding& finding = at->second;
    note_failure(sample.position, sample.expert, finding);
    const RecordedSpan& span = *finding.span;
    finding.explanation.emplace();
    finding.explanation->cause = StepCause::plain_operator;
    finding.explanation->text = fmt::format("a step from {} is wrong; record {} to halve the gap", text_of(span),
                                            name_of(span.inner[span.inner.size() / 2].stage));
  }
}

// A case that is too large to be kept is explained on the spot, while its tensors are there.
void Examiner::explain_or_keep(std::size_t subject, Sighting& sighting, StepCase& c, Finding& finding) {
  const Subject& s = subjects_[subject];
  if (!has_expected_error(parts_.lanes[static_cast<std::size_t>(s.fed)], parts_.plan.program, parts_.model.config()))
    return;
  // What the router weighs follows from what it chose.
  if (is(c.stage, Role::choice_weights) &&
      findings_[{sighting.prompt, static_cast<int>(subject)}][sighting.site.sibling(Role::choice)].fails)
    return;
  add_inputs(s, sighting, c);
  if (!finding.explanation && kept_.fits(c)) {
    ++finding.explained_passes;
    return kept_.keep({subject, sighting.site}, sighting.prompt, c, finding.excess());
  }
  if (!finding.explanation) {
    if (explained_[subject].size() == most_explained) return;
    explained_[subject].push_back(sighting.site);
  }
  ++finding.explained_passes;
  explain(subject, c, finding);
}

// The first pass gives the explanation; later ones are held against it.
void Examiner::explain(std::size_t subject, const StepCase& c, Finding& finding) const {
  const auto fed = static_cast<std::size_t>(subjects_[subject].fed);
  StepExplanation found = explain_step(c, parts_.model, parts_.lanes.program(fed));
  if (finding.explanation)
    add_later_pass(*finding.explanation, found, c.first_position);
  else
    finding.explanation = std::move(found);
}

void Examiner::explain(const std::vector<std::pair<int, Site>>& first) {
  for (std::size_t s = 0; s < subjects_.size(); ++s) {
    for (const auto& [lane, site] : first)
      if (lane == subjects_[s].lane) explain_kept({s, site});
    while (const auto next = next_to_explain(s)) explain_kept(*next);
  }
  kept_.clear();
}

void Examiner::explain_kept(const KeptCases::Place& place) {
  const auto& [subject, site] = place;
  const auto at = kept_.all().find(place);
  std::vector<Site>& explained = explained_[subject];
  if (at == kept_.all().end() || explained.size() == most_explained ||
      std::find(explained.begin(), explained.end(), site) != explained.end())
    return;
  Finding& finding = findings_.at({at->second.prompt, static_cast<int>(subject)}).at(site);
  for (const KeptCase& pass : at->second.passes) explain(subject, pass.step_case, finding);
  hold_against_other(subject, at->second, finding);
  explained.push_back(site);
}

// A cause of few rows may fit by chance: it has to fit those of another prompt as well, where there are as many.
void Examiner::hold_against_other(std::size_t subject, const KeptStep& kept, Finding& finding) const {
  if (!kept.other || !finding.explanation) return;
  const StepCase& other = kept.other->step_case;
  if (other.a.shape[0] < kept.passes.front().step_case.a.shape[0]) return;
  const auto fed = static_cast<std::size_t>(subjects_[subject].fed);
  add_other_prompt(*finding.explanation, explain_step(other, parts_.model, parts_.lanes.program(fed)),
                   parts_.plan.contract->prompts[static_cast<std::size_t>(kept.other_prompt)].id);
}

std::optional<KeptCases::Place> Examiner::next_to_explain(std::size_t subject) const {
  const std::vector<Site>& explained = explained_[subject];
  const auto times = [&](Stage stage) {
    return std::count_if(explained.begin(), explained.end(), [&](const Site& site) { return site.stage == stage; });
  };
  std::vector<std::pair<Site, double>> left;  // with their excess, in forward order
  for (const auto& [place, kept] : kept_.all())
    if (place.first == subject && std::find(explained.begin(), explained.end(), place.second) == explained.end())
      left.push_back({place.second, kept.excess});
  if (left.empty() || explained.size() == most_explained) return std::nullopt;
  const auto rarest = std::min_element(left.begin(), left.end(), [&](const auto& x, const auto& y) {
    return times(x.first.stage) < times(y.first.stage);
  });
  const auto least = times(rarest->first.stage);
  left.erase(std::remove_if(left.begin(), left.end(), [&](const auto& one) { return times(one.first.stage) > least; }),
             left.end());
  const auto next = foremost(left.begin(), left.end(), [](const auto& one) { return one.second; });
  return KeptCases::Place{subject, next->first};
}

void Examiner::look_at_units(const StepCase& seen, Finding& finding) const {
  const ModelConfig& config = parts_.model.config();
  StepCase c = seen;
  const bool known = expected_error(c.numerics, *c.step, config, 1).has_value();
  if (!known) c.numerics.name = "f32";
  const std::vector<StepUnit> units = units_of(c, config);
  if (known) finding.footprint.add(c, units);
  for (const StepUnit& unit : units) {
    count_nonfinite(c, unit, finding.step_nonfinite);
    if (unit.fails && (known || !std::isfinite(unit.error)))
      note_failure(c.first_position + unit.row, unit.expert, finding);
    if (finding.expected > 0 && !(unit.error > finding.times)) continue;
    finding.times = unit.error;
    finding.expected = known ? unit.expected : nan;
    finding.step_error = std::isfinite(unit.error) ? unit.error * unit.expected : nan;
  }
}

std::vector<RowFlip> Examiner::flips_of(int lane, Sighting& sighting) const {
  const Routing routing{sighting.tensor(lane), sighting.tensor(parts_.oracle), sighting.now(lane, Role::router_scores),
                        sighting.now(parts_.oracle, Role::router_scores), parts_.model.config().experts};
  std::vector<RowFlip> flips;
  if (!routing.ids_a || !routing.ids_b) return flips;
  const bool has_logits = routing.logits_a && routing.logits_b;  // only a faulty id is told without
  for (int row = 0; row < sighting.rows().count; ++row) {
    if (has_logits && !is_row_finite(routing.logits_b, row)) continue;  // the oracle's choice says nothing
    for (const Flip& flip : flips_of_row(routing, row))
      if (has_logits || flip.is_misnamed()) flips.push_back({sighting.position(row), flip});
  }
  return flips;
}

void Examiner::look_at_lane(const Subject& s, Sighting& sighting, Finding& finding) const {
  const Stage stage = sighting.site.stage;
  if (s.is_fed()) {
    finding.free_error = finding.step_error;
    finding.free_nonfinite = finding.step_nonfinite;
    finding.flips = finding.step_flips;
    return;
  }
  if (is(stage, Role::choice)) {
    const std::vector<RowFlip> flips = flips_of(s.lane, sighting);
    finding.flips.insert(finding.flips.end(), flips.begin(), flips.end());
    return;
  }
  const Tensor values = sighting.tensor(s.lane);
  if (!values) return;
  const Tensor routing = is_per_expert(stage) ? sighting.now(s.lane, Role::choice) : Tensor{};
  count_nonfinite(values, sighting.tensor(parts_.oracle), routing, sighting.position(0), finding.free_nonfinite);
  if (!draws(stage)) return;
  for (int row = 0; row < sighting.rows().count; ++row) {
    const auto error = error_of(s.lane, sighting, row, -1);
    if (error) finding.note_free_error(*error);
  }
}

// rel_l2 of a row of a lane, or of an expert in it; none when there is nothing to be compared.
std::optional<double> Examiner::error_of(int lane, Sighting& sighting, int row, int expert) const {
  Pair pair;
  pair.site = sighting.site;
  pair.a = sighting.tensor(lane);
  pair.b = sighting.tensor(parts_.oracle);
  pair.first_position = sighting.position(0);
  pair.experts = parts_.model.config().experts;
  if (!pair.a || !pair.b) return std::nullopt;
  if (is_per_expert(pair.site.stage)) {
    pair.routing_a = sighting.now(lane, Role::choice);
    pair.routing_b = sighting.now(parts_.oracle, Role::choice);
    if (!pair.routing_a || !pair.routing_b) return std::nullopt;
  }
  Measure measure;
  for (const SampleSegments& sample : samples_of_row(pair, row).samples)
    if (expert < 0 || sample.expert == expert)
      for (const Segment& s : sample.segments) measure.add(pair.a, s.a, pair.b, s.b, s.n);
  return measure.count > 0 ? std::optional<double>(measure.rel_l2()) : std::nullopt;
}

void Examiner::compare_lanes(Sighting& sighting) {
  for (SideBySide& sides : compared_) {
    const int row = sides.position - sighting.position(0);
    if (sides.prompt != sighting.prompt || !(sides.site == sighting.site) || row < 0 || row >= sighting.rows().count)
      continue;
    sides.is_measured = true;
    sides.lane_error = error_of(sides.lane, sighting, row, sides.expert).value_or(nan);
    if (sides.against >= 0) sides.against_error = error_of(sides.against, sighting, row, sides.expert).value_or(nan);
  }
}

// As the fed lane holds them now, cut to the rows of the output.
void Examiner::add_inputs(const Subject& subject, Sighting& sighting, StepCase& c) {
  c.tokens = sighting.pass.tokens;
  for (std::size_t i = 0; i < c.step->in.size(); ++i) {
    const CacheUse* use = c.step->cached(i);
    if (use && sighting.pass.first > 0) {
      c.in[i] = read_from_cache(subject, sighting, *c.step, *use);
      continue;
    }
    const Stage stage = c.step->in[i];
    c.in[i] = sighting.now(subject.fed, stage);
    if (!c.in[i]) continue;
    const Rows all = sighting.rows_of(stage);
    c.in[i] = rows_of(c.in[i], sighting.rows().first - all.first, sighting.rows().count);
  }
}

// The keys, or the columns of values, of all positions so far: as the oracle has them, rounded as the fed lane was
// given them. What that lane has in its cache may be what is wrong.
Tensor Examiner::read_from_cache(const Subject& subject, Sighting& sighting, const Step& step, const CacheUse& use) {
  const Tensor kept = sighting.cached(parts_.oracle, use.cache);
  if (!kept) return {};
  const Stage stage = step.in[static_cast<std::size_t>(use.input)];
  const Description& fed = parts_.lanes[static_cast<std::size_t>(subject.fed)].computes(sighting.site);
  host::Values values = rounded_to(host::values_of(kept), fed.stored(stage));
  if (const CacheRounding in_cache(fed.kv_cache, fed.kv_rotate); in_cache) values = in_cache.kept(values, step);
  const Shape shape = parts_.model.config().shape_of({stage, step.layer}, static_cast<int>(kept.shape[0]), 0);
  const std::int64_t row = shape.row(), width = kept.shape.row(), first = use.column;
  cached_.assign(static_cast<std::size_t>(shape.count()), 0.0);
  for (std::int64_t i = 0; i < kept.shape.count(); ++i)
    cached_[static_cast<std::size_t>(i / width * row + first + i % width)] = values[static_cast<std::size_t>(i)];
  return {cached_.data(), DType::f64, shape};
}

}  // namespace moe_diag
