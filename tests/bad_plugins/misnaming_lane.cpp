// SPDX-License-Identifier: MIT
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/api/backend.hpp"

namespace moe_diag {
namespace {

constexpr TextOption numerics_option{"numerics", Required{"f32"}, "any"};
constexpr ChoiceOption mood_option{"mood", "steady twice negative beyond", "steady",
                                   "what is wrong with the last expert of position 1"};

// Has the chosen experts, the router's weights and what the experts give, made of position and expert alone.
class MisnamingLane final : public Lane {
 public:
  MisnamingLane(const ModelView& model, std::string mood) : config_(*model.config), mood_(std::move(mood)) {}

  void begin(const Pass& pass) override { pass_ = pass; }
  void run(std::span<const Step>) override {}
  Tensor read(Site site, Rows rows) override {
    const Stage stage = site.stage;
    const Shape shape = config_.shape_of(site, rows.count, pass_.total);
    const bool has = is(stage, Role::choice_weights) || name_of(stage) == "moe_expert_out";
    if (!is(stage, Role::choice) && !has) return {};
    std::vector<std::int32_t> ids;
    std::vector<float> values;
    for (int r = 0; r < rows.count; ++r)
      for (int slot = 0; slot < config_.used; ++slot) {
        const int position = pass_.first + rows.first + r;
        ids.push_back(expert(position, slot));
        const std::int64_t width = shape.row() / config_.used;
        for (std::int64_t i = 0; i < width; ++i)
          values.push_back(static_cast<float>(position * 100 + ids.back() * 10) + static_cast<float>(i % 7) + 1);
      }
    if (has) {
      values_[stage.index()] = std::move(values);
      return {values_[stage.index()].data(), DType::f32, shape};
    }
    ids_ = std::move(ids);
    return {ids_.data(), DType::i32, shape};
  }
  void write(Site, Rows, const Tensor&) override {}
  Abilities abilities() const override { return {.shows_caches = false}; }
  Tensor read_cache(Cache, int, Stretch) override { return {}; }
  void write_cache(Cache, int, Stretch, const Tensor&) override {}

 private:
  std::int32_t expert(int position, int slot) const {
    if (position == 1 && slot == config_.used - 1 && mood_ != "steady")
      return mood_ == "twice" ? expert(position, 0) : mood_ == "negative" ? -1 : config_.experts;
    return (position + slot) % config_.experts;
  }

  const ModelConfig config_;
  const std::string mood_;
  Pass pass_;
  std::vector<std::int32_t> ids_;
  std::map<std::size_t, std::vector<float>> values_;  // by stage
};

class MisnamingBackend final : public Backend {
 public:
  explicit MisnamingBackend(const Options&) {}
  Description describe(const ModelView&, const Options& options, const Request&) override {
    Description d;
    d.numerics = options.read(numerics_option);
    options.read(mood_option);
    return d;
  }
  std::unique_ptr<Lane> open(const ModelView& model, const Options& options) override {
    return std::make_unique<MisnamingLane>(model, std::string(options.read(mood_option)));
  }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_BACKEND(moe_diag::MisnamingBackend, "bad", "a lane that names an expert twice, or one that does not exist",
                 moe_diag::numerics_option, moe_diag::mood_option)
