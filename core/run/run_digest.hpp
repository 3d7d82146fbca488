// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include "core/api/event.hpp"
#include "core/model/model.hpp"
#include "core/run/run.hpp"

namespace moe_diag {

// The digest of a run's model, which is computed behind the forward passes. Sinks ask for it on their own thread.
class RunDigest final : public ModelDigest {
 public:
  // Both outlive it.
  RunDigest(const Model& model, const RunOptions& options) : model_(model), options_(options) {}

  // Waits for the rest of it; throws Error when the run is interrupted meanwhile.
  const std::string& wait() const;
  std::string_view get() const override { return wait(); }

  // While lanes compute, they tell how far the run is, and waiting tells nothing.
  void set_quiet(bool quiet) { quiet_ = quiet; }

 private:
  const Model& model_;
  const RunOptions& options_;
  std::atomic<bool> quiet_ = false;
};

}  // namespace moe_diag
