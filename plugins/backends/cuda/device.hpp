// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace moe_diag::cuda {

// Throws Error(environment) with the place, the call and the runtime's text when `status` is not success.
void check(cudaError_t status, const char* call, const char* file, int line);
#define MOE_DIAG_CUDA(call) ::moe_diag::cuda::check((call), #call, __FILE__, __LINE__)

// What the backend needs to know of one device.
struct Device {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;
  int processors = 0;
  std::size_t shared_bytes = 0;  // largest shared memory of one block
};

// The device of that index. Throws Error(absent): no driver, no device, no such index, or too old a device.
Device find_device(int index);

// Device memory. Grows, never shrinks; growing forgets what was there.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  // True when the memory moved. `what` names the buffer in the refusal when there is not enough.
  bool reserve(std::size_t bytes, const char* what);
  void swap(DeviceBuffer& other) noexcept;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Page-locked host memory: the only kind that is copied at the full rate and asynchronously.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  void reserve(std::size_t bytes);

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class Stream {
 public:
  Stream() { MOE_DIAG_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event() { MOE_DIAG_CUDA(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace moe_diag::cuda
