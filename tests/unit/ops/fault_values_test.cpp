// SPDX-License-Identifier: MIT
// What each kind of fault makes of the values, against the values without it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/model/synthetic.hpp"
#include "core/ops/block_scales.hpp"
#include "core/ops/plain.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Kind = FaultSpec::Kind;
using test::Lockstep;
using test::Recorder;

const std::vector<std::int32_t> tokens = {3, 141, 59, 26, 53};

Model tiny(const std::string& quant) {
  SyntheticSpec spec;
  spec.preset = "tiny";
  spec.quant = quant;
  spec.seed = 7;
  return Model::synthetic(spec);
}

class Faulty {
 public:
  explicit Faulty(const std::string& numerics = "f64", const std::string& quant = "q4_k_m")
      : lockstep_(tiny(quant), {test::lane_spec("lane", {{"numerics", numerics}})}, static_cast<int>(tokens.size())),
        right_(lockstep_.record(tokens)) {}

  // The stage with the fault in it, which sits in the first layer or in none.
  std::vector<double> wrong(const FaultSpec& fault, int chunk = 1 << 20) {
    Recorder seen(1);
    lockstep_.run(tokens, {&seen}, {{0, fault}}, chunk);
    return at(seen, fault.stage);
  }
  std::vector<double> right(Stage stage) { return at(right_, stage); }
  const ModelConfig& config() { return lockstep_.model().config(); }

  FaultSpec fault(Kind kind, Stage stage) {
    FaultSpec fault;
    fault.kind = kind;
    fault.stage = stage;
    fault.layer = info(stage).scope != Scope::layer ? -1 : 0;
    return fault;
  }
  // Row r of a stage of this many values.
  static std::vector<double> row(const std::vector<double>& all, int r) {
    const std::size_t width = all.size() / tokens.size();
    const auto first = all.begin() + static_cast<std::ptrdiff_t>(width) * r;
    return {first, first + static_cast<std::ptrdiff_t>(width)};
  }

 private:
  static std::vector<double> at(Recorder& recorder, Stage stage) {
    return host::values_of(recorder.at(0, {stage, info(stage).scope != Scope::layer ? -1 : 0}).tensor());
  }

  Lockstep lockstep_;
  Recorder right_;
};

// The largest difference in proportion to the largest value.
double apart(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(b[i]));
    difference = std::max(difference, std::abs(a[i] - b[i]));
  }
  return difference / largest;
}

}  // namespace

TEST_CASE("what a fault of values makes of a row") {
  Faulty f;
  const auto right = f.right(stages::attn_norm);
  FaultSpec inf = f.fault(Kind::inf, stages::attn_norm);
  inf.index = 5;
  inf.positions = IndexSelection::parse("2", true);
  auto wrong = f.wrong(inf);
  const std::size_t width = right.size() / tokens.size();
  for (std::size_t i = 0; i < right.size(); ++i)
    CHECK((i == 2 * width + 5 ? std::isinf(wrong[i]) : wrong[i] == right[i]));

  FaultSpec bit = f.fault(Kind::bitflip, stages::attn_norm);
  wrong = f.wrong(bit);
  for (std::size_t i = 0; i < right.size(); ++i) {
    const double change = std::abs(wrong[i] - right[i]) / std::abs(right[i]);
    CHECK((i % width == 0 ? change >= 0.25 && change <= 0.5 : change == 0));
  }
  bit.bit = 63;
  wrong = f.wrong(bit);
  CHECK(wrong[0] == -right[0]);

  for (double v : f.wrong(f.fault(Kind::zero, stages::attn_norm))) CHECK(v == 0);
  for (double v : f.wrong(f.fault(Kind::uniform_weights, stages::moe_router_weights))) CHECK(v == 1.0 / 3);
}

TEST_CASE("zero of one expert is its slot, where it was chosen") {
  Faulty f;
  const auto ids = f.right(stages::moe_router_indices), right = f.right(stages::moe_expert_up);
  FaultSpec zero = f.fault(Kind::zero, stages::moe_expert_up);
  zero.expert = static_cast<int>(ids[1]);
  const auto wrong = f.wrong(zero);
  const std::size_t width = right.size() / ids.size();
  for (std::size_t i = 0; i < right.size(); ++i) CHECK(wrong[i] == (ids[i / width] == ids[1] ? 0 : right[i]));
}

TEST_CASE("swap_tie takes the next expert by the lane's probabilities for its last one") {
  Faulty f;
  const auto probs = f.right(stages::moe_router_probs), right = f.right(stages::moe_router_indices),
             wrong = f.wrong(f.fault(Kind::swap_tie, stages::moe_router_indices));
  for (int r = 0; r < static_cast<int>(tokens.size()); ++r) {
    const auto p = Faulty::row(probs, r), a = Faulty::row(wrong, r), b = Faulty::row(right, r);
    CHECK(a[0] == b[0]);
    CHECK(a[1] == b[1]);
    const auto rank = [&](double id) {
      return std::count_if(p.begin(), p.end(), [&](double v) { return v > p[static_cast<std::size_t>(id)]; });
    };
    CHECK(rank(b[2]) == 2);
    CHECK(rank(a[2]) == 3);
  }
}

TEST_CASE("drop_top_expert is the sum without the best expert's part") {
  Faulty f;
  const auto parts = f.right(stages::moe_expert_weighted), right = f.right(stages::moe_ffn_out),
             wrong = f.wrong(f.fault(Kind::drop_top_expert, stages::moe_ffn_out));
  const std::size_t width = right.size() / tokens.size();
  std::vector<double> expected = right;
  for (std::size_t i = 0; i < right.size(); ++i) expected[i] -= parts[i / width * 3 * width + i % width];
  CHECK(apart(wrong, expected) < 1e-14);
}

TEST_CASE("skip_norm and skip_qk_norm leave out the division, not the weight") {
  Faulty f;
  const auto x = f.right(stages::embedding), right = f.right(stages::attn_norm),
             wrong = f.wrong(f.fault(Kind::skip_norm, stages::attn_norm));
  const std::size_t width = right.size() / tokens.size();
  std::vector<double> expected = right;
  for (std::size_t r = 0; r < tokens.size(); ++r) {
    double squares = 0;
    for (std::size_t i = 0; i < width; ++i) squares += x[r * width + i] * x[r * width + i];
    for (std::size_t i = 0; i < width; ++i)
      expected[r * width + i] *= std::sqrt(squares / static_cast<double>(width) + 1e-6f);
  }
  CHECK(apart(wrong, expected) < 1e-13);
}

TEST_CASE("off_by_one_position rotates the row as the next position's") {
  Faulty f;
  const auto x = f.right(stages::k_norm), wrong = f.wrong(f.fault(Kind::off_by_one_position, stages::k_post_rope));
  const int half = f.config().head_dim / 2;
  for (int r = 0; r < static_cast<int>(tokens.size()); ++r) {
    const auto in = Faulty::row(x, r), out = Faulty::row(wrong, r);
    for (int i : {0, 1, half - 1}) {
      const double angle = (r + 1) * std::pow(1e6, -2.0 * i / (2 * half));
      const auto a = static_cast<std::size_t>(i), b = static_cast<std::size_t>(i + half);
      CHECK(out[a] == Approx(in[a] * std::cos(angle) - in[b] * std::sin(angle)).margin(1e-12));
      CHECK(out[b] == Approx(in[b] * std::cos(angle) + in[a] * std::sin(angle)).margin(1e-12));
    }
  }
}

TEST_CASE("rope_interleaved pairs neighbours, rope_theta turns more slowly or faster") {
  Faulty f;
  const auto x = f.right(stages::q_norm), pairs = f.wrong(f.fault(Kind::rope_interleaved, stages::q_post_rope)),
             turned = f.wrong(f.fault(Kind::rope_theta, stages::q_post_rope));
  const int half = f.config().head_dim / 2;
  for (int r = 0; r < static_cast<int>(tokens.size()); ++r) {
    const auto in = Faulty::row(x, r), neighbours = Faulty::row(pairs, r), other = Faulty::row(turned, r);
    for (int i : {0, 1, half - 1}) {
      const double angle = r * std::pow(1e6, -2.0 * i / (2 * half)), slow = r * std::pow(1e4, -2.0 * i / (2 * half));
      const auto a = static_cast<std::size_t>(2 * i), h = static_cast<std::size_t>(i);
      CHECK(neighbours[a] == Approx(in[a] * std::cos(angle) - in[a + 1] * std::sin(angle)).margin(1e-12));
      CHECK(other[h] ==
            Approx(in[h] * std::cos(slow) - in[h + static_cast<std::size_t>(half)] * std::sin(slow)).margin(1e-12));
    }
  }
}

TEST_CASE("stale_kv scores the key before, also when the keys come from earlier passes") {
  Faulty f;
  const auto right = f.right(stages::attn_scores);
  FaultSpec stale = f.fault(Kind::stale_kv, stages::attn_scores);
  stale.positions = IndexSelection::parse("2", true);
  const std::size_t length = tokens.size(), heads = right.size() / length / length;
  std::vector<double> expected = right;
  for (std::size_t r = 2; r < length; ++r)
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t row = (r * heads + h) * length;
      expected[row + 2] = right[row + 1];
    }
  CHECK(apart(f.wrong(stale), expected) < 1e-13);
  for (int chunk : {1, 2, 3}) CHECK(f.wrong(stale, chunk) == f.wrong(stale));
}

// Row r of x, times a matrix of which `element` says row and column, for every row.
template <class Element>
std::vector<double> product(const std::vector<double>& x, std::int64_t rows, Element element) {
  std::vector<double> out;
  for (int r = 0; r < static_cast<int>(tokens.size()); ++r) {
    const auto in = Faulty::row(x, r);
    for (std::int64_t i = 0; i < rows; ++i) {
      double sum = 0;
      for (std::size_t c = 0; c < in.size(); ++c) sum += element(i, static_cast<std::int64_t>(c)) * in[c];
      out.push_back(sum);
    }
  }
  return out;
}

TEST_CASE("a transposed weight is read column by column") {
  Faulty f("f64", "f32");
  const Model model = tiny("f32");
  const Weight& w = model.weight("attn_output", 0);
  REQUIRE(w.rows != w.cols);
  const auto expected = product(f.right(stages::attention), w.rows, [&](std::int64_t r, std::int64_t c) {
    float element = 0;
    std::memcpy(&element, w.data + (c * w.rows + r) * 4, 4);
    return double{element};
  });
  CHECK(apart(f.wrong(f.fault(Kind::transpose, stages::attn_out)), expected) < 1e-13);
}

TEST_CASE("a wrong type is read from the same bytes, and from zeros after them") {
  const auto read_as = [](const std::string& quant, BlockType type) {
    Faulty f("f64", quant);
    const Model model = tiny(quant);
    const Weight& w = model.weight("attn_output", 0);
    const std::int64_t row_bytes = w.cols / info(type).elements * info(type).bytes;
    std::vector<std::byte> bytes(w.data, w.data + w.bytes());
    bytes.resize(std::max(bytes.size(), static_cast<std::size_t>(w.rows * row_bytes)));
    const auto expected = product(f.right(stages::attention), w.rows, [&](std::int64_t r, std::int64_t c) {
      return decode<double>(type, bytes.data() + r * row_bytes, c);
    });
    const auto wrong = f.wrong(f.fault(Kind::wrong_type, stages::attn_out));
    REQUIRE(wrong.size() == expected.size());
    int zeros = 0, differ = 0;
    for (std::size_t i = 0; i < wrong.size(); ++i) {
      differ += !(std::isnan(wrong[i]) && std::isnan(expected[i])) && wrong[i] != expected[i] &&
                std::abs(wrong[i] - expected[i]) > 1e-9 * std::abs(expected[i]);
      zeros += wrong[i] == 0;
    }
    CHECK(differ == 0);
    return zeros;
  };
  CHECK(read_as("q4_k", BlockType::q6_k) > 0);   // a Q6_K block is longer: the last rows lie after the tensor
  CHECK(read_as("q6_k", BlockType::q4_k) == 0);  // a Q4_K block is shorter
}

TEST_CASE("quantised activations are as far off as 8 bits are") {
  Faulty f;
  for (Stage stage : {stages::qkv_matmul, stages::moe_expert_out, stages::lm_head})
    for (int block : {32, 256}) {
      FaultSpec fault = f.fault(Kind::quantise_activations, stage);
      fault.block = block;
      const double error = apart(f.wrong(fault), f.right(stage));
      CHECK(error > 1e-4);
      CHECK(error < 3e-2);
    }
}

TEST_CASE("positions that start again, or are divided, rotate as their number says") {
  Faulty f;
  const auto x = f.right(stages::k_norm);
  const int half = f.config().head_dim / 2;
  const auto check = [&](const FaultSpec& fault, auto position_of) {
    const auto wrong = f.wrong(fault);
    for (int r = 0; r < static_cast<int>(tokens.size()); ++r) {
      const auto in = Faulty::row(x, r), out = Faulty::row(wrong, r);
      for (int i : {0, 1, half - 1}) {
        const double angle = position_of(r) * std::pow(1e6, -2.0 * i / (2 * half));
        const auto a = static_cast<std::size_t>(i), b = static_cast<std::size_t>(i + half);
        CHECK(out[a] == Approx(in[a] * std::cos(angle) - in[b] * std::sin(angle)).margin(1e-12));
      }
    }
  };
  FaultSpec restart = f.fault(Kind::position_restart, stages::k_post_rope);
  restart.every = 3;
  check(restart, [](int r) { return r % 3; });
  FaultSpec scaled = f.fault(Kind::rope_scaled, stages::k_post_rope);
  scaled.factor = 2.5;
  check(scaled, [](int r) { return r / 2.5; });
}

TEST_CASE("partial_sum leaves columns or slots out, or adds them twice") {
  Faulty f("f64", "f32");
  const Model model = tiny("f32");
  const Weight& w = model.weight("attn_output", 0);
  for (const int times : {0, 2}) {
    FaultSpec fault = f.fault(Kind::partial_sum, stages::attn_out);
    fault.times = times;
    fault.part = IndexSelection::parse("3..40", false);
    const auto expected = product(f.right(stages::attention), w.rows, [&](std::int64_t r, std::int64_t c) {
      float element = 0;
      std::memcpy(&element, w.data + (r * w.cols + c) * 4, 4);
      return element * (c >= 3 && c < 40 ? times : 1.0);
    });
    CHECK(apart(f.wrong(fault), expected) < 1e-12);
    FaultSpec slots = f.fault(Kind::partial_sum, stages::moe_ffn_out);
    slots.times = times;
    const auto parts = f.right(stages::moe_expert_weighted);
    auto sum = f.right(stages::moe_ffn_out);
    const std::size_t width = sum.size() / tokens.size();
    for (std::size_t i = 0; i < sum.size(); ++i)
      for (const std::size_t slot : {1, 2}) sum[i] += (times - 1) * parts[(i / width * 3 + slot) * width + i % width];
    CHECK(apart(f.wrong(slots), sum) < 1e-12);
  }
}

TEST_CASE("the last expert chosen is the first one again, and values beyond a limit are infinite") {
  Faulty f;
  const auto right = f.right(stages::moe_router_indices),
             wrong = f.wrong(f.fault(Kind::duplicate_ids, stages::moe_router_indices));
  for (std::size_t i = 0; i < right.size(); ++i) CHECK(wrong[i] == (i % 3 == 2 ? right[i - 2] : right[i]));
  FaultSpec overflow = f.fault(Kind::f16_overflow, stages::attn_norm);
  overflow.limit = 0.5;
  const auto norm = f.right(stages::attn_norm), infinite = f.wrong(overflow);
  for (std::size_t i = 0; i < norm.size(); ++i)
    CHECK(infinite[i] == (std::abs(norm[i]) > 0.5 ? std::copysign(INFINITY, norm[i]) : norm[i]));
}

TEST_CASE("each group of weights has the scale of another one") {
  for (const std::string quant : {"q4_k", "q5_k", "q2_k", "q8_0", "q5_1"}) {
    INFO(quant);
    const Model model = tiny(quant);
    const Weight& w = model.weight("attn_output", 0);
    const auto row = [&](int shift) {
      host::Values values(static_cast<std::size_t>(w.cols));
      host::decode_with_scales_of(w.type, w.row(0, 5), shift, values);
      return values;
    };
    const host::Values own = host::decode_row(host::Matrix(w), 5);
    CHECK(row(0) == own);
    const int group = host::scale_group(w.type),
              all = info(w.type).elements > group ? info(w.type).elements / group : static_cast<int>(w.cols) / group;
    CHECK(row(all) == own);  // once round
    CHECK(row(-1) != own);
    // Within a group values are a linear function of the integers, which stay: the ratios of differences do, too.
    const host::Values other = row(-1);
    for (int g = 0; g < static_cast<int>(w.cols) / group; ++g) {
      const auto first = static_cast<std::size_t>(g * group);
      double along = 0, squares = 0;
      for (std::size_t i = first + 1; i < first + static_cast<std::size_t>(group); ++i) {
        along += (other[i] - other[first]) * (own[i] - own[first]);
        squares += (own[i] - own[first]) * (own[i] - own[first]);
      }
      for (std::size_t i = first + 1; squares > 0 && i < first + static_cast<std::size_t>(group); ++i)
        CHECK(other[i] - other[first] == Approx(along / squares * (own[i] - own[first])).margin(1e-9));
    }
  }
}

// Q4_K's scales and mins by the layout that ggml-quants.c has: get_scale_min_k4().
TEST_CASE("the scale and the min of a Q4_K group come from the group before") {
  const Model model = tiny("q4_k");
  const Weight& w = model.weight("attn_output", 0);
  BlockQ4_K block;
  std::memcpy(&block, w.row(0, 3), sizeof block);
  const auto pair = [&](int j) {
    const std::uint8_t* q = block.groups;
    return j < 4 ? std::pair(q[j] & 63, q[j + 4] & 63)
                 : std::pair((q[j + 4] & 0xF) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4));
  };
  host::Values values(static_cast<std::size_t>(w.cols));
  host::decode_with_scales_of(w.type, w.row(0, 3), -1, values);
  for (int i = 0; i < 256; ++i) {
    const auto [scale, min] = pair((i / 32 + 7) % 8);
    const int q = block.q[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 0xF;
    CHECK(values[static_cast<std::size_t>(i)] ==
          double{float_from_f16(block.d)} * scale * q - double{float_from_f16(block.dmin)} * min);
  }
}

TEST_CASE("a fault of the computation leaves alone what it does not touch") {
  Faulty f("f32");
  FaultSpec fault = f.fault(Kind::wrong_expert, stages::moe_expert_gate);
  fault.positions = IndexSelection::parse("1", true);
  const auto right = f.right(stages::moe_expert_gate), wrong = f.wrong(fault);
  for (int r = 0; r < static_cast<int>(tokens.size()); ++r)
    CHECK((Faulty::row(wrong, r) == Faulty::row(right, r)) == (r != 1));
  // At position 0 nothing is rotated, whatever the pairs.
  const auto q = f.right(stages::q_post_rope), pairs = f.wrong(f.fault(Kind::rope_interleaved, stages::q_post_rope));
  CHECK(Faulty::row(q, 0) == Faulty::row(pairs, 0));
  CHECK(Faulty::row(q, 1) != Faulty::row(pairs, 1));
}

}  // namespace moe_diag
