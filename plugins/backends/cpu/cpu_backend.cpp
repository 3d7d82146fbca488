// SPDX-License-Identifier: MIT
#include <tbb/global_control.h>

#include <string>
#include <thread>

#include "core/api/backend.hpp"
#include "plugins/backends/cpu/cpu_lane.hpp"

namespace moe_diag::cpu {
namespace {

constexpr int most_threads = 256;

// Lanes on the host. Options of a lane: `numerics` f64 | f32; `threads`; `instruction_set`.
class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const Options&) {}

  Description describe(const ModelView& model, const Options& options, const Request& request) override {
    const LaneOptions lane = lane_options(options);
    const bool exact = numerics(options) == "f64";
    Description d;
    d.numerics = numerics(options);
    d.device = "cpu, " + std::to_string(lane.threads) + (lane.threads == 1 ? " thread" : " threads");
    d.instruction_set = lane.instruction_set->name;
    d.values = exact ? DType::f64 : DType::f32;
    d.lane_bytes = exact ? CpuLane<double>::bytes_for(*model.config, request, lane.threads)
                         : CpuLane<float>::bytes_for(*model.config, request, lane.threads);
    return d;
  }

  std::unique_ptr<Lane> open(const ModelView& model, const Options& options) override {
    const LaneOptions lane = lane_options(options);
    if (numerics(options) == "f64") return std::make_unique<CpuLane<double>>(model, lane);
    return std::make_unique<CpuLane<float>>(model, lane);
  }

 private:
  static std::string_view numerics(const Options& options) { return options.choice("numerics", "f32", {"f64", "f32"}); }

  static LaneOptions lane_options(const Options& options) {
    const auto here = static_cast<std::int64_t>(std::thread::hardware_concurrency());
    LaneOptions lane;
    lane.threads = static_cast<int>(options.integer("threads", here > 0 ? here : 1, 1, most_threads));
    const std::string_view wanted = options.text("instruction_set", "best");
    std::string usable = "best";
    for (const InstructionSet& set : instruction_sets()) {
      if (!lane.instruction_set && (wanted == "best" || wanted == set.name)) lane.instruction_set = &set;
      usable.append(", ").append(set.name);
    }
    if (!lane.instruction_set) options.refuse("instruction_set", "this processor has: " + usable);
    return lane;
  }

  // Without this a lane could not have more threads than the machine has cores, and promises about threads would be
  // tested on fewer than were asked for.
  tbb::global_control threads_{tbb::global_control::max_allowed_parallelism, most_threads};
};

}  // namespace
}  // namespace moe_diag::cpu

MOE_DIAG_BACKEND(moe_diag::cpu::CpuBackend, "cpu", "lanes on the host: numerics f64 (the oracle), f32")
