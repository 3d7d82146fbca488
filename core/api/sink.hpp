// SPDX-License-Identifier: MIT
#pragma once

#include "core/api/abi.hpp"
#include "core/api/event.hpp"
#include "core/api/options.hpp"

namespace moe_diag {

// Receives captured tensors. The contract chooses which; a sink never filters by stage or layer.
// The constructor reads the options and touches nothing on disk: `moe-diag check` builds sinks, too.
// All calls come from one thread. Any exception ends the run with exit 4; other sinks keep what they completed.
class Sink {
 public:
  virtual ~Sink() = default;

  // Once, before the first event, after the model and all lanes are open. Refuse here what cannot be written.
  virtual void open(const RunInfo& run) = 0;

  // Once per event, in forward order within a pass, prompt after prompt. Copy what is to be kept.
  virtual void consume(const Event& event) = 0;

  // Once, after the last event; not called when the run failed. When it returns, the output is complete.
  virtual void close() = 0;
};

}  // namespace moe_diag
