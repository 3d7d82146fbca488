// SPDX-License-Identifier: MIT
#include "core/lane/kept_stages.hpp"

#include <algorithm>
#include <cstring>

#include "core/api/error.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

[[noreturn]] void refuse() { throw Error(ErrorKind::environment, "what was computed once cannot be replaced"); }

std::size_t row_bytes(const Tensor& tensor) {
  return static_cast<std::size_t>(tensor.shape.row()) * size_of(tensor.dtype);
}

const std::byte* row_of(const Tensor& tensor, std::int64_t row) {
  return tensor.as<std::byte>() + static_cast<std::size_t>(row) * row_bytes(tensor);
}

}  // namespace

bool KeptStages::keep(Site site, int first, const Tensor& rows) {
  if (taken_by(rows.bytes()) > memory_.size() - used_) return false;
  std::byte* to = memory_.data() + used_;
  std::memcpy(to, rows.data, rows.bytes());
  used_ += taken_by(rows.bytes());
  rows_[site].push_back({first, {to, rows.dtype, rows.shape}});
  return true;
}

Tensor KeptStages::at(Site site, Stretch positions) const {
  const auto found = rows_.find(site);
  if (found == rows_.end()) return {};
  for (const Rows& rows : found->second) {
    const std::int64_t from = positions.first - rows.first;
    if (from < 0 || from + positions.count > rows.tensor.shape[0]) continue;
    Tensor part = rows.tensor;
    part.data = row_of(rows.tensor, from);
    part.shape.dims[0] = positions.count;
    return part;
  }
  return {};
}

Tensor KeptStages::columns(Site site, Stretch positions, std::int64_t first, std::int64_t columns,
                           std::vector<std::byte>& to) const {
  const auto found = rows_.find(site);
  if (found == rows_.end()) return {};
  const DType dtype = found->second.front().tensor.dtype;
  const std::size_t width = static_cast<std::size_t>(columns) * size_of(dtype);
  const std::size_t skipped = static_cast<std::size_t>(first) * size_of(dtype);
  to.resize(static_cast<std::size_t>(positions.count) * width);
  int copied = 0;
  for (const Rows& rows : found->second) {
    const int end = std::min(positions.end(), rows.first + static_cast<int>(rows.tensor.shape[0]));
    for (int p = std::max(positions.first, rows.first); p < end; ++p, ++copied)
      std::memcpy(to.data() + static_cast<std::size_t>(p - positions.first) * width,
                  row_of(rows.tensor, p - rows.first) + skipped, width);
  }
  if (copied < positions.count) return {};
  return {to.data(), dtype, Shape{positions.count, columns}};
}

ReplayedLane::ReplayedLane(const KeptStages& kept, Lane& lane, const ModelConfig& config, const Program& program)
    : kept_(kept),
      lane_(lane),
      config_(config),
      program_(program),
      layer_(config.stages.size()),
      is_computed_(config.stages.size()) {}

void ReplayedLane::begin(const Pass& pass) {
  pass_ = pass;
  is_computed_.assign(is_computed_.size(), false);
}

void ReplayedLane::run(std::span<const Step> steps) {
  for (const Step& step : steps) {
    for (Stage stage : step.out) layer_[stage.index()] = step.layer;
    if (is_of_head(step.out[0])) compute(step);
  }
}

// Of a pass that is cut the head's last row is another. The head does not know where its rows stand.
void ReplayedLane::compute(const Step& step) {
  const Rows head{pass_.head_first, pass_.rows() - pass_.head_first};
  if (has({step.out[0], step.layer}, {pass_.first + head.first, head.count})) return;
  const Stage stage = step.in[0];
  if (!is_computed_[stage.index()]) {
    const Rows rows = is_of_head(stage) ? head : Rows{0, pass_.rows()};
    const Tensor values = read({stage, layer_[stage.index()]}, rows);
    if (!values) return;
    Pass first = pass_;
    first.first = 0;
    lane_.begin(first);
    lane_.write({stage, layer_[stage.index()]}, rows, values);
  }
  lane_.run({&step, 1});
  is_computed_[step.out[0].index()] = true;
}

Tensor ReplayedLane::read(Site site, Rows rows) {
  if (is_computed_[site.stage.index()]) return lane_.read(site, rows);
  return kept_.at(site, {pass_.first + rows.first, rows.count});
}

// From the stage whose rows went into the cache.
Tensor ReplayedLane::read_cache(Cache cache, int layer, Stretch positions) {
  for (const Step& step : program_)
    for (const CacheUse& use : step.caches)
      if (step.layer == layer && use.cache == cache && use.input >= 0)
        return kept_.columns({step.in[static_cast<std::size_t>(use.input)], layer}, positions, use.column,
                             config_.cache_width(cache, layer), cached_);
  return {};
}

void ReplayedLane::write(Site, Rows, const Tensor&) { refuse(); }
void ReplayedLane::write_cache(Cache, int, Stretch, const Tensor&) { refuse(); }

}  // namespace moe_diag
