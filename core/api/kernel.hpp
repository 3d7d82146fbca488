// SPDX-License-Identifier: MIT
#pragma once

// One kernel as a plugin. A class with one function computes a step, or a few that belong together, at every layer of
// a model; the lane that a contract names as `base` computes all other steps. The last line of the plugin's main file:
//
//   MOE_DIAG_KERNEL(MyKernel, "my_kernel", "what it does", moe_diag::kernel_numerics)

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "core/api/abi.hpp"
#include "core/api/backend.hpp"

namespace moe_diag {

// The matrix product of experts: out[row, slot] = W[ids[row, slot]] x. At gate and up the slots of a row read the same
// vector, at down each slot has its own.
struct ExpertLinearCall {
  int layer = 0;
  std::int64_t rows = 0;              // tokens of the pass
  std::int64_t used = 0;              // slots of a row: experts that each token has chosen
  bool x_by_slot = false;             // x is [rows, used, weight.cols]; false: [rows, weight.cols]
  const float* x = nullptr;           // on the host, row-major, as all that follows
  const std::int32_t* ids = nullptr;  // [rows, used], each in [0, weight.experts)
  const Weight& weight;               // [experts, rows, cols] in its type in the file: see row(), which decodes
  float* out = nullptr;               // [rows, used, weight.rows], NaN before the call
};

// All experts of a layer: out[row] = sum over slots of weights[row, slot] * down(silu(gate x[row]) * up x[row]), with
// the matrices of expert ids[row, slot].
struct MoeFfnCall {
  int layer = 0;
  std::int64_t rows = 0, used = 0;    // as above
  const float* x = nullptr;           // [rows, hidden], hidden = gate.cols; on the host, row-major
  const std::int32_t* ids = nullptr;  // [rows, used]
  const float* weights = nullptr;     // [rows, used], of the router
  const Weight &gate, &up;            // [experts, width, hidden] in their types in the file
  const Weight& down;                 // [experts, hidden, width]
  float* out = nullptr;               // [rows, hidden], NaN before the call
};

// One row of an expert's matrix as floats, `weight.cols` of them.
inline void decode_row(const Weight& weight, std::int64_t expert, std::int64_t row, float* out) {
  const std::byte* from = weight.row(expert, row);
  with_block(weight.type, [&]<class B>(B block) {
    for (std::int64_t c = 0; c < weight.cols; c += B::elements, from += sizeof block) {
      std::memcpy(&block, from, sizeof block);
      for (int i = 0; i < B::elements; ++i) out[c + i] = decode<float>(block, i);
    }
  });
}

// The numerics that a kernel is written in, which say how far it may be from the exact result: docs/numerics.md.
inline constexpr ChoiceOption kernel_numerics{"numerics", "f32 bf16 q8_k q8_1", Required{"f32"},
                                              "what the kernel computes in: the error it may make follows from it"};

// The stages that one layer's steps read and write, on the host; the buffers of a kernel's lane.
class HostStages {
 public:
  explicit HostStages(const ModelConfig& config)
      : config_(config), values_(config.stages.size()), ids_(config.stages.size()), has_(config.stages.size()) {}

  void begin(const Pass& pass) {
    pass_ = pass;
    has_.assign(has_.size(), false);
  }
  bool has(Stage stage) const { return has_[stage.index()]; }
  Rows rows_of(Stage stage) const {
    const int first = is_of_head(stage) ? pass_.head_first : 0;
    return {first, pass_.rows() - first};
  }
  std::int64_t row(Site site) const { return config_.shape_of(site, 1, pass_.total).row(); }

  const float* values(Stage stage) const { return values_[stage.index()].data(); }
  const std::int32_t* ids(Stage stage) const { return ids_[stage.index()].data(); }
  // Room for an output of the pass, NaN everywhere. The lane has it from then on.
  float* output(Site site) {
    std::vector<float>& values = values_[site.stage.index()];
    has_[site.stage.index()] = true;
    const auto count = static_cast<std::size_t>(rows_of(site.stage).count * row(site));
    values.assign(count, std::numeric_limits<float>::quiet_NaN());
    return values.data();
  }

  // The same for ids of experts; -1 everywhere, which is none.
  std::int32_t* output_ids(Site site) {
    std::vector<std::int32_t>& ids = ids_[site.stage.index()];
    has_[site.stage.index()] = true;
    ids.assign(static_cast<std::size_t>(rows_of(site.stage).count * row(site)), -1);
    return ids.data();
  }

  Tensor read(Site site, Rows rows) const {
    const std::int64_t at = (rows.first - rows_of(site.stage).first) * row(site);
    const bool is_choice = payload_of(site.stage) == Payload::indices;
    const void* data = is_choice ? static_cast<const void*>(ids(site.stage) + at) : values(site.stage) + at;
    return {data, is_choice ? DType::i32 : DType::f32, config_.shape_of(site, rows.count, pass_.total)};
  }
  void write(Site site, Rows rows, const Tensor& from) {
    const Rows all = rows_of(site.stage);
    const auto put = [&](auto& to) {
      to.resize(static_cast<std::size_t>(all.count * row(site)));
      const std::int64_t at = (rows.first - all.first) * row(site);
      for (std::int64_t i = 0; i < from.shape.count(); ++i)
        to[static_cast<std::size_t>(at + i)] = static_cast<std::decay_t<decltype(to[0])>>(from.value(i));
    };
    payload_of(site.stage) == Payload::indices ? put(ids_[site.stage.index()]) : put(values_[site.stage.index()]);
  }

 private:
  const ModelConfig& config_;
  Pass pass_;
  std::vector<std::vector<float>> values_;
  std::vector<std::vector<std::int32_t>> ids_;
  std::vector<bool> has_;  // by stage: the kernel has written it
};

// A kernel that multiplies by the matrices of experts: at gate, at up and at down of every layer.
class ExpertLinearKernel {
 public:
  virtual ~ExpertLinearKernel() = default;
  virtual void run(const ExpertLinearCall& call) = 0;

  static constexpr std::string_view device = "cpu";  // what reports call it; a kernel may state its own
  static std::size_t leading_steps(std::span<const Step> steps) {
    const auto other =
        std::find_if(steps.begin(), steps.end(), [](const Step& s) { return s.op != Op::expert_linear; });
    return static_cast<std::size_t>(other - steps.begin());
  }
  void run_steps(std::span<const Step> steps, HostStages& stages) {
    for (const Step& step : steps) {
      const std::int64_t used = stages.row({step.in[1], step.layer});
      run({.layer = step.layer,
           .rows = stages.rows_of(step.in[1]).count,
           .used = used,
           .x_by_slot = holds_experts(step.in[0]),
           .x = stages.values(step.in[0]),
           .ids = stages.ids(step.in[1]),
           .weight = *step.weights[0],
           .out = stages.output({step.out[0], step.layer})});
    }
  }
};

// A kernel that computes all experts of a layer at once: from what the router has chosen to the sum.
class MoeFfnKernel {
 public:
  virtual ~MoeFfnKernel() = default;
  virtual void run(const MoeFfnCall& call) = 0;

  static constexpr std::string_view device = "cpu";  // likewise
  static std::size_t leading_steps(std::span<const Step> steps) {
    constexpr Op ops[] = {Op::expert_linear, Op::expert_linear, Op::swiglu, Op::expert_linear, Op::weigh, Op::combine};
    const bool fits =
        steps.size() >= std::size(ops) && std::equal(std::begin(ops), std::end(ops), steps.begin(),
                                                     [](Op op, const Step& step) { return op == step.op; });
    return fits ? std::size(ops) : 0;
  }
  void run_steps(std::span<const Step> steps, HostStages& stages) {
    const Step &gate = steps[0], &up = steps[1], &down = steps[3], &weigh = steps[4], &combine = steps[5];
    run({.layer = gate.layer,
         .rows = stages.rows_of(gate.in[0]).count,
         .used = stages.row({gate.in[1], gate.layer}),
         .x = stages.values(gate.in[0]),
         .ids = stages.ids(gate.in[1]),
         .weights = stages.values(weigh.in[1]),
         .gate = *gate.weights[0],
         .up = *up.weights[0],
         .down = *down.weights[0],
         .out = stages.output({combine.out[0], combine.layer})});
  }
};

// The lane of a kernel: of its steps it has what they write in the end, and leaves all others to the base.
template <class Kernel>
class KernelLane final : public Lane {
 public:
  KernelLane(const ModelConfig& config, const Options& options) : stages_(config), kernel_(options) {}

  Abilities abilities() const override { return {.shows_caches = false}; }
  std::size_t supports(std::span<const Step> steps) const override { return Kernel::leading_steps(steps); }
  void begin(const Pass& pass) override { stages_.begin(pass); }
  void run(std::span<const Step> steps) override {
    for (std::size_t own = 0; !steps.empty(); steps = steps.subspan(own)) {
      own = Kernel::leading_steps(steps);
      if (own == 0) throw Error(ErrorKind::environment, "the kernel was given a step that it does not compute");
      kernel_.run_steps(steps.first(own), stages_);
    }
  }
  Tensor read(Site site, Rows rows) override { return stages_.read(site, rows); }
  bool has(Site site, Stretch) const override { return stages_.has(site.stage); }
  void write(Site site, Rows rows, const Tensor& values) override { stages_.write(site, rows, values); }
  Tensor read_cache(Cache, int, Stretch) override { return {}; }
  void write_cache(Cache, int, Stretch, const Tensor&) override {}

 private:
  HostStages stages_;
  Kernel kernel_;
};

// Supplies them. A kernel is constructed from the options of its lane, to read them, before a lane is opened, too.
template <class Kernel>
class KernelBackend final : public Backend {
 public:
  explicit KernelBackend(const Options&) {}

  Description describe(const ModelView&, const Options& options, const Request&) override {
    const Kernel reads_its_options(options);
    Description d;
    d.numerics = options.read(kernel_numerics);
    d.device = Kernel::device;
    return d;
  }
  std::unique_ptr<Lane> open(const ModelView& model, const Options& options) override {
    return std::make_unique<KernelLane<Kernel>>(*model.config, options);
  }
};

}  // namespace moe_diag

#define MOE_DIAG_KERNEL(Type, Name, Summary, ...) \
  MOE_DIAG_BACKEND(::moe_diag::KernelBackend<Type>, Name, Summary __VA_OPT__(, ) __VA_ARGS__)
