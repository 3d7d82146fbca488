// SPDX-License-Identifier: MIT
#include <cmath>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/api/kernel.hpp"

constexpr moe_diag::ChoiceOption numerics_option{"numerics", "f32", moe_diag::Required{"f32"}, "what it computes in"};

// An engine as a lane. It computes two operators so far; those it does not, the plain operators compute in f64. Take
// over one after the other, in any order: the contract says of each whether it is right.
class MyNameLane : public moe_diag::Lane {
 public:
  explicit MyNameLane(const moe_diag::ModelConfig& config) : config_(config), stages_(config) {}

  // How many of the next steps it computes.
  std::size_t supports(std::span<const moe_diag::Step> steps) const override {
    std::size_t count = 0;
    while (count < steps.size() && (steps[count].op == moe_diag::Op::add || steps[count].op == moe_diag::Op::swiglu))
      ++count;
    return count;
  }

  void begin(const moe_diag::Pass& pass) override { stages_.begin(pass); }

  // The formula of each operator is at `enum class Op`, in core/api/op.hpp.
  void run(std::span<const moe_diag::Step> steps) override {
    for (const moe_diag::Step& step : steps) {
      const moe_diag::Site site{step.out[0], step.layer};
      const std::int64_t count = stages_.rows_of(site.stage).count * stages_.row(site);
      const float *a = stages_.values(step.in[0]), *b = stages_.values(step.in[1]);
      float* out = stages_.output(site);
      for (std::int64_t i = 0; i < count; ++i)
        out[i] = step.op == moe_diag::Op::add ? a[i] + b[i] : a[i] / (1 + std::exp(-a[i])) * b[i];
    }
  }

  // Rows of a stage, to be looked at, or replaced by those of another lane.
  moe_diag::Tensor read(moe_diag::Site site, moe_diag::Rows rows) override { return stages_.read(site, rows); }
  void write(moe_diag::Site site, moe_diag::Rows rows, const moe_diag::Tensor& values) override {
    stages_.write(site, rows, values);
  }

  // Keys and values of the positions so far, [positions, width].
  moe_diag::Tensor read_cache(moe_diag::Cache cache, int layer, moe_diag::Stretch positions) override {
    const std::vector<float>& values = caches_[{cache.index(), layer}];
    const std::int64_t width = config_.cache_width(cache, layer);
    if (positions.end() * width > std::int64_t(values.size())) return {};
    return {values.data() + positions.first * width, moe_diag::DType::f32, {positions.count, width}};
  }
  void write_cache(moe_diag::Cache cache, int layer, moe_diag::Stretch positions,
                   const moe_diag::Tensor& from) override {
    std::vector<float>& values = caches_[{cache.index(), layer}];
    const auto width = std::size_t(config_.cache_width(cache, layer)), at = std::size_t(positions.first) * width;
    values.resize(std::max(values.size(), at + std::size_t(positions.count) * width));
    for (std::int64_t i = 0; i < from.shape.count(); ++i) values[at + std::size_t(i)] = float(from.value(i));
  }

 private:
  const moe_diag::ModelConfig& config_;
  moe_diag::HostStages stages_;
  std::map<std::pair<std::size_t, int>, std::vector<float>> caches_;  // by cache and layer
};

class MyNameBackend : public moe_diag::Backend {
 public:
  explicit MyNameBackend(const moe_diag::Options&) {}

  // The lane as reports name it, before one is opened.
  moe_diag::Description describe(const moe_diag::ModelView&, const moe_diag::Options& options,
                                 const moe_diag::Request&) override {
    moe_diag::Description lane;
    lane.numerics = options.read(numerics_option);
    lane.device = "cpu";
    return lane;
  }

  std::unique_ptr<moe_diag::Lane> open(const moe_diag::ModelView& model, const moe_diag::Options&) override {
    return std::make_unique<MyNameLane>(*model.config);
  }
};

MOE_DIAG_BACKEND(MyNameBackend, "my_name", "lanes of my own engine", numerics_option)
