// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/cuda_lane.hpp"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "core/api/error.hpp"

namespace moe_diag::cuda {
namespace {

// Recording pays for passes that are too short to hide their launches.
constexpr int recorded_rows = 8;
constexpr std::size_t recorded_steps = 16;

[[noreturn]] void fail(const std::string& message) { throw Error(ErrorKind::environment, "cuda lane: " + message); }

void check_values(const Tensor& values, std::string_view what) {
  if (values.dtype == DType::i32) fail(std::string(what) + " takes values, found int32");
}

template <class From, class To>
void convert(const Tensor& from, void* to) {
  std::transform(from.as<From>(), from.as<From>() + from.shape.count(), static_cast<To*>(to),
                 [](From v) { return static_cast<To>(v); });
}

// Of each cache, the values of a row in all layers before each layer, and in all layers.
std::vector<std::vector<std::int64_t>> summed_widths(const ModelConfig& config) {
  std::vector<std::vector<std::int64_t>> widths(config.caches.size(), std::vector<std::int64_t>(1, 0));
  for (std::size_t i = 0; i < widths.size(); ++i)
    for (int layer = 0; layer < config.layers; ++layer)
      widths[i].push_back(widths[i].back() + config.cache_width(config.caches[i], layer));
  return widths;
}

}  // namespace

CudaLane::CudaLane(const ModelView& model, const Device& device, std::shared_ptr<const Weights> weights,
                   Numerics numerics)
    : model_(model),
      config_(*model.config),
      device_(device),
      weights_(std::move(weights)),
      numerics_(numerics),
      buffers_(config_.stages.size()),
      copies_(config_.stages.size()),
      layer_(config_.stages.size(), -1),
      widest_(widest_layers(config_)),
      caches_(config_.caches.size()),
      widths_before_(summed_widths(config_)) {
  first_.reserve(sizeof(int), "the position");
  tile_count_.reserve(sizeof(int), "the number of tiles");
}

CudaLane::~CudaLane() {
  cudaSetDevice(device_.index);
  cudaStreamSynchronize(stream_.get());
  cudaStreamSynchronize(copy_stream_.get());
  forget_recording();
}

CudaLane::Sizes CudaLane::sizes_for(const ModelView& model, Numerics numerics, std::int64_t rows) {
  const ModelConfig& config = *model.config;
  const std::int64_t slots = rows * config.used;
  // The smaller tiles are the more.
  Sizes sizes;
  sizes.tiles = static_cast<std::size_t>(slots / tile_of(Numerics::f32, Way::few) + config.experts + 1) * sizeof(Tile);
  std::int64_t most = config.hidden;  // columns of weights that are no experts'
  for (const Weight& w : model.weights)
    if (w.experts == 1) most = std::max(most, w.cols);
  for (const auto& [cols, count] : {std::pair<std::int64_t, std::int64_t>{most, rows}, {config.expert_width, slots}}) {
    sizes.operand = std::max(sizes.operand, operand_bytes(numerics, cols, count));
    sizes.scales = std::max(sizes.scales, scale_bytes(numerics, cols, count));
  }
  return sizes;
}

std::uint64_t CudaLane::bytes_for(const ModelView& model, Numerics numerics, const Request& request) {
  const ModelConfig& config = *model.config;
  const std::vector<int> widest = widest_layers(config);
  std::uint64_t values = 0;
  for (const Stage stage : config.stages)
    values += static_cast<std::uint64_t>(
        config.shape_of({stage, widest[stage.index()]}, request.rows, request.total).count());
  const auto total = static_cast<std::uint64_t>(request.total);
  for (const std::vector<std::int64_t>& widths : summed_widths(config))
    values += total * static_cast<std::uint64_t>(widths.back());
  values += total * static_cast<std::uint64_t>(config.head_dim);
  values += static_cast<std::uint64_t>(request.rows) * static_cast<std::uint64_t>(config.used + 1);
  const Sizes sizes = sizes_for(model, numerics, request.rows);
  return values * sizeof(float) + sizes.tiles + sizes.operand + sizes.scales;
}

DeviceMemory CudaLane::device_memory() {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  std::size_t free = 0, total = 0;
  MOE_DIAG_CUDA(cudaMemGetInfo(&free, &total));
  return {total - free, total};
}

void CudaLane::begin(const Pass& pass) {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  for (const Stage stage : config_.stages) overwrite(stage);
  rows_ = pass.rows();
  pass_first_ = pass.first;
  total_ = pass.total;
  head_first_ = pass.head_first;
  const auto rows = static_cast<std::size_t>(rows_);
  bool moved = false;
  layer_ = widest_;
  for (const Stage stage : config_.stages) {
    const auto count = static_cast<std::size_t>(rows_ - first_row(stage)) * static_cast<std::size_t>(row_size(stage));
    moved |= buffers_[stage.index()].reserve(std::max<std::size_t>(count, 4) * sizeof(float),
                                             std::string(name_of(stage)).c_str());
  }
  reserve_cache();
  moved |= tokens_.reserve(std::max<std::size_t>(rows, 1) * sizeof(std::int32_t), "the tokens");
  moved |= order_.reserve(std::max<std::size_t>(rows, 1) * static_cast<std::size_t>(config_.used) * sizeof(int),
                          "the order by expert");
  const Sizes sizes = sizes_for(model_, numerics_, rows_);
  moved |= tiles_.reserve(sizes.tiles, "the tiles");
  moved |= operand_.reserve(sizes.operand, "the vectors of products");
  moved |= scales_.reserve(sizes.scales, "the scales of the vectors of products");
  if (moved) ++moves_;

  // The last pass's copy may still read what is to be overwritten.
  MOE_DIAG_CUDA(cudaEventSynchronize(pass_sent_.get()));
  pass_staging_.reserve((rows + 1) * sizeof(std::int32_t));
  auto* staged = pass_staging_.as<std::int32_t>();
  staged[0] = pass_first_;
  knows_tokens_ = !pass.tokens.empty();
  std::fill_n(staged + 1, rows, 0);
  std::copy(pass.tokens.begin(), pass.tokens.end(), staged + 1);
  MOE_DIAG_CUDA(cudaMemcpyAsync(first_.as<int>(), staged, sizeof(int), cudaMemcpyHostToDevice, stream_.get()));
  MOE_DIAG_CUDA(
      cudaMemcpyAsync(tokens_.as<int>(), staged + 1, rows * sizeof(int), cudaMemcpyHostToDevice, stream_.get()));
  MOE_DIAG_CUDA(cudaEventRecord(pass_sent_.get(), stream_.get()));
}

// A longer sequence moves the cache; what a continued sequence has in it moves along.
void CudaLane::reserve_cache() {
  if (total_ <= cached_) return;
  for (std::size_t i = 0; i < caches_.size(); ++i) {
    const std::vector<std::int64_t>& before = widths_before_[i];
    DeviceBuffer larger;
    larger.reserve(static_cast<std::size_t>(std::max<std::int64_t>(total_ * before.back(), 1)) * sizeof(float),
                   ("the cache of " + std::string(name_of(config_.caches[i]))).c_str());
    for (std::size_t layer = 0; pass_first_ > 0 && layer + 1 < before.size(); ++layer)
      MOE_DIAG_CUDA(
          cudaMemcpyAsync(larger.as<float>() + total_ * before[layer], caches_[i].as<float>() + cached_ * before[layer],
                          static_cast<std::size_t>(cached_ * (before[layer + 1] - before[layer])) * sizeof(float),
                          cudaMemcpyDeviceToDevice, stream_.get()));
    MOE_DIAG_CUDA(cudaStreamSynchronize(stream_.get()));
    caches_[i].swap(larger);
  }
  cached_ = total_;
  ++moves_;
}

void CudaLane::run(std::span<const Step> steps) {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  for (const Step& step : steps)
    for (Stage stage : step.out) overwrite(stage);
  if (rows_ == 0 || steps.empty()) return;
  prepare_angles(steps);
  grouped_tile_ = 0;
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
  mark(steps);
  // Whoever looks will ask for these: they are on their way while other lanes, and the next steps, compute.
  if (steps.back().want)
    for (Stage stage : steps.back().out) fetch(stage, {first_row(stage), rows_ - first_row(stage)});
}

bool CudaLane::recordable(std::span<const Step> steps) const {
  return rows_ <= recorded_rows && steps.size() >= recorded_steps;
}

bool CudaLane::recorded(std::span<const Step> steps) const {
  const Recording& r = recording_;
  return r.steps.size() == steps.size() && r.total == total_ && r.head_first == head_first_ && r.moves == moves_ &&
         r.rows == rows_ && std::equal(steps.begin(), steps.end(), r.steps.begin());
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

void CudaLane::check_rows(Stage stage, Rows rows) const {
  if (rows.first < first_row(stage) || rows.count < 0 || rows.first + rows.count > rows_)
    fail("rows " + std::to_string(rows.first) + ".." + std::to_string(rows.first + rows.count) + " of " +
         std::string(name_of(stage)) + " asked for, this pass has rows " + std::to_string(first_row(stage)) + ".." +
         std::to_string(rows_));
}

// Copies go by their own stream, each into its stage's own memory: while they are under way the lane computes on.
const CudaLane::Copy& CudaLane::fetch(Stage stage, Rows rows) {
  Copy& copy = copies_[stage.index()];
  if (copy.valid && copy.rows.first == rows.first && copy.rows.count == rows.count) return copy;
  const auto bytes = static_cast<std::size_t>(rows.count) * static_cast<std::size_t>(row_size(stage)) * sizeof(float);
  // An earlier copy of other rows may be under way into the same memory; the view it gave stays as long as it fits.
  MOE_DIAG_CUDA(cudaEventSynchronize(copy.done.get()));
  copy.memory.reserve(std::max<std::size_t>(bytes, 1));
  MOE_DIAG_CUDA(cudaEventRecord(computed_.get(), stream_.get()));
  MOE_DIAG_CUDA(cudaStreamWaitEvent(copy_stream_.get(), computed_.get(), 0));
  MOE_DIAG_CUDA(cudaMemcpyAsync(copy.memory.as<void>(), row(stage, rows.first), bytes, cudaMemcpyDeviceToHost,
                                copy_stream_.get()));
  MOE_DIAG_CUDA(cudaEventRecord(copy.done.get(), copy_stream_.get()));
  copy.rows = rows;
  copy.valid = true;
  return copy;
}

// What is queued from now on may write the stage: not before its copy has been made, which then is of the past.
void CudaLane::overwrite(Stage stage) {
  Copy& copy = copies_[stage.index()];
  if (copy.valid) MOE_DIAG_CUDA(cudaStreamWaitEvent(stream_.get(), copy.done.get(), 0));
  copy.valid = false;
}

Tensor CudaLane::read(Site site, Rows rows) {
  const Stage stage = site.stage;
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  check_rows(stage, rows);
  const Copy& copy = fetch(stage, rows);
  MOE_DIAG_CUDA(cudaEventSynchronize(copy.done.get()));
  const DType dtype = payload_of(stage) == Payload::indices ? DType::i32 : DType::f32;
  return {copy.memory.as<void>(), dtype, config_.shape_of(site, rows.count, total_)};
}

void CudaLane::check_indices(const Tensor& values, std::string_view what) const {
  if (values.dtype != DType::i32) fail(std::string(what) + " takes int32");
  const auto* ids = values.as<std::int32_t>();
  for (std::int64_t i = 0; i < values.shape.count(); ++i)
    if (ids[i] < 0 || ids[i] >= config_.experts)
      fail(std::string(what) + " was given expert " + std::to_string(ids[i]) + ", the model has experts 0 to " +
           std::to_string(config_.experts - 1));
}

void CudaLane::write(Site site, Rows rows, const Tensor& values) {
  const Stage stage = site.stage;
  layer_[stage.index()] = site.layer;
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  check_rows(stage, rows);
  const bool indices = payload_of(stage) == Payload::indices;
  indices ? check_indices(values, name_of(stage)) : check_values(values, name_of(stage));
  overwrite(stage);
  send(values, name_of(stage), rows.count * row_size(stage), row(stage, rows.first));
}

// Queues the copy of as many values, or indices, to the device.
void CudaLane::send(const Tensor& values, std::string_view what, std::int64_t count, float* to) {
  if (values.shape.count() != count)
    fail(std::to_string(values.shape.count()) + " values written to " + std::string(what) + ", expected " +
         std::to_string(count));
  const auto bytes = static_cast<std::size_t>(count) * sizeof(float);
  MOE_DIAG_CUDA(cudaEventSynchronize(write_sent_.get()));
  write_staging_.reserve(std::max<std::size_t>(bytes, 1));
  switch (values.dtype) {
    case DType::f32: convert<float, float>(values, write_staging_.as<void>()); break;
    case DType::f64: convert<double, float>(values, write_staging_.as<void>()); break;
    case DType::f16: convert<F16, float>(values, write_staging_.as<void>()); break;
    case DType::bf16: convert<BF16, float>(values, write_staging_.as<void>()); break;
    case DType::i32: convert<std::int32_t, std::int32_t>(values, write_staging_.as<void>()); break;
  }
  MOE_DIAG_CUDA(cudaMemcpyAsync(to, write_staging_.as<void>(), bytes, cudaMemcpyHostToDevice, stream_.get()));
  MOE_DIAG_CUDA(cudaEventRecord(write_sent_.get(), stream_.get()));
}

float* CudaLane::cache_at(Cache of, int layer, Stretch positions) const {
  if (layer < 0 || layer >= config_.layers || positions.first < 0 || positions.count < 0 || positions.end() > total_)
    fail(std::to_string(positions.count) + " positions from " + std::to_string(positions.first) +
         " on of the cache of layer " + std::to_string(layer) + " asked for, it has " + std::to_string(total_) +
         " positions of " + std::to_string(config_.layers) + " layers");
  return cache(of, layer) + positions.first * config_.cache_width(of, layer);
}

Tensor CudaLane::read_cache(Cache of, int layer, Stretch positions) {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  const float* from = cache_at(of, layer, positions);
  const Shape shape{positions.count, config_.cache_width(of, layer)};
  const auto bytes = static_cast<std::size_t>(shape.count()) * sizeof(float);
  cache_copy_.reserve(std::max<std::size_t>(bytes, 1));
  MOE_DIAG_CUDA(cudaMemcpyAsync(cache_copy_.as<void>(), from, bytes, cudaMemcpyDeviceToHost, stream_.get()));
  MOE_DIAG_CUDA(cudaStreamSynchronize(stream_.get()));
  return {cache_copy_.as<void>(), DType::f32, shape};
}

void CudaLane::write_cache(Cache of, int layer, Stretch positions, const Tensor& values) {
  MOE_DIAG_CUDA(cudaSetDevice(device_.index));
  check_values(values, "the cache");
  send(values, "the cache", positions.count * config_.cache_width(of, layer), cache_at(of, layer, positions));
}

}  // namespace moe_diag::cuda
