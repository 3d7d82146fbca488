// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>
#include <vector>

#include "tests/support/engine_sums.hpp"
#include "tests/support/wrong_steps.hpp"

namespace moe_diag::test {

// Mistakes that real engines make, computed by themselves rather than by the plain operators: those that have a name,
// and beside them some that are near and have none. These must be called an operator.
class EngineSteps {
 public:
  EngineSteps(StepBench& bench, const StepCase& c)
      : case_(c), step_(*c.step), config_(bench.config()), rows_(c.a.shape[0]), width_(c.a.shape.row()) {}

  std::vector<Made> named() {
    return of_kind([](const Made& made) { return made.cause != StepCause::plain_operator; });
  }
  std::vector<Made> unknown() {
    return of_kind([](const Made& made) { return made.cause == StepCause::plain_operator; });
  }

 private:
  template <class Is>
  std::vector<Made> of_kind(Is is) {
    if (made_.empty()) make();
    std::vector<Made> some;
    std::copy_if(made_.begin(), made_.end(), std::back_inserter(some), is);
    return some;
  }
  void make() {
    switch (step_.op) {
      case Op::rms_norm: of_norm(); break;
      case Op::linear:
      case Op::expert_linear: of_product(); break;
      case Op::rope: of_rope(); break;
      case Op::scores: of_scores(); break;
      case Op::softmax: step_.as<SoftmaxParams>().causal ? of_attention() : of_gating(); break;
      case Op::mix: of_cache(); break;
      case Op::topk: of_choice(); break;
      case Op::swiglu: of_activation(); break;
      case Op::combine: of_sum(); break;
      default: break;
    }
  }

  void add(StepCause cause, std::string name, Values values) {
    made_.push_back({cause, std::move(name), std::move(values)});
  }
  void add_unknown(std::string name, Values values) {
    add(StepCause::plain_operator, std::move(name), std::move(values));
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
    // `grows`: eps by row; `outside`: added to the root.
    const auto norm = [&](double eps, double plus, bool centred, std::int64_t together, double grows = 0,
                          double outside = 0) {
      return by_row([&](std::int64_t r) {
        const Values all = input(0, r);
        Values out;
        for (std::int64_t group = 0; group < width_; group += together) {
          const double* x = all.data() + step_.as<RmsNormParams>().offset + group;
          double mean = 0, squares = 0;
          for (std::int64_t i = 0; centred && i < together; ++i) mean += x[i] / static_cast<double>(together);
          for (std::int64_t i = 0; i < together; ++i) squares += (x[i] - mean) * (x[i] - mean);
          const double own = eps + grows * static_cast<double>(r);
          const double factor = 1 / (std::sqrt(squares / static_cast<double>(together) + own) + outside);
          for (std::int64_t i = 0; i < together; ++i)
            out.push_back((x[i] - mean) * factor * (w[static_cast<std::size_t>(i) % w.size()] + plus));
        }
        return out;
      });
    };
    const auto own = static_cast<std::int64_t>(w.size());
    const double eps = step_.as<RmsNormParams>().eps;
    for (const double other : {1e-5, 1e-3, 0.0})
      if (other != eps) add(StepCause::eps, fmt::format("eps {:g}", other), norm(other, 0, false, own));
    add(StepCause::function, "weight + 1", norm(eps, 1, false, own));
    add(StepCause::function, "layer norm", norm(eps, 0, true, own));
    if (own < width_) add(StepCause::function, "norm over all heads", norm(eps, 0, false, width_));
    add_unknown("eps that grows by row", norm(1e-3, 0, false, own, 2e-3));
    add_unknown("eps outside of the root", norm(eps, 0, false, own, 0, 3e-2));
    add_unknown("layer norm, weight + 1", norm(eps, 1, true, own));
  }

  // ---- products ----

  void of_product() {
    const auto product = [&](Sum sum) {
      const std::int64_t slots = step_.op == Op::expert_linear ? config_.used : 1;
      return by_row([&](std::int64_t r) {
        Values out;
        for (std::int64_t slot = 0; slot < slots; ++slot)
          for (std::size_t part = 0; part < step_.weights.size(); ++part) {
            const Weight* w = step_.weights[part];
            const Values bias = step_.bias(part) ? host::decode_row(host::Matrix(*step_.bias(part)), 0) : Values();
            Values x = input(0, r);
            if (static_cast<std::int64_t>(x.size()) != w->cols)
              x = Values(x.begin() + slot * w->cols, x.begin() + (slot + 1) * w->cols);
            const std::int64_t expert =
                step_.op == Op::expert_linear ? case_.routing_a.as<std::int32_t>()[r * slots + slot] : 0;
            for (std::int64_t row = 0; row < w->rows; ++row)
              out.push_back(sum(*w, w->row(expert, row), x) + (bias.empty() ? 0 : bias[static_cast<std::size_t>(row)]));
          }
        return out;
      });
    };
    if (step_.layer < 0) return;  // the head is as wide as the vocabulary
    const auto all_of = [&](BlockType type) {
      return std::all_of(step_.weights.begin(), step_.weights.end(), [&](const Weight* w) { return w->type == type; });
    };
    add(StepCause::partial_sum, "half of K", product(half_of_k));
    add(StepCause::partial_sum, "the other half of K", product(other_half_of_k));
    if (step_.weights[0]->cols % 96 != 0)
      add(StepCause::partial_sum, "the rest of K beside tiles of 96", product(without_tail));
    add(StepCause::partial_sum, "the sum of the first of four warps", product(first_warp));
    add_unknown("the sum of the second of four warps", product(second_warp));
    add_unknown("without every fifth column", product(without_every_fifth));
    add_unknown("half of K counted half", product(half_counted_half));
    add(StepCause::accumulation, "sums in bf16", product(bf16_sums));
    add(StepCause::accumulation, "sums in f16", product(f16_sums));
    add_unknown("sums in bf16 from the end", product(bf16_sums_back));
    add_unknown("sums in bf16, two of them", product(bf16_sums_of_two));
    for (const BlockType type : {BlockType::q4_k, BlockType::q5_k, BlockType::q2_k, BlockType::q4_1, BlockType::q5_1}) {
      if (!all_of(type)) continue;
      add(StepCause::skipped, fmt::format("{} without its mins", name_of(type)), product(less_mins<1>));
      add_unknown(fmt::format("{} with half of its mins", name_of(type)), product(less_mins<2>));
    }
    for (const BlockType type : {BlockType::q6_k, BlockType::q3_k})
      if (all_of(type))
        add(StepCause::permutation, fmt::format("{} with the scale of the group before", name_of(type)),
            product(scale_of_the_group_before));
  }

  // ---- attention ----

  template <class Angle>
  Values rotated(Angle angle_of, double size, double more = 0) const {
    const std::int64_t h = config_.head_dim;
    return by_row([&](std::int64_t r) {
      const Values x = input(0, r);
      Values y = x;
      for (std::int64_t head = 0; head < width_; head += h)
        for (std::int64_t i = 0; i < h / 2; ++i) {
          const double angle = (static_cast<double>(case_.first_position + r) + more) * angle_of(i);
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
    for (const double factor : {4.0, 2.5, 0.5})
      add(StepCause::rotation, fmt::format("positions divided by {}", factor),
          rotated([&](std::int64_t i) { return turn(i, h) / factor; }, 1));
    add(StepCause::rotation, "turned the other way", rotated([&](std::int64_t i) { return -turn(i, h); }, 1));
    const std::int64_t quarter = config_.head_dim / 4;
    add(StepCause::rotation, "half of the pairs",
        rotated([&](std::int64_t i) { return i < quarter ? turn(i, h) : 0; }, 1));
    add(StepCause::rotation, "half of the pairs, by angles of their own",
        rotated([&](std::int64_t i) { return i < quarter ? turn(i, h / 2) : 0; }, 1));
    add(StepCause::rotation, "half of the columns", half_rotated());
    for (const double times : {1 + 0.1 * std::log(4.0), 1.0})
      add(StepCause::rotation, times > 1 ? "YaRN" : "YaRN without its factor",
          rotated([&](std::int64_t i) { return turn(i, h) * (1 - 0.75 * slowness(i, 64)); }, times));
    const auto stretched = [&](std::int64_t i) {  // another ramp than YaRN's
      const double slow = std::clamp((static_cast<double>(i) - h / 16) / (h / 4), 0.0, 1.0);
      return turn(i, h) * (1 - slow + slow / 4);
    };
    add(StepCause::shifted_position, "three positions on", rotated([&](std::int64_t i) { return turn(i, h); }, 1, 3));
    add_unknown("a ramp unlike YaRN's", rotated(stretched, 1));
    add_unknown("YaRN with another magnitude",
                rotated([&](std::int64_t i) { return turn(i, h) * (1 - 0.75 * slowness(i, 64)); }, 1.2));
    add_unknown("positions divided by 3.7", rotated([&](std::int64_t i) { return turn(i, h) / 3.7; }, 1));
    add_unknown("positions divided by 4, and one on", rotated([&](std::int64_t i) { return turn(i, h) / 4; }, 1, 1));
    add_unknown("every other pair", rotated([&](std::int64_t i) { return i % 2 == 0 ? turn(i, h) : 0; }, 1));
    add_unknown("half a position on", rotated([&](std::int64_t i) { return turn(i, h); }, 1, 0.5));
  }

  // The slowness of a pair by YaRN of an original context, from 0 to 1.
  double slowness(std::int64_t i, double context) const {
    const double h = config_.head_dim, each = std::log(step_.as<RopeParams>().theta) * 2 / h;
    const double low = std::max(0.0, std::floor(std::log(context / (32 * 2 * 3.14159265358979323846)) / each));
    const double high = std::ceil(std::log(context / (2 * 3.14159265358979323846)) / each);
    return std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
  }

  // The first half of the columns of each head, as if it were a head.
  Values half_rotated() const {
    const std::int64_t h = config_.head_dim, n = h / 2;
    return by_row([&](std::int64_t r) {
      const Values x = input(0, r);
      Values y = x;
      for (std::int64_t head = 0; head < width_; head += h)
        for (std::int64_t i = 0; i < n / 2; ++i) {
          const double turn =
              std::pow(step_.as<RopeParams>().theta, -2.0 * static_cast<double>(i) / static_cast<double>(n));
          const double angle = static_cast<double>(case_.first_position + r) * turn;
          const auto a = static_cast<std::size_t>(head + i), b = static_cast<std::size_t>(head + i + n / 2);
          y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
          y[b] = x[b] * std::cos(angle) + x[a] * std::sin(angle);
        }
      return y;
    });
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
    const double root = std::sqrt(config_.head_dim);
    add(StepCause::scale, "without 1/sqrt(h)", edited([&](double s, Index, Index, Index) { return s * root; }));
    add(StepCause::scale, "1/sqrt(h) twice", edited([&](double s, Index, Index, Index) { return s / root; }));
    of_cache();
    add_unknown("soft-capped at 2", edited([](double s, Index, Index, Index) { return 2 * std::tanh(s / 2); }));
    add_unknown("ALiBi", edited([](double s, Index row, Index head, Index key) {
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
    add(StepCause::window, "a window of 3 keys", attention(3, 0, 1));
    add(StepCause::function, "a sink beside the keys", attention(total, 1, 1));
    add(StepCause::scale, "twice as cold", attention(total, 0, 2));
    const auto other = [&](auto first_of, auto seen_of, auto sink_of) {
      return by_row([&](std::int64_t r) {
        const Values x = input(0, r);
        Values out(x.size(), 0.0);
        const std::int64_t p = case_.first_position + r;
        for (std::int64_t head = 0; head < config_.heads; ++head)
          put_softmax(x, head * total, first_of(p), seen_of(p), sink_of(p, head), out);
        return out;
      });
    };
    using Index = std::int64_t;
    const auto from_0 = [](Index) { return Index{0}; };
    const auto to_own = [](Index p) { return p + 1; };
    const auto no_sink = [](Index, Index) { return 0.0; };
    add(StepCause::function, "a sink of each head",
        other(from_0, to_own, [](Index, Index head) { return 0.5 + static_cast<double>(head); }));
    add_unknown("a sink that grows by row",
                other(from_0, to_own, [](Index p, Index) { return 1 + static_cast<double>(p); }));
    add_unknown("chunks of 4 keys", other([](Index p) { return p / 4 * 4; }, to_own, no_sink));
    add_unknown("a window of 3 keys without the own one",
                other([](Index p) { return std::max<Index>(0, p - 3); }, [](Index p) { return std::max<Index>(1, p); },
                      no_sink));
    add_unknown("the first key is lost", other([](Index p) { return std::min<Index>(p, 1); }, to_own, no_sink));
  }

  // Blocks of 32 in 16 steps, the largest of which becomes -8.
  static Values q4_0(const Values& x) {
    Values out;
    for (std::size_t first = 0; first < x.size(); first += 32) {
      float most = 0;
      for (std::size_t i = first; i < first + 32; ++i)
        if (std::fabs(x[i]) > std::fabs(most)) most = static_cast<float>(x[i]);
      for (std::size_t i = first; i < first + 32; ++i) {
        const double steps = std::min(7.0, std::floor(x[i] / (most / -8) + 0.5));
        out.push_back(steps * f16(most / -8));
      }
    }
    return out;
  }

  // Scores, or mixes, of a cache whose entries are others.
  template <class Change>
  Values attended(Change entry_of) const {
    const std::int64_t width = config_.kv_width();
    return by_row([&](std::int64_t r) {
      Values cache;
      for (std::int64_t s = 0; s < case_.in[1].shape[0]; ++s) {
        const Values row = host::values_of(case_.in[1], s, 1);
        const Values own(row.begin() + step_.caches[0].column, row.begin() + step_.caches[0].column + width);
        for (const double v : entry_of(own)) cache.push_back(v);
      }
      const std::int64_t total = step_.op == Op::scores ? case_.a.shape[2] : case_.in[0].shape[2];
      const host::Attention attention(head_sizes(step_), case_.first_position + r + 1, total, width);
      return step_.op == Op::scores ? host::scores(attention, input(0, r), cache, step_.as<ScoresParams>().scale)
                                    : host::mix(attention, input(0, r), cache);
    });
  }

  void of_cache() {
    const auto add_rounded = [&](host::Rounding rounding) {
      add(StepCause::cache_type, fmt::format("the cache in {}", host::name_of(rounding)),
          attended([&](const Values& v) { return host::rounded(v, rounding); }));
    };
    for (const host::Rounding rounding : {host::Rounding::f16, host::Rounding::bf16, host::Rounding::q8_0})
      add_rounded(rounding);
    add(StepCause::cache_type, "the cache in Q4_0", attended(q4_0));
    add_unknown("the cache in steps of 1/64", attended([](Values v) {
                  for (double& x : v) x = std::nearbyint(x * 64) / 64;
                  return v;
                }));
    add_unknown("half of the cache in f16", attended([](Values v) {
                  for (std::size_t i = 0; i < v.size() / 2; ++i) v[i] = f16(v[i]);
                  return v;
                }));
  }

  // ---- the router ----

  void of_gating() {
    add(StepCause::function, "sigmoid gating", each([](double x, double) { return 1 / (1 + std::exp(-x)); }));
    const auto softmax = [&](double cold, double sink) {
      return by_row([&](std::int64_t r) {
        Values x = input(0, r), out(x.size(), 0.0);
        for (double& v : x) v *= cold;
        put_softmax(x, 0, 0, width_, sink, out);
        return out;
      });
    };
    add(StepCause::scale, "twice as cold", softmax(2, 0));
    add(StepCause::function, "a sink beside the experts", softmax(1, 1));
    add_unknown("colder by row", by_row([&](std::int64_t r) {
                  Values x = input(0, r), out(x.size(), 0.0);
                  for (double& v : x) v *= 2 + static_cast<double>(r);
                  put_softmax(x, 0, 0, width_, 0, out);
                  return out;
                }));
    add_unknown("shares of the sigmoids", by_row([&](std::int64_t r) {
                  Values x = input(0, r);
                  double sum = 0;
                  for (double& v : x) sum += v = 1 / (1 + std::exp(-v));
                  for (double& v : x) v /= sum;
                  return x;
                }));
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
    add(StepCause::function, "softmax of the probabilities", shares([](double p) { return std::exp(p); }));
    add_unknown("shares of the roots", shares([](double p) { return std::sqrt(p); }));
    add_unknown("softmax of twice the probabilities", shares([](double p) { return std::exp(2 * p); }));
  }

  // ---- the experts ----

  void of_activation() {
    const auto by_tanh = [&](double cubic) {
      return each([cubic](double g, double u) {
        return 0.5 * g * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (g + cubic * g * g * g))) * u;
      });
    };
    const auto silu = [&](double alpha, double more = 0) {
      return each([=](double g, double u) { return g / (1 + std::exp(-alpha * g)) * (u + more); });
    };
    const auto clamped = [&](double low_gate, double limit) {
      return each([=](double g, double u) {
        const double own = std::clamp(g, low_gate, limit);
        return own / (1 + std::exp(-own)) * std::clamp(u, -limit, limit);
      });
    };
    add(StepCause::function, "gelu",
        each([](double g, double u) { return 0.5 * g * (1 + std::erf(g / std::sqrt(2.0))) * u; }));
    add(StepCause::function, "gelu by tanh", by_tanh(0.044715));
    add(StepCause::function, "silu with alpha 1.702", silu(1.702));
    add(StepCause::function, "relu", each([](double g, double u) { return std::max(g, 0.0) * u; }));
    add(StepCause::function, "clamped at 0.1", clamped(-INFINITY, 0.1));
    add(StepCause::function, "that of gpt-oss", each([](double g, double u) {
          const double own = std::min(g, 7.0);
          return own / (1 + std::exp(-1.702 * own)) * (std::clamp(u, -7.0, 7.0) + 1);
        }));
    add(StepCause::function, "that of gpt-oss without its limit", silu(1.702, 1));
    add(StepCause::permutation, "gate and up read as pairs", fused(true));
    add(StepCause::permutation, "gate and up read as halves", fused(false));
    add_unknown("gelu with a wrong constant", by_tanh(0.0547));
    add_unknown("silu with alpha 1.6", silu(1.6));
    add_unknown("clamped at 0.1 on both sides", clamped(-0.1, 0.1));
    add_unknown("relu squared", each([](double g, double u) { return std::max(g, 0.0) * std::max(g, 0.0) * u; }));
    add_unknown("silu with alpha 1.702 and up + 0.5", silu(1.702, 0.5));
    add_unknown("softplus", each([](double g, double u) { return std::log1p(std::exp(g)) * u; }));
  }

  // [gate, up] of each slot read as pairs, or pairs read as [gate, up].
  Values fused(bool as_pairs) const {
    return by_row([&](std::int64_t r) {
      const Values gate = input(0, r), up = input(1, r);
      const std::size_t n = gate.size() / static_cast<std::size_t>(config_.used);
      const auto value = [&](std::size_t slot, std::size_t i) {
        if (as_pairs) return i < n ? gate[slot * n + i] : up[slot * n + i - n];
        return i % 2 == 0 ? gate[slot * n + i / 2] : up[slot * n + i / 2];
      };
      Values out;
      for (std::size_t slot = 0; slot * n < gate.size(); ++slot)
        for (std::size_t i = 0; i < n; ++i) {
          const double g = value(slot, as_pairs ? 2 * i : i), u = value(slot, as_pairs ? 2 * i + 1 : i + n);
          out.push_back(g / (1 + std::exp(-g)) * u);
        }
      return out;
    });
  }

  void of_sum() {
    const auto sum = [&](auto round, bool back) {
      return by_row([&](std::int64_t r) {
        const Values x = input(0, r);
        Values out;
        for (std::int64_t i = 0; i < width_; ++i) {
          float all = 0;
          for (int k = 0; k < config_.used; ++k) {
            const int slot = back ? config_.used - 1 - k : k;
            all = round(double{all} + x[static_cast<std::size_t>(slot * width_ + i)]);
          }
          out.push_back(all);
        }
        return out;
      });
    };
    add(StepCause::accumulation, "sums in bf16", sum(bf16, false));
    add(StepCause::accumulation, "sums in f16", sum(f16, false));
    add_unknown("sums in bf16 from the last slot on", sum(bf16, true));
  }

  const StepCase& case_;
  const Step& step_;
  const ModelConfig& config_;
  const std::int64_t rows_, width_;
  std::vector<Made> made_;
};

}  // namespace moe_diag::test
