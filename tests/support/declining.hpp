// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <utility>

#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"

namespace moe_diag::test {

using Supports = std::function<std::size_t(std::span<const Step>)>;

// The lane of a backend that computes the steps of `supports` only, and does not store what nobody wants.
class Declining final : public Lane {
 public:
  Declining(std::unique_ptr<Lane> lane, Supports supports, bool shows_caches = true)
      : lane_(std::move(lane)), supports_(std::move(supports)), shows_caches_(shows_caches) {}

  Abilities abilities() const override { return {.shows_caches = shows_caches_}; }
  std::size_t supports(std::span<const Step> steps) const override { return supports_(steps); }
  void begin(const Pass& pass) override { lane_->begin(pass); }
  void run(std::span<const Step> steps) override {
    REQUIRE(supports_(steps) == steps.size());
    lane_->run(steps);
    for (const Step& step : steps)
      for (const Stage stage : step.out) stored_.erase(stage.index());
    for (const Step& step : steps)
      for (const Stage stage : step.out)
        if (step.want) stored_.insert(stage.index());
  }
  Tensor read(Site site, Rows rows) override {
    return stored_.count(site.stage.index()) ? lane_->read(site, rows) : Tensor{};
  }
  void write(Site site, Rows rows, const Tensor& values) override {
    stored_.insert(site.stage.index());
    lane_->write(site, rows, values);
  }
  Tensor read_cache(Cache cache, int layer, Stretch positions) override {
    return shows_caches_ ? lane_->read_cache(cache, layer, positions) : Tensor{};
  }
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override {
    lane_->write_cache(cache, layer, positions, values);
  }

 private:
  const std::unique_ptr<Lane> lane_;
  const Supports supports_;
  const bool shows_caches_;
  std::set<std::size_t> stored_;  // stages that can be read
};

inline Supports all_but(Op op) {
  return [op](std::span<const Step> steps) {
    const auto declined = std::find_if(steps.begin(), steps.end(), [op](const Step& step) { return step.op == op; });
    return static_cast<std::size_t>(declined - steps.begin());
  };
}

inline std::size_t none(std::span<const Step>) { return 0; }

// Attention from the scores to the sum as one, and nothing else.
inline std::size_t attention_as_one(std::span<const Step> steps) {
  const bool whole =
      steps.size() >= 3 && steps[0].op == Op::scores && steps[1].op == Op::softmax && steps[2].op == Op::mix;
  return whole ? 3 : 0;
}

// Over all rows: a value alone may be next to nothing.
inline double error_of(const Tensor& a, const Tensor& b) {
  Measure m;
  m.add(a, 0, b, 0, a.shape.count());
  return m.rel_l2();
}

// The largest error of any stage; infinite when a choice differs.
inline double worst(const Recorder& a, const Recorder& b) {
  REQUIRE(a.all().size() == b.all().size());
  double most = 0;
  for (const auto& [key, seen] : a.all()) {
    const Seen& other = b.all().at(key);
    REQUIRE(seen.shape == other.shape);
    if (payload_of(key.second.stage) == Payload::indices)
      most = std::max(most, seen.bytes == other.bytes ? 0.0 : std::numeric_limits<double>::infinity());
    else
      most = std::max(most, error_of(seen.tensor(), other.tensor()));
  }
  return most;
}

}  // namespace moe_diag::test
