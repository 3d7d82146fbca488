// SPDX-License-Identifier: MIT
#include "core/contract/metric.hpp"

#include <fmt/format.h>

#include <cmath>

#include "core/text/nearest.hpp"

namespace moe_diag {

std::string_view name_of(Metric metric) { return info(metric).name; }

std::string_view name_of(Bound::Kind kind) {
  switch (kind) {
    case Bound::Kind::at_least: return "at_least";
    case Bound::Kind::at_most: return "at_most";
    case Bound::Kind::equals: return "equals";
  }
  return "unknown";
}

std::string_view name_of(Twin to) {
  switch (to) {
    case Twin::untraced: return "untraced";
    case Twin::rerun: return "rerun";
    case Twin::threads: return "threads";
    case Twin::chunks: return "chunks";
    case Twin::digest: return "digest";
  }
  return "unknown";
}

bool is_alone(Metric metric) { return metric == Metric::identical || !has_stage(metric); }

bool has_stage(Metric metric) {
  return metric != Metric::seconds && metric != Metric::tokens_per_second && metric != Metric::capture_overhead &&
         metric != Metric::device_memory_fraction;
}

bool fits(Metric metric, Stage stage) { return info(metric).fits(stage); }

std::string stages_listed(Stages stages, const std::function<bool(Stage)>& fit) {
  std::vector<std::string> fitting, others;
  for (const Stage stage : stages) (fit(stage) ? fitting : others).emplace_back(name_of(stage));
  if (others.empty()) return "every stage";
  if (fitting.empty()) return "no stage of the model's architecture";
  return fitting.size() > others.size() ? "every stage but " + listed(others) : listed(fitting);
}

std::string fitting_stages(Metric metric, Stages stages) {
  return stages_listed(stages, [&](Stage stage) { return fits(metric, stage); });
}

std::vector<std::string> metric_names() {
  std::vector<std::string> names;
  names.reserve(metric_table.size());
  for (const MetricInfo& m : metric_table) names.emplace_back(m.name);
  return names;
}

std::string objection(Metric metric, const Bound& bound) {
  const MetricInfo& m = info(metric);
  const std::string_view right = m.larger_is_better ? "at_least" : "at_most";
  if (bound.kind != Bound::Kind::equals && name_of(bound.kind) != right)
    return fmt::format("{} is better the {} it is: use {} or equals", m.name, m.larger_is_better ? "larger" : "smaller",
                       right);
  const bool always = (bound.kind == Bound::Kind::at_least && bound.value <= m.lowest) ||
                      (bound.kind == Bound::Kind::at_most && bound.value >= m.highest);
  const std::string range = m.highest == unbounded ? fmt::format("is at least {}", m.lowest)
                                                   : fmt::format("lies between {} and {}", m.lowest, m.highest);
  if (always) return fmt::format("can never fail: {} {}", m.name, range);
  const bool never = (bound.kind != Bound::Kind::at_most && bound.value > m.highest) ||
                     (bound.kind != Bound::Kind::at_least && bound.value < m.lowest);
  if (never) return fmt::format("can never hold: {} {}", m.name, range);
  if (bound.kind == Bound::Kind::equals && m.whole && std::trunc(bound.value) != bound.value)
    return fmt::format("can never hold: {} is a whole number", m.name);
  return "";
}

}  // namespace moe_diag
