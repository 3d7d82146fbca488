// SPDX-License-Identifier: MIT
#include "core/model/digest_work.hpp"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <system_error>

#include "core/api/error.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t piece_bytes = std::size_t{4} << 20;
constexpr std::uint64_t small_model = std::uint64_t{64} << 20;  // digested sooner than threads start
constexpr unsigned most_threads = 4;                            // these read faster than memory gives
constexpr int lowest_priority = 19;

std::uint64_t xxh3_of(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::uint64_t xxh3_of(std::span<const std::uint64_t> digests) {
  std::vector<std::byte> bytes;
  for (const std::uint64_t digest : digests)
    for (int shift = 0; shift < 64; shift += 8) bytes.push_back(static_cast<std::byte>(digest >> shift & 0xFF));
  return xxh3_of(std::span<const std::byte>(bytes));
}

}  // namespace

DigestWork::DigestWork(const std::vector<std::span<const std::byte>>& headers,
                       const std::vector<std::span<const std::byte>>& tensors) {
  for (const std::span<const std::byte> header : headers) headers_.push_back(xxh3_of(header));
  for (const std::span<const std::byte> tensor : tensors) {
    first_piece_.push_back(pieces_.size());
    bytes_ += tensor.size();
    for (std::size_t at = 0; at < tensor.size(); at += piece_bytes)
      pieces_.push_back(tensor.subspan(at, std::min(piece_bytes, tensor.size() - at)));
  }
  first_piece_.push_back(pieces_.size());
  xxh3_.resize(pieces_.size());
}

DigestWork::~DigestWork() { stop(); }

void DigestWork::begin() {
  if (!threads_.empty() || bytes_ < small_model) return;
  const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1U, most_threads);
  const auto work = [this] {
    ::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), lowest_priority);  // of this thread alone
    while (!stopped_ && digest_one()) continue;
  };
  try {
    for (unsigned i = 0; i < count; ++i) threads_.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads are to be had: finish() does what they leave
  }
}

bool DigestWork::digest_one() {
  const std::size_t i = next_++;
  if (i >= pieces_.size()) return false;
  xxh3_[i] = xxh3_of(pieces_[i]);
  done_ += pieces_[i].size();
  return true;
}

std::string DigestWork::finish(const Interrupted& interrupted, const DigestProgress& progress) {
  do {
    if (progress) progress(done_, bytes_);
    if (interrupted && interrupted()) {
      stop();
      throw Error(ErrorKind::environment, "interrupted: the model was not digested to its end");
    }
  } while (digest_one());
  for (std::thread& thread : threads_) thread.join();  // each has one piece at most
  threads_.clear();
  return combined();
}

void DigestWork::stop() {
  stopped_ = true;
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

std::string DigestWork::combined() const {
  const std::span<const std::uint64_t> all(xxh3_);
  std::vector<std::uint64_t> parts = headers_;
  for (std::size_t t = 0; t + 1 < first_piece_.size(); ++t)
    parts.push_back(xxh3_of(all.subspan(first_piece_[t], first_piece_[t + 1] - first_piece_[t])));
  return fmt::format("{:016x}", xxh3_of(std::span<const std::uint64_t>(parts)));
}

}  // namespace moe_diag
