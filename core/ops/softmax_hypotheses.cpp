// SPDX-License-Identifier: MIT
// The mistakes of a softmax, of the router's logits or of attention scores: other keys, another gating, and numbers
// that are solved from what the lane wrote: a factor of the logits, a window, a term more in the denominator.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/ops/sizes.hpp"
#include "core/ops/softmax.hpp"

namespace moe_diag {
namespace {

using host::Values;

bool is_causal(const Operands& o) { return o.step.as<SoftmaxParams>().causal; }

// The logits of one softmax, and what the lane made of them.
struct Group {
  Values logits, lane;
  std::int64_t head = 0;  // 0 of the router
  int row = 0;
};

// All softmaxes of a unit: one, or one for each head over the keys up to the own position.
std::vector<Group> groups_of(const Operands& o, const StepUnit& unit) {
  const Values all = o.input(0, unit);
  const std::int64_t width = is_causal(o) ? o.c.in[0].shape[2] : host::size_of(all);
  const std::int64_t seen = is_causal(o) ? o.position(unit) + 1 : width;
  std::vector<Group> groups;
  for (std::int64_t head = 0; head * width < host::size_of(all); ++head) {
    Group group{{all.begin() + head * width, all.begin() + head * width + seen}, {}, head, unit.row};
    for (std::int64_t k = 0; k < seen; ++k) group.lane.push_back(value_at(o.c.a, unit.in_a(head * seen + k)));
    groups.push_back(std::move(group));
  }
  return groups;
}
std::vector<Group> groups_of(const Operands& o, const FailingUnits& units) {
  std::vector<Group> all;
  for (const StepUnit* unit : units)
    for (Group& group : groups_of(o, *unit)) all.push_back(std::move(group));
  return all;
}

// A unit's values, each softmax computed by itself.
template <class OfGroup>
HypothesisList::Row each_group(const Operands& o, OfGroup of_group) {
  return [o, of_group](const StepUnit& unit) -> Values {
    Values all;
    for (const Group& group : groups_of(o, unit)) {
      const Values own = of_group(group);
      if (own.size() != group.logits.size()) return {};
      all.insert(all.end(), own.begin(), own.end());
    }
    return all;
  };
}

// ---- a factor of the logits ----------------------------------------------------------------------------------------

// The slope of the logarithms of what the lane wrote over the logits, all softmaxes together.
std::optional<double> factor_of_logits(const std::vector<Group>& groups) {
  constexpr std::size_t least = 4;  // values beyond one a softmax
  constexpr double smallest = 1e-30;
  std::size_t values = 0;
  double along = 0, all = 0;
  for (const Group& group : groups) {
    double mean_x = 0, mean_y = 0, n = 0;
    for (std::size_t i = 0; i < group.lane.size(); ++i) {
      if (!(group.lane[i] >= smallest)) return std::nullopt;
      mean_x += group.logits[i];
      mean_y += std::log(group.lane[i]);
      ++n;
    }
    for (std::size_t i = 0; i < group.lane.size(); ++i) {
      const double x = group.logits[i] - mean_x / n;
      along += x * (std::log(group.lane[i]) - mean_y / n);
      all += x * x;
    }
    values += group.lane.size() - 1;
  }
  if (values < least || !(all > 0) || !std::isfinite(along)) return std::nullopt;
  return along / all;
}

// The number to four digits, where that is as near.
double rounded(double x) {
  const double unit = std::pow(10, std::floor(std::log10(std::fabs(x))) - 3), round = std::round(x / unit) * unit;
  return std::fabs(round - x) < 1e-5 * std::fabs(x) ? round : x;
}

void add_factor(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const auto fitted = factor_of_logits(groups_of(o, failing));
  if (!fitted || !(*fitted > 0) || std::fabs(*fitted - 1) < 1e-5) return;
  const double factor = rounded(*fitted);
  list.add(
      StepCause::scale,
      fmt::format("the {} are multiplied by {:.6g} before the softmax", is_causal(o) ? "scores" : "logits", factor),
      each_group(o,
                 [factor](const Group& group) {
                   Values x = group.logits;
                   for (double& value : x) value *= factor;
                   return host::softmax(x, host::size_of(x), host::size_of(x));
                 }),
      factor);
}

// ---- a window ------------------------------------------------------------------------------------------------------

// The keys that count in every softmax of all rows that fail: the same number, less than there are. One row alone would
// not tell a window from keys that were lost.
std::optional<std::int64_t> window_of(const std::vector<Group>& groups) {
  std::optional<std::int64_t> window;
  std::set<int> rows;
  for (const Group& group : groups) {
    const auto first = std::find_if(group.lane.begin(), group.lane.end(), [](double p) { return p != 0; });
    const std::int64_t seen = group.lane.end() - first;
    if (seen == 0 || seen == host::size_of(group.lane) || (window && *window != seen)) return std::nullopt;
    window = seen;
    rows.insert(group.row);
  }
  return rows.size() > 1 ? window : std::nullopt;
}

void add_window(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const auto window = window_of(groups_of(o, failing));
  if (!window) return;
  list.add(StepCause::window, fmt::format("only the last {} keys count", *window),
           each_group(o, [window = *window](const Group& group) {
             const std::int64_t all = host::size_of(group.logits);
             return host::windowed_softmax(group.logits, all, all, window);
           }));
}

// ---- a term more in the denominator --------------------------------------------------------------------------------

// The logarithm of the term that the lane's probabilities lack, and the share of it.
struct Sink {
  double log = 0, share = 0;
};

std::optional<Sink> sink_of(const Group& group) {
  constexpr double seen = 1e-4;  // the least share that tells the term
  double sum = 0, largest = -INFINITY, all = 0;
  for (const double p : group.lane) sum += p;
  for (const double x : group.logits) largest = std::max(largest, x);
  for (const double x : group.logits) all += std::exp(x - largest);
  if (!(sum > 0 && sum < 1 - seen)) return std::nullopt;
  return Sink{largest + std::log(all * (1 - sum) / sum), 1 - sum};
}

// The sink of each head, from the row that shows it best. Rows are the evidence: three at least.
std::map<std::int64_t, double> sinks_of(const std::vector<Group>& groups) {
  constexpr std::size_t least_rows = 3;
  std::map<std::int64_t, std::vector<Sink>> shown;
  for (const Group& group : groups)
    if (const auto sink = sink_of(group)) shown[group.head].push_back(*sink);
  std::map<std::int64_t, double> sinks;
  for (const auto& [head, of_rows] : shown) {
    if (of_rows.size() < least_rows) return {};
    sinks[head] = std::max_element(of_rows.begin(), of_rows.end(), [](const Sink& x, const Sink& y) {
                    return x.share < y.share;
                  })->log;
  }
  return sinks;
}

void add_sink(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  std::map<std::int64_t, double> sinks = sinks_of(groups_of(o, failing));
  if (sinks.empty()) return;
  const auto [least, most] =
      std::minmax_element(sinks.begin(), sinks.end(), [](const auto& x, const auto& y) { return x.second < y.second; });
  const bool one = std::exp(most->second) - std::exp(least->second) < 1e-3 * std::exp(most->second);
  const std::string text =
      one ? fmt::format("{:.4g} more in the denominator of the softmax", std::exp(least->second))
          : fmt::format("a term more in the denominator of the softmax, for each head another: {:.4g} to {:.4g}",
                        std::exp(least->second), std::exp(most->second));
  list.add(StepCause::function, text, each_group(o, [sinks = std::move(sinks)](const Group& group) -> Values {
             const auto sink = sinks.find(group.head);
             Values x = group.logits;
             if (sink != sinks.end()) x.push_back(sink->second);
             Values out = host::softmax(x, host::size_of(x), host::size_of(x));
             out.resize(group.logits.size());
             return out;
           }));
}

// ---- keys ----------------------------------------------------------------------------------------------------------

void add_keys(const Operands& o, HypothesisList& list) {
  const auto seeing = [o](auto seen_of) {
    return [o, seen_of](const StepUnit& unit) -> Values {
      const std::int64_t total = o.c.in[0].shape[2], own = o.position(unit) + 1, seen = seen_of(own, total);
      if (seen < 1 || seen > total) return {};
      const Values all = host::softmax(o.input(0, unit), total, seen);
      Values compared;
      for (std::int64_t head = 0; head < o.c.in[0].shape[1]; ++head)
        compared.insert(compared.end(), all.begin() + head * total, all.begin() + head * total + own);
      return compared;
    };
  };
  list.add(StepCause::skipped, "the mask was left out: later keys count",
           seeing([](std::int64_t, std::int64_t total) { return total; }));
  list.add(StepCause::shifted_position, "the own key is not seen",
           seeing([](std::int64_t own, std::int64_t) { return own - 1; }));
  list.add(StepCause::shifted_position, "the key of the position after is seen",
           seeing([](std::int64_t own, std::int64_t) { return own + 1; }));
}

}  // namespace

void add_softmax_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  if (is_causal(o)) {
    add_keys(o, list);
    add_window(o, failing, list);
  } else {
    list.add(StepCause::skipped, "the softmax was left out: the input passed through",
             [o](const StepUnit& unit) { return o.input(0, unit); });
    list.add(StepCause::function, "the sigmoid of each logit instead of the softmax",
             [o](const StepUnit& unit) { return host::sigmoids(o.input(0, unit)); });
  }
  add_sink(o, failing, list);
  add_factor(o, failing, list);
}

}  // namespace moe_diag
