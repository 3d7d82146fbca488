// SPDX-License-Identifier: MIT
// Operators of the cuda lanes alone, where conformance_test.cpp looks less closely: products of rounded operands to the
// last bits of f32, long rows, many experts. Fresh random inputs, outputs poisoned before each run, results against
// plain definitions in double.
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

const std::string all_numerics[] = {"f32", "bf16", "q8_1"}, that_round[] = {"bf16", "q8_1"};

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

  void begin(int rows) {
    tokens_.resize(static_cast<std::size_t>(rows));
    for (std::int32_t& t : tokens_) t = static_cast<std::int32_t>(random_() % static_cast<unsigned>(config_.vocab));
    rows_ = rows;
    lane_->begin({tokens_, 0, rows, 0});
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
                 {values.data(), DType::f32, config_.shape_of({stage, layer_}, rows_, rows_)});
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
                 {ids.data(), DType::i32, config_.shape_of({stage, layer_}, rows_, rows_)});
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
    const Tensor truth{expected.data(), DType::f64, config_.shape_of({stage, layer_}, rows_, rows_)};
    REQUIRE(expected.size() == count(stage));
    INFO(name_of(stage) << ", " << name_of(type_) << ", " << numerics_ << ", " << rows_ << " rows");
    CHECK(worst_row(read(stage), truth) <= bound);
  }

  std::size_t count(Stage stage) const {
    return static_cast<std::size_t>(config_.shape_of({stage, layer_}, rows_, rows_).count());
  }
  const ModelConfig& config() const { return config_; }
  BlockType type() const { return type_; }
  const std::string& numerics() const { return numerics_; }
  int rows() const { return rows_; }

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
  int rows_ = 0;
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

TEST_CASE("linear of every type, in the numerics that round operands", "[ops]") {
  for (const BlockInfo& block : multiplied())
    for (const std::string& numerics : that_round) {
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

TEST_CASE("expert_linear of every type, in the numerics that round operands", "[ops]") {
  for (const BlockInfo& block : multiplied())
    for (const std::string& numerics : that_round) {
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

}  // namespace moe_diag::test
