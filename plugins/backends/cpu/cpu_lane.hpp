// SPDX-License-Identifier: MIT
#pragma once

#include <hwy/aligned_allocator.h>
#include <tbb/task_arena.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/api/backend.hpp"
#include "plugins/backends/cpu/kernels.hpp"

namespace moe_diag::cpu {

struct LaneOptions {
  Numerics numerics = Numerics::f32;
  int threads = 1;
  const InstructionSet* instruction_set = nullptr;
};

inline constexpr std::int64_t tile_rows = 32;  // weight rows that one task computes

[[noreturn]] inline void fail(const std::string& message) { throw Error(ErrorKind::environment, message); }

// One execution on the host. T, float or double, is the type of the stage values and of all arithmetic on them, but for
// what the numerics bf16 and q8_k make of the operands of products with weights.
// Threads split output rows and positions, never a sum.
template <class T>
class CpuLane final : public Lane {
 public:
  CpuLane(const ModelView& model, const LaneOptions& options);

  void begin(const Pass& pass) override;
  // All but those that move a state on.
  std::size_t supports(std::span<const Step> steps) const override;
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override;
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;

  // Bytes of the buffers and of the cache for passes of `rows` rows in sequences of `total` positions.
  static std::uint64_t bytes_for(const ModelView& model, const Request& request, const LaneOptions& options);

 private:
  // Rows of a weight by one vector each: the unit all products are cut into.
  struct Tile {
    int expert;
    std::int64_t row;
  };
  // The vectors that go through one expert: [first, first + count) of `x_` and `y_`.
  struct Group {
    int first = 0, count = 0;
  };

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
  void expert_linear(const Step& step);
  void swiglu(const Step& step);
  void weigh(const Step& step);
  void combine(const Step& step);
  void sigmoid_gate(const Step& step);
  void add_biases(const Step& step);

  // Vectors as products with a weight read them: the stage's values, or what `operands_` holds, rounded or quantised.
  struct Operands {
    const std::byte* data;
    std::size_t stride;
    const std::byte* at(std::int64_t i) const { return data + static_cast<std::size_t>(i) * stride; }
  };
  // `count` vectors of `width` values, one behind the other.
  Operands operands(const T* x, std::int64_t count, std::int64_t width, BlockType weight);

  // y[i] = W x[i] for the vectors of each group; `groups_`, `x_` and `y_` are set by the caller.
  void products(const Weight& weight, std::int64_t y_offset);
  // Rows of a weight as multiply() reads them: decoded, or unpacked to whole numbers.
  void load_rows(const Weight& weight, std::int64_t expert, std::int64_t first, int rows, T* out);
  // y[i][at...] = w x[i] for `count` vectors from `first` on.
  void multiply(const Weight& weight, const T* w, int rows, int first, int count, std::int64_t at);
  void group_by_expert(const Step& step);

  // A table of the angles that heads of this size turn by: [positions, head_dim / 2].
  struct Angles {
    int head_dim = 0;
    double theta = 0;
    std::vector<T> cosines, sines;
  };
  const Angles& angles_of(const RopeParams& params);

  template <class Body>
  void parallel(std::int64_t count, std::int64_t grain, const Body& body);

  std::vector<T>& slot(Stage stage) { return values_[stage.index()]; }
  T* row(Stage stage, std::int64_t r) { return slot(stage).data() + (r - first_row(stage)) * row_size(stage); }
  // Values of a row of the stage, in the layer that its buffer holds.
  std::int64_t row_size(Stage stage) const {
    return config_.shape_of({stage, layer_[stage.index()]}, 1, pass_total_).count();
  }
  // Rows that the pass computes of a stage: [first_row, rows_).
  int first_row(Stage stage) const { return is_of_head(stage) ? head_first_ : 0; }
  int position(int r) const { return pass_first_ + r; }
  void check_rows(Stage stage, Rows rows) const;
  // [positions, width]
  std::vector<T>& cache(Cache cache, int layer) {
    return caches_[static_cast<std::size_t>(layer) * config_.caches.size() + cache.index()];
  }
  T* cache_row(Cache cache, int layer, Stretch positions);
  // Of a row of the cache that the step reads.
  std::int64_t cache_width(const Step& step) const { return config_.cache_width(step.caches[0].cache, step.layer); }
  // What the step reads of its cache, with the rows of the pass in it.
  const T* appended(const Step& step);

  const ModelConfig config_;
  const Numerics numerics_;
  const std::size_t operand_row_;  // values of the operands of one row
  const Kernels<T>& kernels_;
  const OperandKernels& operand_kernels_;
  tbb::task_arena arena_;

  int rows_ = 0, pass_first_ = 0, pass_total_ = 0, head_first_ = 0;
  std::vector<std::int32_t> tokens_;

  std::vector<std::vector<T>> values_;  // by stage: one layer of each stage
  std::vector<int> layer_;              // by stage: that which is held
  const std::vector<int> widest_;       // by stage: the layer with the longest row
  std::vector<std::int32_t> indices_;   // moe_router_indices: [T, k]
  std::vector<std::vector<T>> caches_;  // per layer, each of the model's
  std::vector<Angles> angles_;          // of all heads and bases that steps rotate with, of `angle_positions_`
  int angle_positions_ = 0;

  std::vector<T> norm_weight_, bias_;
  std::vector<T> operands_;          // of one product, where they are not read as they are
  std::vector<const std::byte*> x_;  // operands of all groups
  std::vector<T*> y_;
  std::vector<Group> groups_;  // per expert
  std::vector<Tile> tiles_;
  std::vector<hwy::AlignedFreeUniquePtr<T[]>> scratch_;  // per thread: weight rows, decoded or unpacked
};

}  // namespace moe_diag::cpu
