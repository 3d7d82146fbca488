// SPDX-License-Identifier: MIT
// Every cause made by the plain operators on real steps of the tiny model, and what the explanation calls it.
#include "core/compare/explain_step.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "core/api/error.hpp"
#include "core/compare/expected.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/step_bench.hpp"

namespace moe_diag::test {
namespace {

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
  bool is_attention() const { return case_.stage == Stage::attn_scores || case_.stage == Stage::attn_softmax; }
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
    const bool heads = step_.op != Op::linear && info(case_.stage).row[1] == Dim::head_dim;
    const std::int64_t h = config_.head_dim;
    if (heads || case_.stage == Stage::attention) {
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
        const Values y = host::linear(matrix_of(expert), change ? change(x) : x);
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
        add(StepCause::wrong_tensor, "output.weight", table(Matrix(bench_.model().output())));
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
    add(StepCause::transposed, fmt::format("{} transposed", own.name), with(part, transposed(own)));
    if (step_.layer >= 0)
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
    if (own.name.find("attn_k.") != std::string_view::npos)
      add(StepCause::wrong_tensor, "v for k", with(part, [&](std::int32_t) { return Matrix(*step_.weights[2]); }));
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
        return host::rms_norm(
            std::span(x).subspan(static_cast<std::size_t>(step_.params.offset), static_cast<std::size_t>(width_)),
            weight, {step_.params.eps, normalise});
      });
    };
    add(StepCause::skipped, "not normalised", norm(w, false));
    add(StepCause::skipped, "not weighed", norm(ones, true));
    add(StepCause::skipped, "neither", norm(ones, false));
    if (step_.layer >= 0)
      add(StepCause::wrong_tensor, "another layer's norm", norm(host::decode_row(Matrix(other_layer(0)), 0), true));
  }

  void of_rope() {
    const auto rope = [&](std::int64_t shift, host::RopeOptions options) {
      return by_row([&](std::int64_t r) {
        return host::rope(host::values_of(case_.in[0], r, 1), config_.head_dim, r + shift, options);
      });
    };
    for (double theta : {1e4, 5e5, 1e7, 2.5e5, 12300.0, 5e6})
      add(StepCause::rope_theta, fmt::format("theta {}", theta), rope(0, {theta}));
    add(StepCause::permutation, "pairs of neighbours", rope(0, {step_.params.theta, host::RopePairs::neighbours}));
    add(StepCause::shifted_position, "one position on", rope(1, {step_.params.theta}));
    add(StepCause::shifted_position, "one position back", rope(-1, {step_.params.theta}));
    add(StepCause::skipped, "not rotated", host::values_of(case_.in[0]));
    add(StepCause::plain_operator, "seven positions on", rope(7, {step_.params.theta}));
  }

  void of_cache() {
    const std::int64_t width = config_.kv_width(), offset = step_.op == Op::mix ? step_.params.offset : 0;
    Values cache;
    for (std::int64_t r = 0; r < rows_; ++r) {
      const Values row = host::values_of(case_.in[1], r, 1);
      cache.insert(cache.end(), row.begin() + offset, row.begin() + offset + width);
    }
    const auto attend = [&](auto edit) {
      return by_row([&](std::int64_t r) {
        Values edited = cache;
        edit(edited, r);
        const host::Attention attention{config_.heads, config_.kv_heads, config_.head_dim, r + 1, rows_};
        const Values x = host::values_of(case_.in[0], r, 1);
        return step_.op == Op::scores ? host::scores(attention, x, edited, step_.params.scale)
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
    if (!step_.params.causal) return;
    add(StepCause::skipped, "no mask",
        by_row([&](std::int64_t r) { return host::softmax(host::values_of(case_.in[0], r, 1), rows_, rows_); }));
  }

  void of_router() {
    const auto shares = [&](auto share) {
      return by_row([&](std::int64_t r) {
        const Values probs = host::values_of(case_.in[0], r, 1);
        const host::Chosen chosen = host::topk(probs, config_.used);
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
std::vector<float> stored(const Values& values, const StepCase& c, const ModelConfig& config, std::mt19937& random) {
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

void flip(float& value, int bit) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits ^= 1u << bit;
  std::memcpy(&value, &bits, sizeof bits);
}

struct Score {
  int right = 0, unmoved = 0;
  std::vector<std::string> wrong, merely;
};

void judge(Score& score, const StepBench& bench, const StepCase& c, const Made& made, const std::string& where) {
  const StepExplanation e = bench.explain(c);
  const std::string line = fmt::format("{}: {}: {} ({}), {:.3g} -> {:.3g}; {}", where, made.name, name_of(e.cause),
                                       e.text, e.error, e.left, e.footprint.text);
  if (e.cause == made.cause)
    ++score.right;
  else if (e.cause == StepCause::none || e.error < failing_error)
    ++score.unmoved;
  else if (e.cause == StepCause::plain_operator)
    score.merely.push_back(line);
  else
    score.wrong.push_back(line);
}

Score score_of(const SyntheticSpec& spec, const std::string& numerics, const std::set<int>& layers) {
  StepBench bench(spec, "f32", {3, 141, 59, 26, 500, 0, 7});
  std::mt19937 random(static_cast<unsigned>(spec.seed) + 1);
  Score score;
  for (const Step& step : bench.program()) {
    if (layers.count(step.layer) == 0) continue;
    for (Stage stage : step.out) {
      if (info(stage).payload == Payload::indices) continue;
      StepCase c = bench.clean(step, stage);
      c.numerics = numerics;
      for (const Made& made : Faults(bench, c, static_cast<unsigned>(spec.seed) + 7).make()) {
        std::vector<float> values = stored(made.values, c, bench.config(), random);
        if (made.bit >= 0) flip(values[made.element], made.bit);
        c.a.data = values.data();
        judge(score, bench, c, made,
              fmt::format("{} {} layer {} {}", to_string(spec), numerics, step.layer, name_of(stage)));
      }
    }
  }
  return score;
}

void check(const Score& score) {
  for (const std::string& line : score.wrong) UNSCOPED_INFO("wrong: " << line);
  for (const std::string& line : score.merely) UNSCOPED_INFO("merely operator: " << line);
  INFO(score.right << " right, " << score.unmoved << " moved too little to count");
  CHECK(score.wrong.empty());
  CHECK(score.right > 500);
  CHECK(score.merely.size() * 20 < static_cast<std::size_t>(score.right));
}

}  // namespace

TEST_CASE("each cause is named, and none falsely: f32") {
  check(score_of({"tiny", 0, "q4_k_m", 7}, "f32", {-1, 0, 2}));
}

TEST_CASE("each cause is named, and none falsely: bf16") {
  check(score_of({"tiny", 0, "q4_k_m", 8}, "bf16", {-1, 1, 3}));
}

TEST_CASE("each cause is named, and none falsely: other types of weights") {
  check(score_of({"tiny", 3, "q6_k", 9}, "f32", {-1, 1}));
  check(score_of({"tiny", 3, "f32", 10}, "f32", {-1, 2}));
}

TEST_CASE("nothing is explained where nothing is wrong: every numerics") {
  for (const std::string numerics : {"f32", "bf16", "q8_k"})
    for (const std::string quant : {"q4_k_m", "q8_0", "q6_k", "bf16"})
      for (std::uint64_t seed = 0; seed < 3; ++seed) {
        StepBench bench({"tiny", 0, quant, seed}, numerics, {5, 17, 400, 33, 2, 2, 90, 411, 8});
        for (const Step& step : bench.program())
          for (Stage stage : step.out) {
            const StepExplanation e = bench.explain(bench.clean(step, stage));
            INFO(numerics << ", " << quant << ", seed " << seed << ", layer " << step.layer << ", " << name_of(stage));
            CHECK(e.cause == StepCause::none);
            CHECK(e.text.empty());
            CHECK(e.footprint.wrong == 0);
            CHECK(e.footprint.text.empty());
          }
      }
}

namespace {

// A clean case of the bench whose values can be changed.
struct Changed {
  StepBench& bench;
  StepCase c;
  std::vector<float> values;

  Changed(StepBench& of, Stage stage, int layer)
      : bench(of), c(of.clean(*find_step(of.program(), {stage, layer}), stage)) {
    values.assign(c.a.as<float>(), c.a.as<float>() + c.a.shape.count());
    c.a.data = values.data();
  }
  float& at(std::int64_t row, std::int64_t column) {
    return values[static_cast<std::size_t>(row * c.a.shape.row() + column)];
  }
  StepExplanation explain() const { return bench.explain(c); }
};

const std::vector<std::int32_t> few_tokens{5, 17, 400, 33, 2, 2, 90};

}  // namespace

TEST_CASE("the footprint says which rows, columns and experts are wrong") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  SECTION("columns of all rows") {
    Changed changed(bench, Stage::attn_out, 1);
    for (int r = 0; r < 7; ++r)
      for (int k = 128; k < 256; ++k) changed.at(r, k) = 0;
    const StepExplanation e = changed.explain();
    CHECK(e.cause == StepCause::zero);
    CHECK(e.footprint.text == "columns 128..255 of all rows");
    CHECK(e.footprint.wrong > 7 * 120);
    CHECK(e.footprint.compared == 7 * 256);
  }
  SECTION("every fourth column of some rows") {
    Changed changed(bench, Stage::ffn_norm, 0);
    for (int r : {2, 3, 6})
      for (int k = 1; k < 256; k += 4) changed.at(r, k) *= 1.5F;
    const StepExplanation e = changed.explain();
    CHECK(e.cause == StepCause::scale);
    CHECK(e.factor == Approx(1.5).epsilon(1e-6));
    CHECK(e.text == "multiplied by 1.5");
    CHECK(e.footprint.text == "every 4th column from 1 to 253 of positions 2..3, 6");
    CHECK(e.footprint.positions == std::vector<int>{2, 3, 6});
  }
  SECTION("one element") {
    Changed changed(bench, Stage::moe_ffn_out, 2);
    flip(changed.at(4, 77), 29);
    const StepExplanation e = changed.explain();
    CHECK(e.cause == StepCause::bitflip);
    CHECK(e.text == "bit 29 of element 77 is flipped");
    CHECK(e.footprint.text == "column 77 of position 4");
    CHECK(e.footprint.wrong == 1);
  }
  SECTION("an expert") {
    Changed changed(bench, Stage::moe_expert_up, 2);
    const auto* ids = changed.c.routing_a.as<std::int32_t>();
    const std::int32_t expert = ids[0];
    const std::int64_t width = bench.config().expert_width;
    std::int64_t rows = 0;
    for (std::int64_t i = 0; i < 7 * 3; ++i)
      if (ids[i] == expert)
        for (std::int64_t k = (++rows, 0); k < width; ++k)
          changed.values[static_cast<std::size_t>(i * width + k)] *= -2;
    const StepExplanation e = changed.explain();
    CHECK(e.cause == StepCause::scale);
    REQUIRE(e.footprint.experts.size() == 1);
    CHECK(e.footprint.experts[0].expert == expert);
    CHECK(e.footprint.experts[0].rows == rows);
    CHECK_THAT(e.footprint.text,
               Catch::Matchers::Contains(fmt::format("expert {} only, all its rows; all columns of", expert)));
  }
}

TEST_CASE("texts name tensors, types, experts and numbers") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  const auto explained = [&](Stage stage, int layer, const Values& values) {
    Changed changed(bench, stage, layer);
    REQUIRE(values.size() == changed.values.size());
    std::copy(values.begin(), values.end(), changed.values.begin());
    return changed.explain();
  };
  const StepCase down = bench.clean(*find_step(bench.program(), {Stage::moe_expert_out, 1}), Stage::moe_expert_out);
  const Weight& weight = *down.step->weights[0];
  std::vector<std::int32_t> ids(down.routing_a.as<std::int32_t>(), down.routing_a.as<std::int32_t>() + 21);
  const Values x = host::values_of(down.in[0]);

  for (std::int32_t& id : ids) id = (id + 1) % 12;
  CHECK(explained(Stage::moe_expert_out, 1, host::expert_linear(Matrix(weight), ids, 3, x)).text ==
        "each expert computed with the weights of expert (id + 1) mod 12");
  for (std::int32_t& id : ids) id = (id + 11) % 12;
  CHECK(explained(Stage::moe_expert_out, 1,
                  host::expert_linear(Matrix(*bench.model().layers()[3].ffn_down_exps), ids, 3, x))
            .text == "computed with blk.3.ffn_down_exps.weight instead of blk.1.ffn_down_exps.weight");
  Matrix retyped(weight);
  retyped.type = weight.type == BlockType::q4_k ? BlockType::q6_k : BlockType::q4_k;
  CHECK(explained(Stage::moe_expert_out, 1, host::expert_linear(retyped, ids, 3, x)).text ==
        fmt::format("blk.1.ffn_down_exps.weight ({}) read as {}", name_of(weight.type), name_of(retyped.type)));
}

TEST_CASE("experts chosen without the best one are named so, others are not") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  StepCase c = bench.clean(*find_step(bench.program(), {Stage::moe_router_indices, 1}), Stage::moe_router_indices);
  std::vector<std::int32_t> ids(c.a.as<std::int32_t>(), c.a.as<std::int32_t>() + c.a.shape.count());
  c.a.data = ids.data();
  const host::Chosen best = host::topk(host::values_of(c.in[0], 2, 1), 5);
  std::copy_n(best.experts.begin() + 1, 3, ids.begin() + 6);
  StepExplanation e = bench.explain(c);
  CHECK(e.cause == StepCause::dropped_expert);
  CHECK(e.footprint.text == "1 of 21 experts chosen, in 1 of 7 rows");
  CHECK(e.footprint.positions == std::vector<int>{2});
  ids[6] = best.experts[4];
  CHECK(bench.explain(c).cause == StepCause::plain_operator);
}

TEST_CASE("values that are not finite are explained when their cause is") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  Changed changed(bench, Stage::moe_ffn_out, 1);
  changed.at(1, 5) = NAN;
  StepExplanation e = changed.explain();
  CHECK(e.cause == StepCause::plain_operator);
  CHECK(std::isinf(e.error));
  CHECK(e.footprint.text == "column 5 of position 1");
}

TEST_CASE("tensors that do not fit the step are refused, and inputs that are not known explain less") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  const Changed whole(bench, Stage::q_post_rope, 1);
  const auto refused = [&](auto change) {
    StepCase c = whole.c;
    change(c);
    CHECK_THROWS_AS(bench.explain(c), Error);
  };
  refused([](StepCase& c) { c.b = {}; });
  refused([](StepCase& c) { c.a.shape.dims[0] = 6; });
  refused([](StepCase& c) { c.in[0].shape.dims[0] = 6; });
  refused([](StepCase& c) { c.stage = Stage::attn_out; });
  refused([](StepCase& c) { c.numerics = "f16"; });
  Changed experts(bench, Stage::moe_expert_out, 1);
  experts.c.routing_a = {};
  CHECK_THROWS_WITH(experts.explain(), "explaining moe_expert_out of layer 1: the experts chosen are not known");

  Changed turned(bench, Stage::q_post_rope, 1);
  for (std::int64_t r = 0; r < 7; ++r) {
    const Values row = host::rope(host::values_of(turned.c.in[0], r, 1), bench.config().head_dim, r, {1e4});
    std::copy(row.begin(), row.end(), turned.values.begin() + r * static_cast<std::int64_t>(row.size()));
  }
  CHECK(turned.explain().text == "rotated with theta 10000 instead of 1e+06");
  turned.c.in[0] = {};
  CHECK(turned.explain().cause == StepCause::plain_operator);
}

}  // namespace moe_diag::test
