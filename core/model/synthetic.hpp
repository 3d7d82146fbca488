// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/model.hpp"

namespace moe_diag {

struct Architecture;

inline constexpr double largest_router_scale = 1e6;
inline constexpr int most_synthetic_layers = 1000;

// A random but well-behaved model, the same bytes for the same spec on every machine and thread count.
struct SyntheticSpec {
  std::string preset = "tiny";   // of synthetic_presets()
  int layers = 0;                // 0: the preset's own
  std::string quant = "q4_k_m";  // of synthetic_quants()
  std::uint64_t seed = 0;
  double router_scale = 1;  // factor of the router's weights: large for logits far apart, 0 for equal ones
  std::optional<ModelConfig> sizes = {};  // in the place of the preset's own
};

std::vector<std::string_view> synthetic_presets();
// The architecture of a preset. Throws Error(usage) for a name that no preset has.
const Architecture& synthetic_architecture(std::string_view preset);
std::vector<std::string_view> synthetic_quants();

// "synthetic: tiny, 4 layers, q4_k_m, seed 7"
std::string to_string(const SyntheticSpec& spec);

// The bytes of a GGUF file, in memory.
class SyntheticImage {
 public:
  SyntheticImage() = default;
  explicit SyntheticImage(std::size_t size) : data_(std::make_unique_for_overwrite<std::byte[]>(size)), size_(size) {}

  std::span<std::byte> bytes() { return {data_.get(), size_}; }
  std::span<const std::byte> bytes() const { return {data_.get(), size_}; }

 private:
  std::unique_ptr<std::byte[]> data_;
  std::size_t size_ = 0;
};

// Size of the file of a spec. All functions here throw Error: usage for a spec that names no such model.
std::uint64_t synthetic_bytes(const SyntheticSpec& spec);

// The file of a spec, in memory. `threads` 0: one a core. Throws Error: environment when there is not enough memory.
SyntheticImage make_synthetic(const SyntheticSpec& spec, int threads = 0);

struct SyntheticWriting {
  bool overwrite = false;  // replace what is there
  int threads = 0;         // 0: one a core
  // Called now and then, from any thread, one at a time. What it throws ends the writing; nothing is left.
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};
};

// Writes the file of a spec, in bounded memory: under a temporary name beside `path`, renamed when complete. A FIFO or
// a device is written through, from memory. Throws Error: usage when `path` exists (without overwrite) or is a folder,
// environment when writing fails.
void write_synthetic(const SyntheticSpec& spec, const std::string& path, const SyntheticWriting& writing = {});

}  // namespace moe_diag
