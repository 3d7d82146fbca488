// SPDX-License-Identifier: MIT
#include "core/lane/replay_lane.hpp"

#include <algorithm>
#include <cstring>

namespace moe_diag {
namespace {

// Attention values, one for each key: the last size of their shape grows to that of `wanted`; the new ones are 0.
Tensor with_keys(const Tensor& values, const Shape& wanted, std::vector<std::byte>& memory) {
  const std::size_t size = size_of(values.dtype), from = static_cast<std::size_t>(values.shape[2]) * size,
                    to = static_cast<std::size_t>(wanted[2]) * size;
  std::vector<std::byte> padded(static_cast<std::size_t>(wanted.count()) * size);
  const std::byte* bytes = values.as<std::byte>();
  for (std::int64_t i = 0; i < values.shape[0] * values.shape[1]; ++i)
    std::memcpy(padded.data() + static_cast<std::size_t>(i) * to, bytes + static_cast<std::size_t>(i) * from,
                std::min(from, to));
  memory = std::move(padded);
  return {memory.data(), values.dtype, wanted};
}

}  // namespace

void ReplayLane::begin(const Pass& pass) {
  pass_ = pass;
  for (Written& written : written_) written = {};
  std::fill(layer_.begin(), layer_.end(), -1);
}

void ReplayLane::run(std::span<const Step> steps) {
  for (const Step& step : steps)
    for (const Stage stage : step.out) {
      written_[stage.index()] = {};
      layer_[stage.index()] = step.layer;
    }
}

int ReplayLane::request() const {
  const auto i = static_cast<std::size_t>(pass_.sequence);
  return pass_.sequence >= 0 && i < requests_.size() ? requests_[i] : -1;
}

Tensor ReplayLane::read(Site asked, Rows rows) {
  const Site site = in_slot(asked);
  const Written& written = written_[site.stage.index()];
  if (!written.bytes.empty() && written.site == site && written.rows.first == rows.first &&
      written.rows.count == rows.count)
    return {written.bytes.data(), written.dtype, written.shape};
  std::vector<std::byte>& memory = read_[site.stage.index()];
  const Tensor values = recording_.rows(request(), site, {pass_.first + rows.first, rows.count}, memory);
  const Shape wanted = config_.shape_of(site, rows.count, pass_.total);
  if (!values || values.shape == wanted || !is(site.stage, Role::key_values)) return values;
  return with_keys(values, wanted, memory);
}

bool ReplayLane::has(Site site, Stretch positions) const {
  return request() >= 0 && recording_.has(request(), in_slot(site), positions);
}

void ReplayLane::write(Site site, Rows rows, const Tensor& values) {
  const auto* data = values.as<std::byte>();
  written_[site.stage.index()] = {in_slot(site), rows, values.dtype, values.shape, {data, data + values.bytes()}};
}

Description ReplayLane::description(const LaneSpec& lane, const Recording& recording, const ModelConfig& config) {
  Description d;
  const Options::Entry* numerics = lane.options.entry("numerics");
  d.numerics = numerics ? numerics->value : "f32";
  d.device = recording.engine().empty() ? "recorded" : recording.engine() + ", recorded";
  d.instruction_set = recording.layout();
  d.storage.assign(config.stages.size(), DType::f32);
  return d;
}

}  // namespace moe_diag
