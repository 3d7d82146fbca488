// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>

#include "core/compare/step_hypotheses.hpp"

namespace moe_diag {
namespace {

using host::Values;

constexpr std::array well_known_thetas{1e4, 5e5, 1e6, 1e7};
constexpr std::size_t most_stale = 16;  // positions of a cache that are tried
constexpr double outlier = 0.01;        // beside the worst element: keys with large values err by more than others
constexpr double pi = 3.14159265358979323846;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// A step and what it read. Cheap to copy: every hypothesis keeps one.
struct Operands {
  const StepCase& c;
  const Step& step;
  const ModelConfig& config;

  std::int64_t position(const StepUnit& unit) const { return c.first_position + unit.row; }

  // What a unit reads of input i: its row, or its slot's part of it.
  Values input(std::size_t i, const StepUnit& unit) const {
    const Values row = host::values_of(c.in[i], unit.row, 1);
    if (unit.slot < 0) return row;
    const auto width = static_cast<std::ptrdiff_t>(row.size()) / config.used;
    const auto from = row.begin() + unit.slot * width;
    return {from, from + width};
  }
};

class List {
 public:
  using Row = std::function<Values(const StepUnit&)>;

  explicit List(double work) : work_(work) {}
  void add(StepCause cause, std::string text, Row row) {
    Hypothesis h{cause, std::move(text)};
    h.work = work_;
    h.row = std::move(row);
    list_.push_back(std::move(h));
  }
  std::vector<Hypothesis> take() { return std::move(list_); }

 private:
  double work_;
  std::vector<Hypothesis> list_;
};

// ---- norms and rotations -------------------------------------------------------------------------------------------

void add_norms(const Operands& o, List& list) {
  const auto norm = [o](bool normalise, bool weigh) {
    return [o, normalise, weigh](const StepUnit& unit) {
      const Values row = o.input(0, unit);
      const std::span<const double> x(row.data() + o.step.params.offset, at(unit.size));
      const Values w =
          weigh ? host::decode_row(host::Matrix(*o.step.weights[0]), 0) : Values(at(o.step.params.width), 1);
      return host::rms_norm(x, w, {o.step.params.eps, normalise});
    };
  };
  list.add(StepCause::skipped, "not normalised: only multiplied by the weight", norm(false, true));
  list.add(StepCause::skipped, "normalised, but not multiplied by the weight", norm(true, false));
  list.add(StepCause::skipped, "the norm was left out: the input passed through", norm(false, false));
}

// To three digits: bases are round numbers, and a fit is not exact.
double to_three_digits(double x) {
  const double unit = std::pow(10, std::floor(std::log10(x)) - 2);
  return std::round(x / unit) * unit;
}

// The angle by which pair i of all heads of a row turned, in -pi..pi.
double angle_of(const Operands& o, const StepUnit& unit, const Values& x, std::int64_t i) {
  const std::int64_t h = o.config.head_dim;
  double along = 0, across = 0;
  for (std::int64_t head = 0; head < unit.size; head += h) {
    const double re = x[at(head + i)], im = x[at(head + i + h / 2)];
    const double turned_re = value_at(o.c.a, unit.in_a(head + i));
    const double turned_im = value_at(o.c.a, unit.in_a(head + i + h / 2));
    along += re * turned_re + im * turned_im;
    across += re * turned_im - im * turned_re;
  }
  return std::atan2(across, along);
}

// Whether another theta turns each pair that the model's own turns. Where it does not, a rotation that leaves such
// pairs out looks the same: a partial one, or one with its angles scaled.
bool turns_the_same_pairs(const Operands& o, const FailingUnits& failing, double theta) {
  constexpr double seen = 1e-5;  // radians, beyond the error that is explained in f32
  const double h = o.config.head_dim, own = o.step.params.theta;
  double farthest = 0;
  for (const StepUnit* unit : failing) farthest = std::max(farthest, static_cast<double>(o.position(*unit)));
  const auto turned = [&](double base, double pair) { return farthest * std::pow(base, -2 * pair / h) > seen; };
  for (double pair = 1; pair < h / 2; ++pair)
    if (turned(own, pair) && !turned(theta, pair)) return false;
  return true;
}

// From the pair that turned farthest while surely less than half a circle, in the first row that fails. One pair alone
// always fits some theta.
std::optional<double> fitted_theta(const Operands& o, const StepUnit& unit) {
  constexpr double least_theta = 100;
  constexpr std::int64_t least_pairs = 3;  // the first of them turns by the position, whatever theta is
  const double h = o.config.head_dim;
  if (o.config.head_dim / 2 < least_pairs) return std::nullopt;
  const auto p = static_cast<double>(o.position(unit));
  const Values x = o.input(0, unit);
  for (std::int64_t i = 1; p > 0 && i < o.config.head_dim / 2; ++i) {
    const auto pair = static_cast<double>(i);
    if (p * std::pow(least_theta, -2 * pair / h) >= pi) continue;
    const double theta = std::pow(angle_of(o, unit, x, i) / p, -h / (2 * pair));
    if (std::isfinite(theta) && theta >= least_theta) return to_three_digits(theta);
    return std::nullopt;
  }
  return std::nullopt;
}

void add_ropes(const Operands& o, const FailingUnits& failing, List& list) {
  const auto rope = [o](std::int64_t shift, host::RopeOptions options) {
    return [o, shift, options](const StepUnit& unit) {
      return host::rope(o.input(0, unit), o.config.head_dim, o.position(unit) + shift, options);
    };
  };
  const double theta = o.step.params.theta;
  const int first = o.c.first_position;
  // The one row of a pass that starts again turns by nothing, as one that is not rotated does.
  if (first > 0 && o.c.a.shape[0] == 1)
    list.add(StepCause::shifted_position, "rotated as at position 0: not at all, or the positions start again",
             [o](const StepUnit& unit) { return o.input(0, unit); });
  else
    list.add(StepCause::skipped, "not rotated", [o](const StepUnit& unit) { return o.input(0, unit); });
  if (first > 1 && o.c.a.shape[0] > 1)
    list.add(StepCause::shifted_position, "the positions start again at 0 with the chunk", rope(-first, {theta}));
  list.add(StepCause::permutation, "rotates pairs (2i, 2i + 1) instead of (i, i + h/2)",
           rope(0, {theta, host::RopePairs::neighbours}));
  list.add(StepCause::shifted_position, "rotated by the angle of the position before", rope(-1, {theta}));
  list.add(StepCause::shifted_position, "rotated by the angle of the position after", rope(1, {theta}));
  std::vector<double> thetas(well_known_thetas.begin(), well_known_thetas.end());
  if (const auto fitted = fitted_theta(o, *failing[0])) thetas.push_back(*fitted);
  for (double other : thetas)
    if (other != theta && turns_the_same_pairs(o, failing, other))
      list.add(StepCause::rope_theta, fmt::format("rotated with theta {:.6g} instead of {:.6g}", other, theta),
               rope(0, {other}));
}

// ---- attention -----------------------------------------------------------------------------------------------------

// Scores and mix, from a cache of keys or values of which the step's second input holds the true contents.
struct Cached {
  Operands o;
  Values truth;  // [positions, Hk h]
  std::int64_t width = 0;

  explicit Cached(const Operands& operands) : o(operands), width(o.config.kv_width()) {
    const std::int64_t offset = is_scores() ? 0 : o.step.params.offset;
    for (std::int64_t s = 0; s < o.c.in[1].shape[0]; ++s) {
      const Values row = host::values_of(o.c.in[1], s, 1);
      truth.insert(truth.end(), row.begin() + offset, row.begin() + offset + width);
    }
  }
  bool is_scores() const { return o.step.op == Op::scores; }
  std::string_view entry() const { return is_scores() ? "key" : "value"; }

  void copy(Values& cache, std::int64_t from, std::int64_t to) const {
    std::copy_n(cache.begin() + from * width, width, cache.begin() + to * width);
  }
  void clear(Values& cache, std::int64_t p) const { std::fill_n(cache.begin() + p * width, width, 0.0); }

  // A unit's scores or sums from that cache; `in_turn`: query head j reads kv head j mod Hk.
  Values attended(const StepUnit& unit, const Values& cache, bool in_turn = false) const {
    const std::int64_t total = is_scores() ? o.c.a.shape[2] : o.c.in[0].shape[2];
    const std::int64_t seen = o.position(unit) + 1, h = o.config.head_dim;
    const host::Attention attention{o.config.heads, o.config.kv_heads, h, seen, total};
    Values x = o.input(0, unit);
    if (in_turn) x = reordered(x, is_scores() ? h : total, false);
    Values out = is_scores() ? host::scores(attention, x, cache, o.step.params.scale) : host::mix(attention, x, cache);
    if (in_turn) out = reordered(out, is_scores() ? total : h, true);
    if (!is_scores()) return out;
    Values compared;  // without the keys after the own position
    for (std::int64_t head = 0; head < o.config.heads; ++head)
      compared.insert(compared.end(), out.begin() + head * total, out.begin() + head * total + seen);
    return compared;
  }

 private:
  // Query heads in an order in which those that read one kv head in turn are neighbours, or back from it.
  Values reordered(const Values& x, std::int64_t size, bool back) const {
    const std::int64_t per_key = o.config.heads / o.config.kv_heads;
    Values out(x.size());
    for (std::int64_t j = 0; j < o.config.heads; ++j) {
      const std::int64_t place = j % o.config.kv_heads * per_key + j / o.config.kv_heads;
      std::copy_n(x.begin() + (back ? place : j) * size, size, out.begin() + (back ? j : place) * size);
    }
    return out;
  }
};

// The keys with wrong scores in the rows that fail: those that are farther off than their error explains.
std::vector<std::int64_t> wrong_keys(const Cached& cached, const FailingUnits& failing) {
  std::set<std::int64_t> keys;
  for (const StepUnit* unit : failing)
    for (const std::int64_t i : wrong_elements(cached.o.c, *unit, outlier)) keys.insert(i % unit->run());
  return {keys.begin(), keys.end()};
}

// Positions whose entries may be others at all rows. Of keys, those with wrong scores; of values nothing shows it, and
// all up to the first row that fails are tried one by one.
std::vector<std::vector<std::int64_t>> stale_positions(const Cached& cached, const FailingUnits& failing) {
  if (cached.is_scores()) return {wrong_keys(cached, failing)};
  std::vector<std::vector<std::int64_t>> tried;
  for (std::int64_t p = cached.o.position(*failing[0]); p >= 0 && tried.size() < most_stale; --p) tried.push_back({p});
  return tried;
}

void add_stale(const Cached& cached, const FailingUnits& failing, List& list) {
  const auto add = [&](const std::string& text, auto edit) {
    list.add(StepCause::stale_kv, text, [cached, edit](const StepUnit& unit) {
      Values cache = cached.truth;
      edit(cached, cache, cached.o.position(unit));
      return cached.attended(unit, cache);
    });
  };
  const auto entry = [&](std::string_view text) { return fmt::format("the {} {}", cached.entry(), text); };
  add(entry("of the own position is that of the position before"), [](const Cached& k, Values& cache, std::int64_t p) {
    if (p > 0) k.copy(cache, p - 1, p);
  });
  add(entry("of the own position is zero, or not seen"),
      [](const Cached& k, Values& cache, std::int64_t p) { k.clear(cache, p); });
  for (const std::vector<std::int64_t>& stale : stale_positions(cached, failing)) {
    if (stale.empty() || stale.size() > most_stale) continue;
    const std::string text = fmt::format("the {}{} of position{} {} {}", cached.entry(), stale.size() == 1 ? "" : "s",
                                         stale.size() == 1 ? "" : "s", numbers_text({stale.begin(), stale.end()}),
                                         stale.size() == 1 ? "is" : "are");
    if (stale.front() > 0)
      add(fmt::format("{} {} of the position before", text, stale.size() == 1 ? "that" : "those"),
          [stale](const Cached& k, Values& cache, std::int64_t) {
            for (std::int64_t p : stale)
              std::copy_n(k.truth.begin() + (p - 1) * k.width, k.width, cache.begin() + p * k.width);
          });
    add(text + " zero", [stale](const Cached& k, Values& cache, std::int64_t) {
      for (std::int64_t p : stale) k.clear(cache, p);
    });
  }
  add(entry("of each position is that of the position before"), [](const Cached& k, Values& cache, std::int64_t) {
    std::copy_backward(k.truth.begin(), k.truth.end() - k.width, cache.end());
  });
}

void add_attentions(const Operands& o, const FailingUnits& failing, List& list) {
  const Cached cached(o);
  add_stale(cached, failing, list);
  list.add(StepCause::permutation,
           fmt::format("query head j reads {} head j mod {}", cached.entry(), o.config.kv_heads),
           [cached](const StepUnit& unit) { return cached.attended(unit, cached.truth, true); });
}

void add_softmaxes(const Operands& o, List& list) {
  if (!o.step.params.causal) {
    list.add(StepCause::skipped, "the softmax was left out: the input passed through",
             [o](const StepUnit& unit) { return o.input(0, unit); });
    return;
  }
  const auto seeing = [o](auto seen_of) {
    return [o, seen_of](const StepUnit& unit) -> Values {
      const std::int64_t total = o.c.in[0].shape[2], own = o.position(unit) + 1, seen = seen_of(own, total);
      if (seen < 1 || seen > total) return {};
      const Values all = host::softmax(o.input(0, unit), total, seen);
      Values compared;
      for (std::int64_t head = 0; head < o.config.heads; ++head)
        compared.insert(compared.end(), all.begin() + head * total, all.begin() + head * total + own);
      return compared;
    };
  };
  list.add(StepCause::skipped, "the mask was left out: later keys count",
           seeing([](std::int64_t, std::int64_t total) { return total; }));
  list.add(StepCause::shifted_position, "the own key is not seen",
           seeing([](std::int64_t own, std::int64_t) { return own - 1; }));
  list.add(StepCause::shifted_position, "the key of the position after is seen",
           seeing([](std::int64_t own, std::int64_t) { return own + 1; }));
}

// ---- sums and products ---------------------------------------------------------------------------------------------

void add_adds(const Operands& o, List& list) {
  for (std::size_t i = 0; i < 2; ++i)
    list.add(StepCause::skipped, fmt::format("{} was not added", name_of(o.step.in[1 - i])),
             [o, i](const StepUnit& unit) { return o.input(i, unit); });
}

void add_swiglus(const Operands& o, List& list) {
  list.add(StepCause::skipped, "gate * up, without silu", [o](const StepUnit& unit) {
    Values out = o.input(0, unit);
    const Values up = o.input(1, unit);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] *= up[i];
    return out;
  });
  list.add(StepCause::permutation, "gate and up changed places: silu(up) * gate",
           [o](const StepUnit& unit) { return host::swiglu(o.input(1, unit), o.input(0, unit)); });
}

void add_weighs(const Operands& o, List& list) {
  const auto by = [o](auto factor) {
    return [o, factor](const StepUnit& unit) { return host::weigh(o.input(0, unit), Values{factor(unit)}); };
  };
  const int used = o.config.used;
  list.add(StepCause::skipped, "not multiplied by the router's weights", by([](const StepUnit&) { return 1.0; }));
  list.add(StepCause::uniform_weights, fmt::format("all experts weigh 1/{}", used),
           by([used](const StepUnit&) { return 1.0 / used; }));
  for (int shift = 1; shift < used; ++shift)
    list.add(StepCause::permutation, fmt::format("slot j has the weight of slot (j + {}) mod {}", shift, used),
             by([o, shift, used](const StepUnit& unit) {
               return host::values_of(o.c.in[1], unit.row, 1)[at((unit.slot + shift) % used)];
             }));
}

void add_combines(const Operands& o, List& list) {
  if (o.config.used == 1) return;  // the sum without its only expert is zero, which has a name
  for (int slot = 0; slot < o.config.used; ++slot)
    list.add(StepCause::dropped_expert, fmt::format("the expert of slot {} is not added", slot),
             [o, slot](const StepUnit& unit) {
               Values x = o.input(0, unit);
               const auto width = static_cast<std::ptrdiff_t>(x.size()) / o.config.used;
               std::fill_n(x.begin() + slot * width, width, 0.0);
               return host::combine(x, o.config.used);
             });
}

// ---- the router's weights, of the experts that both lanes chose ----------------------------------------------------

// What a slot gets, from the probabilities of the experts chosen.
using Share = double (*)(const Values& chosen, std::size_t slot);

double sum(const Values& chosen) {
  double total = 0;
  for (double p : chosen) total += p;
  return total;
}

void add_choices(const Operands& o, const FailingUnits& failing, List& list) {
  const auto shared = [o](Share share) {
    return [o, share](const StepUnit& unit) {
      const auto* ids = o.c.routing_a.as<std::int32_t>() + std::int64_t{unit.row} * o.config.used;
      const Values probs = o.input(0, unit);
      Values chosen, out;
      for (int slot = 0; slot < o.config.used; ++slot)
        chosen.push_back(ids[slot] >= 0 && ids[slot] < o.config.experts ? probs[at(ids[slot])] : NAN);
      for (const Segment& s : unit.segments) {
        out.push_back(share(chosen, at(s.a % o.config.used)));
        if (out.back() == 0 && value_at(o.c.a, s.a) != 0) return Values{};  // an expert left out weighs nothing at all
      }
      return out;
    };
  };
  list.add(StepCause::skipped, "the weights are not divided by their sum",
           shared([](const Values& chosen, std::size_t slot) { return chosen[slot]; }));
  list.add(StepCause::uniform_weights, fmt::format("all experts weigh 1/{}", o.config.used),
           shared([](const Values& chosen, std::size_t) { return 1.0 / static_cast<double>(chosen.size()); }));
  if (o.config.used == 1) return;
  list.add(StepCause::dropped_expert, "the best expert weighs nothing",
           shared([](const Values& chosen, std::size_t slot) { return slot == 0 ? 0 : chosen[slot] / sum(chosen); }));
  list.add(StepCause::dropped_expert, "the best expert weighs nothing, the others share its weight",
           shared([](const Values& chosen, std::size_t slot) {
             return slot == 0 ? 0 : chosen[slot] / (sum(chosen) - chosen[0]);
           }));
  const auto without_best = [&](const StepUnit* unit) { return chose_without_best(o.c, o.config, unit->row); };
  if (std::all_of(failing.begin(), failing.end(), without_best))
    list.add(StepCause::dropped_expert, "the best expert was passed over, the next ones chosen",
             shared([](const Values& chosen, std::size_t slot) { return chosen[slot] / sum(chosen); }));
}

}  // namespace

bool chose_without_best(const StepCase& c, const ModelConfig& config, int row) {
  if (!c.in[0] || config.used + 1 > config.experts) return false;
  const host::Chosen best = host::topk(host::values_of(c.in[0], row, 1), config.used + 1);
  const Tensor& routing = info(c.stage).payload == Payload::indices ? c.a : c.routing_a;
  const auto* ids = routing.as<std::int32_t>() + std::int64_t{row} * config.used;
  return std::is_permutation(ids, ids + config.used, best.experts.begin() + 1);
}

std::vector<Hypothesis> operator_hypotheses(const StepKnowledge& known, const FailingUnits& failing) {
  const Operands o{known.step_case, known.step(), known.config()};
  for (std::size_t i = 0; i < o.step.in.size(); ++i)
    if (!o.c.in[i]) return {};
  const bool scores = o.step.op == Op::scores;
  List list(scores ? o.config.head_dim : o.step.op == Op::mix ? static_cast<double>(o.c.in[1].shape[0]) : 1);
  switch (o.step.op) {
    case Op::rms_norm: add_norms(o, list); break;
    case Op::rope: add_ropes(o, failing, list); break;
    case Op::scores:
    case Op::mix: add_attentions(o, failing, list); break;
    case Op::softmax: add_softmaxes(o, list); break;
    case Op::add: add_adds(o, list); break;
    case Op::topk: add_choices(o, failing, list); break;
    case Op::swiglu: add_swiglus(o, list); break;
    case Op::weigh: add_weighs(o, list); break;
    case Op::combine: add_combines(o, list); break;
    case Op::embed:
    case Op::linear:
    case Op::expert_linear: break;  // nothing but their weights
  }
  return list.take();
}

}  // namespace moe_diag
