// SPDX-License-Identifier: MIT
#include "core/run/forecast.hpp"

#include <algorithm>
#include <vector>

#include "core/alone/speed.hpp"
#include "core/compare/measure.hpp"

namespace moe_diag {
namespace {

constexpr double sample_seconds = 1e-6;  // what a sample costs beside its values: finding it, keeping the worst

// How often a falsifier makes its lane compute a prompt alone.
int passes_alone(const FalsifierSpec& spec) {
  if (!is_alone(spec.metric)) return 0;
  if (spec.metric == Metric::capture_overhead) return 2 * (spec.repeat + 1);
  if (spec.metric == Metric::device_memory_fraction) return 1;
  if (spec.metric != Metric::identical) return spec.repeat + 1;
  switch (spec.to) {
    case Twin::digest: return 0;
    case Twin::untraced: return 1;
    case Twin::rerun: return 2;
    case Twin::threads: return 3;
    case Twin::chunks: return 4;
  }
  return 0;
}

// Seconds that comparing two tensors takes for each value.
double measure_comparing() {
  constexpr int values = 1 << 15;
  const std::vector<double> a(values, 1.5), b(values, 1.25);
  const Shape shape{1, values};
  return fastest_of([&] {
           Measure m;
           m.add({a.data(), DType::f64, shape}, 0, {b.data(), DType::f64, shape}, 0, values);
         }) /
         values;
}

class Forecast {
 public:
  Forecast(PlanReport& report, const Plan& plan, const Program& program, Lanes& lanes)
      : report_(report), plan_(plan), program_(program), lanes_(lanes), prompts_(report.work.prompts) {}

  void make() {
    measure();
    const double comparing = measure_comparing();
    const auto judging = [&](std::int64_t values, std::int64_t samples) {
      return static_cast<double>(values) * comparing + static_cast<double>(samples) * sample_seconds;
    };
    std::vector<int> all;
    for (int p = 0; p < static_cast<int>(prompts_.size()); ++p) all.push_back(p);
    PlanReport::Seconds& seconds = report_.seconds;
    seconds.forward = walk(lockstep_lanes(plan_, lanes_), all);
    seconds.judging = judging(report_.work.values, report_.work.samples);
    for (std::size_t f = 0; f < plan_.falsifiers.size(); ++f) {
      const Workload::Falsifier& work = report_.work.falsifiers[f];
      if (!work.untested.empty()) continue;
      for (int p : work.prompts)
        seconds.solo += passes_alone(*work.spec) *
                        seconds_[static_cast<std::size_t>(plan_.falsifiers[f].lane)][static_cast<std::size_t>(p)];
      const auto controls = static_cast<double>(work.spec->controls.size());
      report_.controls += static_cast<std::int64_t>(work.spec->controls.size());
      seconds.controls += controls * (walk(lanes_needed_by(plan_.falsifiers[f], lanes_), work.prompts) +
                                      judging(work.values, work.samples));
    }
  }

 private:
  // The seconds of each lane for each prompt, whole.
  void measure() {
    const auto longest = std::max_element(prompts_.begin(), prompts_.end(), [](const auto& a, const auto& b) {
      return a.spec->tokens.size() < b.spec->tokens.size();
    });
    seconds_.assign(lanes_.size(), std::vector<double>(prompts_.size(), 0));
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      if (!lanes_[i].runs()) continue;
      const Speed speed = measure_speed(lanes_[i], program_, lanes_.config(), longest->spec->tokens);
      for (std::size_t p = 0; p < prompts_.size(); ++p) {
        seconds_[i][p] = speed.seconds(cost(p));
        if (prompts_[p].looked_at) report_.lanes[i].seconds += seconds_[i][p];
      }
    }
  }

  Cost cost(std::size_t prompt) const {
    Cost sum;
    const int total = prompts_[prompt].tokens;
    for (const Stretch& stretch : stretches_of(*prompts_[prompt].spec)) {
      const int head_rows = std::max(1, stretch.end() - std::max(stretch.first, plan_.head_first[prompt]));
      for (const Step& step : program_) sum += cost_of(step, lanes_.config(), stretch.count, total, head_rows);
    }
    return sum;
  }

  // Lanes of devices compute while those of the host do.
  double walk(const std::vector<bool>& active, const std::vector<int>& prompts) const {
    double host = 0, device = 0;
    for (std::size_t i = 0; i < lanes_.size(); ++i)
      for (int p : prompts)
        if (active[i] && prompts_[static_cast<std::size_t>(p)].looked_at)
          (lanes_[i].description.asynchronous ? device : host) += seconds_[i][static_cast<std::size_t>(p)];
    return std::max(host, device);
  }

  PlanReport& report_;
  const Plan& plan_;
  const Program& program_;
  Lanes& lanes_;
  const std::vector<Workload::Prompt>& prompts_;
  std::vector<std::vector<double>> seconds_;  // by lane and prompt
};

}  // namespace

void forecast(PlanReport& report, const Plan& plan, const Program& program, Lanes& lanes) {
  Forecast(report, plan, program, lanes).make();
}

}  // namespace moe_diag
