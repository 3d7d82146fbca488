// SPDX-License-Identifier: MIT
#include "core/lane/recorded_lane.hpp"

namespace moe_diag {

Description RecordedLane::description(const StepSpec& step) {
  Description d;
  d.device = "file";
  d.instruction_set = "not computed";
  for (const GivenValues& values : step.expected)
    if (values.dtype != DType::i32) d.values = values.dtype;
  d.numerics = name_of(d.values);
  return d;
}

void RecordedLane::begin(const Pass& pass) {
  pass_first_ = pass.first;
  total_ = pass.total;
  for (Written& written : written_) written = {};
}

// Null when one of them was neither expected nor written.
Tensor RecordedLane::rows_of(Site site, Stretch positions) const {
  const Shape shape = config_.shape_of(site, positions.count, total_);
  const auto view = [&](const std::vector<std::byte>& bytes, DType dtype, int first) -> Tensor {
    const std::size_t row = static_cast<std::size_t>(shape.row()) * size_of(dtype);
    if (first < 0 || static_cast<std::size_t>(first + positions.count) * row > bytes.size()) return {};
    return {bytes.data() + static_cast<std::size_t>(first) * row, dtype, shape};
  };
  for (const GivenValues& values : step_.expected)
    if (values.stage == site.stage) return view(values.bytes, values.dtype, positions.first - step_.first);
  const Written& written = written_[site.stage.index()];
  return written.bytes.empty() ? Tensor{}
                               : view(written.bytes, written.dtype, positions.first - pass_first_ - written.rows.first);
}

bool RecordedLane::has(Site site, Stretch positions) const { return static_cast<bool>(rows_of(site, positions)); }

Tensor RecordedLane::read(Site site, Rows rows) { return rows_of(site, {pass_first_ + rows.first, rows.count}); }

void RecordedLane::write(Site site, Rows rows, const Tensor& values) {
  const auto* data = values.as<std::byte>();
  written_[site.stage.index()] = {rows, values.dtype, {data, data + values.bytes()}};
}

// The caches get what the step would append to them.
void RecordedLane::run(std::span<const Step> steps) {
  for (const Step& step : steps)
    for (const CacheUse& use : step.caches) {
      if (use.input < 0) continue;
      const Stage stage = step.in[static_cast<std::size_t>(use.input)];
      const Written& written = written_[stage.index()];
      if (written.bytes.empty()) continue;
      const Shape shape = config_.shape_of({stage, step.layer}, written.rows.count, total_);
      keep(use.cache, step.layer, pass_first_ + written.rows.first, {written.bytes.data(), written.dtype, shape},
           use.column);
    }
}

// Of each row, what stands from `column` on.
void RecordedLane::keep(Cache cache, int layer, int position, const Tensor& values, std::int64_t column) {
  const std::int64_t width = config_.cache_width(cache, layer);
  std::vector<double>& kept = cache_[cache.index()];
  kept.resize(static_cast<std::size_t>(total_ * width));
  for (std::int64_t i = 0; i < values.shape[0] * width; ++i)
    kept[static_cast<std::size_t>(position * width + i)] =
        values.value(i / width * values.shape.row() + column + i % width);
}

Tensor RecordedLane::read_cache(Cache cache, int layer, Stretch positions) {
  const std::int64_t width = config_.cache_width(cache, layer);
  const std::vector<double>& kept = cache_[cache.index()];
  if (static_cast<std::int64_t>(kept.size()) < positions.end() * width) return {};
  return {kept.data() + positions.first * width, DType::f64, Shape{positions.count, width}};
}

void RecordedLane::write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) {
  keep(cache, layer, positions.first, values, 0);
}

}  // namespace moe_diag
