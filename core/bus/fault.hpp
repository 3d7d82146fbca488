// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/api/step.hpp"
#include "core/bus/bus.hpp"
#include "core/contract/contract.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {

// A fault planted in one lane of this run.
struct PlantedFault {
  int lane = 0;
  FaultSpec spec;

  Site site() const { return {spec.stage, spec.layer}; }
};

// Plants one fault in the passes of a walk. A fault of the computation is computed here, on the host and in double,
// from what the lane's step has read, so that it is the same fault whatever the backend.
class FaultPlanter {
 public:
  // `step` writes the fault's site.
  FaultPlanter(PlantedFault fault, const Step& step);

  const PlantedFault& fault() const { return fault_; }

  // Other stages it reads from the lane. The lane must have stored them when plant() is called.
  std::vector<Stage> reads() const;

  // Replaces what the lane holds at the sighting's site, which is the fault's. Once per pass, in the order of the
  // passes, before anybody looks: the next steps read it.
  void plant(Sighting& sighting, Lanes& lanes);

  // How many values are other than without the fault, so far.
  std::int64_t changed() const { return changed_; }

 private:
  template <class T>
  void replace(const Tensor& held, Sighting& sighting, Lanes& lanes);
  template <class T>
  void recompute(std::span<T> values, Sighting& sighting, const ModelConfig& config);
  template <class T>
  void edit(std::span<T> values, Sighting& sighting, const ModelConfig& config) const;
  host::Values read_cache(Cache cache, Sighting& sighting) const;
  host::Values read_rows(Stage stage, Sighting& sighting) const;
  std::vector<int> rows_to_change(const Sighting& sighting) const;

  PlantedFault fault_;
  const Step step_;
  std::int64_t changed_ = 0;
};

}  // namespace moe_diag
