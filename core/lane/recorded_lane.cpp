// SPDX-License-Identifier: MIT
#include "core/lane/recorded_lane.hpp"

#include "core/ops/operator.hpp"

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
  for (std::vector<double>& part : cache_) part.resize(static_cast<std::size_t>(total_ * config_.kv_width()));
}

Tensor RecordedLane::read(Site site, Rows rows) {
  const Shape shape = config_.shape_of(site, rows.count, total_);
  const auto view = [&](const std::vector<std::byte>& bytes, DType dtype, int first) -> Tensor {
    const std::size_t row = static_cast<std::size_t>(shape.row()) * size_of(dtype);
    if (first < 0 || static_cast<std::size_t>(first + rows.count) * row > bytes.size()) return {};
    return {bytes.data() + static_cast<std::size_t>(first) * row, dtype, shape};
  };
  for (const GivenValues& values : step_.expected)
    if (values.stage == site.stage) return view(values.bytes, values.dtype, pass_first_ + rows.first - step_.first);
  const Written& written = written_[site.stage.index()];
  return written.bytes.empty() ? Tensor{} : view(written.bytes, written.dtype, rows.first - written.rows.first);
}

void RecordedLane::write(Site site, Rows rows, const Tensor& values) {
  const auto* data = values.as<std::byte>();
  written_[site.stage.index()] = {rows, values.dtype, {data, data + values.bytes()}};
}

// The cache gets what the step would append to it.
void RecordedLane::run(std::span<const Step> steps) {
  for (const Step& step : steps) {
    if (!reads_cache(step)) continue;
    const Written& written = written_[step.in[1].index()];
    const Shape shape = config_.shape_of({step.in[1], step.layer}, written.rows.count, total_);
    if (!written.bytes.empty())
      keep(cache_part(step), pass_first_ + written.rows.first, {written.bytes.data(), written.dtype, shape},
           step.params.offset);
  }
}

// Of each row, what stands from `column` on.
void RecordedLane::keep(CachePart part, int position, const Tensor& values, std::int64_t column) {
  const std::int64_t width = config_.kv_width();
  double* to = cache_[static_cast<std::size_t>(part)].data() + position * width;
  for (std::int64_t i = 0; i < values.shape[0] * width; ++i)
    to[i] = values.value(i / width * values.shape.row() + column + i % width);
}

Tensor RecordedLane::read_cache(CachePart part, int, Stretch positions) {
  return {cache_[static_cast<std::size_t>(part)].data() + positions.first * config_.kv_width(), DType::f64,
          Shape{positions.count, config_.kv_width()}};
}

void RecordedLane::write_cache(CachePart part, int, Stretch positions, const Tensor& values) {
  keep(part, positions.first, values, 0);
}

}  // namespace moe_diag
