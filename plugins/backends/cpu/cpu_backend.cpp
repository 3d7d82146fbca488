// SPDX-License-Identifier: MIT
#include <tbb/global_control.h>

#include <algorithm>
#include <array>
#include <string>
#include <thread>

#include "core/api/backend.hpp"
#include "plugins/backends/cpu/cpu_lane.hpp"

namespace moe_diag::cpu {
namespace {

constexpr int most_threads = 256;

constexpr ChoiceOption numerics_option{"numerics", "f64 f32 bf16 q8_k", Required{"f32"},
                                       "what it computes in (docs/numerics.md); f64 is the oracle"};
constexpr IntegerOption threads_option{
    "threads", "threads",    Computed{"one for each core"},
    1,         most_threads, "threads that share the work; the bytes do not depend on it"};
constexpr TextOption instruction_set_option{"instruction_set", "best",
                                            "one that this processor has, or the best; a wrong name lists them"};

struct NumericsName {
  std::string_view name;
  Numerics numerics;
};
constexpr std::array<NumericsName, 4> numerics_table{
    {{"f64", Numerics::f64}, {"f32", Numerics::f32}, {"bf16", Numerics::bf16}, {"q8_k", Numerics::q8_k}}};

std::string_view name_of(Numerics numerics) { return numerics_table[static_cast<std::size_t>(numerics)].name; }

std::string kernel_of(Numerics numerics, BlockType weight) {
  if (numerics == Numerics::f64) return "f64 dot";
  if (numerics == Numerics::bf16) return "f32 dot of BF16 values";
  const Reading reading = reading_of(numerics, weight);
  if (reading == Reading::as_they_are) return "f32 dot";
  return std::string(is_quantised(reading) ? "integer dot with " : "f32 dot with ").append(name_of(reading));
}

// "Q4_K: integer dot with Q8_K, F32: f32 dot", for the types of the model's matrices in the order of block_table.
std::string kernels_of(const ModelView& model, Numerics numerics) {
  std::string all;
  for (const BlockInfo& block : block_table)
    for (const Weight& weight : model.weights)
      if (weight.type == block.type && weight.rows > 1) {
        all.append(all.empty() ? "" : ", ").append(block.name).append(": ").append(kernel_of(numerics, block.type));
        break;
      }
  return all;
}

// Lanes on the host.
class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const Options&) {}

  Description describe(const ModelView& model, const Options& options, const Request& request) override {
    const LaneOptions lane = lane_options(options);
    const bool exact = lane.numerics == Numerics::f64;
    for (const Weight& weight : model.weights)
      if (weight.rows > 1 && !multiplies(lane.numerics, weight.type))
        options.refuse(numerics_option, "q8_k does not multiply " + std::string(info(weight.type).name) + ", which " +
                                            std::string(weight.name) + " is of; use f32, bf16 or f64");
    Description d;
    d.numerics = name_of(lane.numerics);
    d.device = "cpu, " + std::to_string(lane.threads) + (lane.threads == 1 ? " thread" : " threads");
    d.instruction_set = lane.instruction_set->name;
    d.values = exact ? DType::f64 : DType::f32;
    d.kernels = kernels_of(model, lane.numerics);
    d.lane_bytes =
        exact ? CpuLane<double>::bytes_for(model, request, lane) : CpuLane<float>::bytes_for(model, request, lane);
    return d;
  }

  std::unique_ptr<Lane> open(const ModelView& model, const Options& options) override {
    const LaneOptions lane = lane_options(options);
    if (lane.numerics == Numerics::f64) return std::make_unique<CpuLane<double>>(model, lane);
    return std::make_unique<CpuLane<float>>(model, lane);
  }

 private:
  static LaneOptions lane_options(const Options& options) {
    const auto here = static_cast<std::int64_t>(std::thread::hardware_concurrency());
    LaneOptions lane;
    const std::string_view numerics = options.read(numerics_option);
    for (const NumericsName& n : numerics_table)
      if (n.name == numerics) lane.numerics = n.numerics;
    lane.threads = std::max(1, static_cast<int>(options.has(threads_option) ? options.read(threads_option) : here));
    const std::string_view wanted = options.read(instruction_set_option);
    std::string usable = "best";
    for (const InstructionSet& set : instruction_sets()) {
      if (!lane.instruction_set && (wanted == "best" || wanted == set.name)) lane.instruction_set = &set;
      usable.append(", ").append(set.name);
    }
    if (!lane.instruction_set) options.refuse(instruction_set_option, "this processor has: " + usable);
    return lane;
  }

  // Without this a lane could not have more threads than the machine has cores, and promises about threads would be
  // tested on fewer than were asked for.
  tbb::global_control threads_{tbb::global_control::max_allowed_parallelism, most_threads};
};

}  // namespace
}  // namespace moe_diag::cpu

MOE_DIAG_BACKEND(moe_diag::cpu::CpuBackend, "cpu", "lanes on the host: numerics f64 (the oracle), f32, bf16, q8_k",
                 moe_diag::cpu::numerics_option, moe_diag::cpu::threads_option, moe_diag::cpu::instruction_set_option)
