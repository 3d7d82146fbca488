// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string_view>

#include "core/api/abi.hpp"
#include "core/api/event.hpp"
#include "core/api/options.hpp"

namespace moe_diag {

// What a sink is given in a run, as far as it is known beforehand: fewer when a sequence ends early.
struct Load {
  std::int64_t tensors = 0;  // sites of all prompts and lanes
  std::int64_t rows = 0;     // positions of all of them
  std::uint64_t bytes = 0;   // of their values
};

// What a sink writes when it is given that.
struct SinkOutput {
  std::string_view path;    // of the file or folder, relative to RunInfo::out or absolute; valid as long as the sink
  std::uint64_t bytes = 0;  // at most
  bool known = false;       // false: the sink does not say, and nothing is held against the disk's space
};

// Receives captured tensors. The contract chooses which; a sink never filters by stage or layer.
// The constructor reads the options and touches nothing on disk: `moe-diag check` builds sinks, too.
// open, consume and close of all sinks of a run come from one thread, which has nothing else to do: events wait in a
// queue, so that a slow sink holds the forward pass up only when that is full. Constructor, output and destructor
// come from another, never at the same time.
// Any exception ends the run with exit 4; other sinks keep what they completed.
class Sink {
 public:
  virtual ~Sink() = default;

  // Any time before open, and perhaps without it: `moe-diag plan` shows it, and a run that would exceed the contract's
  // `max_bytes` or the disk's free space is refused before it starts.
  virtual SinkOutput output(const Load& /*load*/) const { return {}; }

  // Once, before the first event, after the model and all lanes are open. Refuse here what cannot be written.
  virtual void open(const RunInfo& run) = 0;

  // Once per event, in forward order within a pass: at each site all lanes, then the next site. Copy what you keep.
  virtual void consume(const Event& event) = 0;

  // Once, after the last event; not called when the run failed. When it returns, the output is complete.
  virtual void close() = 0;
};

}  // namespace moe_diag
