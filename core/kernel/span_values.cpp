// SPDX-License-Identifier: MIT
#include "core/kernel/span_values.hpp"

#include <algorithm>
#include <cstring>

namespace moe_diag {
namespace {

template <class T>
void append(const host::Values& values, std::vector<std::byte>& bytes) {
  bytes.resize(values.size() * sizeof(T));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const T value = static_cast<T>(values[i]);
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
}

}  // namespace

host::Values SpanValues::row(Stage stage, std::int64_t r) const {
  const host::Values& all = of.at(stage);
  const auto width = static_cast<std::ptrdiff_t>(all.size() / positions.size());
  return {all.begin() + r * width, all.begin() + (r + 1) * width};
}

SpanValues rows_of(const SpanValues& values, const std::vector<std::int64_t>& rows) {
  SpanValues some;
  for (const std::int64_t r : rows) some.positions.push_back(values.positions[static_cast<std::size_t>(r)]);
  for (const auto& [stage, all] : values.of) {
    host::Values& to = some.of[stage];
    for (const std::int64_t r : rows) {
      const host::Values one = values.row(stage, r);
      to.insert(to.end(), one.begin(), one.end());
    }
  }
  return some;
}

StepInputs inputs_of(const Step& step, const SpanValues& values) {
  StepInputs inputs;
  inputs.positions = values.positions;
  inputs.total = 1 + *std::max_element(values.positions.begin(), values.positions.end());
  for (std::size_t i = 0; i < step.in.size(); ++i) inputs.in[i] = values.at(step.in[i]);
  return inputs;
}

void compute_steps(const Span& span, const ModelConfig& config, std::size_t from, SpanValues& values) {
  for (std::size_t i = from; i < span.steps.size(); ++i) {
    const Step& step = span.steps[i];
    const StepInputs inputs = inputs_of(step, values);
    for (std::size_t output = 0; output < step.out.size(); ++output)
      values.of[step.out[output]] = compute(step, config, inputs, nullptr, output);
  }
}

StoredTensor stored(const SpanValues& values, Site site, const ModelConfig& config, DType dtype) {
  const host::Values& all = values.at(site.stage);
  StoredTensor tensor{std::string(name_of(site.stage)), dtype, config.shape_of(site, values.rows(), 0), {}};
  if (payload_of(site.stage) == Payload::indices) tensor.dtype = DType::i32;
  switch (tensor.dtype) {
    case DType::f64: append<double>(all, tensor.bytes); break;
    case DType::f32: append<float>(all, tensor.bytes); break;
    case DType::f16: append<F16>(all, tensor.bytes); break;
    case DType::bf16: append<BF16>(all, tensor.bytes); break;
    case DType::i32: append<std::int32_t>(all, tensor.bytes); break;
  }
  return tensor;
}

void put(const StoredTensor& tensor, Stage stage, SpanValues& values) {
  values.of[stage] = host::values_of(tensor.tensor());
}

}  // namespace moe_diag
