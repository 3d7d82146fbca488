// SPDX-License-Identifier: MIT
#include "core/explain/oracle_watch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/compare/measure.hpp"
#include "core/compare/step_units.hpp"
#include "core/explain/model_blocks.hpp"
#include "core/model/program.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

using Runs = std::vector<std::pair<int, int>>;

bool contains(const Runs& runs, int position) {
  const auto after = std::upper_bound(runs.begin(), runs.end(), position,
                                      [](int p, const std::pair<int, int>& run) { return p < run.first; });
  return after != runs.begin() && position <= std::prev(after)->second;
}

void insert(Runs& runs, int position) {
  auto after = std::upper_bound(runs.begin(), runs.end(), position,
                                [](int p, const std::pair<int, int>& run) { return p < run.first; });
  if (after != runs.begin() && std::prev(after)->second == position - 1) {
    const auto before = std::prev(after);
    before->second = position;
    if (after == runs.end() || after->first != position + 1) return;
    before->second = after->second;
    runs.erase(after);
  } else if (after != runs.end() && after->first == position + 1) {
    after->first = position;
  } else {
    runs.insert(after, {position, position});
  }
}

// The weights that made the value: of those that write side by side, the one of its column.
std::vector<const Weight*> weights_of(const Step& step, std::int64_t element) {
  std::vector<const Weight*> weights(step.weights.begin(), step.weights.end());
  if (operator_of(step).weights != WeightRows::all || weights.size() < 2) return weights;
  for (const Weight* weight : weights) {
    if (element < weight->rows) return {weight};
    element -= weight->rows;
  }
  return weights;
}

class Teller {
 public:
  Teller(Verdict& verdict, const Plan& plan, const OracleWatch& watch)
      : verdict_(verdict), plan_(plan), watch_(watch) {}

  void tell() {
    std::vector<Divergence> found;
    for (const OracleWatch::Place& place : watch_.first_places()) {
      numbers_[place.prompt] = static_cast<int>(found.size());
      found.push_back(divergence_of(place));
    }
    if (found.empty()) return;
    make_room(static_cast<int>(found.size()));
    std::vector<Divergence>& all = verdict_.diagnosis.divergences;
    all.insert(all.begin(), found.begin(), found.end());
    for (Judgement& judgement : verdict_.judgements) explain(judgement);
  }

 private:
  // Divergences are known by their number.
  void make_room(int count) {
    for (Judgement& j : verdict_.judgements)
      if (j.explanation.divergence >= 0) j.explanation.divergence += count;
  }

  void explain(Judgement& judgement) const {
    if (judgement.outcome != Outcome::falsified || is_alone(judgement.spec->metric)) return;
    const Sample& first = judgement.leading_failure()->first_failing;
    if (watch_.is_finite(first.prompt, first.site, first.position)) return;
    judgement.explanation = {Cause::oracle_not_finite, numbers_.at(first.prompt), ""};
  }

  Divergence divergence_of(const OracleWatch::Place& place) const {
    Divergence d;
    d.cause = Cause::oracle_not_finite;
    d.lane = watch_.oracle();
    d.prompt = place.prompt;
    d.site = place.site;
    d.position = place.counts.position;
    d.expert = place.counts.expert;
    d.nonfinite = place.counts;
    d.error = d.expected = nan;
    const std::vector<const Weight*> weights = weights_of(*find_step(plan_.program, place.site), place.counts.element);
    for (const Weight* weight : weights)
      d.tensors.push_back(fmt::format("{} ({})", weight->name, name_of(weight->type)));
    d.blocks = nonfinite_blocks(weights);
    d.text = text_of(d);
    return d;
  }

  std::string text_of(const Divergence& d) const {
    const Nonfinite& n = d.nonfinite;
    std::string text =
        fmt::format("{} NaN and {} Inf of {} values, the first at {}element {} of position {}", n.nan, n.inf, n.values,
                    n.expert < 0 ? "" : fmt::format("expert {}, ", n.expert), n.element, n.position);
    text += text_of_blocks(d.blocks);
    if (d.blocks.empty() && !d.tensors.empty()) text += "; the step's weights are finite";
    const std::string& oracle = plan_.contract->oracle;
    for (const std::string& fault : verdict_.planted)
      if (fault.ends_with(", lane " + oracle)) text += "; a fault is planted in this lane: " + fault;
    return text;
  }

  Verdict& verdict_;
  const Plan& plan_;
  const OracleWatch& watch_;
  std::map<int, int> numbers_;  // of the divergences, by prompt
};

}  // namespace

void OracleWatch::look_beside(const Bus& others, int prompts) {
  const int layers = lanes_.config().layers;
  const bool is_copied = lanes_[static_cast<std::size_t>(oracle_)].description.asynchronous;
  sites_.assign(static_cast<std::size_t>(prompts), SiteSet(lanes_.config()));
  for (int prompt = 0; prompt < prompts; ++prompt) {
    if (!others.looks_at(prompt, lanes_)) continue;
    for (const Stage stage : lanes_.config().stages) {
      const bool layered = info(stage).scope == Scope::layer;
      for (int layer = layered ? 0 : -1; layer < (layered ? layers : 0); ++layer)
        if (const Site site{stage, layer}; !is_copied || others.wanted(prompt, oracle_, site))
          sites_[static_cast<std::size_t>(prompt)].insert(site);
    }
  }
}

bool OracleWatch::wants(int prompt, int lane, Site site) const {
  return lane == oracle_ && (sites_.empty() || sites_[static_cast<std::size_t>(prompt)].contains(site));
}

void OracleWatch::show(Sighting& sighting) {
  const Tensor values = sighting.tensor(oracle_);
  if (!values || values.dtype == DType::i32 || count_nonfinite(values, 0, values.shape.count()) == 0) return;
  for (int row = 0; row < sighting.rows().count; ++row) look_at_row(sighting, values, row);
}

void OracleWatch::look_at_row(Sighting& sighting, const Tensor& values, int row) {
  const std::int64_t size = values.shape.row(), first = row * size;
  if (count_nonfinite(values, first, size) == 0) return;
  const int position = sighting.position(row);
  Place& place = places_[{sighting.prompt, sighting.site}];
  if (contains(place.positions, position)) return;
  insert(place.positions, position);
  place.prompt = sighting.prompt;
  place.site = sighting.site;
  Nonfinite& counts = place.counts;
  counts.values += size;
  const Tensor routing = is_per_expert(sighting.site.stage) ? sighting.now(oracle_, Role::choice) : Tensor{};
  const std::int64_t width = routing ? size / routing.shape.row() : size;
  bool is_first = counts.position < 0 || position < counts.position;
  for (std::int64_t i = first; i < first + size; ++i) {
    const double value = value_at(values, i);
    if (moe_diag::is_finite(value)) continue;
    ++(std::isnan(value) ? counts.nan : counts.inf);
    if (!is_first) continue;
    is_first = false;
    counts.position = position;
    counts.expert = routing ? routing.as<std::int32_t>()[i / width] : -1;
    counts.element = i % width;
  }
}

bool OracleWatch::is_finite(int prompt, Site site, int position) const {
  const auto at = places_.find({prompt, site});
  return at == places_.end() || !contains(at->second.positions, position);
}

std::vector<OracleWatch::Place> OracleWatch::first_places() const {
  std::vector<Place> first;
  for (const auto& [key, place] : places_)
    if (first.empty() || first.back().prompt != place.prompt) first.push_back(place);
  return first;
}

void tell_of_oracle(Verdict& verdict, const Plan& plan, const OracleWatch& watch) {
  Teller(verdict, plan, watch).tell();
}

}  // namespace moe_diag
