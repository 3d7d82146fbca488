// SPDX-License-Identifier: MIT
// The plain operators against the f64 lane, step by step on the lane's own values, and told to compute wrongly.
#include <cmath>
#include <numeric>

#include "core/api/error.hpp"
#include "core/ops/plain.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

using host::Values;

constexpr double bound = 1e-12;
const std::vector<std::int32_t> tokens{3, 141, 59, 26, 500, 0, 7};

// What one lane holds of a step that was run: the values it read and the values it wrote.
class Seats {
 public:
  Seats(const Model& model, Recorder& recorder, const Step& step)
      : config_(model.config()), recorder_(recorder), step_(step) {}

  const Step& step() const { return step_; }
  const ModelConfig& config() const { return config_; }
  Tensor tensor(Stage stage) {
    const bool of_model = info(stage).scope != Scope::layer;
    return recorder_.at(0, {stage, of_model ? -1 : step_.layer}).tensor();
  }
  // Input i; post_ffn_residual is the layer before's.
  Tensor in(std::size_t i) {
    const Stage stage = step_.in[i];
    if (!is(stage, Role::layer_output)) return tensor(stage);
    return recorder_.at(0, {stage, (step_.layer < 0 ? config_.layers : step_.layer) - 1}).tensor();
  }
  Values row(std::size_t i, std::int64_t r) { return host::values_of(in(i), r, 1); }
  std::vector<std::int32_t> experts() {
    const Tensor t = tensor(config_.stages.of(Role::choice));
    return {t.as<std::int32_t>(), t.as<std::int32_t>() + t.shape.count()};
  }

 private:
  const ModelConfig& config_;
  Recorder& recorder_;
  const Step& step_;
};

Values part(const Values& x, std::int64_t from, std::int64_t count) {
  return {x.begin() + from, x.begin() + from + count};
}

// Columns [offset, offset + width) of every one of the rows of x.
Values columns(const Values& x, std::int64_t row, std::int64_t offset, std::int64_t width) {
  Values out;
  for (std::int64_t at = 0; at < static_cast<std::int64_t>(x.size()); at += row) {
    const Values some = part(x, at + offset, width);
    out.insert(out.end(), some.begin(), some.end());
  }
  return out;
}

Values linear_of(Seats& seats) {
  std::vector<Values> parts;
  const Values x = host::values_of(seats.in(0));
  for (const Weight* w : seats.step().weights) {
    parts.push_back(host::linear(host::Matrix(*w), x));
    if (const Weight* bias = seats.step().bias(parts.size() - 1)) host::add_bias(*bias, parts.back());
  }
  Values out;
  for (std::size_t r = 0; r < tokens.size(); ++r)
    for (std::size_t p = 0; p < parts.size(); ++p) {
      const std::int64_t rows = seats.step().weights[p]->rows;
      const Values some = part(parts[p], static_cast<std::int64_t>(r) * rows, rows);
      out.insert(out.end(), some.begin(), some.end());
    }
  return out;
}

Values norm_of(Seats& seats) {
  const RmsNormParams& p = seats.step().as<RmsNormParams>();
  const Tensor x = seats.in(0);
  const Stage out = seats.step().out[0];
  const std::int64_t width = seats.config().shape_of({out, 0}, 1, 1).count();
  const Values w = host::decode_row(host::Matrix(*seats.step().weights[0]), 0);
  return host::rms_norm(columns(host::values_of(x), x.shape.row(), p.offset, width), w, {p.eps, true});
}

host::Attention attention(const ModelConfig& c, std::int64_t r) {
  return {{c.heads, c.kv_heads, c.head_dim}, r + 1, static_cast<std::int64_t>(tokens.size()), c.kv_width()};
}

Values row_of(Seats& seats, std::int64_t r) {
  const ModelConfig& c = seats.config();
  const Step& step = seats.step();
  switch (step.op) {
    case Op::rope: {
      const RopeParams& p = step.as<RopeParams>();
      const std::int64_t width = c.shape_of({seats.step().out[0], 0}, 1, 0).row();
      return host::rope(part(seats.row(0, r), p.offset, width), c.head_dim, r, {p.theta});
    }
    case Op::scores:
      return host::scores(attention(c, r), seats.row(0, r), host::values_of(seats.in(1)),
                          step.as<ScoresParams>().scale);
    case Op::mix:
      return host::mix(attention(c, r), seats.row(0, r),
                       columns(host::values_of(seats.in(1)), c.qkv_width(), step.caches[0].column, c.kv_width()));
    case Op::softmax: {
      const Values x = seats.row(0, r);
      return step.as<SoftmaxParams>().causal ? host::softmax(x, static_cast<std::int64_t>(tokens.size()), r + 1)
                                             : host::softmax(x, c.experts, c.experts);
    }
    case Op::add: return host::add(seats.row(0, r), seats.row(1, r));
    case Op::swiglu: return host::swiglu(seats.row(0, r), seats.row(1, r));
    case Op::weigh: return host::weigh(seats.row(0, r), seats.row(1, r));
    case Op::combine: return host::combine(seats.row(0, r), c.used);
    case Op::sigmoid_gate: return host::sigmoid_gate(seats.row(0, r), seats.row(1, r)[0]);
    case Op::topk: {
      const host::Chosen chosen = host::topk(seats.row(0, r), c.used, step.as<TopkParams>().renormalised);
      const auto own = seats.experts();
      CHECK(std::equal(chosen.experts.begin(), chosen.experts.end(), own.begin() + r * c.used));
      return chosen.weights;
    }
    default: FAIL("not an operator of one row"); return {};
  }
}

Values computed(Seats& seats) {
  switch (seats.step().op) {
    case Op::embed: return host::embed(host::Matrix(*seats.step().weights[0]), tokens);
    case Op::linear: return linear_of(seats);
    case Op::rms_norm: return norm_of(seats);
    case Op::expert_linear:
      return host::expert_linear(host::Matrix(*seats.step().weights[0]), seats.experts(), seats.config().used,
                                 host::values_of(seats.in(0)));
    default: break;
  }
  Values out;
  for (std::int64_t r = 0; r < static_cast<std::int64_t>(tokens.size()); ++r) {
    const Values row = row_of(seats, r);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

Tensor tensor_of(const Values& values, Shape shape) {
  REQUIRE(static_cast<std::int64_t>(values.size()) == shape.count());
  return {values.data(), DType::f64, shape};
}

TEST_CASE("the plain operators compute what the f64 lane computes, at every step") {
  for (const auto& [preset, quant] : {std::pair{"tiny", "q4_k_m"},
                                      {"tiny", "q8_0"},
                                      {"tiny", "bf16"},
                                      {"tiny-qwen2moe", "q4_k_m"},
                                      {"tiny-qwen2moe", "bf16"}}) {
    Lockstep run(Model::synthetic({preset, 0, quant, 7}), {lane_spec("truth", {{"numerics", "f64"}})}, 8);
    Recorder recorder = run.record(tokens);
    const Program program = build_program(run.model());
    std::size_t steps = 0;
    for (const Step& step : program) {
      Seats seats(run.model(), recorder, step);
      const Tensor own = seats.tensor(step.out[step.out.size() - 1]);
      const Values values = computed(seats);
      INFO(preset << ", " << quant << ", layer " << step.layer << ", " << name_of(step.out[0]));
      CHECK(worst_row(tensor_of(values, own.shape), own) < bound);
      ++steps;
    }
    CHECK(steps == program.size());
  }
}

Values row_values(const Weight& w, std::int64_t expert, std::int64_t r) {
  Values out;
  for (std::int64_t c = 0; c < w.cols; ++c) out.push_back(decode<double>(w.type, w.row(expert, r), c));
  return out;
}

TEST_CASE("a matrix is read as it is told: transposed, of another expert, as another type") {
  const Model model = Model::synthetic({"tiny", 0, "q4_k_m", 7});
  const Weight& down = model.weight("ffn_down_exps", 1);
  host::Matrix matrix(down, 3);
  CHECK(host::decode_row(matrix, 5) == row_values(down, 3, 5));

  const Weight& keys = model.weight("attn_k", 1);  // 128 rows of 256
  host::Matrix transposed(keys);
  transposed.transposed = true;
  const Values row = host::decode_row(transposed, 5);
  for (std::int64_t c : {0, 1, 2, 100, 255}) {
    const std::int64_t place = c * keys.rows + 5;
    CHECK(row[static_cast<std::size_t>(c)] ==
          row_values(keys, 0, place / keys.cols)[static_cast<std::size_t>(place % keys.cols)]);
  }

  REQUIRE(keys.type == BlockType::q4_k);
  host::Matrix retyped(keys);
  retyped.type = BlockType::q6_k;
  Weight longer = keys;
  longer.type = BlockType::q6_k;
  CHECK(host::decode_row(retyped, 5) == row_values(longer, 0, 5));
  // 128 rows of 144 bytes are 87 rows of 210 and a part; after them there is nothing.
  CHECK(host::decode_row(retyped, 88) == Values(256, 0.0));
  retyped.type = BlockType::f32;
  CHECK(host::decode_row(retyped, 127) == Values(256, 0.0));
}

TEST_CASE("linear computes the rows it is asked for") {
  const Model model = Model::synthetic({"tiny", 0, "q4_k_m", 7});
  const host::Matrix matrix(model.weight("attn_k", 0));
  Values x(512);
  std::iota(x.begin(), x.end(), -200.0);
  const Values all = host::linear(matrix, x);
  const std::vector<std::int64_t> rows{127, 3};
  CHECK(host::linear(matrix, x, rows) == Values{all[127], all[3], all[128 + 127], all[128 + 3]});
}

TEST_CASE("the variants of an operator") {
  const Values x{3, 4, -2, 1}, w{1, 2};
  CHECK(host::rms_norm(x, w, {0, false}) == Values{3, 8, -2, 2});
  CHECK(std::fabs(host::rms_norm(x, w, {0, true})[1] - 8 / std::sqrt(12.5)) < 1e-15);

  const Values halves = host::rope(x, 4, 1, {100}), pairs = host::rope(x, 4, 1, {100, host::RopePairs::neighbours});
  CHECK(std::fabs(halves[0] - (3 * std::cos(1.0) + 2 * std::sin(1.0))) < 1e-15);
  CHECK(std::fabs(halves[3] - (1 * std::cos(0.1) + 4 * std::sin(0.1))) < 1e-15);
  CHECK(std::fabs(pairs[0] - (3 * std::cos(1.0) - 4 * std::sin(1.0))) < 1e-15);
  CHECK(std::fabs(pairs[3] - (1 * std::cos(0.1) - 2 * std::sin(0.1))) < 1e-15);

  const host::Chosen chosen = host::topk(Values{0.1, 0.4, 0.1, 0.4}, 3);
  CHECK(chosen.experts == std::vector<std::int32_t>{1, 3, 0});
  CHECK(std::fabs(chosen.weights[2] - 1.0 / 9) < 1e-15);
  CHECK(host::topk(Values{0.1, 0.4, 0.1, 0.4}, 2, false).weights == Values{0.4, 0.4});
  CHECK(host::sigmoid_gate(Values{2, -4}, 0) == Values{1, -2});
  CHECK(host::softmax(Values{1, 1, 9, 5, 5, 5}, 3, 2) == Values{0.5, 0.5, 0, 0.5, 0.5, 0});
}

TEST_CASE("activations are rounded as products read them") {
  CHECK(host::rounded(Values{1.00390625, 1.01171875, -3e38, 0}, host::Rounding::bf16) ==
        Values{1, 1.015625, -0x1.c4p+127, 0});
  CHECK(host::rounded(Values{1.00048828125, 70000, 0x1p-25, 0x1.8p-24}, host::Rounding::f16) ==
        Values{1, INFINITY, 0, 0x1p-23});

  Values x(256);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(std::sin(static_cast<double>(i * i)));
  x[40] = -2.5;
  for (auto rounding : {host::Rounding::q8_0, host::Rounding::q8_1, host::Rounding::q8_k}) {
    const Values y = host::rounded(x, rounding);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const bool with_largest = rounding == host::Rounding::q8_k || i / 32 == 1;
      const double step = (with_largest ? 2.5 : 1) / 127;
      CHECK(std::fabs(x[i] - y[i]) <= step * 0.51);
    }
    CHECK(std::fabs(y[40] + 2.5) < 1e-3);
    CHECK(host::rounded(Values(256), rounding) == Values(256));
    CHECK_THROWS_AS(host::rounded(Values(31), rounding), Error);
  }
  // Half a step: to even.
  Values half(256);
  half[0] = 127, half[1] = 2.5;
  CHECK(host::rounded(half, host::Rounding::q8_0)[1] == 2);
  CHECK(host::rounded(half, host::Rounding::q8_1)[1] == 2);
  CHECK(host::rounded(half, host::Rounding::q8_k)[1] == 2);
  // Next to a half: Q8_K rounds the product once, Q8_0 makes a half of it first.
  half[0] = 0x1.79b2acp+1, half[1] = 0x1.5a789p+1;
  const float scale = 0x1.79b2acp+1F / 127, step = 1 / (127 / 0x1.79b2acp+1F);
  CHECK(host::rounded(half, host::Rounding::q8_k)[1] == Approx(117 * double{step}).epsilon(1e-6));
  CHECK(host::rounded(half, host::Rounding::q8_0)[1] == Approx(116 * double{scale}).epsilon(1e-3));
}

TEST_CASE("sizes that do not fit are refused with both numbers") {
  const Model model = Model::synthetic({"tiny", 0, "q4_k_m", 7});
  const Weight& keys = model.weight("attn_k", 0);
  const Values three(3, 1.0);
  CHECK_THROWS_WITH(host::linear(host::Matrix(keys), three),
                    "host linear: values of x: expected a multiple of 256, found 3");
  CHECK_THROWS_WITH(host::decode_row(host::Matrix(keys), 128),
                    "host decode_row: row of blk.0.attn_k.weight: expected 0 to 127, found 128");
  CHECK_THROWS_WITH(host::decode_row(host::Matrix(keys, 1), 0),
                    "host decode_row: expert of blk.0.attn_k.weight: expected 0 to 0, found 1");
  host::Matrix norm(model.weight("attn_q_norm", 0));
  norm.type = BlockType::q4_k;
  CHECK_FALSE(host::can_read(*norm.weight, norm.type));
  CHECK_THROWS_AS(host::decode_row(norm, 0), Error);
  CHECK_THROWS_AS(host::embed(host::Matrix(model.weight("token_embd")), std::vector<std::int32_t>{-1}), Error);
  CHECK_THROWS_AS(
      host::expert_linear(host::Matrix(model.weight("ffn_up_exps", 0)), std::vector<std::int32_t>{12}, 1, Values(256)),
      Error);
  CHECK_THROWS_AS(host::rms_norm(three, Values(2), {}), Error);
  CHECK_THROWS_AS(host::rms_norm(three, {}, {}), Error);
  CHECK_THROWS_AS(host::rope(three, 3, 0, {1e6}), Error);
  CHECK_THROWS_AS(host::rope(three, 0, 0, {1e6}), Error);
  CHECK_THROWS_AS(host::scores({{2, 1, 2}, 3, 3, 2}, Values(4), Values(4), 1), Error);
  CHECK_THROWS_AS(host::mix({{2, 1, 2}, 1, 3, 2}, Values(5), Values(6)), Error);
  CHECK_THROWS_AS(host::mix({{2, 1, 2}, 1, 3, 1}, Values(6), Values(6)), Error);
  CHECK_THROWS_AS(host::softmax(three, 3, 4), Error);
  CHECK_THROWS_AS(host::topk(three, 4), Error);
  CHECK_THROWS_AS(host::combine(three, 2), Error);
  CHECK_THROWS_AS(host::combine(three, 0), Error);
  CHECK_THROWS_AS(host::values_of(Tensor{three.data(), DType::f64, {3, 1}}, 2, 2), Error);
}

}  // namespace
}  // namespace moe_diag::test
