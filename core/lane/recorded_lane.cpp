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
  for (std::vector<double>& part : cache_) part.resize(static_cast<std::size_t>(total_ * config_.kv_width()));
}

Tensor RecordedLane::read(Stage stage, Rows rows) {
  const Shape shape = config_.shape_of(stage, rows.count, total_);
  const auto view = [&](const std::vector<std::byte>& bytes, DType dtype, int first) -> Tensor {
    const std::size_t row = static_cast<std::size_t>(shape.row()) * size_of(dtype);
    if (first < 0 || static_cast<std::size_t>(first + rows.count) * row > bytes.size()) return {};
    return {bytes.data() + static_cast<std::size_t>(first) * row, dtype, shape};
  };
  for (const GivenValues& values : step_.expected)
    if (values.stage == stage) return view(values.bytes, values.dtype, pass_first_ + rows.first - step_.first);
  const Written& written = written_[static_cast<std::size_t>(stage)];
  return written.bytes.empty() ? Tensor{} : view(written.bytes, written.dtype, rows.first - written.rows.first);
}

void RecordedLane::write(Stage stage, Rows rows, const Tensor& values) {
  const auto* data = values.as<std::byte>();
  written_[static_cast<std::size_t>(stage)] = {rows, values.dtype, {data, data + values.bytes()}};
  if (stage == Stage::k_post_rope) keep(CachePart::keys, pass_first_ + rows.first, values, 0);
  if (stage == Stage::qkv_matmul)
    keep(CachePart::values, pass_first_ + rows.first, values, values.shape.row() - config_.kv_width());
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
