// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/api/backend.hpp"
#include "core/api/cache.hpp"
#include "core/api/model.hpp"
#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"

namespace moe_diag {

// Consecutive positions of one request in one forward pass of an engine. A batch has one of each request.
struct RecordedCall {
  int number = 0;  // of the forward pass, 0-based: the line of calls.jsonl
  std::string request;
  int first = 0, rows = 0;           // positions, without padding
  std::vector<std::int32_t> tokens;  // of the rows; empty: not recorded
  std::string mode, kernel;          // empty: not said
  int rank = -1, graph_size = 0;     // -1, 0: not said
  int batch_rows = 0;                // of the whole forward pass: the size its kernels saw, without padding

  int end() const { return first + rows; }
};

// A sequence of tokens. A position that was computed twice counts once.
struct RecordedRequest {
  std::string id;
  std::vector<std::int32_t> tokens;  // of positions 0 to end - 1; empty: not all are known
  std::vector<int> calls;            // indices into Recording::calls(), in the order of the recording
  int first = 0, end = 0;            // positions; some between them may not be recorded
};

// Place of a row in the recording, for reports.
struct RecordedPlace {
  std::string file;          // path
  std::uint64_t offset = 0;  // of the row's first byte
  std::string tensor;        // name within the file; empty: the file is one array
};

struct RecordingOptions {
  // The row that counts at a position that was computed twice, where tokens do not tell.
  enum class Take { first, last };

  bool cut_ok = false;  // complete calls of a dump that was cut are read
  Take take = Take::last;
  std::string lane;  // of a capture; empty: its only one
  std::string map;   // path of the map of another tool's files, or the name of a known one; empty: our own layouts
  // Stages by slot have one slot more than the model: a shared expert, whose id is the number of experts and whose
  // weight is 1. It is left out.
  bool fused_shared_expert = false;
  bool zeros_ok = false;  // rows of 0 are what the engine computed
};

// Tensors that another engine computed, mapped and copied only where a map puts rows together. Three kinds: a dump in
// the native layout, a capture of this project's sink npy, and another tool's files with a map.
//
// Opening reads headers, calls, the ids of all rows, and a bounded number of rows (see checked()); whatever contradicts
// itself is refused. Afterwards any thread may ask.
class Recording {
 public:
  // Throws Error with file, line or tensor, expected, found, remedy: absent when there is no such folder, usage for a
  // recording that cannot be taken, environment when a file cannot be read.
  static Recording open(const std::string& path, const ModelConfig& config, const RecordingOptions& options = {});

  Recording(Recording&&) noexcept;
  Recording& operator=(Recording&&) noexcept;
  ~Recording();

  const std::string& path() const;  // as given
  const std::string& layout()
      const;  // "native, npy", "native, safetensors", "capture of moe-diag (lane f32)", "map vllm"
  const std::string& engine() const;  // the next five as dump.json or the map says; empty: it does not
  const std::string& numerics() const;
  const std::string& stored() const;
  const std::string& kv_cache() const;
  const std::string& model() const;
  const std::string& cut_at() const;   // "call 7 of request r0, behind position 41"; empty: the recording is whole
  const std::string& checked() const;  // the rows that opening looked at, as a sentence

  const std::vector<RecordedCall>& calls() const;
  const std::vector<RecordedRequest>& requests() const;  // in the order of their first calls
  std::vector<Site> sites() const;                       // recorded in any call, in forward order

  bool has(Site site) const;
  // All of these rows are there. `request`: an index.
  bool has(int request, Site site, Stretch positions) const;
  // Rows [positions.count, ...] of the stage's shape, of the type they are recorded in (f32, f64, f16, bf16), ids as
  // i32. They point into the file where they lie there in one piece, aligned and as they are; else they are gathered in
  // `memory`. Null when one is not there. Rows with a value for each key have as many keys as the longest of these rows
  // has in the recording; shorter ones are filled up with 0.
  Tensor rows(int request, Site site, Stretch positions, std::vector<std::byte>& memory) const;
  // What the engine's cache had of positions 0 up to the first one recorded: [positions, width]. Null: not recorded.
  Tensor cached(int request, Cache cache, int layer) const;
  std::optional<RecordedPlace> place(int request, Site site, int position) const;  // none: the row is not there
  // The call whose rows count at a position, as an index into calls(); -1: none was recorded.
  int call_at(int request, int position) const;
  // The names under which the recording has a stage: "layer_07/<stage>.npy", or a tensor's name. None: it has not.
  std::vector<std::string> engine_name(Site site) const;

 private:
  struct Impl;
  explicit Recording(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe_diag
