// SPDX-License-Identifier: MIT
#include "core/explain/out_of_line.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/compare/measure.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

// rel_l2 of each row; infinite where the lane alone is not finite, 0 where the oracle is not.
std::vector<double> errors_of_rows(const Tensor& lane, const Tensor& oracle) {
  std::vector<double> errors;
  const std::int64_t width = oracle.shape.row();
  for (std::int64_t row = 0; row < oracle.shape[0]; ++row) {
    Measure m;
    m.add(lane, row * width, oracle, row * width, width);
    errors.push_back(m.nonfinite_b > 0           ? 0
                     : std::isfinite(m.rel_l2()) ? m.rel_l2()
                                                 : std::numeric_limits<double>::infinity());
  }
  return errors;
}

// The most that each position is off in any layer, in units of those looked at. `errors`: per step, of each position.
std::vector<double> in_units(const std::vector<std::vector<double>>& errors, const std::vector<bool>& looked_at) {
  std::vector<double> times(looked_at.size(), 0.0);
  double unit = 0;
  for (const std::vector<double>& row : errors) {
    for (std::size_t p = 0; p < row.size(); ++p)
      if (looked_at[p]) unit = std::max(unit, row[p]);
    // What makes the unit infinite came from a layer further up, and is seen there.
    for (std::size_t p = 0; p < row.size() && std::isfinite(unit); ++p)
      if (row[p] > 0) times[p] = std::max(times[p], row[p] / unit);
  }
  return times;
}

}  // namespace

std::vector<int> out_of_line_before(Stretch looked_at, int lane, int oracle, Lanes& lanes, std::span<const Step> steps,
                                    int rows) {
  std::vector<std::vector<double>> errors;
  for (const Step& step : steps) {
    for (const CacheUse& use : step.caches) {
      if (info(use.cache).is_state) continue;  // of one position only
      const auto read = [&](int from) {
        return lanes[static_cast<std::size_t>(from)].read_cache(use.cache, step.layer, {0, looked_at.end()},
                                                                lanes.config());
      };
      errors.push_back(errors_of_rows(read(lane), read(oracle)));
    }
  }
  std::vector<int> found;
  std::vector<bool> looked(static_cast<std::size_t>(looked_at.end()), false);
  std::fill(looked.begin() + looked_at.first, looked.end(), true);
  while (true) {
    const std::vector<double> times = in_units(errors, looked);
    const auto end = times.begin() + looked_at.first;
    const auto first = std::find_if(times.begin(), end, [](double t) { return t > out_of_line; });
    if (first == end) return found;
    const auto off = static_cast<int>(first - times.begin());
    for (int p = off; p < std::min(off + rows, looked_at.first); ++p) {
      if (!looked[static_cast<std::size_t>(p)]) found.push_back(p);
      looked[static_cast<std::size_t>(p)] = true;
    }
  }
}

}  // namespace moe_diag
