// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include "core/api/backend.hpp"
#include "core/lane/pages.hpp"
#include "core/ops/program.hpp"

namespace moe_diag {

// What a lane computed in the passes over one prompt: rows of its stages, in one piece of memory.
class KeptStages {
 public:
  // Throws std::bad_alloc when there is no such memory.
  explicit KeptStages(std::size_t bytes) : memory_(bytes) {}

  std::size_t bytes() const { return memory_.size(); }
  // Of it, what so many bytes of rows take.
  static constexpr std::size_t taken_by(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

  // Rows of one pass, that of position `first` in front. False when they do not fit any more.
  bool keep(Site site, int first, const Tensor& rows);

  // These rows as one pass wrote them, [positions.count, ...]. Null when none wrote them all.
  Tensor at(Site site, Stretch positions) const;

  // `width` columns of these rows from `first` on, whichever passes wrote them, one after the other: null when one is
  // not there. The values lie in `to`.
  Tensor columns(Site site, Stretch positions, std::int64_t first, std::int64_t width,
                 std::vector<std::byte>& to) const;

 private:
  struct Rows {
    int first = 0;  // position
    Tensor tensor;
  };

  Pages memory_;
  std::size_t used_ = 0;
  std::map<Site, std::vector<Rows>> rows_;  // pass after pass
};

// Stands in for a lane: it has what was kept, and computes nothing but rows of the head that nobody looked at before.
class ReplayedLane final : public Lane {
 public:
  // All outlive it. `lane`: that whose stages they are; `program`: what it computes.
  ReplayedLane(const KeptStages& kept, Lane& lane, const ModelConfig& config, const Program& program);

  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  Abilities abilities() const override { return {.recomputes = false}; }
  bool has(Site site, Stretch positions) const override {
    return is_computed_[site.stage.index()] || kept_.at(site, positions);
  }
  // What was computed once is not replaced: both throw Error(environment).
  void write(Site site, Rows rows, const Tensor& values) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;

 private:
  void compute(const Step& step);

  const KeptStages& kept_;
  Lane& lane_;
  const ModelConfig& config_;
  Pass pass_;
  const Program& program_;
  std::vector<int> layer_;         // of each stage: that which the last step wrote
  std::vector<bool> is_computed_;  // of each stage: by the lane itself, in this pass
  std::vector<std::byte> cached_;  // what read_cache gave last
};

}  // namespace moe_diag
