// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/api/abi.hpp"
#include "core/api/model.hpp"
#include "core/api/options.hpp"
#include "core/api/step.hpp"
#include "core/api/tensor.hpp"

namespace moe_diag {

// The tokens one walk through the program computes.
struct Pass {
  std::span<const std::int32_t> tokens;  // T of them, each in [0, vocab)
  int first = 0;                         // position of tokens[0]: the cache keeps those before it, and no others
  int total = 0;                         // length of the whole sequence, at least first + T
  int head_first = 0;                    // final_norm and lm_head are computed for rows [head_first, T) only

  int rows() const { return static_cast<int>(tokens.size()); }
};

// Rows of a stage within the current pass: row r is position Pass::first + r.
struct Rows {
  int first = 0, count = 0;
};

// The two halves of a KV cache: what `scores` appends to it, and what `mix` does.
enum class CachePart : std::uint8_t { keys, values };

// Positions of a sequence that follow each other.
struct Stretch {
  int first = 0, count = 0;

  int end() const { return first + count; }
};

// Memory of a device as it stands now, whoever uses it. `total` is 0 for a lane that computes on the host.
struct DeviceMemory {
  std::uint64_t used = 0, total = 0;  // bytes
};

// One execution of the model: its buffers, its KV cache, its numerics. One slot per stage holds one layer at a time.
// All calls come from one thread, in the order begin, then runs, reads and writes. A pass may be left unfinished: the
// next begin starts anew.
class Lane {
 public:
  virtual ~Lane() = default;

  // Once per pass, before its first span. Buffers grow here and nowhere else.
  virtual void begin(const Pass& pass) = 0;

  // Runs the steps in order; may return before they are done. Nobody looks at a stage inside the span, so steps may be
  // fused and unwanted outputs left unwritten. The spans of a pass are, in order, the whole program; or single steps of
  // it, whose inputs were written before.
  virtual void run(std::span<const Step> steps) = 0;

  // Host view of rows of a stage, as the last step that wrote it left them; waits until they are there. Valid until the
  // next begin, read or write of the stage, or run of a step that writes it. Null when this lane does not have the
  // stage.
  virtual Tensor read(Site site, Rows rows) = 0;

  // Replaces rows of a stage; `values` is [rows.count, ...] of any value type, converted to the lane's own.
  virtual void write(Site site, Rows rows, const Tensor& values) = 0;

  // Host view of what the cache has of a layer's positions, [positions.count, Hk h]: those before the pass, and those
  // of the pass once the step that appends them has run. Waits until they are there. Valid until the next call. Null
  // when this lane does not show its cache: explaining what fails late in a prompt then takes longer, and no `stale_kv`
  // can be planted.
  virtual Tensor read_cache(CachePart part, int layer, Stretch positions) = 0;

  // Replaces what the cache has of these positions; `values` is [positions.count, Hk h], converted to the lane's own
  // type.
  virtual void write_cache(CachePart part, int layer, Stretch positions, const Tensor& values) = 0;

  // Of the device the lane computes on; any time.
  virtual DeviceMemory device_memory() { return {}; }
};

// What a lane says of itself: for reports, captures and `plan`.
struct Description {
  std::string numerics;          // as the contract names it
  std::string device;            // "cpu, 2 threads", "NVIDIA H200"
  std::string instruction_set;   // "avx3_zen4", "sm_90"
  DType values = DType::f32;     // type of the stage values
  bool asynchronous = false;     // run() returns before the work is done: launched before the lanes that compute here
  std::string kernels;           // which kernel multiplies which tensor type, "Q4_K: bf16 mma, Q6_K: ..."; may be empty
  std::uint64_t lane_bytes = 0;  // buffers of a pass of `Request::rows` rows and `Request::total` positions
  std::uint64_t weight_bytes = 0;  // copies of the weights, shared by a device's lanes; 0: used where they are mapped
};

// What a lane is asked to be able to do.
struct Request {
  int rows = 0;   // longest pass
  int total = 0;  // longest sequence
};

// Supplies lanes. One object per plugin and device; its lanes share the weights.
class Backend {
 public:
  virtual ~Backend() = default;

  // What open() would give; nothing is allocated. Refuses options, types and sizes it cannot do, by name.
  virtual Description describe(const ModelView& model, const Options& options, const Request& request) = 0;

  // `model` and everything it points to outlives the lane.
  virtual std::unique_ptr<Lane> open(const ModelView& model, const Options& options) = 0;
};

}  // namespace moe_diag
