// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/api/blocks.hpp"
#include "tests/support/wrong_steps.hpp"

namespace moe_diag::test {

// Mistakes that real engines make and that the explanation has no name for, computed by themselves rather than by the
// plain operators. Each must be called an operator.
class UnknownSteps {
 public:
  UnknownSteps(StepBench& bench, const StepCase& c)
      : case_(c), step_(*c.step), config_(bench.config()), rows_(c.a.shape[0]), width_(c.a.shape.row()) {}

  std::vector<Made> make() {
    switch (step_.op) {
      case Op::rms_norm: of_norm(); break;
      case Op::linear:
      case Op::expert_linear: of_product(); break;
      case Op::rope: of_rope(); break;
      case Op::scores: of_scores(); break;
      case Op::softmax: step_.as<SoftmaxParams>().causal ? of_attention() : of_gating(); break;
      case Op::mix: of_mix(); break;
      case Op::topk: of_choice(); break;
      case Op::swiglu: of_activation(); break;
      case Op::combine: of_sum(); break;
      default: break;
    }
    return std::move(made_);
  }

 private:
  static float bf16(double x) { return static_cast<float>(host::rounded(Values{x}, host::Rounding::bf16)[0]); }
  static float f16(double x) { return static_cast<float>(host::rounded(Values{x}, host::Rounding::f16)[0]); }

  void add(std::string name, Values values) {
    made_.push_back({StepCause::plain_operator, std::move(name), std::move(values)});
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
  Values input(std::size_t i, std::int64_t r) const { return host::values_of(case_.in[i], r, 1); }
  // Element by element of one input, or of two of the same shape.
  template <class F>
  Values each(F f) const {
    return by_row([&](std::int64_t r) {
      const Values x = input(0, r), y = case_.in[1] ? input(1, r) : x;
      Values out;
      for (std::size_t i = 0; i < x.size(); ++i) out.push_back(f(x[i], y[i]));
      return out;
    });
  }

  // ---- norms ----

  void of_norm() {
    const Values w = host::decode_row(host::Matrix(*step_.weights[0]), 0);
    const auto norm = [&](double eps, double plus, bool centred, std::int64_t together) {
      return by_row([&](std::int64_t r) {
        const Values all = input(0, r);
        Values out;
        for (std::int64_t group = 0; group < width_; group += together) {
          const double* x = all.data() + step_.as<RmsNormParams>().offset + group;
          double mean = 0, squares = 0;
          for (std::int64_t i = 0; centred && i < together; ++i) mean += x[i] / static_cast<double>(together);
          for (std::int64_t i = 0; i < together; ++i) squares += (x[i] - mean) * (x[i] - mean);
          const double factor = 1 / std::sqrt(squares / static_cast<double>(together) + eps);
          for (std::int64_t i = 0; i < together; ++i)
            out.push_back((x[i] - mean) * factor * (w[static_cast<std::size_t>(i) % w.size()] + plus));
        }
        return out;
      });
    };
    const auto own = static_cast<std::int64_t>(w.size());
    const double eps = step_.as<RmsNormParams>().eps;
    for (const double other : {1e-5, 1e-3, 0.0})
      if (other != eps) add(fmt::format("eps {:g}", other), norm(other, 0, false, own));
    add("weight + 1", norm(eps, 1, false, own));
    add("layer norm", norm(eps, 0, true, own));
    if (own < width_) add("norm over all heads", norm(eps, 0, false, width_));
  }

  // ---- products ----

  // How a kernel adds the products of one row of the weight.
  using Sum = double (*)(const Weight&, const std::byte* row, const Values& x);

  static Values decoded(const Weight& weight, const std::byte* row) {
    Values w;
    for (std::int64_t k = 0; k < weight.cols; ++k) w.push_back(decode<double>(weight.type, row, k));
    return w;
  }
  template <class Keep>
  static double sum_where(const Weight& weight, const std::byte* row, const Values& x, Keep keep) {
    const Values w = decoded(weight, row);
    double sum = 0;
    for (std::size_t k = 0; k < w.size(); ++k) sum += keep(k, w.size()) ? w[k] * x[k] : 0;
    return sum;
  }
  static double half_of_k(const Weight& weight, const std::byte* row, const Values& x) {
    return sum_where(weight, row, x, [](std::size_t k, std::size_t n) { return k < n / 2; });
  }
  static double without_tail(const Weight& weight, const std::byte* row, const Values& x) {
    return sum_where(weight, row, x, [](std::size_t k, std::size_t n) { return k < n - n % 96; });
  }
  static double first_warp(const Weight& weight, const std::byte* row, const Values& x) {
    return sum_where(weight, row, x, [](std::size_t k, std::size_t) { return k / 32 % 4 == 0; });
  }
  static double bf16_sums(const Weight& weight, const std::byte* row, const Values& x) {
    const Values w = decoded(weight, row);
    float sum = 0;
    for (std::size_t k = 0; k < w.size(); ++k) sum = bf16(double{sum} + w[k] * x[k]);
    return sum;
  }
  static double f16_sums(const Weight& weight, const std::byte* row, const Values& x) {
    const Values w = decoded(weight, row);
    float sum = 0;
    for (std::size_t k = 0; k < w.size(); ++k) sum = f16(double{sum} + w[k] * x[k]);
    return sum;
  }
  static double without_mins(const Weight& weight, const std::byte* row, const Values& x) {
    Values w = decoded(weight, row);
    for (std::size_t k = 0; k < w.size(); ++k) {
      BlockQ4_K block;
      std::memcpy(&block, row + k / 256 * sizeof block, sizeof block);
      w[k] += double{float_from_f16(block.dmin)} * q4_k_scale_min(block.groups, static_cast<int>(k % 256 / 32)).min;
    }
    return host::dot(w, x);
  }
  static double scale_of_the_group_before(const Weight& weight, const std::byte* row, const Values& x) {
    Values w = decoded(weight, row);
    for (std::size_t k = 0; k < w.size(); ++k) {
      BlockQ6_K block;
      std::memcpy(&block, row + k / 256 * sizeof block, sizeof block);
      const std::size_t group = k % 256 / 16;
      if (block.groups[group] != 0) w[k] = w[k] / block.groups[group] * block.groups[(group + 15) % 16];
    }
    return host::dot(w, x);
  }

  void of_product() {
    const auto product = [&](Sum sum) {
      const std::int64_t slots = step_.op == Op::expert_linear ? config_.used : 1;
      return by_row([&](std::int64_t r) {
        Values out;
        for (std::int64_t slot = 0; slot < slots; ++slot)
          for (const Weight* w : step_.weights) {
            Values x = input(0, r);
            if (static_cast<std::int64_t>(x.size()) != w->cols)
              x = Values(x.begin() + slot * w->cols, x.begin() + (slot + 1) * w->cols);
            const std::int64_t expert =
                step_.op == Op::expert_linear ? case_.routing_a.as<std::int32_t>()[r * slots + slot] : 0;
            for (std::int64_t row = 0; row < w->rows; ++row) out.push_back(sum(*w, w->row(expert, row), x));
          }
        return out;
      });
    };
    if (step_.layer < 0) return;  // the head is as wide as the vocabulary
    const auto all_of = [&](BlockType type) {
      return std::all_of(step_.weights.begin(), step_.weights.end(), [&](const Weight* w) { return w->type == type; });
    };
    add("half of K", product(half_of_k));
    if (step_.weights[0]->cols % 96 != 0) add("the rest of K beside tiles of 96", product(without_tail));
    add("the sum of the first of four warps", product(first_warp));
    add("sums in bf16", product(bf16_sums));
    add("sums in f16", product(f16_sums));
    if (all_of(BlockType::q4_k)) add("Q4_K without its mins", product(without_mins));
    if (all_of(BlockType::q6_k)) add("Q6_K with the scale of the group before", product(scale_of_the_group_before));
  }

  // ---- attention ----

  template <class Angle>
  Values rotated(Angle angle_of, double size) const {
    const std::int64_t h = config_.head_dim;
    return by_row([&](std::int64_t r) {
      const Values x = input(0, r);
      Values y = x;
      for (std::int64_t head = 0; head < width_; head += h)
        for (std::int64_t i = 0; i < h / 2; ++i) {
          const double angle = static_cast<double>(case_.first_position + r) * angle_of(i);
          const auto a = static_cast<std::size_t>(head + i), b = static_cast<std::size_t>(head + i + h / 2);
          y[a] = (x[a] * std::cos(angle) - x[b] * std::sin(angle)) * size;
          y[b] = (x[b] * std::cos(angle) + x[a] * std::sin(angle)) * size;
        }
      return y;
    });
  }

  void of_rope() {
    const auto h = static_cast<double>(config_.head_dim);
    const auto turn = [&](std::int64_t i, double rotated) {
      return std::pow(step_.as<RopeParams>().theta, -2.0 * static_cast<double>(i) / rotated);
    };
    add("positions divided by 4", rotated([&](std::int64_t i) { return turn(i, h) / 4; }, 1));
    add("turned the other way", rotated([&](std::int64_t i) { return -turn(i, h); }, 1));
    add("half of the dimensions",
        rotated([&](std::int64_t i) { return i < config_.head_dim / 4 ? turn(i, h / 2) : 0; }, 1));
    const auto stretched = [&](std::int64_t i) {  // fast pairs as they are, slow ones by a quarter, as YaRN does
      const double slow = std::clamp((static_cast<double>(i) - h / 16) / (h / 4), 0.0, 1.0);
      return turn(i, h) * (1 - slow + slow / 4);
    };
    add("YaRN", rotated(stretched, 1 + 0.1 * std::log(4.0)));
    add("YaRN without its factor", rotated(stretched, 1));
  }

  void of_scores() {
    const Values right = host::values_of(case_.b);
    const auto edited = [&](auto edit) {
      Values all = right;
      const std::int64_t total = case_.a.shape[2];
      for (std::size_t i = 0; i < all.size(); ++i) {
        const auto at = static_cast<std::int64_t>(i);
        all[i] = edit(all[i], at / width_, at % width_ / total, at % total);
      }
      return all;
    };
    using Index = std::int64_t;
    add("soft-capped at 2", edited([](double s, Index, Index, Index) { return 2 * std::tanh(s / 2); }));
    add("ALiBi", edited([](double s, Index row, Index head, Index key) {
          return s - 0.1 * static_cast<double>(head + 1) * static_cast<double>(row - key);
        }));
  }

  // exp(x - largest) over the keys from `first` to `seen`, over their sum and `more`.
  static void put_softmax(const Values& x, std::int64_t at, std::int64_t first, std::int64_t seen, double more,
                          Values& out) {
    double largest = -INFINITY, sum = 0;
    for (std::int64_t i = first; i < seen; ++i) largest = std::max(largest, x[static_cast<std::size_t>(at + i)]);
    for (std::int64_t i = first; i < seen; ++i) sum += std::exp(x[static_cast<std::size_t>(at + i)] - largest);
    for (std::int64_t i = first; i < seen; ++i)
      out[static_cast<std::size_t>(at + i)] =
          std::exp(x[static_cast<std::size_t>(at + i)] - largest) / (sum + more * std::exp(-largest));
  }

  void of_attention() {
    const std::int64_t total = case_.in[0].shape[2];
    const auto attention = [&](std::int64_t window, double sink, double cold) {
      return by_row([&](std::int64_t r) {
        Values x = input(0, r), out(x.size(), 0.0);
        for (double& v : x) v *= cold;
        const std::int64_t seen = case_.first_position + r + 1;
        for (std::int64_t head = 0; head < config_.heads; ++head)
          put_softmax(x, head * total, std::max<std::int64_t>(0, seen - window), seen, sink, out);
        return out;
      });
    };
    add("a window of 3 keys", attention(3, 0, 1));
    add("a sink beside the keys", attention(total, 1, 1));
    add("twice as cold", attention(total, 0, 2));
  }

  void of_mix() {
    const std::int64_t width = config_.kv_width(), total = case_.in[0].shape[2];
    const auto mixed = [&](auto value_of) {
      return by_row([&](std::int64_t r) {
        Values cache;
        for (std::int64_t s = 0; s < case_.in[1].shape[0]; ++s) {
          const Values row = host::values_of(case_.in[1], s, 1);
          const Values own(row.begin() + step_.caches[0].column, row.begin() + step_.caches[0].column + width);
          for (const double v : value_of(own)) cache.push_back(v);
        }
        const host::Attention attention(head_sizes(step_), case_.first_position + r + 1, total, width);
        return host::mix(attention, input(0, r), cache);
      });
    };
    add("the cache in f16", mixed([](const Values& v) { return host::rounded(v, host::Rounding::f16); }));
    add("the cache in Q8_0", mixed([](const Values& v) { return host::rounded(v, host::Rounding::q8_0); }));
  }

  // ---- the router ----

  void of_gating() {
    add("sigmoid gating", each([](double x, double) { return 1 / (1 + std::exp(-x)); }));
    const auto softmax = [&](double cold, double sink) {
      return by_row([&](std::int64_t r) {
        Values x = input(0, r), out(x.size(), 0.0);
        for (double& v : x) v *= cold;
        put_softmax(x, 0, 0, width_, sink, out);
        return out;
      });
    };
    add("twice as cold", softmax(2, 0));
    add("a sink beside the experts", softmax(1, 1));
  }

  void of_choice() {
    const auto shares = [&](auto share) {
      return by_row([&](std::int64_t r) {
        Values chosen = host::topk(input(0, r), config_.used).weights, out;
        const Values probs = input(0, r);
        const auto* ids = case_.routing_a.as<std::int32_t>() + r * config_.used;
        for (int slot = 0; slot < config_.used; ++slot)
          chosen[static_cast<std::size_t>(slot)] = probs[static_cast<std::size_t>(ids[slot])];
        double sum = 0;
        for (const double p : chosen) sum += share(p);
        for (const double p : chosen) out.push_back(share(p) / sum);
        return out;
      });
    };
    add("softmax of the probabilities", shares([](double p) { return std::exp(p); }));
    add("shares of the roots", shares([](double p) { return std::sqrt(p); }));
  }

  // ---- the experts ----

  void of_activation() {
    add("gelu", each([](double g, double u) { return 0.5 * g * (1 + std::erf(g / std::sqrt(2.0))) * u; }));
    add("gelu by tanh", each([](double g, double u) {
          return 0.5 * g * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (g + 0.044715 * g * g * g))) * u;
        }));
    add("silu with alpha 1.702", each([](double g, double u) { return g / (1 + std::exp(-1.702 * g)) * u; }));
    add("relu", each([](double g, double u) { return std::max(g, 0.0) * u; }));
    add("clamped at 0.1", each([](double g, double u) {
          const double low = std::min(g, 0.1);
          return low / (1 + std::exp(-low)) * std::clamp(u, -0.1, 0.1);
        }));
  }

  void of_sum() {
    const auto sum = [&](auto round) {
      return by_row([&](std::int64_t r) {
        const Values x = input(0, r);
        Values out;
        for (std::int64_t i = 0; i < width_; ++i) {
          float all = 0;
          for (int slot = 0; slot < config_.used; ++slot)
            all = round(double{all} + x[static_cast<std::size_t>(slot * width_ + i)]);
          out.push_back(all);
        }
        return out;
      });
    };
    add("sums in bf16", sum(bf16));
    add("sums in f16", sum(f16));
  }

  const StepCase& case_;
  const Step& step_;
  const ModelConfig& config_;
  const std::int64_t rows_, width_;
  std::vector<Made> made_;
};

}  // namespace moe_diag::test
