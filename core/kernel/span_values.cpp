// SPDX-License-Identifier: MIT
#include "core/kernel/span_values.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>
#include <utility>

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

StoredTensor stored(const host::Values& all, std::string_view name, DType dtype, const Shape& shape) {
  StoredTensor tensor{std::string(name), dtype, shape, {}};
  switch (dtype) {
    case DType::f64: append<double>(all, tensor.bytes); break;
    case DType::f32: append<float>(all, tensor.bytes); break;
    case DType::f16: append<F16>(all, tensor.bytes); break;
    case DType::bf16: append<BF16>(all, tensor.bytes); break;
    case DType::i32: append<std::int32_t>(all, tensor.bytes); break;
  }
  return tensor;
}

// The step's output, of activations that its weights may read in different ways: side by side, of each weight what it
// makes of its own.
host::Values multiplied(const Reads& reads, const Step& step, const ModelConfig& config, const StepInputs& inputs,
                        const Fault* fault) {
  std::map<std::optional<host::Rounding>, host::Values> ways;
  for (const Weight* weight : step.weights) {
    const std::optional<host::Rounding> way = reads.of(weight->type);
    if (ways.count(way) > 0) continue;
    StepInputs read = inputs;
    if (way) read.in[0] = host::rounded(inputs.in[0], *way, weight->cols);
    ways[way] = compute(step, config, read, fault);
  }
  host::Values all = ways.begin()->second;
  if (ways.size() == 1) return all;
  const auto row = std::ssize(all) / std::ssize(inputs.positions);
  std::ptrdiff_t column = 0;
  for (const Weight* weight : step.weights) {
    const host::Values& own = ways.at(reads.of(weight->type));
    for (std::ptrdiff_t at = column; at < std::ssize(all); at += row)
      std::copy_n(own.begin() + at, weight->rows, all.begin() + at);
    column += weight->rows;
  }
  return all;
}

}  // namespace

host::Values SpanValues::row(Stage stage, std::int64_t r) const {
  const host::Values& all = of.at(stage);
  const auto width = static_cast<std::ptrdiff_t>(all.size() / positions.size());
  return {all.begin() + r * width, all.begin() + (r + 1) * width};
}

SpanValues rows_of(const SpanValues& values, const std::vector<std::int64_t>& rows) {
  SpanValues some;
  some.earlier = values.earlier;
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

int SpanValues::total() const {
  return positions.empty() ? 0 : 1 + *std::max_element(positions.begin(), positions.end());
}

host::Values cached_columns(const host::Values& values, std::int64_t rows, int column, std::int64_t width) {
  const std::ptrdiff_t row = std::ssize(values) / std::max<std::int64_t>(rows, 1);
  host::Values columns;
  for (std::ptrdiff_t at = column; at < std::ssize(values); at += row)
    columns.insert(columns.end(), values.begin() + at, values.begin() + at + width);
  return columns;
}

StepInputs inputs_of(const Step& step, const ModelConfig& config, const SpanValues& values) {
  StepInputs inputs;
  inputs.positions = values.positions;
  inputs.total = values.total();
  for (std::size_t i = 0; i < step.in.size(); ++i) {
    inputs.in[i] = values.at(step.in[i]);
    const CacheUse* use = step.cached(i);
    if (!use) continue;
    const host::Values own =
        cached_columns(inputs.in[i], values.rows(), use->column, config.cache_width(use->cache, step.layer));
    inputs.in[i] = values.earlier.at(use->cache.index());
    inputs.in[i].insert(inputs.in[i].end(), own.begin(), own.end());
  }
  return inputs;
}

host::Values unrounded(const Span& span, const Step& step, const ModelConfig& config, const StepInputs& inputs,
                       const Fault* fault, std::size_t output) {
  if (span.reads && is_product(operator_of(step))) return multiplied(*span.reads, step, config, inputs, fault);
  return compute(step, config, inputs, fault, output);
}

host::Values kept(const Span& span, Stage stage, host::Values values) {
  if (span.storage.empty() || payload_of(stage) == Payload::indices) return values;
  const DType type = span.storage[stage.index()];
  return type == DType::f32 ? values : rounded_to(std::move(values), type);
}

host::Values computed(const Span& span, const Step& step, const ModelConfig& config, const StepInputs& inputs,
                      const Fault* fault, std::size_t output) {
  return kept(span, step.out[output], unrounded(span, step, config, inputs, fault, output));
}

void compute_steps(const Span& span, const ModelConfig& config, std::size_t from, SpanValues& values) {
  for (std::size_t i = from; i < span.steps.size(); ++i) {
    const Step& step = span.steps[i];
    const StepInputs inputs = inputs_of(step, config, values);
    for (std::size_t output = 0; output < step.out.size(); ++output)
      values.of[step.out[output]] = computed(span, step, config, inputs, nullptr, output);
  }
}

Shape shape_of(const SpanCache& cache, std::int64_t rows, const ModelConfig& config) {
  Shape shape{rows};
  for (const Dim& dim : info(cache.cache).row)
    if (!dim.symbol.empty()) shape.dims[static_cast<std::size_t>(shape.rank++)] = dim.size(config, cache.from.layer);
  return shape;
}

StoredTensor stored(const SpanValues& values, const SpanCache& cache, const ModelConfig& config, DType dtype) {
  return stored(values.earlier.at(cache.cache.index()), name_of(cache.cache), dtype,
                shape_of(cache, values.first(), config));
}

StoredTensor stored(const SpanValues& values, Site site, const ModelConfig& config, DType dtype) {
  return stored(values.at(site.stage), name_of(site.stage),
                payload_of(site.stage) == Payload::indices ? DType::i32 : dtype,
                config.shape_of(site, values.rows(), values.total()));
}

void put(const StoredTensor& tensor, Stage stage, SpanValues& values) {
  values.of[stage] = host::values_of(tensor.tensor());
}

}  // namespace moe_diag
