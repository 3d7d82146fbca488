// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/compare/explain_step.hpp"
#include "core/ops/predicted.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/step_bench.hpp"

namespace moe_diag::test {

using host::Matrix;
using host::Values;

// A step computed wrongly: all rows of its output.
struct Made {
  StepCause cause = StepCause::plain_operator;
  std::string name;
  Values values;
  int bit = -1;  // flipped in `element` of what is stored
  std::size_t element = 0;
};

// Computes the wrong outputs of one step.
class Faults {
 public:
  Faults(StepBench& bench, const StepCase& c, unsigned seed)
      : bench_(bench), case_(c), step_(*c.step), config_(bench.config()), random_(seed), right_(host::values_of(c.b)) {
    rows_ = c.a.shape[0];
    width_ = c.a.shape.row();
  }

  std::vector<Made> make() {
    of_values();
    of_weights();
    switch (step_.op) {
      case Op::rms_norm: of_norm(); break;
      case Op::rope: of_rope(); break;
      case Op::scores:
      case Op::mix: of_cache(); break;
      case Op::softmax: of_softmax(); break;
      case Op::topk: of_router(); break;
      case Op::combine: of_combine(); break;
      case Op::weigh: of_weigh(); break;
      case Op::sigmoid_gate: of_gate(); break;
      default: break;
    }
    of_nothing_known();
    return std::move(made_);
  }

 private:
  void add(StepCause cause, std::string name, Values values) {
    if (static_cast<std::int64_t>(values.size()) == rows_ * width_)
      made_.push_back({cause, std::move(name), std::move(values)});
    else
      FAIL("a fault of the wrong size: " << name);
  }
  double gauss() { return normal_(random_); }
  std::int64_t pick(std::int64_t n) { return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n)); }
  double& at(Values& v, std::int64_t row, std::int64_t column) const {
    return v[static_cast<std::size_t>(row * width_ + column)];
  }
  bool is_attention() const { return is(case_.stage, Role::key_values); }
  // Columns of a row that are compared.
  bool seen(std::int64_t row, std::int64_t column) const { return !is_attention() || column % case_.a.shape[2] <= row; }

  template <class F>
  Values each(F f) const {
    Values v = right_;
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t c = 0; c < width_; ++c) at(v, r, c) = f(at(v, r, c), r, c);
    return v;
  }
  // Column c holds what column from(c) should.
  template <class F>
  Values moved(F from) {
    return each([&](double, std::int64_t r, std::int64_t c) { return at(right_, r, from(c)); });
  }
  template <class F>
  Values by_row(F f) const {
    Values all;
    for (std::int64_t r = 0; r < rows_; ++r) {
      const Values row = f(r);
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }

  void of_values() {
    for (double factor : {1.5, -1.0, 0.01, 8.0})
      add(StepCause::scale, fmt::format("scaled by {}", factor),
          each([&](double v, std::int64_t, std::int64_t) { return v * factor; }));
    const std::int64_t last = rows_ - 1;
    add(StepCause::scale, "last row scaled",
        each([&](double v, std::int64_t r, std::int64_t) { return r == last ? v * 3 : v; }));
    add(StepCause::zero, "zero", Values(right_.size(), 0.0));
    if (!is_attention() && step_.op != Op::topk)
      add(StepCause::zero, "a column zero",
          each(
              [column = pick(width_) / 2 * 2](double v, std::int64_t, std::int64_t c) { return c == column ? 0 : v; }));
    const std::int64_t part = is_per_expert(case_.stage) ? width_ / config_.used : width_;
    if (part >= 64 && !is_attention()) {
      add(StepCause::scale, "a quarter of the columns scaled", each([&](double v, std::int64_t, std::int64_t c) {
            return c % part >= part / 4 && c % part < part / 2 ? 2 * v : v;
          }));
      add(StepCause::zero, "every fourth column zero",
          each([](double v, std::int64_t, std::int64_t c) { return c % 4 == 1 ? 0 : v; }));
    }
    of_places();
    for (int bit : {30, 31, 28, 24}) of_bit(bit);
    if (!is_per_expert(case_.stage) && !is_attention())
      add(StepCause::shifted_position, "rows of the position after",
          each([&](double v, std::int64_t r, std::int64_t c) { return r + 1 < rows_ ? at(right_, r + 1, c) : v; }));
    if (width_ % 32 == 0 && !is_attention())
      add(StepCause::rounded_activations, "the output in Q8_0", by_row([&](std::int64_t r) {
            return host::rounded(
                std::span(right_).subspan(static_cast<std::size_t>(r * width_), static_cast<std::size_t>(width_)),
                host::Rounding::q8_0);
          }));
  }

  void of_bit(int bit) {
    add(StepCause::bitflip, fmt::format("bit {}", bit), right_);
    made_.back().bit = bit;
    made_.back().element = static_cast<std::size_t>((rows_ - 1) * width_ + (is_attention() ? 0 : pick(width_)));
  }

  void of_places() {
    const bool heads = step_.op != Op::linear && is_of_heads(case_.stage) && !info(case_.stage).row[1].symbol.empty();
    const std::int64_t h = config_.head_dim;
    if (heads || name_of(case_.stage) == "attention") {
      add(StepCause::permutation, "neighbouring heads swapped",
          moved([&](std::int64_t c) { return (c / h ^ 1) * h + c % h; }));
      add(StepCause::permutation, "pairs made halves",
          moved([&](std::int64_t c) { return c / h * h + c % h % (h / 2) * 2 + c % h / (h / 2); }));
      add(StepCause::permutation, "halves made pairs",
          moved([&](std::int64_t c) { return c / h * h + c % 2 * (h / 2) + c % h / 2; }));
      add(StepCause::permutation, "heads turned",
          moved([&](std::int64_t c) { return c % (width_ / h) * h + c / (width_ / h); }));
    }
    if (is_attention()) {
      const std::int64_t s = case_.a.shape[2];
      add(StepCause::permutation, "neighbouring heads swapped",
          moved([&](std::int64_t c) { return (c / s ^ 1) * s + c % s; }));
    }
    if (width_ >= 64 && !is_per_expert(case_.stage) && !is_attention() && step_.op != Op::linear) {
      add(StepCause::permutation, "a row reversed", moved([&](std::int64_t c) { return width_ - 1 - c; }));
    }
  }

  // ---- weights ----

  // The output when weight i is replaced by the matrix, all other columns right.
  Values with(std::size_t part, const std::function<Matrix(std::int32_t)>& matrix_of,
              const std::function<Values(const Values&)>& change = {}) {
    Values v = right_;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < part; ++i) first += step_.weights[i]->rows;
    const bool experts = step_.op == Op::expert_linear;
    const std::int64_t slots = experts ? config_.used : 1, rows = step_.weights[part]->rows,
                       cols = step_.weights[part]->cols;
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t slot = 0; slot < slots; ++slot) {
        const std::int32_t expert = experts ? case_.routing_a.as<std::int32_t>()[r * slots + slot] : 0;
        Values x = host::values_of(case_.in[0], r, 1);
        if (static_cast<std::int64_t>(x.size()) != cols)
          x = Values(x.begin() + slot * cols, x.begin() + (slot + 1) * cols);
        Values y = host::linear(matrix_of(expert), change ? change(x) : x);
        if (const Weight* bias = step_.bias(part)) host::add_bias(*bias, y);
        std::copy(y.begin(), y.end(), v.begin() + r * width_ + slot * rows + first);
      }
    return v;
  }
  Values table(const Matrix& matrix) { return host::embed(matrix, bench_.tokens()); }

  void of_weights() {
    for (std::size_t part = 0; part < step_.weights.size(); ++part) {
      const Weight& own = *step_.weights[part];
      if (step_.op == Op::linear || step_.op == Op::expert_linear) of_product(part, own);
      if (step_.op == Op::embed) {
        add(StepCause::wrong_tensor, "output.weight", table(Matrix(bench_.model().weight("output"))));
        Matrix transposed(own);
        transposed.transposed = true;
        add(StepCause::transposed, "table transposed", table(transposed));
      }
    }
  }

  const Weight& other_layer(std::size_t part) {
    const int other = (step_.layer + 1 + static_cast<int>(pick(config_.layers - 1))) % config_.layers;
    return *find_step(bench_.program(), {step_.out[0], other})->weights[part];
  }

  void of_product(std::size_t part, const Weight& own) {
    if (step_.layer >= 0) {
      const Weight& other = other_layer(part);
      add(StepCause::wrong_tensor, fmt::format("{} for {}", other.name, own.name),
          with(part, [&](std::int32_t e) { return Matrix(other, e); }));
    }
    const auto transposed = [&](const Weight& w) {
      return [&w](std::int32_t e) {
        Matrix matrix(w, e);
        matrix.transposed = true;
        return matrix;
      };
    };
    if (own.rows > 1) add(StepCause::transposed, fmt::format("{} transposed", own.name), with(part, transposed(own)));
    if (step_.layer >= 0 && own.rows > 1)
      add(StepCause::plain_operator, "another layer's, transposed", with(part, transposed(other_layer(part))));
    for (const BlockInfo& type : block_table) {
      if (type.type == own.type || type.type == BlockType::f32 || type.type == BlockType::f16) continue;
      add(StepCause::wrong_type, fmt::format("{} as {}", own.name, type.name), with(part, [&](std::int32_t e) {
            Matrix matrix(own, e);
            matrix.type = type.type;
            return matrix;
          }));
    }
    for (host::Rounding rounding : {host::Rounding::q8_0, host::Rounding::q8_1, host::Rounding::q8_k})
      add(StepCause::rounded_activations, fmt::format("{} with {}", own.name, host::name_of(rounding)),
          with(
              part, [&](std::int32_t e) { return Matrix(own, e); },
              [&](const Values& x) { return host::rounded(x, rounding); }));
    if (step_.op == Op::expert_linear) of_experts(part, own);
    if (const Weight* bias = step_.bias(part)) of_bias(part, *bias);
    if (own.name.find("attn_k.") != std::string_view::npos)
      add(StepCause::wrong_tensor, "v for k", with(part, [&](std::int32_t) { return Matrix(*step_.weights[2]); }));
  }

  void of_bias(std::size_t part, const Weight& bias) {
    Values v = right_;
    const Values added = host::decode_row(Matrix(bias), 0);
    std::int64_t first = 0;
    for (std::size_t i = 0; i < part; ++i) first += step_.weights[i]->rows;
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::size_t i = 0; i < added.size(); ++i) at(v, r, first + static_cast<std::int64_t>(i)) -= added[i];
    add(StepCause::skipped, fmt::format("without {}", bias.name), v);
  }

  void of_experts(std::size_t part, const Weight& own) {
    const std::int64_t n = own.experts;
    add(StepCause::wrong_tensor, "the next expert",
        with(part, [&](std::int32_t e) { return Matrix(own, (e + 1) % n); }));
    add(StepCause::wrong_tensor, "the experts in reverse",
        with(part, [&](std::int32_t e) { return Matrix(own, n - 1 - e); }));
    const std::int32_t one = case_.routing_a.as<std::int32_t>()[0];
    add(StepCause::wrong_tensor, "one other expert",
        with(part, [&](std::int32_t e) { return Matrix(own, e == one ? (one + 5) % n : e); }));
  }

  // ---- operators ----

  void of_norm() {
    const Values w = host::decode_row(Matrix(*step_.weights[0]), 0), ones(w.size(), 1.0);
    const auto norm = [&](const Values& weight, bool normalise) {
      return by_row([&](std::int64_t r) {
        const Values x = host::values_of(case_.in[0], r, 1);
        return host::rms_norm(std::span(x).subspan(static_cast<std::size_t>(step_.as<RmsNormParams>().offset),
                                                   static_cast<std::size_t>(width_)),
                              weight, {step_.as<RmsNormParams>().eps, normalise});
      });
    };
    add(StepCause::skipped, "not normalised", norm(w, false));
    add(StepCause::skipped, "not weighed", norm(ones, true));
    add(StepCause::skipped, "neither", norm(ones, false));
    if (step_.layer >= 0)
      add(StepCause::wrong_tensor, "another layer's norm", norm(host::decode_row(Matrix(other_layer(0)), 0), true));
  }

  // The columns of a row that are rotated.
  Values heads(std::int64_t r) const {
    const Values row = host::values_of(case_.in[0], r, 1);
    const auto from = row.begin() + step_.as<RopeParams>().offset;
    return {from, from + width_};
  }

  void of_gate() {
    const auto by = [&](auto factor) {
      return by_row([&](std::int64_t r) {
        Values x = host::values_of(case_.in[0], r, 1);
        for (double& value : x) value *= factor(host::values_of(case_.in[1], r, 1)[0]);
        return x;
      });
    };
    add(StepCause::skipped, "without its gate", by([](double) { return 1.0; }));
    add(StepCause::skipped, "by the logit itself", by([](double x) { return x; }));
    add(StepCause::plain_operator, "by the tanh", by([](double x) { return std::tanh(x); }));
  }

  void of_rope() {
    const auto rope = [&](std::int64_t shift, host::RopeOptions options) {
      return by_row([&](std::int64_t r) { return host::rope(heads(r), config_.head_dim, r + shift, options); });
    };
    for (double theta : {1e4, 5e5, 1e7, 2.5e5, 12300.0, 5e6})
      add(StepCause::rope_theta, fmt::format("theta {}", theta), rope(0, {theta}));
    add(StepCause::permutation, "pairs of neighbours",
        rope(0, {step_.as<RopeParams>().theta, host::RopePairs::neighbours}));
    add(StepCause::shifted_position, "one position on", rope(1, {step_.as<RopeParams>().theta}));
    add(StepCause::shifted_position, "one position back", rope(-1, {step_.as<RopeParams>().theta}));
    add(StepCause::skipped, "not rotated", by_row([&](std::int64_t r) { return heads(r); }));
    add(StepCause::shifted_position, "seven positions on", rope(7, {step_.as<RopeParams>().theta}));
  }

  void of_cache() {
    const std::int64_t width = config_.kv_width(), offset = step_.caches[0].column;
    Values cache;
    for (std::int64_t r = 0; r < rows_; ++r) {
      const Values row = host::values_of(case_.in[1], r, 1);
      cache.insert(cache.end(), row.begin() + offset, row.begin() + offset + width);
    }
    const auto attend = [&](auto edit) {
      return by_row([&](std::int64_t r) {
        Values edited = cache;
        edit(edited, r);
        const host::Attention attention(head_sizes(step_), r + 1, rows_, config_.kv_width());
        const Values x = host::values_of(case_.in[0], r, 1);
        return step_.op == Op::scores ? host::scores(attention, x, edited, step_.as<ScoresParams>().scale)
                                      : host::mix(attention, x, edited);
      });
    };
    const auto copy = [width](Values& v, std::int64_t from, std::int64_t to) {
      std::copy_n(v.begin() + from * width, width, v.begin() + to * width);
    };
    add(StepCause::stale_kv, "own entry is the one before",
        attend([&](Values& v, std::int64_t r) { copy(v, std::max<std::int64_t>(r - 1, 0), r); }));
    add(StepCause::stale_kv, "own entry is zero",
        attend([&](Values& v, std::int64_t r) { std::fill_n(v.begin() + r * width, width, 0.0); }));
    add(StepCause::stale_kv, "entry 2 is entry 1", attend([&](Values& v, std::int64_t) { copy(v, 1, 2); }));
    add(StepCause::stale_kv, "entries one on",
        attend([&](Values& v, std::int64_t) { std::copy_backward(v.begin(), v.end() - width, v.end()); }));
    add(StepCause::plain_operator, "entries reversed", attend([&](Values& v, std::int64_t r) {
          for (std::int64_t s = 0; s < r; ++s)
            std::copy_n(cache.begin() + (r - s) * width, width, v.begin() + s * width);
        }));
  }

  void of_softmax() {
    if (!step_.as<SoftmaxParams>().causal) return;
    add(StepCause::skipped, "no mask",
        by_row([&](std::int64_t r) { return host::softmax(host::values_of(case_.in[0], r, 1), rows_, rows_); }));
  }

  void of_router() {
    const auto shares = [&](auto share) {
      return by_row([&](std::int64_t r) {
        const Values probs = host::values_of(case_.in[0], r, 1);
        const host::Chosen chosen = host::topk(probs, config_.used, step_.as<TopkParams>().renormalised);
        Values out;
        for (std::size_t slot = 0; slot < chosen.weights.size(); ++slot)
          out.push_back(share(chosen.weights, probs[static_cast<std::size_t>(chosen.experts[slot])], slot));
        return out;
      });
    };
    const double k = config_.used;
    add(StepCause::uniform_weights, "uniform", shares([&](const Values&, double, std::size_t) { return 1 / k; }));
    add(StepCause::skipped, "not divided", shares([](const Values&, double p, std::size_t) { return p; }));
    add(StepCause::dropped_expert, "best dropped",
        shares([](const Values& w, double, std::size_t slot) { return slot == 0 ? 0 : w[slot]; }));
    add(StepCause::dropped_expert, "best dropped, others share",
        shares([](const Values& w, double, std::size_t slot) { return slot == 0 ? 0 : w[slot] / (1 - w[0]); }));
  }

  void of_combine() {
    add(StepCause::dropped_expert, "best not added", by_row([&](std::int64_t r) {
          Values x = host::values_of(case_.in[0], r, 1);
          std::fill_n(x.begin(), width_, 0.0);
          return host::combine(x, config_.used);
        }));
  }

  void of_weigh() {
    add(StepCause::skipped, "not weighed", host::values_of(case_.in[0]));
    add(StepCause::uniform_weights, "uniform", by_row([&](std::int64_t r) {
          return host::weigh(host::values_of(case_.in[0], r, 1),
                             Values(static_cast<std::size_t>(config_.used), 1.0 / config_.used));
        }));
  }

  void of_nothing_known() {
    add(StepCause::plain_operator, "noise",
        each([&](double v, std::int64_t, std::int64_t) { return v * (1 + 0.3 * gauss()); }));
    add(StepCause::plain_operator, "squares",
        each([](double v, std::int64_t, std::int64_t) { return v * std::fabs(v); }));
    if (case_.a.shape.rank < 3 && width_ > 8)
      add(StepCause::plain_operator, "another factor a row",
          each([](double v, std::int64_t r, std::int64_t) { return v * (1.5 + 0.37 * static_cast<double>(r)); }));
    add(StepCause::plain_operator, "one element",
        each([&](double v, std::int64_t r, std::int64_t c) { return r == rows_ - 1 && c == 0 ? v * 1.3 + 0.7 : v; }));
  }

  StepBench& bench_;
  const StepCase& case_;
  const Step& step_;
  const ModelConfig& config_;
  std::mt19937 random_;
  std::normal_distribution<double> normal_;
  Values right_;
  std::int64_t rows_ = 0, width_ = 0;
  std::vector<Made> made_;
};

// As a lane of those numerics would have stored them: with the error it is expected to make, in f32.
inline std::vector<float> stored(const Values& values, const StepCase& c, const ModelConfig& config,
                                 std::mt19937& random) {
  std::normal_distribution<double> normal;
  const bool product = c.step->op == Op::linear || c.step->op == Op::expert_linear;
  std::vector<std::int64_t> runs;  // of a row: what one weight, or one expert, gives
  for (const Weight* w : c.step->weights) runs.push_back(w->rows);
  if (c.step->op != Op::linear)
    runs.assign(static_cast<std::size_t>(c.a.shape.rank == 3 ? c.a.shape[1] : 1),
                c.a.shape.row() / (c.a.shape.rank == 3 ? c.a.shape[1] : 1));
  std::vector<float> out;
  for (int row = 0; row < static_cast<int>(c.a.shape[0]); ++row)
    for (std::int64_t run : runs) {
      const auto some = std::span(values).subspan(out.size(), static_cast<std::size_t>(run));
      const double e = *expected_error(c.numerics, *c.step, config, row + 1);
      double squares = 0;
      for (double v : some) squares += std::isfinite(v) ? v * v : 0;
      const double rms = std::sqrt(squares / static_cast<double>(run));
      // Elements of a product are off by as much each, unless some are far larger; what is zero on purpose stays it.
      for (double v : some)
        out.push_back(
            static_cast<float>(v + e * normal(random) * (product ? std::min(rms, 5 * std::fabs(v)) : std::fabs(v))));
    }
  return out;
}

inline void flip(float& value, int bit) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits ^= 1u << bit;
  std::memcpy(&value, &bits, sizeof bits);
}

}  // namespace moe_diag::test
