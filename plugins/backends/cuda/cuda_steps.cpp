// SPDX-License-Identifier: MIT
#include <algorithm>
#include <string>

#include "plugins/backends/cuda/cuda_lane.hpp"
#include "plugins/backends/cuda/fusions.hpp"

// The lane's steps as kernels.
namespace moe_diag::cuda {
namespace {

// Vectors up to which a dense product, and mean vectors per expert up to which an expert product, are cheaper with the
// kernel for few: in f32, and on the tensor cores.
struct Limits {
  int vectors, per_expert;
};
constexpr Limits limits_f32{32, 6}, limits_tensor{8, 0};
// A matrix of so few rows does not fill the device otherwise.
constexpr int few_rows = 1024, few_vectors_of_few_rows = 64;

// Up to as many vectors of experts each is computed on its own, without sorting them.
constexpr int unsorted_vectors = 32;

}  // namespace

// No further at once than up to a step whose output is rounded.
void CudaLane::run_steps(std::span<const Step> steps) {
  while (!steps.empty()) {
    std::size_t end = 0;
    const auto rounds = [&](Stage stage) { return is_rounded(stage); };
    while (end < steps.size() && std::none_of(steps[end].out.begin(), steps[end].out.end(), rounds)) ++end;
    const std::size_t count = run_some(steps.first(std::min(end + 1, steps.size())));
    if (count == end + 1)
      for (const Stage stage : steps[end].out)
        if (is_rounded(stage)) round(stage);
    steps = steps.subspan(count);
  }
}

bool CudaLane::store_as(std::span<const DType> types) {
  storage_.assign(types.begin(), types.end());
  return true;
}

bool CudaLane::is_rounded(Stage stage) const {
  if (storage_.empty() || payload_of(stage) != Payload::values) return false;
  const DType type = storage_[stage.index()];
  return type == DType::bf16 || type == DType::f16;
}

void CudaLane::round(Stage stage) {
  const std::int64_t count = (rows_ - first_row(stage)) * row_size(stage);
  round_values(row(stage, first_row(stage)), count, storage_[stage.index()] == DType::f16, stream_.get());
}

// Runs the first step, or the first few in one, and says how many.
std::size_t CudaLane::run_some(std::span<const Step> steps) {
  if (const std::size_t count = attention_steps(steps, config_)) {
    mark(steps.first(count));
    attend(steps.first(count));
    return count;
  }
  if (const std::size_t count = routing_steps(steps)) {
    mark(steps.first(count));
    route(steps[0], steps[1]);
    return count;
  }
  if (const std::size_t count = gated_steps(steps)) {
    mark(steps.first(count));
    expert_linear(steps[0], &steps[1], &steps[2]);
    return count;
  }
  if (const std::size_t count = paired_steps(steps)) {
    mark(steps.first(count));
    expert_linear(steps[0], &steps[1], nullptr);
    return count;
  }
  Sum sum = sum_steps(steps, config_.hidden);
  if (sum.norm && first_row(sum.norm->out[0]) > 0) {  // of fewer rows than the sum
    sum.norm = nullptr;
    --sum.steps;
  }
  if (sum.steps > 1) {
    mark(steps.first(sum.steps));
    add_to_residual(sum);
    return sum.steps;
  }
  mark(steps.first(1));
  run_step(steps[0]);
  return 1;
}

void CudaLane::run_step(const Step& step) {
  switch (step.op) {
    case Op::embed: return embed(step);
    case Op::rms_norm: return rms_norm(step);
    case Op::linear: return linear(step);
    case Op::rope: return rope(step);
    case Op::scores: return scores(step);
    case Op::softmax: return softmax(step);
    case Op::mix: return mix(step);
    case Op::add: return add(step);
    case Op::topk: return topk(step);
    case Op::expert_linear: return expert_linear(step, nullptr, nullptr);
    case Op::swiglu: return swiglu(step);
    case Op::weigh: return weigh(step);
    case Op::combine: return combine(step);
    case Op::sigmoid_gate: return sigmoid_gate(step);
  }
}

void CudaLane::embed(const Step& step) {
  if (!knows_tokens_) throw Error(ErrorKind::environment, "cuda lane: the tokens of this pass are not known");
  cuda::embed(weights_->at(*step.weights[0]), tokens_.as<std::int32_t>(), rows_, slot(step.out[0]), stream_.get());
}

void CudaLane::rms_norm(const Step& step) {
  const Stage in = step.in[0], out = step.out[0];
  const RmsNormParams& params = step.as<RmsNormParams>();
  const int first = first_row(out), width = params.width;
  cuda::rms_norm(row(in, first), row_size(in), params.offset, weights_->at(*step.weights[0]), rows_ - first,
                 static_cast<int>(row_size(out) / width), width, static_cast<float>(params.eps), slot(out),
                 stream_.get());
}

// Multiplies in the numerics of the weights' type. `rows` rows of x from v.x on are what the vectors are made of;
// `prepared` remembers as what they have been prepared, over the products of one step.
void CudaLane::multiply(const Matrices& set, const Vectors& v, Way way, int rows, Numerics& prepared) {
  const Numerics numerics = numerics_for(numerics_, set.w[0].type);
  Operand operand;
  operand.data = operand_.as<std::byte>();
  operand.scales = scales_.as<float>();
  operand.padded = padded_cols(set.w[0].cols);
  if (way == Way::many && numerics != prepared) {
    prepare(numerics, v.x, v.x_stride, set.w[0].cols, rows, operand, stream_.get());
    prepared = numerics;
  }
  products(numerics, way, set, v, operand, device_, stream_.get());
}

void CudaLane::linear(const Step& step) {
  const Stage in = step.in[0], out = step.out[0];
  const int first = first_row(out);
  Vectors v;
  v.x = row(in, first);
  v.x_stride = row_size(in);
  v.y_stride = row_size(out);
  v.count = rows_ - first;
  float* y = slot(out);
  Numerics prepared = Numerics::f32;
  for (std::size_t i = 0; i < step.weights.size();) {
    Matrices set;
    const Weight& w = *step.weights[i];
    do {
      set.w[set.count] = weights_->at(*step.weights[i]);
      set.y[set.count++] = y;
      y += step.weights[i++]->rows;
    } while (i < step.weights.size() && step.weights[i]->type == w.type && step.weights[i]->cols == w.cols);
    multiply(set, v, dense_way(set, v.count), v.count, prepared);
  }
  if (step.biases.size() > 0) add_biases(step);
}

void CudaLane::add_biases(const Step& step) {
  const Stage out = step.out[0];
  float* y = slot(out);
  for (std::size_t i = 0; i < step.weights.size(); y += step.weights[i++]->rows)
    if (step.biases[i])
      cuda::add_bias(weights_->at(*step.biases[i]), rows_ - first_row(out), row_size(out), y, stream_.get());
}

Way CudaLane::dense_way(const Matrices& set, int count) const {
  const Numerics numerics = numerics_for(numerics_, set.w[0].type);
  int most = limits_tensor.vectors;
  if (numerics == Numerics::f32) most = set.w[0].rows <= few_rows ? few_vectors_of_few_rows : limits_f32.vectors;
  return count <= most && few_fits(numerics, set.w[0].cols, device_) ? Way::few : Way::many;
}

std::size_t CudaLane::supports(std::span<const Step> steps) const {
  const auto declined = [&](const Step& step) { return !computes(step, config_); };
  return static_cast<std::size_t>(std::find_if(steps.begin(), steps.end(), declined) - steps.begin());
}

CudaLane::Angles& CudaLane::angles_of(const RopeParams& params) {
  for (const std::unique_ptr<Angles>& angles : angles_)
    if (angles->head_dim == params.head_dim && angles->theta == params.theta) return *angles;
  angles_.push_back(std::make_unique<Angles>());
  angles_.back()->head_dim = params.head_dim;
  angles_.back()->theta = params.theta;
  return *angles_.back();
}

// The tables are made outside of recordings.
void CudaLane::prepare_angles(std::span<const Step> steps) {
  for (const Step& step : steps) {
    if (step.op != Op::rope) continue;
    Angles& table = angles_of(step.as<RopeParams>());
    if (table.positions >= total_) continue;
    table.positions = total_;
    const std::size_t bytes =
        static_cast<std::size_t>(total_) * static_cast<std::size_t>(table.head_dim / 2) * sizeof(float);
    bool moved = table.cosines.reserve(bytes, "the cosines");
    moved |= table.sines.reserve(bytes, "the sines");
    if (moved) ++moves_;
    angles(table.theta, total_, table.head_dim, table.cosines.as<float>(), table.sines.as<float>(), stream_.get());
  }
}

void CudaLane::rope(const Step& step) {
  const RopeParams& params = step.as<RopeParams>();
  const Angles& table = angles_of(params);
  cuda::rope(slot(step.in[0]) + params.offset, row_size(step.in[0]), table.cosines.as<float>(), table.sines.as<float>(),
             first_.as<int>(), rows_, static_cast<int>(row_size(step.out[0]) / params.head_dim), params.head_dim,
             slot(step.out[0]), stream_.get());
}

// The steps of attention_steps(): nothing of them is stored but q, the cache and the result.
void CudaLane::attend(std::span<const Step> steps) {
  const Step &q_norm = steps[0], &k_norm = steps[1], &q_rope = steps[2], &scores = steps[4], &mix = steps[6];
  Heads heads;
  heads.qkv = slot(q_norm.in[0]);
  heads.q_norm = weights_->at(*q_norm.weights[0]);
  heads.k_norm = weights_->at(*k_norm.weights[0]);
  heads.q_eps = static_cast<float>(q_norm.as<RmsNormParams>().eps);
  heads.k_eps = static_cast<float>(k_norm.as<RmsNormParams>().eps);
  const Angles& table = angles_of(q_rope.as<RopeParams>());
  heads.cosines = table.cosines.as<float>();
  heads.sines = table.sines.as<float>();
  heads.q = slot(q_rope.out[0]);
  heads.keys = cache(scores);
  heads.values = cache(mix);
  const Attention all = attention(mix.as<MixParams>().sizes);
  prepare_heads(heads, all, stream_.get());
  const auto scale = static_cast<float>(scores.as<ScoresParams>().scale);
  if (attend_fits(all, device_.shared_bytes))
    return cuda::attend(heads.q, heads.keys, heads.values, all, scale, slot(mix.out[0]), stream_.get());
  cuda::scores(heads.q, heads.keys, all, scale, slot(scores.out[0]), stream_.get());
  softmax(steps[5]);
  cuda::mix(slot(mix.in[0]), heads.values, all, slot(mix.out[0]), stream_.get());
}

// The cache that the step reads, with the rows of the pass in it.
float* CudaLane::append_to_cache(const Step& step) {
  const CacheUse& use = step.caches[0];
  const Stage from = step.in[static_cast<std::size_t>(use.input)];
  append(slot(from), row_size(from), use.column, rows_, static_cast<int>(config_.cache_width(use.cache, step.layer)),
         first_.as<int>(), cache(step), stream_.get());
  return cache(step);
}

void CudaLane::scores(const Step& step) {
  const ScoresParams& params = step.as<ScoresParams>();
  cuda::scores(slot(step.in[0]), append_to_cache(step), attention(params.sizes), static_cast<float>(params.scale),
               slot(step.out[0]), stream_.get());
}

void CudaLane::softmax(const Step& step) {
  const bool causal = step.as<SoftmaxParams>().causal;
  const int row = static_cast<int>(row_size(step.out[0])), width = causal ? total_ : row;
  cuda::softmax(slot(step.in[0]), rows_, row / width, width, causal ? first_.as<int>() : nullptr, slot(step.out[0]),
                stream_.get());
}

void CudaLane::mix(const Step& step) {
  cuda::mix(slot(step.in[0]), append_to_cache(step), attention(step.as<MixParams>().sizes), slot(step.out[0]),
            stream_.get());
}

void CudaLane::add(const Step& step) {
  cuda::add(slot(step.in[0]), slot(step.in[1]), rows_ * row_size(step.out[0]), slot(step.out[0]), stream_.get());
}

void CudaLane::topk(const Step& step) {
  grouped_tile_ = 0;
  cuda::topk(slot(step.in[0]), rows_, config_.experts, config_.used, step.as<TopkParams>().renormalised, indices(),
             slot(step.out[1]), stream_.get());
}

void CudaLane::route(const Step& softmax, const Step& topk) {
  grouped_tile_ = 0;
  cuda::route(slot(softmax.in[0]), rows_, config_.experts, config_.used, indices(), slot(topk.out[1]), stream_.get());
}

Way CudaLane::expert_way(Numerics numerics) const {
  const std::int64_t widest = std::max(config_.hidden, config_.expert_width);
  const int per_expert = numerics == Numerics::f32 ? limits_f32.per_expert : limits_tensor.per_expert;
  const int most = std::max(unsorted_vectors, per_expert * config_.experts);
  const bool few = rows_ * config_.used <= most && few_fits(numerics, widest, device_);
  return few ? Way::few : Way::many;
}

void CudaLane::group(int tile) {
  if (grouped_tile_ == tile) return;
  group_by_expert(indices(), rows_ * config_.used, config_.experts, tile, order_.as<int>(), tiles_.as<Tile>(),
                  tile_count_.as<int>(), stream_.get());
  grouped_tile_ = tile;
}

// Which vectors belong to which expert, as `way` wants it.
void CudaLane::sort_vectors(Vectors& v, Way way, Numerics numerics) {
  v.count = rows_ * config_.used;
  if (way == Way::few && v.count <= unsorted_vectors) {
    v.ids = indices();
    return;
  }
  const int tile = tile_of(numerics, way);
  group(tile);
  v.order = order_.as<int>();
  v.tiles = tiles_.as<Tile>();
  v.tile_count = tile_count_.as<int>();
  // Every group may end in a tile that is not full.
  v.most_tiles = v.count / tile + std::min(v.count, config_.experts);
}

// `second`, when there is one, has the same inputs; `swiglu` is of both.
void CudaLane::expert_linear(const Step& step, const Step* second, const Step* swiglu) {
  const Stage in = step.in[0], out = swiglu ? swiglu->out[0] : step.out[0];
  const bool own_input = holds_experts(in);
  const Numerics numerics = numerics_for(numerics_, step.weights[0]->type);
  const Way way = expert_way(numerics);
  Vectors v;
  v.x = slot(in);
  v.x_stride = own_input ? row_size(in) / config_.used : row_size(in);
  v.y_stride = row_size(out) / config_.used;
  v.divide = own_input ? 1 : config_.used;
  sort_vectors(v, way, numerics);
  Matrices set;
  set.swiglu = swiglu != nullptr;
  set.w[set.count] = weights_->at(*step.weights[0]);
  set.y[set.count++] = slot(out);
  if (second) {
    set.w[set.count] = weights_->at(*second->weights[0]);
    set.y[set.count++] = slot(second->out[0]);
  }
  Numerics prepared = Numerics::f32;
  multiply(set, v, way, own_input ? v.count : rows_, prepared);
}

void CudaLane::swiglu(const Step& step) {
  cuda::swiglu(slot(step.in[0]), slot(step.in[1]), rows_ * row_size(step.out[0]), slot(step.out[0]), stream_.get());
}

void CudaLane::weigh(const Step& step) {
  cuda::weigh(slot(step.in[0]), slot(step.in[1]), std::int64_t{rows_} * config_.used,
              static_cast<int>(row_size(step.out[0]) / config_.used), slot(step.out[0]), stream_.get());
}

void CudaLane::combine(const Step& step) {
  cuda::combine(slot(step.in[0]), rows_, config_.used, static_cast<int>(row_size(step.out[0])), slot(step.out[0]),
                stream_.get());
}

void CudaLane::sigmoid_gate(const Step& step) {
  const Stage out = step.out[0];
  cuda::sigmoid_gate(slot(step.in[0]), slot(step.in[1]), rows_, static_cast<int>(row_size(out)), slot(out),
                     stream_.get());
}

void CudaLane::add_to_residual(const Sum& sum) {
  Addend addend;
  addend.x = slot(sum.weigh ? sum.weigh->in[0] : sum.add->in[1]);
  addend.weights = sum.weigh ? slot(sum.weigh->in[1]) : nullptr;
  addend.used = sum.weigh ? config_.used : 1;
  const Stage out = sum.add->out[0];
  Norm norm;
  if (sum.norm) {
    norm.w = weights_->at(*sum.norm->weights[0]);
    norm.eps = static_cast<float>(sum.norm->as<RmsNormParams>().eps);
    norm.y = slot(sum.norm->out[0]);
  }
  add_norm(slot(sum.add->in[0]), addend, rows_, static_cast<int>(row_size(out)), slot(out), norm, stream_.get());
}

}  // namespace moe_diag::cuda
