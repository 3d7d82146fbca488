// SPDX-License-Identifier: MIT
#include "core/lane/rounded_lane.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <type_traits>
#include <utility>

#include "core/api/error.hpp"
#include "core/ops/attention.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {
namespace {

// The upper half of a float, ties to even: what BF16(double) gives, in a few instructions.
BF16 upper_half(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  BF16 half;
  half.bits = static_cast<std::uint16_t>(std::isnan(x) ? bits >> 16 | 0x40 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  return half;
}

template <class T, class From>
T nearest(From x) {
  if constexpr (std::is_same_v<T, BF16> && std::is_same_v<From, float>)
    return upper_half(x);
  else
    return T(static_cast<double>(x));
}

template <class T>
Tensor stored_as(const Tensor& values, std::vector<std::byte>& memory) {
  memory.resize(static_cast<std::size_t>(values.shape.count()) * sizeof(T));
  T* to = reinterpret_cast<T*>(memory.data());
  with_values(values, 0, [&](const auto* from) {
    for (std::int64_t i = 0; i < values.shape.count(); ++i) to[i] = nearest<T>(from[i]);
  });
  return {memory.data(), dtype_of<T>(), values.shape};
}

// The values in a type of 16 bits, in that memory.
Tensor stored_as(DType type, const Tensor& values, std::vector<std::byte>& memory) {
  if (type == values.dtype) return values;
  return type == DType::f16 ? stored_as<F16>(values, memory) : stored_as<BF16>(values, memory);
}

}  // namespace

RoundedLane::RoundedLane(std::unique_ptr<Lane> lane, const ModelConfig& config, const Program& program,
                         const EngineNumerics& engine, std::vector<DType> storage)
    : lane_(std::move(lane)),
      config_(config),
      program_(program),
      engine_(engine),
      reads_(engine.reads == "exact" ? nullptr : find_reads(engine.reads)),
      in_caches_(engine.kv_cache, engine.kv_rotate),
      storage_(std::move(storage)),
      layer_(config.stages.size(), -1),
      stored_(config.stages.size()),
      stores_itself_(is_any_coarse() && lane_->store_as(storage_)),
      rounds_here_(reads_ || static_cast<bool>(in_caches_) || (is_any_coarse() && !stores_itself_)) {}

bool RoundedLane::is_any_coarse() const {
  return std::any_of(config_.stages.begin(), config_.stages.end(), [&](Stage s) { return is_coarse(s); });
}

bool RoundedLane::is_coarse(Stage stage) const { return has_16_bits(storage_[stage.index()]); }

bool RoundedLane::rounds_cache(const CacheUse& use) const { return in_caches_.rounding && use.input >= 0; }

bool RoundedLane::rounds(const Step& step) const {
  const auto coarse = [&](Stage stage) { return is_coarse(stage) && !stores_itself_; };
  const auto cached = [&](const CacheUse& use) { return rounds_cache(use); };
  return (reads_ && is_product(operator_of(step))) || std::any_of(step.out.begin(), step.out.end(), coarse) ||
         std::any_of(step.caches.begin(), step.caches.end(), cached);
}

// Rows that the pass computes of a stage.
Rows RoundedLane::rows_of(Stage stage) const {
  const int first = is_of_head(stage) ? pass_.head_first : 0;
  return {first, pass_.rows() - first};
}

void RoundedLane::begin(const Pass& pass) {
  pass_ = pass;
  lane_->begin(pass);
}

void RoundedLane::run(std::span<const Step> steps) {
  if (!rounds_here_) return run_own(steps);  // fused as the backend likes
  steps_.assign(steps.begin(), steps.end());
  for (Step& step : steps_) step.want = true;  // what is rounded afterwards has to be there
  const std::span<const Step> all = steps_;
  for (std::size_t at = 0; at < all.size();) {
    const auto end = std::find_if(all.begin() + static_cast<std::ptrdiff_t>(at), all.end(),
                                  [&](const Step& step) { return rounds(step); });
    const auto own = static_cast<std::size_t>(end - all.begin()) - at;
    if (own > 0) run_own(all.subspan(at, own));
    at += own;
    if (at < all.size()) run_rounded(all[at++]);
  }
}

void RoundedLane::run_own(std::span<const Step> steps) {
  for (const Step& step : steps)
    for (const Stage stage : step.out) layer_[stage.index()] = step.layer;
  lane_->run(steps);
}

void RoundedLane::run_rounded(const Step& step) {
  if (reads_ && is_product(operator_of(step)))
    multiply(step);
  else
    run_on(step, cached_inputs(step));
  store(step);
}

// The inputs that go into caches, with the columns that do as the caches keep them.
std::vector<RoundedLane::Replaced> RoundedLane::cached_inputs(const Step& step) {
  std::vector<Replaced> inputs;
  for (const CacheUse& use : step.caches) {
    if (!rounds_cache(use)) continue;
    const auto input = static_cast<std::size_t>(use.input);
    auto at = std::find_if(inputs.begin(), inputs.end(), [&](const Replaced& r) { return r.input == input; });
    if (at == inputs.end()) {
      host::Values own = values_of({step.in[input], step.layer}, rows_of(step.in[input]));
      at = inputs.insert(at, {input, own, own});
    }
    const auto width = static_cast<std::size_t>(config_.cache_width(use.cache, step.layer));
    const std::size_t row = at->own.size() / static_cast<std::size_t>(rows_of(step.in[input]).count);
    for (std::size_t first = static_cast<std::size_t>(use.column); first < at->own.size(); first += row) {
      const host::Values kept = in_caches_.kept(std::span(at->own).subspan(first, width), step);
      std::copy(kept.begin(), kept.end(), at->read.begin() + static_cast<std::ptrdiff_t>(first));
    }
  }
  return inputs;
}

// Weights side by side may have the activations read in different ways: one run for each way, which gives the columns
// of the weights that are read so.
void RoundedLane::multiply(const Step& step) {
  std::map<std::optional<host::Rounding>, std::vector<std::size_t>> ways;
  for (std::size_t i = 0; i < step.weights.size(); ++i)
    ways[reads_->rounding(step, step.weights[i]->type)].push_back(i);
  const Stage stage = step.in[0], out = step.out[0];
  const host::Values exact = values_of({stage, layer_[stage.index()]}, rows_of(stage));
  host::Values all;
  for (const auto& [rounding, weights] : ways) {
    const std::int64_t row = step.weights[weights[0]]->cols;
    run_on(step, {{0, exact, rounding ? host::rounded(exact, *rounding, row, scale_of(engine_, stage)) : exact}});
    if (ways.size() == 1) return;
    const host::Values written = values_of({out, step.layer}, rows_of(out));
    all.resize(written.size());
    const auto all_columns = static_cast<std::ptrdiff_t>(written.size()) / rows_of(out).count;
    std::ptrdiff_t column = 0;
    for (std::size_t i = 0; i < step.weights.size(); ++i) {
      const auto width = static_cast<std::ptrdiff_t>(step.weights[i]->rows);
      if (std::find(weights.begin(), weights.end(), i) != weights.end())
        for (std::ptrdiff_t at = column; at < std::ssize(written); at += all_columns)
          std::copy_n(written.begin() + at, width, all.begin() + at);
      column += width;
    }
  }
  const Rows rows = rows_of(out);
  lane_->write({out, step.layer}, rows,
               {all.data(), DType::f64, config_.shape_of({out, step.layer}, rows.count, pass_.total)});
}

// Runs the step on other values of some inputs, which have their own again afterwards.
void RoundedLane::run_on(const Step& step, const std::vector<Replaced>& inputs) {
  const auto write_input = [&](std::size_t input, const host::Values& values) {
    const Site site{step.in[input], layer_[step.in[input].index()]};
    const Rows rows = rows_of(site.stage);
    lane_->write(site, rows, {values.data(), DType::f64, config_.shape_of(site, rows.count, pass_.total)});
  };
  for (const Replaced& r : inputs) write_input(r.input, r.read);
  run_own({&step, 1});
  for (const Replaced& r : inputs) write_input(r.input, r.own);
}

// Rounds what the step has written.
void RoundedLane::store(const Step& step) {
  for (const Stage stage : step.out) {
    if (!is_coarse(stage) || stores_itself_) continue;
    const Site site{stage, step.layer};
    const Rows rows = rows_of(stage);
    lane_->write(site, rows, read(site, rows));
  }
}

host::Values RoundedLane::values_of(Site site, Rows rows) {
  const Tensor values = lane_->read(site, rows);
  if (!values)
    throw Error(
        ErrorKind::environment,
        fmt::format("the backend does not show {}, which is rounded as the contract says", name_of(site.stage)));
  return host::values_of(values);
}

Tensor RoundedLane::read(Site site, Rows rows) {
  const Tensor values = lane_->read(site, rows);
  if (!values || !is_coarse(site.stage)) return values;
  return stored_as(storage_[site.stage.index()], values, stored_[site.stage.index()]);
}

void RoundedLane::write(Site site, Rows rows, const Tensor& values) {
  layer_[site.stage.index()] = site.layer;
  if (!is_coarse(site.stage)) return lane_->write(site, rows, values);
  lane_->write(site, rows, stored_as(storage_[site.stage.index()], values, stored_[site.stage.index()]));
}

Tensor RoundedLane::read_cache(Cache cache, int layer, Stretch positions) {
  return lane_->read_cache(cache, layer, positions);
}

void RoundedLane::write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) {
  const auto reads = [&](const Step& step) {
    return step.layer == layer && std::any_of(step.caches.begin(), step.caches.end(), [&](const CacheUse& use) {
             return use.cache == cache && rounds_cache(use);
           });
  };
  const auto reader = std::find_if(program_.begin(), program_.end(), reads);
  if (reader == program_.end()) return lane_->write_cache(cache, layer, positions, values);
  const host::Values kept = in_caches_.kept(host::values_of(values), *reader);
  lane_->write_cache(cache, layer, positions, {kept.data(), DType::f64, values.shape});
}

std::string obstacle_to_rounding(const EngineNumerics& engine, const Program& program, const ModelConfig& config) {
  const Reads* reads = find_reads(engine.reads);
  const WeightType* weights = find_weight_type(engine.weights);
  if (reads && weights && weights->rounding && reads->of(BlockType::q4_k) != reads->of(BlockType::f32))
    return fmt::format(
        "reads: {}: it depends on the types that weights have in the file, and weights: {} gives them another one; "
        "leave "
        "out one of the two",
        engine.reads, engine.weights);
  const CacheRounding in_caches(engine.kv_cache, engine.kv_rotate);
  const auto refusal = [](std::string_view key, std::string_view value, std::string_view rows, std::int64_t width,
                          host::Rounding rounding) {
    return fmt::format("{}: {}: rows of {} have {} values, no whole number of blocks of {}", key, value, rows, width,
                       host::block_of(rounding));
  };
  for (const Step& step : program) {
    if (reads && is_product(operator_of(step)))
      for (const Weight* weight : step.weights)
        if (const auto rounding = reads->rounding(step, weight->type)) {
          if (weight->cols % host::block_of(*rounding) != 0)
            return refusal("reads", engine.reads, weight->name, weight->cols, *rounding);
          const bool has_none = scale_of(engine, step.in[0]) == 0;
          if (has_none && (reads->scale == Reads::Scale::must || !engine.scales.empty()))
            return fmt::format("reads: {}: {} reads {}, which has no scale: give it one, or one to all", engine.reads,
                               weight->name, name_of(step.in[0]));
        }
    for (const CacheUse& use : step.caches) {
      if (!in_caches.rounding || use.input < 0) continue;
      if (const std::int64_t width = config.cache_width(use.cache, step.layer);
          width % host::block_of(*in_caches.rounding) != 0)
        return refusal("kv_cache", engine.kv_cache, name_of(use.cache), width, *in_caches.rounding);
      if (in_caches.rotation && head_sizes(step).head_dim % in_caches.rotation->divides != 0)
        return fmt::format("kv_rotate: {}: heads of {} have {} values, no multiple of {}", engine.kv_rotate,
                           name_of(use.cache), head_sizes(step).head_dim, in_caches.rotation->divides);
    }
  }
  return "";
}

}  // namespace moe_diag
