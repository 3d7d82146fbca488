// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/api/backend.hpp"
#include "core/ops/program.hpp"

namespace moe_diag {

// Which steps of a program a kernel computes, and which of them only together.
class Composition {
 public:
  // Throws Error(environment) when the kernel claims more steps than it is asked about.
  Composition(const Lane& kernel, const Program& program);

  // Steps that are computed at once: several of the kernel's, or one.
  struct Unit {
    std::size_t first = 0, count = 1;  // in the program
    bool is_kernels = false;

    std::size_t end() const { return first + count; }
  };
  const Unit& unit_of(std::size_t step) const { return units_[unit_[step]]; }
  // The steps that the site's step is computed together with, itself included.
  std::span<const Step> steps_with(Site site) const;
  // Both are false for what the program does not write: inputs of a step alone.
  bool is_kernels(Site site) const;
  bool is_inside(Site site) const;  // of a unit, before its last step: nobody ever sees it

  const Program& program() const { return *program_; }
  std::size_t place_of(Site site) const { return place_.at(site); }
  // Of the operators that the kernel computes: "expert_linear"; empty: none.
  std::string operators() const;

 private:
  const Program* program_;
  std::vector<Unit> units_;
  std::vector<std::size_t> unit_;      // by step of the program
  std::map<Site, std::size_t> place_;  // in the program, of the step that writes a site
};

// True when the lane leaves a step to others that reads a cache, and shows none: they need caches of their own.
bool needs_base(const Lane& lane, const Program& program);

// A lane that computes all but a kernel's steps, and the kernel's lane: the stages are the base's. What the kernel
// reads is copied to it before its steps, and what it has written back after them. A cache is of the lane that reads
// it.
class ComposedLane final : public Lane {
 public:
  // `config` and the composition's program outlive it.
  ComposedLane(std::unique_ptr<Lane> kernel, std::unique_ptr<Lane> base, const ModelConfig& config,
               std::shared_ptr<const Composition> composition);

  Abilities abilities() const override;
  void begin(const Pass& pass) override;
  // Steps that the kernel computes only together are computed once the last of them is run; one of them alone is the
  // base's.
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override { return base_->read(site, rows); }
  bool has(Site site, Stretch positions) const override;
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;
  DeviceMemory device_memory() override;

 private:
  void run_base(std::size_t first, std::size_t end);
  void run_kernel(std::size_t first, std::size_t end);
  void give_inputs(std::size_t first, std::size_t end);
  void take_outputs(std::size_t first, std::size_t end);
  Lane& owner_of(Cache cache, int layer) const;
  Rows rows_of(Stage stage) const;

  const std::unique_ptr<Lane> kernel_, base_;
  const ModelConfig& config_;
  const std::shared_ptr<const Composition> composition_;
  std::map<Site, std::size_t> last_reader_;            // of what a step writes: the last step that reads it
  std::vector<bool> is_given_;                         // by step: the kernel reads what it writes
  std::map<std::pair<std::size_t, int>, bool> cache_;  // by cache and layer: the kernel reads it
  Program steps_;                                      // the program, with what is wanted of it at hand
  Pass pass_;
  std::vector<int> layer_;  // of each stage: that which was written last
  std::size_t next_ = 0;    // the step behind the last one that was run, or put off
};

}  // namespace moe_diag
