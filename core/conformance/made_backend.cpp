// SPDX-License-Identifier: MIT
#include "core/conformance/made_backend.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace moe_diag {
namespace {

constexpr TextOption numerics_option{"numerics", Required{"f32"}, "f64 or f32"};
constexpr TextOption device_option{"device", "here", "or absent"};

// splitmix64, https://prng.di.unimi.it/splitmix64.c
std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

class MadeLane final : public Lane {
 public:
  MadeLane(const ModelConfig& config, DType values) : config_(config), values_(values), slots_(config.stages.size()) {}

  void begin(const Pass& pass) override { pass_ = pass; }
  void run(std::span<const Step> steps) override {
    for (const Step& step : steps)
      for (const Stage stage : step.out) slot(stage).layer = step.layer;
  }
  Tensor read(Site site, Rows rows) override {
    const Stage stage = site.stage;
    Slot& to = slot(stage);
    const Shape shape = config_.shape_of(site, rows.count, pass_.total);
    const bool indices = payload_of(stage) == Payload::indices;
    const Tensor tensor{nullptr, indices ? DType::i32 : values_, shape};
    to.bytes.resize(tensor.bytes() + 1);  // never null
    for (int r = 0; r < rows.count; ++r) {
      const int position = pass_.first + rows.first + r;
      std::byte* row = to.bytes.data() + static_cast<std::size_t>(r * shape.row()) * size_of(tensor.dtype);
      const std::uint64_t seed =
          mixed(static_cast<std::uint64_t>(position) << 20 | static_cast<std::uint64_t>(to.layer + 1) << 8 |
                static_cast<std::uint64_t>(stage.index()) << 1 | static_cast<std::uint64_t>(values_ == DType::f64));
      if (indices)
        choose(seed, shape.row(), reinterpret_cast<std::int32_t*>(row));
      else if (values_ == DType::f64)
        fill(seed, shape.row(), reinterpret_cast<double*>(row));
      else
        fill(seed, shape.row(), reinterpret_cast<float*>(row));
    }
    if (is(stage, Role::logits) && values_ == DType::f32) spoil(reinterpret_cast<float*>(to.bytes.data()));
    return {to.bytes.data(), tensor.dtype, shape};
  }
  Abilities abilities() const override { return {.shows_caches = false}; }
  void write(Site /*site*/, Rows /*rows*/, const Tensor& /*values*/) override {}
  Tensor read_cache(Cache /*cache*/, int /*layer*/, Stretch /*positions*/) override { return {}; }
  void write_cache(Cache /*cache*/, int /*layer*/, Stretch /*positions*/, const Tensor& /*values*/) override {}

 private:
  struct Slot {
    int layer = -1;
    std::vector<std::byte> bytes;
  };
  Slot& slot(Stage stage) { return slots_[stage.index()]; }

  // Between -4 and 4.
  template <class T>
  static void fill(std::uint64_t seed, std::int64_t count, T* values) {
    for (std::int64_t i = 0; i < count; ++i)
      values[i] =
          static_cast<T>(std::ldexp(static_cast<double>(mixed(seed + static_cast<std::uint64_t>(i)) >> 11), -50) - 4);
  }
  // Different experts, in no order.
  void choose(std::uint64_t seed, std::int64_t used, std::int32_t* ids) const {
    const auto experts = static_cast<std::uint64_t>(config_.experts);
    const std::uint64_t step = 1 + (seed >> 32) % (experts / static_cast<std::uint64_t>(used));
    for (std::int64_t i = 0; i < used; ++i)
      ids[i] = static_cast<std::int32_t>((seed + step * static_cast<std::uint64_t>(i)) % experts);
  }
  static void spoil(float* row) {
    row[1] = std::numeric_limits<float>::quiet_NaN();
    row[2] = -std::numeric_limits<float>::infinity();
  }

  const ModelConfig config_;
  const DType values_;
  Pass pass_;
  std::vector<Slot> slots_;
};

class MadeBackend final : public Backend {
 public:
  Description describe(const ModelView& /*model*/, const Options& options, const Request& /*request*/) override {
    if (options.read(device_option) == "absent")
      throw Error(ErrorKind::absent, "there is no such device: the lane is made to be absent");
    Description d;
    d.numerics = options.read(numerics_option);
    d.device = "none";
    d.instruction_set = "none";
    d.values = d.numerics == "f64" ? DType::f64 : DType::f32;
    return d;
  }
  std::unique_ptr<Lane> open(const ModelView& model, const Options& options) override {
    const bool wide = options.read(numerics_option) == "f64";
    return std::make_unique<MadeLane>(*model.config, wide ? DType::f64 : DType::f32);
  }
};

}  // namespace

std::unique_ptr<Backend> make_made_backend() { return std::make_unique<MadeBackend>(); }

}  // namespace moe_diag
