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
}

}  // namespace moe_diag
