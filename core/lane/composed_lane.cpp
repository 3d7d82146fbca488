// SPDX-License-Identifier: MIT
#include "core/lane/composed_lane.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/lane/own_steps.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

// The fewest of the first steps that the kernel computes, 0 when it does not compute the first.
std::size_t fewest(const Lane& kernel, std::span<const Step> steps) {
  const std::size_t most = own_steps(kernel, steps);
  for (std::size_t count = 1; count < most; ++count)
    if (own_steps(kernel, steps.first(count)) == count) return count;
  return most;
}

}  // namespace

Composition::Composition(const Lane& kernel, const Program& program) : program_(&program) {
  for (std::size_t at = 0; at < program.size(); at = units_.back().end()) {
    const std::size_t own = fewest(kernel, std::span(program).subspan(at));
    units_.push_back({at, std::max<std::size_t>(own, 1), own > 0});
    unit_.insert(unit_.end(), units_.back().count, units_.size() - 1);
  }
  for (std::size_t i = 0; i < program.size(); ++i)
    for (const Stage stage : program[i].out) place_[{stage, program[i].layer}] = i;
}

std::span<const Step> Composition::steps_with(Site site) const {
  const Unit& unit = unit_of(place_of(site));
  return std::span(*program_).subspan(unit.first, unit.count);
}

bool Composition::is_kernels(Site site) const {
  const auto at = place_.find(site);
  return at != place_.end() && unit_of(at->second).is_kernels;
}

bool Composition::is_inside(Site site) const {
  const auto at = place_.find(site);
  return at != place_.end() && at->second + 1 < unit_of(at->second).end();
}

std::string Composition::operators() const {
  std::string names;
  std::set<std::string_view> seen;
  for (const Unit& unit : units_)
    for (std::size_t i = unit.first; unit.is_kernels && i < unit.end(); ++i)
      if (const std::string_view name = operator_of((*program_)[i]).name; seen.insert(name).second)
        names.append(names.empty() ? "" : ", ").append(name);
  return names;
}

bool needs_base(const Lane& lane, const Program& program) {
  if (lane.abilities().shows_caches) return false;
  for (std::span<const Step> rest = program; !rest.empty();) {
    const std::size_t own = own_steps(lane, rest);
    if (own == 0 && reads_cache(rest.front())) return true;
    rest = rest.subspan(std::max<std::size_t>(own, 1));
  }
  return false;
}

ComposedLane::ComposedLane(std::unique_ptr<Lane> kernel, std::unique_ptr<Lane> base, const ModelConfig& config,
                           std::shared_ptr<const Composition> composition)
    : kernel_(std::move(kernel)),
      base_(std::move(base)),
      config_(config),
      composition_(std::move(composition)),
      is_given_(composition_->program().size()),
      steps_(composition_->program()),
      layer_(config.stages.size(), -1) {
  std::map<std::size_t, Site> written;  // last, of each stage
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    const bool is_kernels = composition_->unit_of(i).is_kernels;
    for (const Stage stage : step.in) {
      const auto site = written.find(stage.index());
      if (site == written.end()) continue;  // of a step alone: its inputs are given
      last_reader_[site->second] = i;
      if (is_kernels) is_given_[composition_->place_of(site->second)] = true;
    }
    for (const Stage stage : step.out) written[stage.index()] = {stage, step.layer};
    for (const CacheUse& use : step.caches) cache_[{use.cache.index(), step.layer}] = is_kernels;
  }
}

Abilities ComposedLane::abilities() const {
  const Abilities kernel = kernel_->abilities(), base = base_->abilities();
  const bool kernel_has_caches = std::any_of(cache_.begin(), cache_.end(), [](const auto& c) { return c.second; });
  return {.recomputes = kernel.recomputes && base.recomputes,
          .rewinds = kernel.rewinds && base.rewinds,
          .shows_caches = base.shows_caches && (kernel.shows_caches || !kernel_has_caches)};
}

// Rows that the pass computes of a stage.
Rows ComposedLane::rows_of(Stage stage) const {
  const int first = is_of_head(stage) ? pass_.head_first : 0;
  return {first, pass_.rows() - first};
}

void ComposedLane::begin(const Pass& pass) {
  pass_ = pass;
  next_ = 0;
  base_->begin(pass);
  kernel_->begin(pass);
}

void ComposedLane::run(std::span<const Step> steps) {
  std::size_t at = composition_->place_of({steps.front().out[0], steps.front().layer});
  const std::size_t end = at + steps.size();
  for (std::size_t i = 0; i < steps.size(); ++i) steps_[at + i].want = steps[i].want;
  for (std::size_t stop = at; at < end; at = stop) {
    const Composition::Unit& unit = composition_->unit_of(at);
    const bool goes_on = at == unit.first || at == next_;  // else it is one step alone
    stop = at;
    if (unit.is_kernels && goes_on) {
      stop = std::min(unit.end(), end);
      if (stop == unit.end()) run_kernel(unit.first, stop);
    } else {
      while (stop < end && (stop == at || !composition_->unit_of(stop).is_kernels)) ++stop;
      run_base(at, stop);
    }
    next_ = stop;
  }
}

void ComposedLane::run_base(std::size_t first, std::size_t end) {
  for (std::size_t i = first; i < end; ++i) {
    steps_[i].want = steps_[i].want || is_given_[i];
    for (const Stage stage : steps_[i].out) layer_[stage.index()] = steps_[i].layer;
  }
  base_->run(std::span(steps_).subspan(first, end - first));
}

void ComposedLane::run_kernel(std::size_t first, std::size_t end) {
  give_inputs(first, end);
  for (std::size_t i = first; i < end; ++i)
    for (const Stage stage : steps_[i].out) {
      const auto reader = last_reader_.find({stage, steps_[i].layer});
      if (reader != last_reader_.end() && reader->second >= end) steps_[i].want = true;
    }
  kernel_->run(std::span(steps_).subspan(first, end - first));
  take_outputs(first, end);
}

// What the steps read and none of them writes.
void ComposedLane::give_inputs(std::size_t first, std::size_t end) {
  std::vector<Stage> there;
  for (std::size_t i = first; i < end; ++i) {
    for (const Stage stage : steps_[i].in) {
      if (std::find(there.begin(), there.end(), stage) != there.end()) continue;
      there.push_back(stage);
      const Site site{stage, layer_[stage.index()]};
      const Tensor values = base_->read(site, rows_of(stage));
      if (!values)
        throw Error(ErrorKind::environment, fmt::format("the base does not show {}, which the kernel for {} reads",
                                                        name_of(stage), name_of(steps_[end - 1].out[0])));
      kernel_->write(site, rows_of(stage), values);
    }
    there.insert(there.end(), steps_[i].out.begin(), steps_[i].out.end());
  }
}

// What somebody wants, or a step behind these reads.
void ComposedLane::take_outputs(std::size_t first, std::size_t end) {
  for (std::size_t i = first; i < end; ++i)
    for (const Stage stage : steps_[i].out) {
      const Site site{stage, steps_[i].layer};
      layer_[stage.index()] = site.layer;
      const auto reader = last_reader_.find(site);
      const bool is_read = reader != last_reader_.end() && reader->second >= end;
      if (!is_read && (!steps_[i].want || composition_->is_inside(site))) continue;
      const Rows rows = rows_of(stage);
      const bool is_there = kernel_->has(site, {pass_.first + rows.first, rows.count});
      const Tensor values = is_there ? kernel_->read(site, rows) : Tensor{};
      if (values)
        base_->write(site, rows, values);
      else if (is_read)
        throw Error(ErrorKind::environment,
                    fmt::format("the kernel does not show {}, which later steps read", name_of(stage)));
    }
}

bool ComposedLane::has(Site site, Stretch positions) const {
  if (composition_->is_inside(site)) return false;
  return composition_->is_kernels(site) ? kernel_->has(site, positions) : base_->has(site, positions);
}

void ComposedLane::write(Site site, Rows rows, const Tensor& values) {
  layer_[site.stage.index()] = site.layer;
  base_->write(site, rows, values);
}

Lane& ComposedLane::owner_of(Cache cache, int layer) const {
  const auto at = cache_.find({cache.index(), layer});
  return at != cache_.end() && at->second ? *kernel_ : *base_;
}

Tensor ComposedLane::read_cache(Cache cache, int layer, Stretch positions) {
  return owner_of(cache, layer).read_cache(cache, layer, positions);
}
void ComposedLane::write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) {
  owner_of(cache, layer).write_cache(cache, layer, positions, values);
}

DeviceMemory ComposedLane::device_memory() {
  const DeviceMemory kernel = kernel_->device_memory();
  return kernel.total > 0 ? kernel : base_->device_memory();
}

}  // namespace moe_diag
