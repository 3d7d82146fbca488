// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "core/api/backend.hpp"
#include "core/api/stage.hpp"
#include "core/lane/lanes.hpp"

namespace moe_diag {

// A stage of one layer, just written by every lane: what a hook is shown. Valid during the call.
class Sighting {
 public:
  Sighting(Lanes& lanes, const Pass& at, int in_prompt, Site where);

  const Pass& pass;
  const int prompt;  // index into the contract's prompts
  const Site site;

  // Rows of the pass the stage has: row r is position pass.first + r.
  Rows rows() const { return rows_; }
  // The same of another stage.
  Rows rows_of(Stage stage) const;
  int position(int row) const { return pass.first + rows_.first + row; }

  // [rows().count, ...] on the host; copied once however many ask. Null when the lane does not run or lacks the stage.
  // Throws Error(environment) when the backend gives another shape than the stage has.
  Tensor tensor(int lane);

  // Another stage of the same layer as the lane holds it now, replaced inputs included.
  Tensor now(int lane, Stage stage);
  // The stage of that role; null when the model has none.
  Tensor now(int lane, Role role) {
    const Stage stage = site.stage.sibling(role);
    return stage ? now(lane, stage) : Tensor();
  }

  // The rows of a lane's cache in this layer, for all positions up to the last of the pass: [positions, width]. Only
  // for outputs of steps that read the cache. Null when the lane does not show its caches.
  Tensor cached(int lane, Cache cache);

 private:
  Tensor read(int lane, Stage stage, Rows rows);

  Lanes& lanes_;
  Rows rows_;
  std::vector<Tensor> seen_;
};

// Whoever looks at stages: comparisons, sinks.
class Hook {
 public:
  virtual ~Hook() = default;

  // Cheap, and the same answer throughout a prompt. The fewer sites are wanted, the longer the spans that lanes run.
  virtual bool wants(int prompt, int lane, Site site) const = 0;

  // Once per pass and site that is wanted of any lane, in forward order, on the thread that drives the run.
  virtual void show(Sighting& sighting) = 0;
};

// Who looks at what. Hooks are shown a site in the order they were added.
class Bus {
 public:
  void add(Hook& hook) { hooks_.push_back(&hook); }

  bool wanted(int prompt, int lane, Site site) const;

  // True when somebody wants anything of the prompt.
  bool looks_at(int prompt, const Lanes& lanes) const;

  void deliver(Sighting& sighting, const std::vector<int>& lanes);

 private:
  std::vector<Hook*> hooks_;
};

}  // namespace moe_diag
