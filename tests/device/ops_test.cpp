// SPDX-License-Identifier: MIT
// Every operator of the cuda lanes alone: fresh random inputs, outputs poisoned before each run, results against plain
// definitions in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "core/plugin/host.hpp"
#include "tests/device/rules.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

constexpr double op_bound = 1e-5;
constexpr int row_counts[] = {1, 2, 3, 31, 33, 257};

const std::string all_numerics[] = {"f32", "bf16", "q8_1"};

// A model of a few weights, one lane on it, and its operators one by one.
class OneOp {
 public:
  OneOp(const ModelConfig& config, BlockType type, const std::string& numerics)
      : config_(config), type_(type), numerics_(numerics), host_({MOE_DIAG_PLUGINS}) {
    config_.stages = qwen3moe.stages;
    config_.caches = qwen3moe.caches;
    random_.seed(std::random_device()());
    data_.reserve(8);
    weights_.reserve(8);
  }

  // Random, and well-behaved: scales are small, values of all magnitudes that blocks can have.
  const Weight& weight(BlockType type, std::int64_t cols, std::int64_t rows, std::int64_t experts = 1) {
    Weight w{"weight", type, cols, rows, experts, nullptr};
    std::vector<std::byte>& bytes = data_.emplace_back(w.bytes());
    for (std::byte& b : bytes) b = static_cast<std::byte>(random_());
    const auto block = static_cast<std::size_t>(info(type).bytes);
    for (std::size_t at = 0; at < bytes.size(); at += block) tame(type, bytes.data() + at);
    w.data = bytes.data();
    weights_.push_back(w);
    return weights_.back();
  }

  void open() {
    Options options("lane 'lane'", "test");
    options.add("numerics", numerics_, "test");
    backend_ = host_.make_backend("cuda", options);
    lane_ = backend_->open({&config_, weights_}, options);
  }

  void begin(int rows, int first = 0, int total = 0) {
    tokens_.resize(static_cast<std::size_t>(rows));
    for (std::int32_t& t : tokens_) t = static_cast<std::int32_t>(random_() % static_cast<unsigned>(config_.vocab));
    first_ = first;
    rows_ = rows;
    total_ = std::max(total, first + rows);
    lane_->begin({tokens_, first, total_, 0});
  }

  // Writes random values to a stage and gives them.
  std::vector<float> fill(Stage stage) {
    std::normal_distribution<float> normal;
    std::vector<float> values(count(stage));
    for (float& v : values) v = normal(random_);
    put(stage, values);
    return values;
  }
  void put(Stage stage, const std::vector<float>& values) {
    lane_->write({stage, layer_}, {0, rows_},
                 {values.data(), DType::f32, config_.shape_of({stage, layer_}, rows_, total_)});
  }
  // Distinct experts of each row; `skewed`: the same in all.
  std::vector<std::int32_t> fill_indices(bool skewed) {
    std::vector<std::int32_t> ids, all(static_cast<std::size_t>(config_.experts));
    std::iota(all.begin(), all.end(), 0);
    for (int row = 0; row < rows_; ++row) {
      if (!skewed) std::shuffle(all.begin(), all.end(), random_);
      ids.insert(ids.end(), all.begin(), all.begin() + config_.used);
    }
    const Stage stage = stages::moe_router_indices;
    lane_->write({stage, layer_}, {0, rows_},
                 {ids.data(), DType::i32, config_.shape_of({stage, layer_}, rows_, total_)});
    return ids;
  }

  // Runs the step on poisoned outputs.
  void run(const Step& step) {
    for (Stage stage : step.out)
      if (payload_of(stage) == Payload::values)
        put(stage, std::vector<float>(count(stage), std::numeric_limits<float>::quiet_NaN()));
    lane_->run({&step, 1});
  }
  Tensor read(Stage stage) { return lane_->read({stage, layer_}, {0, rows_}); }

  void check(Stage stage, const std::vector<double>& expected, double bound = op_bound) {
    const Tensor truth{expected.data(), DType::f64, config_.shape_of({stage, layer_}, rows_, total_)};
    REQUIRE(expected.size() == count(stage));
    INFO(name_of(stage) << ", " << name_of(type_) << ", " << numerics_ << ", " << rows_ << " rows");
    CHECK(worst_row(read(stage), truth) <= bound);
  }

  std::size_t count(Stage stage) const {
    return static_cast<std::size_t>(config_.shape_of({stage, layer_}, rows_, total_).count());
  }
  const ModelConfig& config() const { return config_; }
  BlockType type() const { return type_; }
  const std::string& numerics() const { return numerics_; }
  const std::vector<std::int32_t>& tokens() const { return tokens_; }
  int rows() const { return rows_; }
  int first() const { return first_; }
  int total() const { return total_; }

 private:
  void tame(BlockType type, std::byte* block) {
    const auto half = [&](std::size_t at) {  // 2^-7 to 2^-5, either sign
      const auto bits = static_cast<std::uint16_t>((random_() & 0x8000) | (0x2000 + random_() % 0x800));
      std::memcpy(block + at, &bits, sizeof bits);
    };
    std::normal_distribution<float> normal;
    const float value = normal(random_);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    const auto upper = static_cast<std::uint16_t>(bits >> 16);
    switch (type) {
      case BlockType::f32: std::memcpy(block, &value, sizeof value); break;
      case BlockType::bf16: std::memcpy(block, &upper, sizeof upper); break;
      case BlockType::f16: half(0); break;
      default:
        for (std::size_t i = 0; i < info(type).scales.count; ++i) half(info(type).scales.scale[i].at);
    }
  }

  static constexpr int layer_ = 0;
  ModelConfig config_;
  BlockType type_;
  std::string numerics_;
  PluginHost host_;
  std::mt19937 random_;
  std::vector<std::vector<std::byte>> data_;
  std::vector<Weight> weights_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Lane> lane_;
  std::vector<std::int32_t> tokens_;
  int rows_ = 0, first_ = 0, total_ = 0;
};

// Rows of whole blocks of each type.
ModelConfig config_for(BlockType type) {
  ModelConfig c;
  c.layers = 1;
  c.experts = 7;
  c.used = 3;
  c.vocab = 131;
  c.context = 1024;
  c.rms_eps = 1e-6F;
  c.rope_theta = 1e6F;
  c.heads = 4;
  c.kv_heads = 2;
  if (info(type).elements == 256) {
    c.hidden = 768;
    c.expert_width = 256;
    c.head_dim = 64;
  } else if (info(type).elements == 32) {
    c.hidden = 96;
    c.expert_width = 160;
    c.head_dim = 40;
  } else {
    c.hidden = 100;
    c.expert_width = 37;
    c.heads = 6;
    c.head_dim = 10;
  }
  return c;
}

// The types that the backend has kernels for.
std::vector<BlockInfo> multiplied() {
  std::vector<BlockInfo> types;
  for (const BlockType type :
       {BlockType::f32, BlockType::f16, BlockType::bf16, BlockType::q8_0, BlockType::q4_k, BlockType::q6_k})
    types.push_back(info(type));
  return types;
}

Step step_of(Op op, Few<Stage, most_inputs> in, Few<const Weight*, most_weights> weights,
             Few<Stage, most_outputs> out) {
  Step step;
  step.op = op;
  if (op == Op::softmax) step.params = SoftmaxParams{};
  step.layer = op == Op::embed ? -1 : 0;
  step.in = in;
  step.weights = weights;
  step.out = out;
  return step;
}

// A weight's rows as products read them, decoded once.
std::vector<double> read_rows(const std::string& numerics, const Weight& w) {
  std::vector<double> values;
  for (std::int64_t e = 0; e < w.experts; ++e)
    for (std::int64_t r = 0; r < w.rows; ++r)
      for (std::int64_t k = 0; k < w.cols; ++k) values.push_back(read_weight(numerics, w.type, w.row(e, r), k));
  return values;
}

void multiply(const std::vector<double>& rows, std::int64_t expert, const Weight& w, const std::vector<double>& x,
              double* y) {
  const double* row = rows.data() + expert * w.rows * w.cols;
  for (std::int64_t r = 0; r < w.rows; ++r, row += w.cols) y[r] = std::inner_product(row, row + w.cols, x.begin(), 0.0);
}

void check_linear(OneOp& op, Stage in, Few<const Weight*, most_weights> weights, Stage out) {
  const std::vector<float> x = op.fill(in);
  op.run(step_of(Op::linear, {in}, weights, {out}));
  std::vector<double> expected(op.count(out));
  const std::size_t stride = expected.size() / static_cast<std::size_t>(op.rows());
  std::size_t column = 0;
  for (const Weight* w : weights) {
    const std::vector<double> rows = read_rows(op.numerics(), *w);
    for (int r = 0; r < op.rows(); ++r)
      multiply(rows, 0, *w, read_vector(op.numerics(), w->type, x.data() + r * w->cols, w->cols),
               expected.data() + static_cast<std::size_t>(r) * stride + column);
    column += static_cast<std::size_t>(w->rows);
  }
  op.check(out, expected);
}

void check_experts(OneOp& op, Stage in, const Weight& w, Stage out, bool skewed) {
  const std::vector<float> x = op.fill(in);
  const std::vector<std::int32_t> ids = op.fill_indices(skewed);
  op.run(step_of(Op::expert_linear, {in, stages::moe_router_indices}, {&w}, {out}));
  const std::vector<double> rows = read_rows(op.numerics(), w);
  std::vector<double> expected(op.count(out));
  const int used = op.config().used;
  for (int v = 0; v < op.rows() * used; ++v) {
    const int row = in == stages::ffn_norm ? v / used : v;
    multiply(rows, ids[static_cast<std::size_t>(v)], w,
             read_vector(op.numerics(), w.type, x.data() + row * w.cols, w.cols),
             expected.data() + static_cast<std::int64_t>(v) * w.rows);
  }
  op.check(out, expected);
}

}  // namespace

TEST_CASE("linear of every type, in all numerics", "[ops]") {
  for (const BlockInfo& block : multiplied())
    for (const std::string& numerics : all_numerics) {
      const ModelConfig c = config_for(block.type);
      OneOp op(c, block.type, numerics);
      const Weight& q = op.weight(block.type, c.hidden, c.q_width());
      const Weight& k = op.weight(block.type, c.hidden, c.kv_width());
      // Layers of a file may mix types: v is of another, where the width allows.
      const Weight& v = op.weight(block.type == BlockType::q4_k ? BlockType::q6_k : block.type, c.hidden, c.kv_width());
      const Weight& head = op.weight(block.type, c.hidden, c.vocab);
      op.open();
      for (int rows : row_counts) {
        op.begin(rows);
        check_linear(op, stages::attn_norm, {&q, &k, &v}, stages::qkv_matmul);
        check_linear(op, stages::final_norm, {&head}, stages::lm_head);
      }
    }
}

TEST_CASE("linear of long rows and of many", "[ops]") {
  for (const std::string& numerics : all_numerics)
    for (const BlockType type : {BlockType::q4_k, BlockType::q6_k, BlockType::bf16}) {
      ModelConfig c = config_for(type);
      c.hidden = 4352;  // more chunks than a block has warps, and not a multiple of them
      c.vocab = 1111;
      OneOp op(c, type, numerics);
      const Weight& head = op.weight(type, c.hidden, c.vocab);
      op.open();
      for (int rows : {1, 9, 97}) {
        op.begin(rows);
        check_linear(op, stages::final_norm, {&head}, stages::lm_head);
      }
    }
}

TEST_CASE("expert_linear of every type, in all numerics", "[ops]") {
  for (const BlockInfo& block : multiplied())
    for (const std::string& numerics : all_numerics) {
      const ModelConfig c = config_for(block.type);
      OneOp op(c, block.type, numerics);
      const Weight& gate = op.weight(block.type, c.hidden, c.expert_width, c.experts);
      const Weight& down = op.weight(block.type, c.expert_width, c.hidden, c.experts);
      op.open();
      for (int rows : row_counts)
        for (const bool skewed : {false, true}) {
          op.begin(rows);
          check_experts(op, stages::ffn_norm, gate, stages::moe_expert_gate, skewed);
          check_experts(op, stages::moe_expert_swiglu, down, stages::moe_expert_out, skewed);
        }
    }
}

TEST_CASE("a value that is not finite reaches its own row of a product, and no other", "[ops]") {
  for (const BlockInfo& block : multiplied())
    for (const std::string& numerics : all_numerics)
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()})
        for (int rows : {3, 257}) {
          const ModelConfig c = config_for(block.type);
          OneOp op(c, block.type, numerics);
          const Weight& head = op.weight(block.type, c.hidden, c.vocab);
          op.open();
          op.begin(rows);
          std::vector<float> x = op.fill(stages::final_norm);
          x[static_cast<std::size_t>(c.hidden + 5)] = bad;
          op.put(stages::final_norm, x);
          op.run(step_of(Op::linear, {stages::final_norm}, {&head}, {stages::lm_head}));
          const auto* y = op.read(stages::lm_head).as<float>();
          INFO(block.name << ", " << numerics << ", " << rows << " rows");
          std::int64_t spread = 0, lost = 0;
          for (std::int64_t i = 0; i < std::int64_t{rows} * c.vocab; ++i) {
            const bool own = i / c.vocab == 1;
            // A weight of exactly 0 times an infinity is NaN as well.
            if (own && std::isfinite(y[i])) ++lost;
            if (!own && !std::isfinite(y[i])) ++spread;
          }
          CHECK(lost == 0);
          CHECK(spread == 0);
        }
}

TEST_CASE("embed of every type", "[ops]") {
  for (const BlockInfo& block : multiplied()) {
    const ModelConfig c = config_for(block.type);
    OneOp op(c, block.type, "f32");
    const Weight& table = op.weight(block.type, c.hidden, c.vocab);
    op.open();
    for (int rows : row_counts) {
      op.begin(rows);
      op.run(step_of(Op::embed, {}, {&table}, {stages::embedding}));
      std::vector<double> expected;
      for (std::int32_t token : op.tokens())
        for (int k = 0; k < c.hidden; ++k) expected.push_back(decode<double>(block.type, table.row(0, token), k));
      op.check(stages::embedding, expected);
    }
  }
}

TEST_CASE("rms_norm of rows and of heads", "[ops]") {
  for (const BlockType type : {BlockType::f32, BlockType::q8_0, BlockType::q4_k}) {
    const ModelConfig c = config_for(type);
    OneOp op(c, type, "f32");
    const Weight& whole = op.weight(BlockType::f32, c.hidden, 1);
    const Weight& head = op.weight(BlockType::f16, c.head_dim, 1);
    op.open();
    const auto check = [&](Stage in, const Weight& w, int offset, Stage out) {
      const std::vector<float> x = op.fill(in);
      Step step = step_of(Op::rms_norm, {in}, {&w}, {out});
      step.params = RmsNormParams{offset, static_cast<int>(w.cols), 1e-6};
      op.run(step);
      const std::size_t stride = x.size() / static_cast<std::size_t>(op.rows());
      const std::size_t width = op.count(out) / static_cast<std::size_t>(op.rows());
      std::vector<double> expected;
      for (int r = 0; r < op.rows(); ++r)
        for (std::size_t g = 0; g < width; g += static_cast<std::size_t>(w.cols)) {
          const float* from = x.data() + static_cast<std::size_t>(r) * stride + static_cast<std::size_t>(offset) + g;
          double sum = 0;
          for (std::int64_t k = 0; k < w.cols; ++k) sum += static_cast<double>(from[k]) * from[k];
          const double factor = 1 / std::sqrt(sum / static_cast<double>(w.cols) + 1e-6);
          for (std::int64_t k = 0; k < w.cols; ++k)
            expected.push_back(from[k] * factor * decode<double>(w.type, w.data, k));
        }
      op.check(out, expected);
    };
    for (int rows : row_counts) {
      op.begin(rows);
      check(stages::embedding, whole, 0, stages::attn_norm);
      check(stages::qkv_matmul, head, 0, stages::q_norm);
      check(stages::qkv_matmul, head, c.q_width(), stages::k_norm);
    }
  }
}

TEST_CASE("rope, scores, softmax and mix, from the start and behind what is cached", "[ops]") {
  for (const BlockType type : {BlockType::f32, BlockType::q8_0, BlockType::q4_k}) {
    const ModelConfig c = config_for(type);
    OneOp op(c, type, "f32");
    op.weight(BlockType::f32, c.hidden, 1);
    op.open();
    const auto h = static_cast<std::size_t>(c.head_dim), kv = static_cast<std::size_t>(c.kv_width());
    const auto heads = static_cast<std::size_t>(c.heads), q_width = static_cast<std::size_t>(c.q_width());
    for (int rows : row_counts) {
      std::vector<float> keys, values;  // of all positions so far
      for (const auto& [first, count] : {std::pair{0, rows}, {rows, 1}, {rows + 1, 6}}) {
        op.begin(count, first, rows + 9);
        const auto total = static_cast<std::size_t>(op.total());
        const std::vector<float> x = op.fill(stages::q_norm);
        Step rope = step_of(Op::rope, {stages::q_norm}, {}, {stages::q_post_rope});
        rope.params = RopeParams{.head_dim = c.head_dim, .theta = c.rope_theta};
        op.run(rope);
        std::vector<double> rotated(x.size());
        for (std::size_t i = 0; i < x.size(); i += h)
          for (std::size_t k = 0; k < h / 2; ++k) {
            const double angle = (first + static_cast<double>(i / q_width)) *
                                 std::pow(c.rope_theta, -2.0 * static_cast<double>(k) / static_cast<double>(h));
            rotated[i + k] = x[i + k] * std::cos(angle) - x[i + k + h / 2] * std::sin(angle);
            rotated[i + k + h / 2] = x[i + k + h / 2] * std::cos(angle) + x[i + k] * std::sin(angle);
          }
        op.check(stages::q_post_rope, rotated);

        const std::vector<float> q = op.fill(stages::q_post_rope), k = op.fill(stages::k_post_rope);
        keys.insert(keys.end(), k.begin(), k.end());
        Step scores = step_of(Op::scores, {stages::q_post_rope, stages::k_post_rope}, {}, {stages::attn_scores});
        scores.params = ScoresParams{{c.heads, c.kv_heads, c.head_dim}, 0.125};
        scores.caches.push_back({caches::keys, 1, 0});
        op.run(scores);
        std::vector<double> expected(op.count(stages::attn_scores));
        for (std::size_t i = 0; i < expected.size(); ++i) {
          const std::size_t key = i % total, head = i / total % heads, row = i / total / heads;
          if (key > static_cast<std::size_t>(first) + row) continue;
          const float* a = q.data() + row * q_width + head * h;
          const float* b = keys.data() + key * kv + head / (heads / static_cast<std::size_t>(c.kv_heads)) * h;
          expected[i] = 0.125 * std::inner_product(a, a + h, b, 0.0);
        }
        op.check(stages::attn_scores, expected);

        const std::vector<float> s = op.fill(stages::attn_scores);
        Step softmax = step_of(Op::softmax, {stages::attn_scores}, {}, {stages::attn_softmax});
        softmax.params = SoftmaxParams{.causal = true};
        op.run(softmax);
        std::vector<double> shares(s.size());
        for (std::size_t i = 0; i < s.size(); i += total) {
          const std::size_t seen = static_cast<std::size_t>(first) + i / total / heads + 1;
          double sum = 0;
          for (std::size_t j = 0; j < seen; ++j) sum += std::exp(static_cast<double>(s[i + j]));
          for (std::size_t j = 0; j < seen; ++j) shares[i + j] = std::exp(static_cast<double>(s[i + j])) / sum;
        }
        op.check(stages::attn_softmax, shares);

        const std::vector<float> p = op.fill(stages::attn_softmax), qkv = op.fill(stages::qkv_matmul);
        for (std::size_t row = 0; row < static_cast<std::size_t>(count); ++row) {
          const float* v = qkv.data() + row * (q_width + 2 * kv) + q_width + kv;
          values.insert(values.end(), v, v + kv);
        }
        Step mix = step_of(Op::mix, {stages::attn_softmax, stages::qkv_matmul}, {}, {stages::attention});
        mix.params = MixParams{{c.heads, c.kv_heads, c.head_dim}};
        mix.caches.push_back({caches::values, 1, c.q_width() + c.kv_width()});
        op.run(mix);
        std::vector<double> mixed(op.count(stages::attention));
        for (std::size_t i = 0; i < mixed.size(); ++i) {
          const std::size_t row = i / q_width, head = i % q_width / h;
          const std::size_t column = head / (heads / static_cast<std::size_t>(c.kv_heads)) * h + i % h;
          for (std::size_t key = 0; key <= static_cast<std::size_t>(first) + row; ++key)
            mixed[i] += static_cast<double>(p[(row * heads + head) * total + key]) * values[key * kv + column];
        }
        op.check(stages::attention, mixed);
      }
    }
  }
}

TEST_CASE("the router's softmax and topk", "[ops]") {
  ModelConfig c = config_for(BlockType::f32);
  for (const int experts : {7, 64, 130}) {
    c.experts = experts;
    OneOp op(c, BlockType::f32, "f32");
    op.weight(BlockType::f32, c.hidden, 1);
    op.open();
    for (int rows : row_counts) {
      op.begin(rows);
      const std::vector<float> x = op.fill(stages::moe_router_logits);
      op.run(step_of(Op::softmax, {stages::moe_router_logits}, {}, {stages::moe_router_probs}));
      std::vector<double> shares;
      for (std::size_t i = 0; i < x.size(); i += static_cast<std::size_t>(experts)) {
        double sum = 0;
        for (int e = 0; e < experts; ++e) sum += std::exp(static_cast<double>(x[i + static_cast<std::size_t>(e)]));
        for (int e = 0; e < experts; ++e)
          shares.push_back(std::exp(static_cast<double>(x[i + static_cast<std::size_t>(e)])) / sum);
      }
      op.check(stages::moe_router_probs, shares);

      std::vector<float> p = op.fill(stages::moe_router_probs);
      for (float& v : p) v = std::round(std::fabs(v) * 8) + 1;  // with ties
      op.put(stages::moe_router_probs, p);
      const bool renormalised = rows % 2 == 1;
      Step topk =
          step_of(Op::topk, {stages::moe_router_probs}, {}, {stages::moe_router_indices, stages::moe_router_weights});
      topk.params = TopkParams{renormalised};
      op.run(topk);
      std::vector<std::int32_t> ids;
      std::vector<double> weights;
      for (std::size_t i = 0; i < p.size(); i += static_cast<std::size_t>(experts)) {
        std::vector<std::int32_t> order(static_cast<std::size_t>(experts));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
          return p[i + static_cast<std::size_t>(a)] > p[i + static_cast<std::size_t>(b)];
        });
        double sum = 0;
        for (int s = 0; s < c.used; ++s) sum += p[i + static_cast<std::size_t>(order[static_cast<std::size_t>(s)])];
        for (int s = 0; s < c.used; ++s) {
          ids.push_back(order[static_cast<std::size_t>(s)]);
          weights.push_back(p[i + static_cast<std::size_t>(ids.back())] / (renormalised ? sum : 1));
        }
      }
      op.check(stages::moe_router_weights, weights);
      const Tensor found = op.read(stages::moe_router_indices);
      CHECK(std::equal(ids.begin(), ids.end(), found.as<std::int32_t>()));
    }
  }
}

TEST_CASE("add, swiglu, weigh and combine", "[ops]") {
  for (const BlockType type : {BlockType::f32, BlockType::q8_0}) {
    const ModelConfig c = config_for(type);
    OneOp op(c, type, "f32");
    op.weight(BlockType::f32, c.hidden, 1);
    op.open();
    const auto used = static_cast<std::size_t>(c.used), d = static_cast<std::size_t>(c.hidden);
    for (int rows : row_counts) {
      op.begin(rows);
      const std::vector<float> a = op.fill(stages::embedding), b = op.fill(stages::attn_out);
      op.run(step_of(Op::add, {stages::embedding, stages::attn_out}, {}, {stages::post_attn_residual}));
      std::vector<double> expected(a.begin(), a.end());
      for (std::size_t i = 0; i < a.size(); ++i) expected[i] += b[i];
      op.check(stages::post_attn_residual, expected);

      const std::vector<float> gate = op.fill(stages::moe_expert_gate), up = op.fill(stages::moe_expert_up);
      op.run(step_of(Op::swiglu, {stages::moe_expert_gate, stages::moe_expert_up}, {}, {stages::moe_expert_swiglu}));
      expected.assign(gate.begin(), gate.end());
      for (std::size_t i = 0; i < gate.size(); ++i)
        expected[i] *= up[i] / (1 + std::exp(-static_cast<double>(gate[i])));
      op.check(stages::moe_expert_swiglu, expected);

      const std::vector<float> out = op.fill(stages::moe_expert_out), weights = op.fill(stages::moe_router_weights);
      op.run(
          step_of(Op::weigh, {stages::moe_expert_out, stages::moe_router_weights}, {}, {stages::moe_expert_weighted}));
      expected.assign(out.begin(), out.end());
      for (std::size_t i = 0; i < out.size(); ++i) expected[i] *= weights[i / d];
      op.check(stages::moe_expert_weighted, expected);

      const std::vector<float> weighted = op.fill(stages::moe_expert_weighted);
      op.run(step_of(Op::combine, {stages::moe_expert_weighted}, {}, {stages::moe_ffn_out}));
      expected.assign(op.count(stages::moe_ffn_out), 0);
      for (std::size_t i = 0; i < weighted.size(); ++i) expected[i / d / used * d + i % d] += weighted[i];
      op.check(stages::moe_ffn_out, expected);
    }
  }
}

}  // namespace moe_diag::test
