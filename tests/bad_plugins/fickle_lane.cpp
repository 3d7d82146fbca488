// SPDX-License-Identifier: MIT
#include <string>
#include <vector>

#include "core/api/backend.hpp"

namespace moe_diag {
namespace {

constexpr TextOption numerics_option{"numerics", Required{"odd"}, "any"};
constexpr ChoiceOption mood_option{"mood", "steady alone again threads threadless chunks", "steady",
                                   "when its bytes are others"};
constexpr IntegerOption threads_option{"threads", "threads", "1", 1, 8, "is not read when threadless"};

// Has final_norm and lm_head only, made of position and token alone; and another last bit where its `mood` says so.
class FickleLane final : public Lane {
 public:
  FickleLane(const ModelView& model, std::string mood, int threads)
      : config_(*model.config), mood_(std::move(mood)), threads_(threads) {}

  void begin(const Pass& pass) override {
    sequences_ += pass.first == 0;
    pass_ = pass;
    tokens_.assign(pass.tokens.begin(), pass.tokens.end());
    seen_alone_ = false;
  }
  void run(std::span<const Step> steps) override {
    if (steps.front().op == Op::embed && is(steps.back().out[0], Role::logits)) seen_alone_ = true;
  }
  Tensor read(Site site, Rows rows) override {
    const Stage stage = site.stage;
    if (!is_of_head(stage)) return {};
    const Shape shape = config_.shape_of(site, rows.count, pass_.total);
    values_.assign(static_cast<std::size_t>(shape.count()), 0);
    for (int r = 0; r < rows.count; ++r) {
      const int row = rows.first + r, position = pass_.first + row;
      for (std::int64_t i = 0; i < shape.row(); ++i)
        values_[static_cast<std::size_t>(r * shape.row() + i)] =
            static_cast<float>((tokens_[static_cast<std::size_t>(row)] * 31 + position * 7 + i) % 101 + 1);
      if (position == 2 && is(stage, Role::logits) && is_other())
        values_[static_cast<std::size_t>(r * shape.row() + 5)] += 0.5f;
    }
    return {values_.data(), DType::f32, shape};
  }
  void write(Site, Rows, const Tensor&) override {}
  Abilities abilities() const override { return {.shows_caches = false}; }
  Tensor read_cache(Cache, int, Stretch) override { return {}; }
  void write_cache(Cache, int, Stretch, const Tensor&) override {}
  DeviceMemory device_memory() override { return {3 << 20, 4 << 20}; }

 private:
  bool is_other() const {
    if (mood_ == "alone") return seen_alone_;
    if (mood_ == "again") return sequences_ > 1;
    if (mood_ == "threads") return threads_ == 7;
    if (mood_ == "chunks") return pass_.rows() == 1;
    return false;
  }

  const ModelConfig config_;
  const std::string mood_;
  const int threads_;
  Pass pass_;
  std::vector<std::int32_t> tokens_;
  std::vector<float> values_;
  int sequences_ = 0;
  bool seen_alone_ = false;  // this pass was one span
};

class FickleBackend final : public Backend {
 public:
  explicit FickleBackend(const Options&) {}
  Description describe(const ModelView&, const Options& options, const Request&) override {
    Description d;
    d.numerics = options.read(numerics_option);
    mood_of(options);
    threads_of(options);
    return d;
  }
  std::unique_ptr<Lane> open(const ModelView& model, const Options& options) override {
    return std::make_unique<FickleLane>(model, std::string(mood_of(options)), threads_of(options));
  }

 private:
  static std::string_view mood_of(const Options& options) { return options.read(mood_option); }
  static int threads_of(const Options& options) {
    return mood_of(options) == "threadless" ? 1 : static_cast<int>(options.read(threads_option));
  }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_BACKEND(moe_diag::FickleBackend, "bad", "a lane that gives other bytes when it likes",
                 moe_diag::numerics_option, moe_diag::mood_option, moe_diag::threads_option)
