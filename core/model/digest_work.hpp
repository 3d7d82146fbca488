// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <thread>
#include <vector>

namespace moe_diag {

// Asked now and then while somebody waits: true ends the wait. May be empty.
using Interrupted = std::function<bool()>;
// Told now and then how many bytes of how many are digested. May be empty.
using DigestProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

// The digest of every byte of a model, 16 hexadecimal digits. Each tensor is cut into pieces of 4 MiB. The xxh3 of a
// tensor is that of its pieces' xxh3, and the model's is that of the headers' (of a split model, one for each part) and
// all tensors', each as 8 bytes, least significant first. So it depends neither on the number of threads nor on padding
// between tensors.
class DigestWork {
 public:
  // The bytes must outlive this.
  DigestWork(const std::vector<std::span<const std::byte>>& headers,
             const std::vector<std::span<const std::byte>>& tensors);
  DigestWork(const DigestWork&) = delete;
  DigestWork& operator=(const DigestWork&) = delete;
  ~DigestWork();  // gives up what is under way

  // Starts threads of the lowest priority: they take what the lanes leave of the machine. A small model has none.
  void begin();
  // Digests the rest on this thread as well, at its own priority. Throws Error (environment) when interrupted; it can
  // be called again.
  std::string finish(const Interrupted& interrupted, const DigestProgress& progress);

 private:
  bool digest_one();  // false: none is left
  void stop();
  std::string combined() const;

  std::vector<std::uint64_t> headers_;  // their xxh3
  std::vector<std::span<const std::byte>> pieces_;
  std::vector<std::size_t> first_piece_;  // of each tensor, and the end
  std::vector<std::uint64_t> xxh3_;       // of each piece
  std::uint64_t bytes_ = 0;
  std::atomic<std::size_t> next_ = 0;
  std::atomic<std::uint64_t> done_ = 0;
  std::atomic<bool> stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace moe_diag
