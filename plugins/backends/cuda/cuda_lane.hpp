// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "core/api/backend.hpp"
#include "plugins/backends/cuda/device.hpp"
#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/weights.hpp"

namespace moe_diag::cuda {

struct Sum;

// One execution on a device. Everything is queued on one stream, copies to the host on another; only reading waits.
class CudaLane final : public Lane {
 public:
  CudaLane(const ModelView& model, const Device& device, std::shared_ptr<const Weights> weights, Numerics numerics);
  ~CudaLane() override;

  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override;
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;
  DeviceMemory device_memory() override;
  std::size_t supports(std::span<const Step> steps) const override;
  bool store_as(std::span<const DType> types) override;

  // Bytes on the device for passes of `rows` rows in sequences of `total` positions.
  static std::uint64_t bytes_for(const ModelView& model, Numerics numerics, const Request& request);

 private:
  // A stage's rows on the host, or on their way there, as the last step that wrote the stage left them.
  struct Copy {
    PinnedBuffer memory;
    Event done;
    Rows rows;
    bool valid = false;
  };
  // A span recorded as a graph: what it was recorded for, and what replays it.
  struct Recording {
    std::vector<Step> steps;
    int rows = 0, total = 0, head_first = 0;
    std::uint64_t moves = 0;
    cudaGraphExec_t graph = nullptr;
  };

  // Bytes of what depends on the rows of a pass.
  struct Sizes {
    std::size_t tiles = 0, operand = 0, scales = 0;
  };
  static Sizes sizes_for(const ModelView& model, Numerics numerics, std::int64_t rows);

  void run_steps(std::span<const Step> steps);
  std::size_t run_some(std::span<const Step> steps);
  bool is_rounded(Stage stage) const;
  void round(Stage stage);
  void run_step(const Step& step);
  void embed(const Step& step);
  void rms_norm(const Step& step);
  void linear(const Step& step);
  void rope(const Step& step);
  void scores(const Step& step);
  void softmax(const Step& step);
  void mix(const Step& step);
  void add(const Step& step);
  void topk(const Step& step);
  void expert_linear(const Step& step, const Step* second, const Step* swiglu);
  void swiglu(const Step& step);
  void weigh(const Step& step);
  void combine(const Step& step);
  void sigmoid_gate(const Step& step);
  void add_biases(const Step& step);
  void attend(std::span<const Step> steps);
  void route(const Step& softmax, const Step& topk);
  void add_to_residual(const Sum& sum);
  void multiply(const Matrices& set, const Vectors& v, Way way, int rows, Numerics& prepared);

  // A table of the angles that heads of this size turn by: [positions, head_dim / 2].
  struct Angles {
    int head_dim = 0;
    double theta = 0;
    int positions = 0;
    DeviceBuffer cosines, sines;
  };

  void reserve_cache();
  void prepare_angles(std::span<const Step> steps);
  Angles& angles_of(const RopeParams& params);
  bool recordable(std::span<const Step> steps) const;
  bool recorded(std::span<const Step> steps) const;
  void record(std::span<const Step> steps);
  void forget_recording();
  void group(int tile);
  void sort_vectors(Vectors& v, Way way, Numerics numerics);
  Way expert_way(Numerics numerics) const;
  Way dense_way(const Matrices& set, int count) const;

  const Copy& fetch(Stage stage, Rows rows);
  void overwrite(Stage stage);
  void check_rows(Stage stage, Rows rows) const;
  float* cache_at(Cache cache, int layer, Stretch positions) const;
  float* append_to_cache(const Step& step);
  void send(const Tensor& values, std::string_view what, std::int64_t count, float* to);
  void check_indices(const Tensor& values, std::string_view what) const;

  float* slot(Stage stage) const { return buffers_[stage.index()].as<float>(); }
  std::int32_t* indices() const { return buffers_[config_.stages.of(Role::choice).index()].as<std::int32_t>(); }
  float* row(Stage stage, std::int64_t r) const { return slot(stage) + (r - first_row(stage)) * row_size(stage); }
  // Values of a row of the stage, in the layer that its buffer holds.
  std::int64_t row_size(Stage stage) const {
    return config_.shape_of({stage, layer_[stage.index()]}, 1, total_).count();
  }
  // The outputs of these steps are what the buffers hold.
  void mark(std::span<const Step> steps) {
    for (const Step& step : steps)
      for (const Stage stage : step.out) layer_[stage.index()] = step.layer;
  }
  // Rows that the pass computes of a stage: [first_row, rows_).
  int first_row(Stage stage) const { return is_of_head(stage) ? head_first_ : 0; }
  // Values of a row of the cache in all layers before this one.
  std::int64_t widths_before(Cache cache, int layer) const {
    return widths_before_[cache.index()][static_cast<std::size_t>(layer)];
  }
  // [positions, width]
  float* cache(Cache cache, int layer) const {
    return caches_[cache.index()].as<float>() + cached_ * widths_before(cache, layer);
  }
  // That which a step reads.
  float* cache(const Step& step) const { return cache(step.caches[0].cache, step.layer); }
  Attention attention(const HeadSizes& sizes) const {
    return {rows_, sizes.heads, sizes.kv_heads, sizes.head_dim, total_, first_.as<int>()};
  }

  const ModelView model_;
  const ModelConfig config_;
  const Device device_;
  const std::shared_ptr<const Weights> weights_;
  const Numerics numerics_;
  Stream stream_, copy_stream_;
  Event computed_;

  int rows_ = 0, pass_first_ = 0, total_ = 0, head_first_ = 0;
  bool knows_tokens_ = false;
  std::uint64_t moves_ = 0;  // of a buffer to another address

  std::vector<DeviceBuffer> buffers_;  // one layer of each stage
  std::vector<Copy> copies_;
  std::vector<DType> storage_;     // by stage: the type that its values are rounded to; empty: none is
  std::vector<int> layer_;         // by stage: that which its buffer holds
  const std::vector<int> widest_;  // by stage: the layer with the longest row
  DeviceBuffer tokens_, first_;
  std::vector<DeviceBuffer> caches_;                      // each of the model's: of every layer [cached_, width]
  int cached_ = 0;                                        // positions
  std::vector<std::vector<std::int64_t>> widths_before_;  // by cache, per layer and behind the last
  std::vector<std::unique_ptr<Angles>> angles_;           // of all heads and bases that steps rotate with
  DeviceBuffer order_, tiles_, tile_count_;               // vectors by expert
  int grouped_tile_ = 0;           // the tile they are for within a span; 0: they hold nothing of use
  DeviceBuffer operand_, scales_;  // vectors as products of many read them

  PinnedBuffer pass_staging_, write_staging_, cache_copy_;
  Event pass_sent_, write_sent_;
  Recording recording_;
};

}  // namespace moe_diag::cuda
