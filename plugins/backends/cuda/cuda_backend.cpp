// SPDX-License-Identifier: MIT
#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>

#include "core/api/backend.hpp"
#include "plugins/backends/cuda/cuda_lane.hpp"

namespace moe_diag::cuda {
namespace {

constexpr ChoiceOption numerics_option{"numerics", "f32 bf16 q8_1", Required{"f32"},
                                       "what it computes in (docs/cuda.md)"};
constexpr IntegerOption device_option{"device", "", "0", 0, 1023, "index of the GPU, as nvidia-smi counts"};

constexpr int most_experts = 2048;  // the router's kernels hold a row of them in shared memory

Numerics numerics_of(const Options& options) {
  const std::string_view name = options.read(numerics_option);
  return name == "bf16" ? Numerics::bf16 : name == "q8_1" ? Numerics::q8_1 : Numerics::f32;
}

std::string_view name_of(Numerics numerics) {
  return numerics == Numerics::bf16 ? "bf16" : numerics == Numerics::q8_1 ? "q8_1" : "f32";
}

// True for the types of weights that there are kernels for.
bool multiplies(BlockType type) {
  constexpr BlockType types[] = {BlockType::f32,  BlockType::f16,  BlockType::bf16,
                                 BlockType::q8_0, BlockType::q4_k, BlockType::q6_k};
  return std::find(std::begin(types), std::end(types), type) != std::end(types);
}

// What multiplies weights of each type that the model's products have; other tensors are read value by value.
std::string kernels_for(const ModelView& model, Numerics numerics) {
  constexpr std::string_view units[] = {"f32 fma", "bf16 tensor cores", "int8 tensor cores"};
  std::string text;
  for (const BlockInfo& block : block_table) {
    const bool used = std::any_of(model.weights.begin(), model.weights.end(),
                                  [&](const Weight& w) { return w.type == block.type && w.rows > 1; });
    if (!used) continue;
    text.append(text.empty() ? "" : ", ").append(block.name).append(": ");
    text.append(units[static_cast<std::size_t>(numerics_for(numerics, block.type))]);
  }
  return text;
}

// Lanes on an NVIDIA device.
class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const Options&) {}

  Description describe(const ModelView& model, const Options& options, const Request& request) override {
    Description d;
    const Numerics numerics = numerics_of(options);
    d.numerics = name_of(numerics);
    const Device device = find_device(device_index(options));
    refuse_unfit(model);
    if (least_shared(numerics) > device.shared_bytes)
      throw Error(ErrorKind::absent, "cuda: numerics " + d.numerics + " need " +
                                         std::to_string(least_shared(numerics)) + " bytes of shared memory, device " +
                                         std::to_string(device.index) + ", " + device.name + ", has " +
                                         std::to_string(device.shared_bytes) + "; use numerics f32");
    d.device = device.name;
    d.instruction_set = "sm_" + std::to_string(device.major * 10 + device.minor);
    d.values = DType::f32;
    d.asynchronous = true;
    d.kernels = kernels_for(model, numerics);
    d.lane_bytes = CudaLane::bytes_for(model, numerics, request);
    d.weight_bytes = Weights::bytes_for(model);
    refuse_too_large(model, device, d.lane_bytes);
    return d;
  }

  std::unique_ptr<Lane> open(const ModelView& model, const Options& options) override {
    const Device device = find_device(device_index(options));
    MOE_DIAG_CUDA(cudaSetDevice(device.index));
    if (!weights_ || loaded_ != model.weights.data()) {
      weights_.reset();
      weights_ = std::make_shared<Weights>(model, device);
      loaded_ = model.weights.data();
    }
    return std::make_unique<CudaLane>(model, device, weights_, numerics_of(options));
  }

 private:
  static int device_index(const Options& options) { return static_cast<int>(options.read(device_option)); }

  static void refuse_unfit(const ModelView& model) {
    if (model.config->experts > most_experts)
      throw Error(ErrorKind::environment, "cuda: the model has " + std::to_string(model.config->experts) +
                                              " experts, this backend can do " + std::to_string(most_experts));
    for (const Weight& weight : model.weights)
      if (weight.rows > 1 && !multiplies(weight.type))
        throw Error(ErrorKind::environment, "cuda: no kernel multiplies " +
                                                std::string(moe_diag::name_of(weight.type)) + ", which " +
                                                std::string(weight.name) + " is of; use a lane of the cpu backend");
  }

  // Lanes are described one after the other and share the weights, so what is promised to them adds up.
  void refuse_too_large(const ModelView& model, const Device& device, std::uint64_t lane_bytes) {
    MOE_DIAG_CUDA(cudaSetDevice(device.index));
    std::size_t free = 0, total = 0;
    MOE_DIAG_CUDA(cudaMemGetInfo(&free, &total));
    const std::uint64_t weights = weights_ ? 0 : Weights::bytes_for(model);
    promised_ += lane_bytes;
    if (weights + promised_ <= free) return;
    throw Error(ErrorKind::environment,
                "cuda: device " + std::to_string(device.index) + ", " + device.name + ": " + std::to_string(weights) +
                    " bytes of weights + " + std::to_string(promised_) +
                    " bytes of lanes = " + std::to_string(weights + promised_) + ", and " + std::to_string(free) +
                    " of " + std::to_string(total) + " are free; use a shorter prompt, fewer lanes or a larger device");
  }

  std::uint64_t promised_ = 0;
  const Weight* loaded_ = nullptr;
  std::shared_ptr<const Weights> weights_;
};

}  // namespace
}  // namespace moe_diag::cuda

MOE_DIAG_BACKEND(moe_diag::cuda::CudaBackend, "cuda", "lanes on an NVIDIA device: numerics f32, bf16, q8_1",
                 moe_diag::cuda::numerics_option, moe_diag::cuda::device_option)
