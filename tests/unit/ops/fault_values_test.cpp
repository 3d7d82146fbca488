// SPDX-License-Identifier: MIT
// What each kind of fault makes of the values, against the values without it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/model/synthetic.hpp"
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
