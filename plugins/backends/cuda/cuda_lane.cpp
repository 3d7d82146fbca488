// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/cuda_lane.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/api/error.hpp"

namespace moe_diag::cuda {
namespace {

// Vectors up to which a dense product, and mean vectors per expert up to which an expert product, are cheaper with the
// kernel for few.
constexpr int few_vectors = 32, few_per_expert = 6;
// A matrix of so few rows does not fill the device otherwise.
constexpr int few_rows = 1024, few_vectors_of_few_rows = 64;

// Recording pays for passes that are too short to hide their launches.
constexpr int recorded_rows = 4;
constexpr std::size_t recorded_steps = 16;

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::environment, "cuda lane: " + message); }

template <class From, class To>
void convert(const Tensor& from, void* to) {
  std::transform(from.as<From>(), from.as<From>() + from.shape.count(), static_cast<To*>(to),
                 [](From v) { return static_cast<To>(v); });
}

bool same_kind(const Weight& a, const Weight& b) { return a.type == b.type && a.cols == b.cols; }

// Two expert products of the same vectors, which one launch can compute.
bool one_launch(const Step& a, const Step& b) {
  return a.op == Op::expert_linear && b.op == Op::expert_linear && a.in[0] == b.in[0] && a.in[1] == b.in[1] &&
         a.out[0] != b.in[0] && a.params.expert_shift == b.params.expert_shift &&
         same_kind(*a.weights[0], *b.weights[0]) && a.weights[0]->rows == b.weights[0]->rows;
}

// weigh, combine and add, each of what the one before it made.
bool one_sum(const Step& a, const Step& b, const Step& c) {
  return a.op == Op::weigh && b.op == Op::combine && c.op == Op::add && b.in[0] == a.out[0] && c.in[1] == b.out[0] &&
         c.in[0] != b.out[0];
}

std::size_t most_tiles(const ModelConfig& config, std::int64_t rows) {
  return static_cast<std::size_t>(rows * config.used / few_tile + config.experts + 1);
}

}  // namespace

CudaLane::CudaLane(const ModelView& model, const Device& device, std::shared_ptr<const Weights> weights)
    : config_(*model.config), device_(device), weights_(std::move(weights)) {
  first_.reserve(sizeof(int), "the position");
  tile_count_.reserve(sizeof(int), "the number of tiles");
}

CudaLane::~CudaLane() {
  cudaSetDevice(device_.index);
  cudaStreamSynchronize(stream_.get());
  forget_recording();
}

std::uint64_t CudaLane::bytes_for(const ModelConfig& config, const Request& request) {
  std::uint64_t values = 0;
  for (const StageInfo& stage : stage_table)
    values += static_cast<std::uint64_t>(config.shape_of(stage.stage, request.rows, request.total).count());
  const auto total = static_cast<std::uint64_t>(request.total);
  values += std::uint64_t{2} * static_cast<std::uint64_t>(config.layers) * total *
            static_cast<std::uint64_t>(config.kv_width());
  values += total * static_cast<std::uint64_t>(config.head_dim);
  values += static_cast<std::uint64_t>(request.rows) * static_cast<std::uint64_t>(config.used + 1);
  return values * sizeof(float) + most_tiles(config, request.rows) * sizeof(Tile);
}

void CudaLane::begin(const Pass& pass) {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  forget_copies();
  rows_ = pass.rows();
  pass_first_ = pass.first;
  total_ = pass.total;
  head_first_ = pass.head_first;
  const auto rows = static_cast<std::size_t>(rows_);
  bool moved = false;
  for (const StageInfo& stage : stage_table) {
    const auto count =
        static_cast<std::size_t>(rows_ - first_row(stage.stage)) * static_cast<std::size_t>(row_size(stage.stage));
    moved |= buffers_[static_cast<std::size_t>(stage.stage)].reserve(std::max<std::size_t>(count, 4) * sizeof(float),
                                                                     std::string(stage.name).c_str());
  }
  reserve_cache();
  moved |= tokens_.reserve(std::max<std::size_t>(rows, 1) * sizeof(std::int32_t), "the tokens");
  moved |= order_.reserve(std::max<std::size_t>(rows, 1) * static_cast<std::size_t>(config_.used) * sizeof(int),
                          "the order by expert");
  moved |= tiles_.reserve(most_tiles(config_, rows_) * sizeof(Tile), "the tiles");
  if (moved) ++moves_;

  // The last pass's copy may still read what is to be overwritten.
  MOE_DIAG_CUDA(cudaEventSynchronize(pass_sent_.get()));
  pass_staging_.reserve((rows + 1) * sizeof(std::int32_t));
  auto* staged = pass_staging_.as<std::int32_t>();
  staged[0] = pass_first_;
  std::copy(pass.tokens.begin(), pass.tokens.end(), staged + 1);
  MOE_DIAG_CUDA(cudaMemcpyAsync(first_.as<int>(), staged, sizeof(int), cudaMemcpyHostToDevice, stream_.get()));
  MOE_DIAG_CUDA(
      cudaMemcpyAsync(tokens_.as<int>(), staged + 1, rows * sizeof(int), cudaMemcpyHostToDevice, stream_.get()));
  MOE_DIAG_CUDA(cudaEventRecord(pass_sent_.get(), stream_.get()));
}

// A longer sequence moves the cache; what a continued sequence has in it moves along.
void CudaLane::reserve_cache() {
  if (total_ <= cached_) return;
  const auto width = static_cast<std::size_t>(config_.kv_width()) * sizeof(float);
  const std::size_t before = static_cast<std::size_t>(cached_) * width, now = static_cast<std::size_t>(total_) * width;
  const auto layers = static_cast<std::size_t>(config_.layers);
  for (DeviceBuffer* cache : {&keys_, &values_}) {
    DeviceBuffer larger;
    larger.reserve(now * layers, "the key and value cache");
    if (pass_first_ > 0 && before > 0)
      MOE_DIAG_CUDA(cudaMemcpy2DAsync(larger.as<void>(), now, cache->as<void>(), before, before, layers,
                                      cudaMemcpyDeviceToDevice, stream_.get()));
    MOE_DIAG_CUDA(cudaStreamSynchronize(stream_.get()));
    cache->swap(larger);
  }
  cached_ = total_;
  ++moves_;
}

void CudaLane::run(std::span<const Step> steps) {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  forget_copies();
  if (rows_ == 0 || steps.empty()) return;
  prepare_angles(steps);
  grouped_shift_ = -1;
  if (!recordable(steps)) {
    run_steps(steps);
  } else if (recorded(steps)) {
    if (!recording_.graph) record(steps);
    MOE_DIAG_CUDA(cudaGraphLaunch(recording_.graph, stream_.get()));
  } else {
    // Recorded when it comes a second time.
    forget_recording();
    recording_.steps.assign(steps.begin(), steps.end());
    recording_.rows = rows_;
    recording_.total = total_;
    recording_.head_first = head_first_;
    recording_.moves = moves_;
    run_steps(steps);
  }
  // Whoever looks will ask for these: they are on their way while other lanes compute.
  if (steps.back().want)
    for (Stage stage : steps.back().out) fetch(stage, {first_row(stage), rows_ - first_row(stage)});
}

bool CudaLane::recordable(std::span<const Step> steps) const {
  return rows_ <= recorded_rows && steps.size() >= recorded_steps;
}

bool CudaLane::recorded(std::span<const Step> steps) const {
  const Recording& r = recording_;
  return r.steps.size() == steps.size() && r.total == total_ && r.head_first == head_first_ && r.moves == moves_ &&
         r.rows == rows_ &&
         std::memcmp(static_cast<const void*>(r.steps.data()), steps.data(), steps.size_bytes()) == 0;
}

void CudaLane::record(std::span<const Step> steps) {
  cudaGraph_t graph = nullptr;
  MOE_DIAG_CUDA(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
  try {
    run_steps(steps);
  } catch (...) {
    cudaStreamEndCapture(stream_.get(), &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  MOE_DIAG_CUDA(cudaStreamEndCapture(stream_.get(), &graph));
  const cudaError_t status = cudaGraphInstantiate(&recording_.graph, graph, 0);
  cudaGraphDestroy(graph);
  MOE_DIAG_CUDA(status);
}

void CudaLane::forget_recording() {
  if (recording_.graph) cudaGraphExecDestroy(recording_.graph);
  recording_.graph = nullptr;
}

void CudaLane::run_steps(std::span<const Step> steps) {
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (i + 1 < steps.size() && one_launch(steps[i], steps[i + 1])) {
      expert_linear(steps[i], &steps[i + 1]);
      ++i;
    } else if (i + 2 < steps.size() && one_sum(steps[i], steps[i + 1], steps[i + 2])) {
      combine_into(steps[i], steps[i + 2]);
      i += 2;
    } else {
      run_step(steps[i]);
    }
  }
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
    case Op::expert_linear: return expert_linear(step, nullptr);
    case Op::swiglu: return swiglu(step);
    case Op::weigh: return weigh(step);
    case Op::combine: return combine(step);
  }
}

void CudaLane::check_rows(Stage stage, Rows rows) const {
  if (rows.first < first_row(stage) || rows.count < 0 || rows.first + rows.count > rows_)
    fail("rows " + std::to_string(rows.first) + ".." + std::to_string(rows.first + rows.count) + " of " +
         std::string(name_of(stage)) + " asked for, this pass has rows " + std::to_string(first_row(stage)) + ".." +
         std::to_string(rows_));
}

const CudaLane::Copy& CudaLane::fetch(Stage stage, Rows rows) {
  Copy& copy = copies_[static_cast<std::size_t>(stage)];
  if (copy.valid && copy.rows.first == rows.first && copy.rows.count == rows.count) return copy;
  const auto bytes = static_cast<std::size_t>(rows.count) * static_cast<std::size_t>(row_size(stage)) * sizeof(float);
  // An earlier copy of other rows may be under way into the same memory; the view it gave stays as long as it fits.
  MOE_DIAG_CUDA(cudaEventSynchronize(copy.done.get()));
  copy.memory.reserve(std::max<std::size_t>(bytes, 1));
  MOE_DIAG_CUDA(
      cudaMemcpyAsync(copy.memory.as<void>(), row(stage, rows.first), bytes, cudaMemcpyDeviceToHost, stream_.get()));
  MOE_DIAG_CUDA(cudaEventRecord(copy.done.get(), stream_.get()));
  copy.rows = rows;
  copy.valid = true;
  return copy;
}

void CudaLane::forget_copies() {
  for (Copy& copy : copies_) copy.valid = false;
}

Tensor CudaLane::read(Stage stage, Rows rows) {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  check_rows(stage, rows);
  const Copy& copy = fetch(stage, rows);
  MOE_DIAG_CUDA(cudaEventSynchronize(copy.done.get()));
  const DType dtype = info(stage).payload == Payload::indices ? DType::i32 : DType::f32;
  return {copy.memory.as<void>(), dtype, config_.shape_of(stage, rows.count, total_)};
}

void CudaLane::check_indices(const Tensor& values) const {
  if (values.dtype != DType::i32) fail(std::string(name_of(Stage::moe_router_indices)) + " takes int32");
  const auto* ids = values.as<std::int32_t>();
  for (std::int64_t i = 0; i < values.shape.count(); ++i)
    if (ids[i] < 0 || ids[i] >= config_.experts)
      fail("moe_router_indices was given expert " + std::to_string(ids[i]) + ", the model has experts 0.." +
           std::to_string(config_.experts));
}

void CudaLane::write(Stage stage, Rows rows, const Tensor& values) {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  check_rows(stage, rows);
  forget_copies();
  const std::int64_t count = rows.count * row_size(stage);
  if (values.shape.count() != count)
    fail(std::to_string(values.shape.count()) + " values written to " + std::string(name_of(stage)) + ", expected " +
         std::to_string(count));
  const auto bytes = static_cast<std::size_t>(count) * sizeof(float);
  MOE_DIAG_CUDA(cudaEventSynchronize(write_sent_.get()));
  write_staging_.reserve(std::max<std::size_t>(bytes, 1));
  if (info(stage).payload == Payload::indices) {
    check_indices(values);
    convert<std::int32_t, std::int32_t>(values, write_staging_.as<void>());
  } else if (values.dtype == DType::f32) {
    convert<float, float>(values, write_staging_.as<void>());
  } else if (values.dtype == DType::f64) {
    convert<double, float>(values, write_staging_.as<void>());
  } else {
    fail(std::string(name_of(stage)) + " takes values, found int32");
  }
  MOE_DIAG_CUDA(
      cudaMemcpyAsync(row(stage, rows.first), write_staging_.as<void>(), bytes, cudaMemcpyHostToDevice, stream_.get()));
  MOE_DIAG_CUDA(cudaEventRecord(write_sent_.get(), stream_.get()));
}

void CudaLane::embed(const Step& step) {
  cuda::embed(weights_->at(*step.weights[0]), tokens_.as<std::int32_t>(), rows_, slot(step.out[0]), stream_.get());
}

void CudaLane::rms_norm(const Step& step) {
  const Stage in = step.in[0], out = step.out[0];
  const int first = first_row(out), width = step.params.width;
  cuda::rms_norm(row(in, first), row_size(in), step.params.offset, weights_->at(*step.weights[0]), rows_ - first,
                 static_cast<int>(row_size(out) / width), width, static_cast<float>(step.params.eps), slot(out),
                 stream_.get());
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
  for (std::size_t i = 0; i < step.weights.size();) {
    Matrices set;
    do {
      set.w[set.count] = weights_->at(*step.weights[i]);
      set.y[set.count++] = y;
      y += step.weights[i++]->rows;
    } while (i < step.weights.size() && same_kind(*step.weights[i], *step.weights[i - 1]));
    products(set, v, dense_tile(set, v.count), device_.processors, stream_.get());
  }
}

int CudaLane::dense_tile(const Matrices& set, int count) const {
  const int most = set.w[0].rows <= few_rows ? few_vectors_of_few_rows : few_vectors;
  return count <= most && few_fits(set.w[0].cols, device_.shared_bytes) ? few_tile : many_tile;
}

// The tables are made outside of recordings.
void CudaLane::prepare_angles(std::span<const Step> steps) {
  for (const Step& step : steps) {
    if (step.op != Op::rope || (theta_ == step.params.theta && angles_ >= total_)) continue;
    theta_ = step.params.theta;
    angles_ = std::max(angles_, total_);
    const auto bytes =
        static_cast<std::size_t>(angles_) * static_cast<std::size_t>(config_.head_dim / 2) * sizeof(float);
    bool moved = cosines_.reserve(bytes, "the cosines");
    moved |= sines_.reserve(bytes, "the sines");
    if (moved) ++moves_;
    angles(theta_, angles_, config_.head_dim, cosines_.as<float>(), sines_.as<float>(), stream_.get());
    return;
  }
}

void CudaLane::rope(const Step& step) {
  const Stage out = step.out[0];
  cuda::rope(slot(step.in[0]), cosines_.as<float>(), sines_.as<float>(), first_.as<int>(), rows_,
             static_cast<int>(row_size(out) / config_.head_dim), config_.head_dim, slot(out), stream_.get());
}

void CudaLane::scores(const Step& step) {
  const int width = config_.kv_width();
  append(slot(step.in[1]), width, 0, rows_, width, first_.as<int>(), keys(step.layer), stream_.get());
  cuda::scores(slot(step.in[0]), keys(step.layer), attention(), static_cast<float>(step.params.scale),
               slot(step.out[0]), stream_.get());
}

void CudaLane::softmax(const Step& step) {
  const bool causal = step.params.causal;
  const int groups = causal ? config_.heads : 1;
  cuda::softmax(slot(step.in[0]), rows_, groups, static_cast<int>(row_size(step.out[0]) / groups),
                causal ? first_.as<int>() : nullptr, slot(step.out[0]), stream_.get());
}

void CudaLane::mix(const Step& step) {
  append(slot(step.in[1]), row_size(step.in[1]), step.params.offset, rows_, config_.kv_width(), first_.as<int>(),
         values(step.layer), stream_.get());
  cuda::mix(slot(step.in[0]), values(step.layer), attention(), slot(step.out[0]), stream_.get());
}

void CudaLane::add(const Step& step) {
  cuda::add(slot(step.in[0]), slot(step.in[1]), rows_ * row_size(step.out[0]), slot(step.out[0]), stream_.get());
}

void CudaLane::topk(const Step& step) {
  grouped_shift_ = -1;
  cuda::topk(slot(step.in[0]), rows_, config_.experts, config_.used, indices(), slot(step.out[1]), stream_.get());
}

int CudaLane::expert_tile() const {
  const std::int64_t widest = std::max(config_.hidden, config_.expert_width);
  const bool few = rows_ * config_.used <= few_per_expert * config_.experts && few_fits(widest, device_.shared_bytes);
  return few ? few_tile : many_tile;
}

void CudaLane::group(int shift) {
  if (grouped_shift_ == shift) return;
  group_by_expert(indices(), rows_ * config_.used, config_.experts, shift, expert_tile(), order_.as<int>(),
                  tiles_.as<Tile>(), tile_count_.as<int>(), stream_.get());
  grouped_shift_ = shift;
}

// `second`, when there is one, has the same inputs.
void CudaLane::expert_linear(const Step& step, const Step* second) {
  group(step.params.expert_shift);
  const Stage in = step.in[0], out = step.out[0];
  const bool own_input = info(in).row[0] == Dim::used;
  Vectors v;
  v.x = slot(in);
  v.x_stride = own_input ? row_size(in) / config_.used : row_size(in);
  v.y_stride = row_size(out) / config_.used;
  v.order = order_.as<int>();
  v.divide = own_input ? 1 : config_.used;
  v.tiles = tiles_.as<Tile>();
  v.tile_count = tile_count_.as<int>();
  v.count = rows_ * config_.used;
  // Every group may end in a tile that is not full.
  v.most_tiles = v.count / expert_tile() + std::min(v.count, config_.experts);
  Matrices set;
  set.w[set.count] = weights_->at(*step.weights[0]);
  set.y[set.count++] = slot(out);
  if (second) {
    set.w[set.count] = weights_->at(*second->weights[0]);
    set.y[set.count++] = slot(second->out[0]);
  }
  products(set, v, expert_tile(), device_.processors, stream_.get());
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

void CudaLane::combine_into(const Step& weigh, const Step& add) {
  cuda::combine_into(slot(weigh.in[0]), slot(weigh.in[1]), slot(add.in[0]), rows_, config_.used,
                     static_cast<int>(row_size(add.out[0])), slot(add.out[0]), stream_.get());
}

}  // namespace moe_diag::cuda
