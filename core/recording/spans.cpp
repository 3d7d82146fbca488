// SPDX-License-Identifier: MIT
#include "core/recording/spans.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/recording/site_name.hpp"

namespace moe_diag {
std::string text_of(const RecordedSpan& span) {
  const std::string to(name_of(span.to.stage));
  if (span.from.empty()) return fmt::format("the tokens to {}", to);
  // The nearest to it of values; experts chosen stand beside the way.
  const auto nearest = std::find_if(span.from.rbegin(), span.from.rend(),
                                    [](const Site& site) { return payload_of(site.stage) == Payload::values; });
  const Site first = nearest == span.from.rend() ? span.from.back() : *nearest;
  return first.layer == span.to.layer ? fmt::format("{} to {}", name_of(first.stage), to)
                                      : fmt::format("{} to {}", text_of(first), to);
}

SpanFinder::SpanFinder(const Program& program, const Recording& recording) : recording_(recording) {
  std::map<std::size_t, int> layer;  // of each stage: that which was written last
  for (const Step& step : program) {
    std::vector<Input> inputs;
    for (std::size_t i = 0; i < step.in.size(); ++i)
      inputs.push_back({{step.in[i], layer[step.in[i].index()]}, step.cached(i) ? step.cached(i)->cache : Cache()});
    for (const Stage stage : step.out) {
      layer[stage.index()] = step.layer;
      inputs_[{stage, step.layer}] = inputs;
    }
  }
}

// As many of the first positions as the engine's cache was recorded with.
int SpanFinder::cached_positions(int request, const Input& input) const {
  const Tensor rows = recording_.cached(request, input.cache, input.site.layer);
  return rows ? static_cast<int>(rows.shape[0]) : 0;
}

RecordedSpan SpanFinder::of(int request, Site to, Stretch positions) const {
  std::set<Site> from, inner, seen;
  std::vector<Site> open{to};
  while (!open.empty()) {
    const Site site = open.back();
    open.pop_back();
    const auto inputs = inputs_.find(site);
    if (inputs == inputs_.end()) continue;
    for (const Input& input : inputs->second) {
      if (!seen.insert(input.site).second) continue;
      const int known = input.cache ? cached_positions(request, input) : positions.first;
      const Stretch rows{known, positions.end() - known};
      if (recording_.has(request, input.site, rows)) {
        from.insert(input.site);
        continue;
      }
      inner.insert(input.site);
      open.push_back(input.site);
    }
  }
  return {{from.begin(), from.end()}, {inner.begin(), inner.end()}, to};
}

RecordedSpans::RecordedSpans(const Contract& contract, const Program& program, const Recordings& recordings)
    : lanes_(contract.lanes.size()) {
  for (std::size_t i = 0; i < lanes_.size(); ++i)
    if (const Recording* recording = recordings.of(i))
      lanes_[i] = {std::make_shared<const SpanFinder>(program, *recording),
                   requests_of(contract, contract.lanes[i], *recording)};
  for (std::size_t i = 0; i < lanes_.size(); ++i)
    for (std::size_t engine = 0; engine < lanes_.size(); ++engine)
      if (contract.lanes[engine].replay && contract.lanes[i].inputs == contract.lanes[engine].name)
        lanes_[i] = lanes_[engine];
}

std::optional<RecordedSpan> RecordedSpans::of(int prompt, int lane, Site site, Stretch positions) const {
  if (lane < 0 || static_cast<std::size_t>(lane) >= lanes_.size()) return std::nullopt;
  const OfLane& of = lanes_[static_cast<std::size_t>(lane)];
  const int request = of.spans ? of.requests[static_cast<std::size_t>(prompt)] : -1;
  return request < 0 ? std::nullopt : std::optional(of.spans->of(request, site, positions));
}

}  // namespace moe_diag
