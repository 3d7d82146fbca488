// SPDX-License-Identifier: MIT
#include "core/api/backend.hpp"

namespace moe_diag {
namespace {

constexpr TextOption numerics_option{"numerics", "none", "any"};

// Has no stage at all.
class NullLane final : public Lane {
 public:
  void begin(const Pass&) override {}
  void run(std::span<const Step>) override {}
  Tensor read(Site, Rows) override { return {}; }
  void write(Site, Rows, const Tensor&) override {}
  Abilities abilities() const override { return {.shows_caches = false}; }
  Tensor read_cache(Cache, int, Stretch) override { return {}; }
  void write_cache(Cache, int, Stretch, const Tensor&) override {}
};

class NullBackend final : public Backend {
 public:
  explicit NullBackend(const Options&) {}
  Description describe(const ModelView&, const Options& options, const Request&) override {
    Description d;
    d.numerics = options.read(numerics_option);
    return d;
  }
  std::unique_ptr<Lane> open(const ModelView&, const Options&) override { return std::make_unique<NullLane>(); }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_BACKEND(moe_diag::NullBackend, "bad", "a lane that has no stage", moe_diag::numerics_option)
