// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <unordered_map>

#include "core/api/model.hpp"
#include "plugins/backends/cuda/device.hpp"
#include "plugins/backends/cuda/kernels.hpp"

namespace moe_diag::cuda {

// All weights of a model on one device, as their blocks stand in the file; shared by the lanes of the device.
class Weights {
 public:
  Weights(const ModelView& model, const Device& device);

  // The device's copy of a weight of the model.
  const Matrix& at(const Weight& weight) const;

  // Bytes the weights of a model take on a device.
  static std::uint64_t bytes_for(const ModelView& model);

 private:
  DeviceBuffer memory_;
  std::unordered_map<const std::byte*, Matrix> matrices_;
};

}  // namespace moe_diag::cuda
