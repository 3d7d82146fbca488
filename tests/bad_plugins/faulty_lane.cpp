// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "core/api/backend.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

constexpr ChoiceOption numerics_option{"numerics", "f32 f64", Required{"f32"}, "the type of its values"};
constexpr ChoiceOption fault_option{
    "fault",
    "nothing small_rows nan_leaks unwritten unrepeatable off_by_one idle_expert stale_cache forgets_rewind "
    "refuses_rewind mixes_sequences "
    "reads_unwanted crashes hangs throws tiny_lost nan_lost long_pass write_lost rows_lost cache_lost supports_changes "
    "wrong_type tied_topk options_unread options_unknown values_taken refuses_q6_k refuses_all no_caches no_rewind "
    "fused fused_wrong only_products",
    "nothing", "what is wrong with it"};
constexpr IntegerOption threads_option{"threads", "threads", "1", 1, 8, "is not read by some"};

// The plain operators, their results rounded to the type of the lane's values; and one fault.
class FaultyLane final : public Lane {
 public:
  FaultyLane(const ModelView& model, std::string fault, bool is_double)
      : config_(*model.config), fault_(std::move(fault)), is_double_(is_double) {
    stages_.resize(config_.stages.size());
    caches_.resize(config_.caches.size() * static_cast<std::size_t>(config_.layers));
  }

  Abilities abilities() const override { return {.rewinds = !is("no_rewind"), .shows_caches = !is("no_caches")}; }

  std::size_t supports(std::span<const Step> steps) const override {
    if (is("supports_changes")) return steps.size() - (asked_++ > 40 ? 1 : 0);
    if (is("only_products")) return is_product(operator_of(steps.front())) ? 1 : 0;
    if (!is("fused") && !is("fused_wrong")) return steps.size();
    const auto is_expert = [](const Step& step) { return step.op == Op::expert_linear; };
    if (!is_expert(steps.front())) return 0;
    for (std::size_t i = 0; i < steps.size(); ++i)
      if (steps[i].op == Op::combine) return i + 1;
    return 0;
  }

  void begin(const Pass& pass) override {
    if (is("mixes_sequences") && pass.first == 0 && pass_.total > 0) first_before_ = 1;
    if (is("forgets_rewind") && pass.first > 0 && pass.first < cached_)
      for (host::Values& cache : caches_) std::fill(cache.begin(), cache.end(), 0.5);
    if (is("refuses_rewind") && pass.first > 0 && pass.first < cached_)
      throw Error(ErrorKind::environment, "cannot go back");
    tokens_.assign(pass.tokens.begin(), pass.tokens.end());
    longest_ = std::max(longest_, pass.rows());
    pass_ = pass;
    pass_.tokens = tokens_;
    cached_ = pass.first + pass.rows();
    for (Slot& slot : stages_) slot.layer = -2;
  }

  void run(std::span<const Step> steps) override {
    for (const Step& step : steps) {
      if (is("crashes") && step.op == Op::swiglu) std::abort();
      if (is("hangs") && step.op == Op::combine) std::this_thread::sleep_for(std::chrono::hours(1));
      if (is("throws") && step.op == Op::rope) throw 7;
      compute_step(step);
    }
  }

  Tensor read(Site site, Rows rows) override {
    Slot& slot = slot_of(site);
    const Shape shape = config_.shape_of(site, rows.count, pass_.total);
    const auto first = slot.values.begin() + rows.first * shape.row();
    return shown({first, first + shape.count()}, shape, payload_of(site.stage) == Payload::indices);
  }

  void write(Site site, Rows rows, const Tensor& values) override {
    Slot& slot = slot_of(site);
    const std::int64_t width = values.shape.row(), first = is("rows_lost") ? 0 : rows.first;
    for (std::int64_t i = 0; i < values.shape.count(); ++i) {
      double value = values.value(i);
      if (is("write_lost") && values.dtype == DType::bf16) value = 0;
      slot.values[static_cast<std::size_t>(first * width + i)] = stored(value);
    }
  }

  Tensor read_cache(Cache cache, int layer, Stretch positions) override {
    if (is("no_caches")) return {};
    const host::Values& all = cache_of(cache, layer);
    const std::int64_t width = config_.cache_width(cache, layer);
    if (static_cast<std::int64_t>(all.size()) < positions.end() * width) return {};
    const auto first = all.begin() + positions.first * width;
    return shown({first, first + positions.count * width}, {positions.count, width}, false);
  }

  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override {
    if (is("cache_lost")) return;
    const std::int64_t width = config_.cache_width(cache, layer);
    host::Values& all = cache_of(cache, layer);
    all.resize(std::max(all.size(), static_cast<std::size_t>(positions.end() * width)));
    for (std::int64_t i = 0; i < values.shape.count(); ++i)
      all[static_cast<std::size_t>(positions.first * width + i)] = stored(values.value(i));
  }

 private:
  struct Slot {
    int layer = -2;
    host::Values values;
  };

  bool is(std::string_view fault) const { return fault_ == fault; }
  double stored(double x) const { return is_double_ ? x : static_cast<double>(static_cast<float>(x)); }
  host::Values& cache_of(Cache cache, int layer) {
    return caches_[static_cast<std::size_t>(layer) * config_.caches.size() + cache.index()];
  }

  // All rows of the pass.
  Slot& slot_of(Site site) {
    Slot& slot = stages_[site.stage.index()];
    if (slot.layer != site.layer)
      slot.values.resize(static_cast<std::size_t>(config_.shape_of(site, pass_.rows(), pass_.total).count()));
    slot.layer = site.layer;
    return slot;
  }

  Tensor shown(const host::Values& values, const Shape& shape, bool is_indices) {
    if (is_indices) {
      ids_.assign(values.begin(), values.end());
      return {ids_.data(), DType::i32, shape};
    }
    if (is_double_) {
      doubles_ = values;
      return {doubles_.data(), DType::f64, shape};
    }
    singles_.assign(values.begin(), values.end());
    return {singles_.data(), DType::f32, shape};
  }

  host::Values cached_input(const Step& step, const CacheUse& use, const host::Values& rows, int first) {
    const auto width = static_cast<std::size_t>(config_.cache_width(use.cache, step.layer));
    const std::size_t count = static_cast<std::size_t>(pass_.rows() - first), row = rows.size() / count;
    host::Values& cache = cache_of(use.cache, step.layer);
    const auto at = static_cast<std::size_t>(pass_.first + first) * width;
    cache.resize(std::max(cache.size(), at + count * width));
    const bool is_stale = is("stale_cache") && pass_.first > 0 && name_of(use.cache) == "values";
    for (std::size_t r = is_stale ? 1 : 0; r < count; ++r)
      std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(r * row) + use.column, width,
                  cache.begin() + static_cast<std::ptrdiff_t>(at + r * width));
    host::Values all(cache.begin(), cache.begin() + static_cast<std::ptrdiff_t>(at + count * width));
    if (first_before_ > 0 && name_of(use.cache) == "keys")
      for (std::size_t i = 0; i < width && count > 1; ++i) all[i] = all[i + width];
    return all;
  }

  StepInputs inputs_of(const Step& step, int first) {
    StepInputs inputs;
    inputs.total = pass_.total;
    for (int r = first; r < pass_.rows(); ++r) inputs.positions.push_back(pass_.first + r);
    inputs.tokens.assign(tokens_.begin() + first, tokens_.end());
    for (std::size_t i = 0; i < step.in.size(); ++i) {
      const Slot& slot = stages_[step.in[i].index()];
      const std::size_t row = slot.values.size() / static_cast<std::size_t>(pass_.rows());
      const host::Values rows(slot.values.begin() + static_cast<std::ptrdiff_t>(first * row), slot.values.end());
      const CacheUse* use = step.cached(i);
      inputs.in[i] = use ? cached_input(step, *use, rows, first) : rows;
    }
    return inputs;
  }

  void compute_step(const Step& step) {
    const int first = is_of_head(step.out[0]) ? pass_.head_first : 0;
    StepInputs inputs = inputs_of(step, first);
    bend_inputs(step, inputs);
    Fault wrong_type;
    wrong_type.kind = Fault::Kind::wrong_type;
    const bool is_bent = is("wrong_type") && step.op == Op::linear && step.weights[0]->type == BlockType::q6_k;
    for (std::size_t o = 0; o < step.out.size(); ++o) {
      if (is("reads_unwanted") && !step.want && step.op == Op::swiglu) continue;
      host::Values out = compute(step, config_, inputs, is_bent ? &wrong_type : nullptr, o);
      if (is("tied_topk") && payload_of(step.out[o]) == Payload::indices) swap_ties(inputs, out);
      if (is("idle_expert") && step.op == Op::expert_linear && has_idle_expert(inputs.in[1])) out[0] += 1;
      Slot& slot = slot_of({step.out[o], step.layer});
      const std::size_t from = slot.values.size() - out.size();
      const bool is_cut = is("unwritten") && step.op == Op::linear && pass_.rows() > 16;
      for (std::size_t i = 0; i < out.size() - (is_cut ? 3 : 0); ++i) slot.values[from + i] = stored(out[i]);
      bend_output(step, slot.values, from);
    }
  }

  // The higher id first.
  void swap_ties(const StepInputs& inputs, host::Values& ids) const {
    const auto used = static_cast<std::size_t>(config_.used), experts = static_cast<std::size_t>(config_.experts);
    const auto share = [&](std::size_t i) {
      return inputs.in[0][i / used * experts + static_cast<std::size_t>(ids[i])];
    };
    for (std::size_t i = 0; i + 1 < ids.size(); ++i)
      if ((i + 1) % used != 0 && share(i) == share(i + 1)) std::swap(ids[i], ids[i + 1]);
  }

  // Of many rows.
  bool has_idle_expert(const host::Values& ids) const {
    for (int expert = 0; expert < config_.experts; ++expert)
      if (std::count(ids.begin(), ids.end(), static_cast<double>(expert)) == 0) return pass_.rows() > 20;
    return false;
  }

  void bend_inputs(const Step& step, StepInputs& inputs) {
    if (is("nan_leaks") && step.op == Op::rms_norm && step.layer >= 0)
      for (double& x : inputs.in[0])
        if (!std::isfinite(x)) inputs.in[0][0] = x;
    if (is("nan_lost") && step.op == Op::swiglu)
      for (double& x : inputs.in[0]) x = std::isnan(x) ? 0 : x;
    if (step.op != Op::expert_linear) return;
    if (is("off_by_one"))
      for (double& id : inputs.in[1]) id = static_cast<double>((static_cast<int>(id) + 1) % config_.experts);
  }

  void bend_output(const Step& step, host::Values& out, std::size_t from) {
    const bool is_matmul = step.op == Op::linear;
    if (is("small_rows") && is_matmul && pass_.rows() < 16) out[from] *= 1.01;
    if (is("unrepeatable") && step.op == Op::softmax) out[from] += 1e-8 * static_cast<double>(++calls_ % 7);
    if (is("tiny_lost") && is_matmul)
      for (double& x : out) x = std::fabs(x) < 1e-6 ? 0 : x;
    if (is("long_pass") && is_matmul && pass_.rows() < longest_) out[from] += 0.1;
    if (is("fused_wrong") && step.op == Op::weigh) out[from] = 0;
  }

  const ModelConfig config_;
  const std::string fault_;
  const bool is_double_;
  Pass pass_;
  std::vector<std::int32_t> tokens_, ids_;
  std::vector<Slot> stages_;
  std::vector<host::Values> caches_;
  std::vector<double> doubles_;
  std::vector<float> singles_;
  int cached_ = 0, longest_ = 0, first_before_ = 0;
  mutable int asked_ = 0;
  int calls_ = 0;
};

class FaultyBackend final : public Backend {
 public:
  explicit FaultyBackend(const Options&) {}

  Description describe(const ModelView& model, const Options& options, const Request&) override {
    Description d;
    d.numerics = options.read(numerics_option);
    d.values = d.numerics == "f64" ? DType::f64 : DType::f32;
    const std::string fault(options.read(fault_option));
    if (fault != "options_unread") options.read(threads_option);
    if (fault == "options_unknown")
      for (const Options::Entry& entry : options.entries()) entry.read = true;
    if (fault == "refuses_all") throw Error(ErrorKind::usage, "it computes nothing");
    for (const Weight& weight : model.weights)
      if (weight.type != BlockType::f32 && (weight.type != BlockType::q6_k || fault == "refuses_q6_k"))
        options.refuse(numerics_option, "no kernel for " + std::string(name_of(weight.type)));
    return d;
  }
  std::unique_ptr<Lane> open(const ModelView& model, const Options& options) override {
    return std::make_unique<FaultyLane>(model, std::string(options.read(fault_option)),
                                        options.read(numerics_option) == "f64");
  }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_BACKEND(moe_diag::FaultyBackend, "bad", "the plain operators with one fault", moe_diag::numerics_option,
                 moe_diag::fault_option, moe_diag::threads_option)
