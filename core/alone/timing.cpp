// SPDX-License-Identifier: MIT
#include "core/alone/timing.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "core/forward/forward.hpp"
#include "core/forward/lane_alone.hpp"
#include "core/verdict/judge.hpp"

namespace moe_diag {
namespace {

// Wants every stage at every position, and keeps nothing: what a capture costs before anything is written.
class Everything final : public Hook {
 public:
  explicit Everything(int lane) : lane_(lane) {}
  bool wants(int, int lane, Site) const override { return lane == lane_; }
  void show(Sighting& sighting) override { sighting.tensor(lane_); }

 private:
  const int lane_;
};

struct Times {
  double prompt = 0, decode = 0;  // seconds

  double all() const { return prompt + decode; }
};

// One lane, one prompt, computed again and again.
class Stopwatch {
 public:
  Stopwatch(const AloneParts& parts, int lane, int prompt)
      : parts_(parts),
        spec_(parts.contract.prompts[static_cast<std::size_t>(prompt)]),
        prompt_(prompt),
        everything_(lane),
        alone_(parts.lanes, lane),
        watched_(parts.lanes, bus_, {}, only(lane)) {
    bus_.add(everything_);
  }

  Times alone() {
    return time([&](const Pass& pass) { alone_.pass(pass, prompt_); });
  }
  Times watched() {
    return time([&](const Pass& pass) { watched_.pass(pass, prompt_); });
  }

  // Of `repeat` computations, after one that warms up.
  std::vector<double> values(Metric metric, int repeat) {
    const auto tokens = static_cast<double>(spec_.tokens.size());
    std::vector<double> values;
    for (int i = -1; i < repeat; ++i) {
      const Times t = alone();
      if (i < 0) continue;
      const double rate = spec_.generate > 0 ? spec_.generate / t.decode : tokens / t.prompt;
      values.push_back(metric == Metric::seconds ? t.prompt : rate);
    }
    return values;
  }

 private:
  template <class RunPass>
  Times time(const RunPass& run) {
    Times times;
    for (const Stretch& stretch : parts_.sequences.stretches(prompt_)) {
      const Pass pass = pass_over(parts_.sequences.sequence(prompt_), stretch,
                                  parts_.plan.head_first[static_cast<std::size_t>(prompt_)]);
      const auto start = std::chrono::steady_clock::now();
      run(pass);
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      (stretch.first < static_cast<int>(spec_.tokens.size()) ? times.prompt : times.decode) += took;
    }
    return times;
  }

  std::vector<bool> only(int lane) const {
    std::vector<bool> active(parts_.lanes.size(), false);
    active[static_cast<std::size_t>(lane)] = true;
    return active;
  }

  const AloneParts& parts_;
  const PromptSpec& spec_;
  const int prompt_;
  Everything everything_;
  Bus bus_;
  LaneAlone alone_;
  Forward watched_;
};

struct Measured {
  double value = 0;
  Spread spread;
  std::vector<std::string> remarks;
};

Spread spread_of(int prompt, const std::vector<double>& values) {
  return {prompt, median_of(values), *std::min_element(values.begin(), values.end()),
          *std::max_element(values.begin(), values.end()), static_cast<int>(values.size())};
}

Measured measure_overhead(Stopwatch& watch, int prompt, int repeat) {
  std::vector<double> alone, watched, ratios;
  for (int i = -1; i < repeat; ++i) {
    const double a = watch.alone().all(), w = watch.watched().all();
    if (i < 0) continue;
    alone.push_back(a);
    watched.push_back(w);
    ratios.push_back(w / a);
  }
  Measured measured;
  measured.spread = spread_of(prompt, ratios);
  measured.spread.median = measured.value = median_of(watched) / median_of(alone);
  measured.remarks.push_back(
      fmt::format("{:.6g} s with every stage looked at, {:.6g} s with none", median_of(watched), median_of(alone)));
  return measured;
}

Measured measure_memory(Stopwatch& watch, int prompt, const RunningLane& lane) {
  watch.alone();
  const DeviceMemory memory = lane.device_memory();
  Measured measured;
  measured.value = static_cast<double>(memory.used) / static_cast<double>(memory.total);
  measured.spread = spread_of(prompt, {measured.value});
  measured.remarks.push_back(fmt::format("{} of {} bytes used", memory.used, memory.total));
  return measured;
}

Measured measure(const AloneParts& parts, const FalsifierSpec& spec, int lane, int prompt) {
  Stopwatch watch(parts, lane, prompt);
  if (spec.metric == Metric::capture_overhead) return measure_overhead(watch, prompt, spec.repeat);
  if (spec.metric == Metric::device_memory_fraction)
    return measure_memory(watch, prompt, parts.lanes[static_cast<std::size_t>(lane)]);
  Measured measured;
  measured.spread = spread_of(prompt, watch.values(spec.metric, spec.repeat));
  measured.value = measured.spread.median;
  return measured;
}

}  // namespace

double median_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

Judgement judge_timing(const AloneParts& parts, std::size_t falsifier) {
  const WatchedFalsifier& watched = parts.plan.falsifiers[falsifier];
  const RunningLane& lane = parts.lanes[static_cast<std::size_t>(watched.lane)];
  Judgement judgement;
  judgement.spec = watched.spec;
  if (watched.spec->metric == Metric::device_memory_fraction && lane.device_memory().total == 0) {
    judgement.reason = fmt::format("lane '{}' computes on the host: it has no device memory", lane.name);
    return judgement;
  }
  std::string missing;
  for (std::size_t p = 0; p < watched.positions.size(); ++p) {
    const auto prompt = static_cast<int>(p);
    if (watched.positions[p].empty()) continue;
    if (const std::string& why = parts.sequences.stopped(prompt);
        !why.empty() && watched.spec->metric == Metric::tokens_per_second) {
      missing = why;
      continue;
    }
    Measured measured = measure(parts, *watched.spec, watched.lane, prompt);
    const Site logits{parts.lanes.config().stages.of(Role::logits), -1};
    add_sample(judgement, {prompt, whole_pass, -1, logits, measured.value, watched.spec->bound, {}, {}});
    judgement.spreads.push_back(measured.spread);
    for (std::string& remark : measured.remarks)
      judgement.remarks.push_back(fmt::format("prompt {}: {}", parts.contract.prompts[p].id, remark));
  }
  settle(judgement, missing);
  return judgement;
}

}  // namespace moe_diag
