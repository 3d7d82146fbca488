// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/fusions.hpp"

#include <algorithm>
#include <initializer_list>

namespace moe_diag::cuda {
namespace {

bool are(std::span<const Step> steps, std::initializer_list<Op> ops) {
  return steps.size() >= ops.size() &&
         std::equal(ops.begin(), ops.end(), steps.begin(), [](Op op, const Step& step) { return step.op == op; });
}

// True when input `i` of `to` is the first output of `from`.
bool feeds(const Step& from, const Step& to, std::size_t i) { return to.in[i] == from.out[0]; }

// True when the step has exactly these parameters, so many weights, no bias and no cache.
bool has_only(const Step& step, const Params& params, std::size_t weights = 0) {
  return step.params == params && step.weights.size() == weights && step.biases.size() == 0 && step.caches.size() == 0;
}

// True when the step reads one cache of a row a position: the keys or values of these heads.
bool reads_heads(const Step& step, const HeadSizes& sizes, const ModelConfig& config) {
  return step.caches.size() == 1 && !info(step.caches[0].cache).is_state &&
         config.cache_width(step.caches[0].cache, step.layer) == std::int64_t{sizes.kv_heads} * sizes.head_dim;
}

// True when all that the step has are these parameters and a cache of these heads, which its second input goes into
// from that column on.
bool has_only_cached(const Step& step, const Params& params, const HeadSizes& sizes, int column,
                     const ModelConfig& config) {
  return step.params == params && step.weights.size() == 0 && step.biases.size() == 0 &&
         reads_heads(step, sizes, config) && step.caches[0].input == 1 && step.caches[0].column == column;
}

bool same_kind(const Weight& a, const Weight& b) { return a.type == b.type && a.cols == b.cols && a.rows == b.rows; }

}  // namespace

bool computes(const Step& step, const ModelConfig& config) {
  if (step.op == Op::scores) return reads_heads(step, step.as<ScoresParams>().sizes, config);
  if (step.op == Op::mix) return reads_heads(step, step.as<MixParams>().sizes, config);
  return step.caches.size() == 0;
}

std::size_t attention_steps(std::span<const Step> s, const ModelConfig& c) {
  if (!are(s, {Op::rms_norm, Op::rms_norm, Op::rope, Op::rope, Op::scores, Op::softmax, Op::mix})) return 0;
  const bool chained = feeds(s[0], s[2], 0) && feeds(s[1], s[3], 0) && feeds(s[2], s[4], 0) && feeds(s[3], s[4], 1) &&
                       feeds(s[4], s[5], 0) && feeds(s[5], s[6], 0);
  const bool of_one = s[0].in[0] == s[1].in[0] && s[0].in[0] == s[6].in[1];
  const HeadSizes sizes = s[6].as<MixParams>().sizes;
  const auto [heads, kv_heads, width] = sizes;
  const RmsNormParams q_norm{.width = width, .eps = s[0].as<RmsNormParams>().eps};
  const RmsNormParams k_norm{.offset = heads * width, .width = width, .eps = s[1].as<RmsNormParams>().eps};
  const RopeParams rope{.head_dim = width, .theta = s[2].as<RopeParams>().theta};
  const ScoresParams scores{sizes, s[4].as<ScoresParams>().scale};
  const auto row = [&](Stage stage) { return c.shape_of({stage, s[0].layer}, 1, 1).row(); };
  const bool side_by_side = row(s[0].in[0]) == (heads + 2 * kv_heads) * width && row(s[0].out[0]) == heads * width &&
                            row(s[1].out[0]) == kv_heads * width;
  const bool computed = has_only(s[0], q_norm, 1) && has_only(s[1], k_norm, 1) && has_only(s[2], rope) &&
                        has_only(s[3], rope) && has_only_cached(s[4], scores, sizes, 0, c) &&
                        has_only(s[5], SoftmaxParams{.causal = true}) &&
                        has_only_cached(s[6], MixParams{sizes}, sizes, (heads + kv_heads) * width, c);
  return chained && of_one && side_by_side && computed ? 7 : 0;
}

std::size_t routing_steps(std::span<const Step> s) {
  if (!are(s, {Op::softmax, Op::topk}) || !feeds(s[0], s[1], 0)) return 0;
  return has_only(s[0], SoftmaxParams{}) && has_only(s[1], TopkParams{.renormalised = true}) ? 2 : 0;
}

std::size_t paired_steps(std::span<const Step> s) {
  if (!are(s, {Op::expert_linear, Op::expert_linear})) return 0;
  const bool of_one = s[0].in[0] == s[1].in[0] && s[0].in[1] == s[1].in[1] && s[0].out[0] != s[1].in[0];
  const bool computed = has_only(s[0], {}, 1) && has_only(s[1], {}, 1);
  return of_one && computed && same_kind(*s[0].weights[0], *s[1].weights[0]) ? 2 : 0;
}

std::size_t gated_steps(std::span<const Step> s) {
  if (paired_steps(s) == 0 || s.size() < 3 || s[2].op != Op::swiglu) return 0;
  return feeds(s[0], s[2], 0) && feeds(s[1], s[2], 1) && has_only(s[2], {}) ? 3 : 0;
}

Sum sum_steps(std::span<const Step> s, int hidden) {
  Sum sum;
  if (are(s, {Op::weigh, Op::combine, Op::add}) && feeds(s[0], s[1], 0) && feeds(s[1], s[2], 1) &&
      s[2].in[0] != s[1].out[0] && has_only(s[0], {}) && has_only(s[1], {}) && has_only(s[2], {})) {
    sum.weigh = &s[0];
    sum.steps = 2;
  } else if (!are(s, {Op::add}) || !has_only(s[0], {})) {
    return sum;
  }
  sum.add = &s[sum.steps++];
  if (sum.steps < s.size() && s[sum.steps].op == Op::rms_norm && feeds(*sum.add, s[sum.steps], 0) &&
      has_only(s[sum.steps], RmsNormParams{.width = hidden, .eps = s[sum.steps].as<RmsNormParams>().eps}, 1))
    sum.norm = &s[sum.steps++];
  return sum;
}

}  // namespace moe_diag::cuda
