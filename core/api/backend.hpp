// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/api/abi.hpp"
#include "core/api/cache.hpp"
#include "core/api/model.hpp"
#include "core/api/options.hpp"
#include "core/api/step.hpp"
#include "core/api/tensor.hpp"

namespace moe_diag {

// The tokens one walk through the program computes.
struct Pass {
  std::span<const std::int32_t> tokens;  // T of them, each in [0, vocab); none where they are not known
  int first = 0;                         // position of row 0: the caches keep the rows before it, and no others
  int total = 0;                         // length of the whole sequence, at least first + T
  int head_first = 0;                    // the stages behind the layers are computed for rows [head_first, T) only
  std::int64_t sequence = 0;             // passes over one sequence have the same, those over another do not
  int rows_without_tokens = 0;           // T where the tokens are not known: no step that reads tokens is run

  int rows() const { return tokens.empty() ? rows_without_tokens : static_cast<int>(tokens.size()); }
};

// Rows of a stage within the current pass: row r is position Pass::first + r.
struct Rows {
  int first = 0, count = 0;
};

// Positions of a sequence that follow each other.
struct Stretch {
  int first = 0, count = 0;

  int end() const { return first + count; }
};

// Abilities of a lane besides computing passes from their first step to their last.
struct Abilities {
  bool recomputes = true;    // runs any one step on inputs that were written to it
  bool rewinds = true;       // begins at any position that its caches have; false: only at 0 and where it ended
  bool shows_caches = true;  // read_cache and write_cache work
};

// Memory of a device as it stands now, whoever uses it. `total` is 0 for a lane that computes on the host.
struct DeviceMemory {
  std::uint64_t used = 0, total = 0;  // bytes
};

// One execution of the model: its buffers, its caches, its numerics. Or a store of what one has computed, which says by
// `abilities` and `has` what it cannot do. One slot per stage holds one layer at a time. All calls come from one
// thread, in the order begin, then runs, reads and writes. A pass may be left unfinished: the next begin starts anew.
class Lane {
 public:
  virtual ~Lane() = default;

  // Any time, always the same.
  virtual Abilities abilities() const { return {}; }

  // How many of the first steps, at most all, the lane computes itself; any time, always the same for the same steps.
  // The plain operator computes the next step: it reads inputs from the lane and writes outputs to it, and caches
  // likewise, which such a lane has to show. The lane stores the outputs that steps behind these read, wanted or not.
  // A lane that shows no caches, or whose contract names a base, gets its inputs written before its steps, and what it
  // has of their outputs is read after them: another lane computes the rest. Steps that it supports only together are
  // then run together.
  virtual std::size_t supports(std::span<const Step> steps) const { return steps.size(); }

  // Before the first pass: keeps each stage, by index, in a type of 16 bits where that is said. What a step has written
  // is rounded where it lies, before anybody reads it, and no steps run as one across it; what is written to the lane
  // comes rounded. False: the lane cannot, and the core rounds around each step.
  virtual bool store_as(std::span<const DType> /*types*/) { return false; }

  // Once per pass, before its first span. Buffers grow here and nowhere else.
  virtual void begin(const Pass& pass) = 0;

  // Runs the steps in order; may return before they are done. Nobody looks at a stage inside the span, so steps may be
  // fused and unwanted outputs left unwritten. The spans of a pass are, in order, the whole program; or single steps of
  // it, whose inputs were written before.
  virtual void run(std::span<const Step> steps) = 0;

  // Host view of rows of a stage, as the last step that wrote it left them; waits until they are there. Valid until the
  // next begin, read or write of the stage, or run of a step that writes it. Null when the lane does not have the
  // stage.
  virtual Tensor read(Site site, Rows rows) = 0;

  // True when the lane has a stage at all of these positions, once the step that writes them has run: read() is then
  // asked for them. A store may have some stages only, or some rows.
  virtual bool has(Site /*site*/, Stretch /*positions*/) const { return true; }

  // Replaces rows of a stage; `values` is [rows.count, ...] of any value type, converted to the lane's own.
  virtual void write(Site site, Rows rows, const Tensor& values) = 0;

  // Host view of what a cache has of a layer's positions, [positions.count, width]: those before the pass, and those of
  // the pass once a step that fills it has run. Of a state, one position: that behind which it stands. Waits until they
  // are there. Valid until the next call. Null when the lane does not have them all. Not called when the lane does not
  // show its caches: explaining what fails late in a prompt then takes longer, and no `stale_kv` can be planted.
  virtual Tensor read_cache(Cache cache, int layer, Stretch positions) = 0;

  // Replaces what a cache has of these positions; `values` is [positions.count, width], converted to the lane's own
  // type.
  virtual void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) = 0;

  // Of the device the lane computes on; any time.
  virtual DeviceMemory device_memory() { return {}; }
};

// What a lane says of itself: for reports, captures and `plan`.
struct Description {
  std::string numerics;          // as the contract names it
  std::string device;            // "cpu, 2 threads", "NVIDIA H200"
  std::string instruction_set;   // "avx3_zen4", "sm_90"
  DType values = DType::f32;     // type of the stage values, where `storage` does not say otherwise
  std::vector<DType> storage{};  // by Stage::index(): the type that the values of a stage are kept in; may be empty
  std::string reads{};    // how products read activations, by a name of docs/numerics.md; empty: as `numerics` has it
  std::string weights{};  // how weights are rounded before products read them, likewise
  std::string accumulator{};     // the sums of products, likewise
  std::string kv_cache{};        // type of keys and values in the cache, likewise
  std::string kv_rotate{};       // how they are rotated before they are rounded to it, likewise
  bool asynchronous = false;     // run() returns before the work is done: launched before the lanes that compute here
  std::string kernels;           // which kernel multiplies which tensor type, "Q4_K: bf16 mma, Q6_K: ..."; may be empty
  std::uint64_t lane_bytes = 0;  // buffers of a pass of `Request::rows` rows and `Request::total` positions
  std::uint64_t weight_bytes = 0;  // copies of the weights, shared by a device's lanes; 0: used where they are mapped

  DType stored(Stage stage) const { return storage.empty() ? values : storage[stage.index()]; }
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
