// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/weights.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/api/error.hpp"

namespace moe_diag::cuda {
namespace {

// Offsets of tensors; the kernels read 16 bytes at a time, and up to 4 past the end.
constexpr std::size_t alignment = 256;
constexpr std::size_t chunk_bytes = std::size_t{4} << 20;
constexpr std::size_t most_threads = 16;

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + 4 + alignment - 1) / alignment * alignment; }

// A piece of one tensor on its way to the device.
struct Chunk {
  const std::byte* from;
  std::byte* to;
  std::size_t bytes;
};

// Copies chunks until none is left: while one buffer is on its way, the file's pages are read into the other.
void upload_some(const std::vector<Chunk>& chunks, std::atomic<std::size_t>& next, const Device& device) {
  MOE_DIAG_CUDA(cudaSetDevice(device.index));
  Stream stream;
  PinnedBuffer buffers[2];
  Event done[2];
  for (int turn = 0;; turn = 1 - turn) {
    const std::size_t at = next.fetch_add(1);
    if (at >= chunks.size()) break;
    const Chunk& chunk = chunks[at];
    MOE_DIAG_CUDA(cudaEventSynchronize(done[turn].get()));
    buffers[turn].reserve(chunk_bytes);
    std::memcpy(buffers[turn].as<std::byte>(), chunk.from, chunk.bytes);
    MOE_DIAG_CUDA(
        cudaMemcpyAsync(chunk.to, buffers[turn].as<std::byte>(), chunk.bytes, cudaMemcpyHostToDevice, stream.get()));
    MOE_DIAG_CUDA(cudaEventRecord(done[turn].get(), stream.get()));
  }
  MOE_DIAG_CUDA(cudaStreamSynchronize(stream.get()));
}

// One thread cannot read the file's pages as fast as the bus takes them.
void upload(const std::vector<Chunk>& chunks, const Device& device) {
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex guard;
  std::vector<std::thread> threads;
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  const std::size_t count = std::min({most_threads, std::max<std::size_t>(2, cores), chunks.size()});
  for (std::size_t i = 0; i < count; ++i)
    threads.emplace_back([&] {
      try {
        upload_some(chunks, next, device);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(guard);
        failure = std::current_exception();
      }
    });
  for (std::thread& t : threads) t.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

std::uint64_t Weights::bytes_for(const ModelView& model) {
  std::uint64_t bytes = 0;
  for (const Weight& w : model.weights) bytes += aligned(w.bytes());
  return bytes;
}

Weights::Weights(const ModelView& model, const Device& device) {
  MOE_DIAG_CUDA(cudaSetDevice(device.index));
  memory_.reserve(static_cast<std::size_t>(bytes_for(model)), "the model's weights");
  std::vector<Chunk> chunks;
  std::byte* to = memory_.as<std::byte>();
  for (const Weight& w : model.weights) {
    matrices_[w.data] = {to, w.type, w.cols, w.rows, w.row_bytes(), w.expert_bytes()};
    for (std::size_t at = 0; at < w.bytes(); at += chunk_bytes)
      chunks.push_back({w.data + at, to + at, std::min(chunk_bytes, w.bytes() - at)});
    // What lies between tensors is read, though not used.
    MOE_DIAG_CUDA(cudaMemsetAsync(to + w.bytes(), 0, aligned(w.bytes()) - w.bytes(), cudaStreamPerThread));
    to += aligned(w.bytes());
  }
  MOE_DIAG_CUDA(cudaStreamSynchronize(cudaStreamPerThread));
  upload(chunks, device);
}

const Matrix& Weights::at(const Weight& weight) const {
  const auto found = matrices_.find(weight.data);
  if (found == matrices_.end())
    throw Error(ErrorKind::environment,
                "cuda: tensor " + std::string(weight.name) + " is not one of the model the lane was opened for");
  return found->second;
}

}  // namespace moe_diag::cuda
