// SPDX-License-Identifier: MIT
#include "plugins/backends/cpu/cpu_lane.hpp"

#include <algorithm>
#include <string>
#include <type_traits>

namespace moe_diag::cpu {
namespace {

// The largest of the model's weights.
std::int64_t most_cols(const ModelView& model) {
  std::int64_t most = 1;
  for (const Weight& w : model.weights) most = std::max(most, w.cols);
  return most;
}
std::int64_t most_rows(const ModelView& model, bool of_experts) {
  std::int64_t most = 0;
  for (const Weight& w : model.weights)
    if ((w.experts > 1) == of_experts) most = std::max(most, w.rows);
  return most;
}

// Values of one thread's weight rows: decoded, or unpacked, which takes less.
std::size_t scratch_values(const ModelView& model) {
  static_assert(sizeof(RowsQ4_K) <= 256 * rows_at_once * sizeof(float));
  static_assert(sizeof(RowsQ8_0) <= 32 * rows_at_once * sizeof(float));
  return static_cast<std::size_t>(rows_at_once * padded(most_cols(model)));
}

// Values of the operands of a pass of `rows` rows; quantised ones take less than rounded ones.
std::size_t operand_values(const ModelView& model, Numerics numerics, int rows) {
  static_assert(sizeof(ActivationsQ8_0) <= 32 * sizeof(float) && sizeof(ActivationsQ8_K) <= 256 * sizeof(float));
  if (numerics == Numerics::f64 || numerics == Numerics::f32) return 0;
  const ModelConfig& config = *model.config;
  const std::int64_t row = std::max(most_cols(model), std::int64_t{config.used} * config.expert_width);
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(row);
}

template <class From, class To>
void convert(const Tensor& from, To* to) {
  std::transform(from.as<From>(), from.as<From>() + from.shape.count(), to, [](From v) { return static_cast<To>(v); });
}

// `what` names what is written; it takes `count` values.
template <class To>
void convert_values(const Tensor& from, std::string_view what, std::int64_t count, To* to) {
  if (from.shape.count() != count)
    fail("cpu lane: " + std::to_string(from.shape.count()) + " values written to " + std::string(what) + ", expected " +
         std::to_string(count));
  switch (from.dtype) {
    case DType::f32: return convert<float>(from, to);
    case DType::f64: return convert<double>(from, to);
    case DType::f16: return convert<F16>(from, to);
    case DType::bf16: return convert<BF16>(from, to);
    case DType::i32: fail("cpu lane: " + std::string(what) + " takes values, found int32");
  }
}

}  // namespace

template <class T>
CpuLane<T>::CpuLane(const ModelView& model, const LaneOptions& options)
    : config_(*model.config),
      numerics_(options.numerics),
      operand_row_(operand_values(model, options.numerics, 1)),
      kernels_(kernels<T>(*options.instruction_set)),
      operand_kernels_(*options.instruction_set->operands),
      arena_(options.threads),
      values_(config_.stages.size()),
      layer_(config_.stages.size(), -1),
      widest_(widest_layers(config_)),
      caches_(static_cast<std::size_t>(config_.layers) * config_.caches.size()),
      norm_weight_(static_cast<std::size_t>(padded(most_cols(model)))),
      bias_(static_cast<std::size_t>(padded(most_cols(model)))),
      groups_(static_cast<std::size_t>(config_.experts)),
      scratch_(static_cast<std::size_t>(options.threads)) {
  for (auto& s : scratch_) s = hwy::AllocateAligned<T>(scratch_values(model));
  const std::int64_t dense = most_rows(model, false) / tile_rows + 1;
  const std::int64_t per_expert = most_rows(model, true) / tile_rows + 1;
  tiles_.reserve(static_cast<std::size_t>(std::max(dense, config_.experts * per_expert)));
}

template <class T>
std::uint64_t CpuLane<T>::bytes_for(const ModelView& model, const Request& request, const LaneOptions& options) {
  const ModelConfig& config = *model.config;
  const std::vector<int> widest = widest_layers(config);
  std::uint64_t values = 0;
  for (const Stage stage : config.stages)
    values += static_cast<std::uint64_t>(
        config.shape_of({stage, widest[stage.index()]}, request.rows, request.total).count());
  for (int layer = 0; layer < config.layers; ++layer)
    for (std::size_t i = 0; i < config.caches.size(); ++i)
      values += static_cast<std::uint64_t>(request.total * config.cache_width(config.caches[i], layer));
  values += static_cast<std::uint64_t>(options.threads) * scratch_values(model);
  values += operand_values(model, options.numerics, request.rows);
  return values * sizeof(T);
}

template <class T>
void CpuLane<T>::begin(const Pass& pass) {
  rows_ = pass.rows();
  pass_first_ = pass.first;
  pass_total_ = pass.total;
  head_first_ = pass.head_first;
  tokens_.assign(pass.tokens.begin(), pass.tokens.end());
  layer_ = widest_;
  for (const Stage stage : config_.stages) {
    const auto count = static_cast<std::size_t>(rows_ - first_row(stage)) * static_cast<std::size_t>(row_size(stage));
    if (payload_of(stage) == Payload::indices)
      indices_.resize(count);
    else
      slot(stage).resize(count);
  }
  for (int layer = 0; layer < config_.layers; ++layer)
    for (std::size_t i = 0; i < config_.caches.size(); ++i) {
      const Cache one = config_.caches[i];
      cache(one, layer).resize(static_cast<std::size_t>(pass_total_ * config_.cache_width(one, layer)));
    }
  const std::size_t vectors = static_cast<std::size_t>(rows_) * static_cast<std::size_t>(config_.used);
  x_.resize(std::max(vectors, static_cast<std::size_t>(rows_)));
  y_.resize(x_.size());
  operands_.resize(static_cast<std::size_t>(rows_) * operand_row_);
  if (angle_positions_ != pass_total_) angles_.clear();
  angle_positions_ = pass_total_;
}

template <class T>
std::size_t CpuLane<T>::supports(std::span<const Step> steps) const {
  const auto moves_state = [](const Step& step) {
    return std::any_of(step.caches.begin(), step.caches.end(),
                       [](const CacheUse& use) { return info(use.cache).is_state; });
  };
  return static_cast<std::size_t>(std::find_if(steps.begin(), steps.end(), moves_state) - steps.begin());
}

template <class T>
void CpuLane<T>::run(std::span<const Step> steps) {
  arena_.execute([&] {
    for (const Step& step : steps) run_step(step);
  });
}

template <class T>
void CpuLane<T>::check_rows(Stage stage, Rows rows) const {
  if (rows.first < first_row(stage) || rows.count < 0 || rows.first + rows.count > rows_)
    fail("cpu lane: rows " + std::to_string(rows.first) + ".." + std::to_string(rows.first + rows.count) + " of " +
         std::string(name_of(stage)) + " asked for, this pass has rows " + std::to_string(first_row(stage)) + ".." +
         std::to_string(rows_));
}

template <class T>
Tensor CpuLane<T>::read(Site site, Rows rows) {
  const Stage stage = site.stage;
  check_rows(stage, rows);
  const Shape shape = config_.shape_of(site, rows.count, pass_total_);
  if (payload_of(stage) == Payload::indices)
    return {indices_.data() + static_cast<std::size_t>(rows.first) * static_cast<std::size_t>(config_.used), DType::i32,
            shape};
  return {row(stage, rows.first), sizeof(T) == sizeof(float) ? DType::f32 : DType::f64, shape};
}

template <class T>
void CpuLane<T>::write(Site site, Rows rows, const Tensor& values) {
  const Stage stage = site.stage;
  check_rows(stage, rows);
  layer_[stage.index()] = site.layer;
  const std::int64_t count = rows.count * row_size(stage);
  if (payload_of(stage) != Payload::indices)
    return convert_values(values, name_of(stage), count, row(stage, rows.first));
  if (values.dtype != DType::i32 || values.shape.count() != count)
    fail("cpu lane: " + std::string(name_of(stage)) + " takes " + std::to_string(count) + " int32, found " +
         std::to_string(values.shape.count()) + " " + std::string(name_of(values.dtype)));
  convert<std::int32_t>(values, indices_.data() + rows.first * row_size(stage));
}

template <class T>
T* CpuLane<T>::cache_row(Cache of, int layer, Stretch positions) {
  if (layer < 0 || layer >= config_.layers || positions.first < 0 || positions.count < 0 ||
      positions.end() > pass_total_)
    fail("cpu lane: " + std::to_string(positions.count) + " positions from " + std::to_string(positions.first) +
         " on of the cache of layer " + std::to_string(layer) + " asked for, it has " + std::to_string(pass_total_) +
         " positions of " + std::to_string(config_.layers) + " layers");
  return cache(of, layer).data() + positions.first * config_.cache_width(of, layer);
}

template <class T>
Tensor CpuLane<T>::read_cache(Cache of, int layer, Stretch positions) {
  return {cache_row(of, layer, positions), sizeof(T) == sizeof(float) ? DType::f32 : DType::f64,
          Shape{positions.count, config_.cache_width(of, layer)}};
}

template <class T>
void CpuLane<T>::write_cache(Cache of, int layer, Stretch positions, const Tensor& values) {
  T* to = cache_row(of, layer, positions);
  convert_values(values, "the cache", positions.count * config_.cache_width(of, layer), to);
}

template <class T>
const T* CpuLane<T>::appended(const Step& step) {
  const CacheUse& use = step.caches[0];
  const Stage from = step.in[static_cast<std::size_t>(use.input)];
  const std::int64_t width = config_.cache_width(use.cache, step.layer);
  T* const all = cache(use.cache, step.layer).data();
  for (int r = 0; r < rows_; ++r) std::copy_n(row(from, r) + use.column, width, all + position(r) * width);
  return all;
}

template class CpuLane<float>;
template class CpuLane<double>;

}  // namespace moe_diag::cpu
