// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/device.hpp"

#include <utility>

#include "core/api/error.hpp"

namespace moe_diag::cuda {
namespace {

constexpr int lowest_major = 7, lowest_minor = 5;

[[noreturn]] void absent(const std::string& message) { throw Error(ErrorKind::absent, "cuda: " + message); }

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

void check(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  throw Error(ErrorKind::environment, std::string(file) + ":" + std::to_string(line) + ": " + call + ": " +
                                          cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
}

Device find_device(int index) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) absent("this machine has no NVIDIA driver; install one, or run where a GPU is");
    absent("the NVIDIA driver supports CUDA " + version_text(driver) + ", this plugin was built with CUDA " +
           version_text(CUDART_VERSION) + "; update the driver");
  }
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    absent("the NVIDIA driver shows no device; CUDA_VISIBLE_DEVICES may hide it");
  if (status != cudaSuccess)
    absent(std::string("no device can be used: ") + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
  if (index >= count)
    absent("there is no device " + std::to_string(index) + ", this machine has devices 0 to " +
           std::to_string(count - 1));
  cudaDeviceProp properties{};
  MOE_DIAG_CUDA(cudaGetDeviceProperties(&properties, index));
  Device device;
  device.index = index;
  device.name = properties.name;
  device.major = properties.major;
  device.minor = properties.minor;
  device.processors = properties.multiProcessorCount;
  device.shared_bytes = properties.sharedMemPerBlockOptin;
  if (std::pair(device.major, device.minor) < std::pair(lowest_major, lowest_minor))
    absent("device " + std::to_string(index) + ", " + device.name + ", has compute capability " +
           std::to_string(device.major) + "." + std::to_string(device.minor) + ", wanted 7.5 or newer");
  return device;
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

bool DeviceBuffer::reserve(std::size_t bytes, const char* what) {
  if (bytes <= bytes_) return false;
  cudaFree(std::exchange(data_, nullptr));
  bytes_ = 0;
  const cudaError_t status = cudaMalloc(&data_, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: forgotten, so that what follows is not blamed for it
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw Error(ErrorKind::environment, std::string("cuda: ") + what + ": " + std::to_string(bytes) +
                                            " bytes wanted, the device has " + std::to_string(free) + " of " +
                                            std::to_string(total) +
                                            " free; use a shorter prompt, fewer lanes or a larger device");
  }
  MOE_DIAG_CUDA(status);
  bytes_ = bytes;
  return true;
}

void DeviceBuffer::swap(DeviceBuffer& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
}

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

void PinnedBuffer::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return;
  cudaFreeHost(std::exchange(data_, nullptr));
  bytes_ = 0;
  MOE_DIAG_CUDA(cudaHostAlloc(&data_, bytes, cudaHostAllocDefault));
  bytes_ = bytes;
}

}  // namespace moe_diag::cuda
