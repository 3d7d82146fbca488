// SPDX-License-Identifier: MIT
#include "core/ops/attention.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/ops/mix.hpp"
#include "core/ops/numerics.hpp"
#include "core/ops/rounding.hpp"
#include "core/ops/scores.hpp"
#include "core/ops/sizes.hpp"
#include "core/text/numbers.hpp"

namespace moe_diag::host {

void check(const Attention& a, std::string_view op, std::span<const double> cache) {
  if (a.heads <= 0 || a.head_dim <= 0) refuse(op, "heads", 1, a.heads);
  expect_multiple(op, "query heads", a.kv_heads, a.heads);
  expect_below(op, "keys seen", a.total + 1, a.seen);
  if (a.cached < a.kv_heads * a.head_dim) refuse(op, "cached values of a position", a.kv_heads * a.head_dim, a.cached);
  expect_multiple(op, "cached values", a.cached, size_of(cache));
  if (size_of(cache) < a.seen * a.cached) refuse(op, "cached values", a.seen * a.cached, size_of(cache));
}

std::span<const double> cached(const Attention& a, std::span<const double> cache, std::int64_t position,
                               std::int64_t head) {
  const std::int64_t kv_head = head / (a.heads / a.kv_heads);
  return cache.subspan(at(position * a.cached + kv_head * a.head_dim), at(a.head_dim));
}

Values rounded_entries(Values cache, std::int64_t width, Rounding type, std::int64_t first) {
  for (std::int64_t entry = first * width; entry < size_of(cache); entry += width) {
    const auto from = cache.begin() + entry;
    const Values kept = rounded(std::span(from, from + width), type);
    std::copy(kept.begin(), kept.end(), from);
  }
  return cache;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

constexpr std::size_t most_stale = 16;  // positions of a cache that are tried
constexpr double outlier = 0.01;        // beside the worst element: keys with large values err by more than others

// Scores and mix, from a cache of keys or values of which the step's second input holds the true contents.
struct Cached {
  Operands o;
  HeadSizes sizes;
  host::Values truth;  // [positions, width]
  std::int64_t width = 0;

  explicit Cached(const Operands& operands)
      : o(operands), sizes(head_sizes(o.step)), width(o.config.cache_width(o.step.caches[0].cache, o.step.layer)) {
    const std::int64_t offset = o.step.caches[0].column;
    for (std::int64_t s = 0; s < o.c.in[1].shape[0]; ++s) {
      const host::Values row = host::values_of(o.c.in[1], s, 1);
      truth.insert(truth.end(), row.begin() + offset, row.begin() + offset + width);
    }
  }
  bool is_scores() const { return o.step.op == Op::scores; }
  std::string_view entry() const { return is_scores() ? "key" : "value"; }

  void copy(host::Values& cache, std::int64_t from, std::int64_t to) const {
    std::copy_n(cache.begin() + from * width, width, cache.begin() + to * width);
  }
  void clear(host::Values& cache, std::int64_t p) const { std::fill_n(cache.begin() + p * width, width, 0.0); }

  // A unit's scores or sums from that cache; `in_turn`: query head j reads kv head j mod Hk; `other`: what the queries,
  // or the weights of attention, are rounded to.
  host::Values attended(const StepUnit& unit, const host::Values& cache, bool in_turn = false,
                        std::optional<host::Rounding> other = {}) const {
    const std::int64_t total = is_scores() ? o.c.a.shape[2] : o.c.in[0].shape[2];
    const std::int64_t seen = o.position(unit) + 1, h = sizes.head_dim;
    const host::Attention attention(sizes, seen, total, width);
    host::Values x = o.input(0, unit);
    if (other) x = host::rounded(x, *other);
    if (in_turn) x = reordered(x, is_scores() ? h : total, false);
    host::Values out = is_scores() ? host::scores(attention, x, cache, o.step.as<ScoresParams>().scale)
                                   : host::mix(attention, x, cache);
    if (in_turn) out = reordered(out, is_scores() ? total : h, true);
    if (!is_scores()) return out;
    host::Values compared;  // without the keys after the own position
    for (std::int64_t head = 0; head < sizes.heads; ++head)
      compared.insert(compared.end(), out.begin() + head * total, out.begin() + head * total + seen);
    return compared;
  }

 private:
  // Query heads in an order in which those that read one kv head in turn are neighbours, or back from it.
  host::Values reordered(const host::Values& x, std::int64_t size, bool back) const {
    const std::int64_t per_key = sizes.heads / sizes.kv_heads;
    host::Values out(x.size());
    for (std::int64_t j = 0; j < sizes.heads; ++j) {
      const std::int64_t place = j % sizes.kv_heads * per_key + j / sizes.kv_heads;
      std::copy_n(x.begin() + (back ? place : j) * size, size, out.begin() + (back ? j : place) * size);
    }
    return out;
  }
};

// ---- the type of the cache -----------------------------------------------------------------------------------------

// The type that a kernel for such a cache rounds its other operand to.
host::Rounding other_operand(host::Rounding cache) { return host::block_of(cache) > 1 ? host::Rounding::q8_0 : cache; }

// The cache with the entries from a position on rounded, each by itself. Made when it is asked for; only the last one
// is kept, since hypotheses are tried one after the other.
class RoundedCaches {
 public:
  explicit RoundedCaches(const Cached& cached) : cached_(cached) {}

  const Cached& cached() const { return cached_; }
  const host::Values& values(host::Rounding type, std::int64_t first) {
    if (type_ == type && first_ == first) return values_;
    type_ = type;
    first_ = first;
    values_ = host::rounded_entries(cached_.truth, cached_.width, type, first);
    return values_;
  }

 private:
  const Cached cached_;
  std::optional<host::Rounding> type_;
  std::int64_t first_ = 0;
  host::Values values_;
};

// A cache of that type, from a position on; and a kernel for it that rounds its other operand, too.
void add_cache_type(const std::shared_ptr<RoundedCaches>& caches, host::Rounding type, int first,
                    HypothesisList& list) {
  const Cached& cached = caches->cached();
  const auto add = [&](StepCause cause, std::string text, std::optional<host::Rounding> other) {
    list.add(cause, std::move(text), [caches, type, first, other](const StepUnit& unit) {
      return caches->cached().attended(unit, caches->values(type, first), false, other);
    });
  };
  const bool in_blocks = host::block_of(type) > 1;
  const std::string entries = fmt::format("the {}s are rounded to {}", cached.entry(), host::name_of(type));
  add(StepCause::cache_type, entries + ", as in a cache of that type", std::nullopt);
  if (!cached.is_scores() && in_blocks) return;
  add(in_blocks ? StepCause::cache_type : StepCause::rounded_activations,
      fmt::format("{}, the {} to {}", entries, cached.is_scores() ? "queries" : "weights of attention",
                  host::name_of(other_operand(type))),
      other_operand(type));
}

// All entries, or only those that the pass itself has written: the others may have been put there as they should be.
void add_cache_types(const Cached& cached, HypothesisList& list) {
  if (!std::all_of(cached.truth.begin(), cached.truth.end(), is_finite)) return;
  const auto caches = std::make_shared<RoundedCaches>(cached);
  for (const CacheType& type : all_cache_types()) {
    if (!type.rounding || cached.width % host::block_of(*type.rounding) != 0) continue;
    const int own = cached.o.c.first_position;
    add_cache_type(caches, *type.rounding, 0, list);
    if (own > 0) add_cache_type(caches, *type.rounding, own, list);
  }
}

// ---- entries that were not written ---------------------------------------------------------------------------------

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

void add_stale(const Cached& cached, const FailingUnits& failing, HypothesisList& list) {
  const auto add = [&](const std::string& text, auto edit) {
    list.add(StepCause::stale_kv, text, [cached, edit](const StepUnit& unit) {
      host::Values cache = cached.truth;
      edit(cached, cache, cached.o.position(unit));
      return cached.attended(unit, cache);
    });
  };
  const auto entry = [&](std::string_view text) { return fmt::format("the {} {}", cached.entry(), text); };
  add(entry("of the own position is that of the position before"),
      [](const Cached& k, host::Values& cache, std::int64_t p) {
        if (p > 0) k.copy(cache, p - 1, p);
      });
  add(entry("of the own position is zero, or not seen"),
      [](const Cached& k, host::Values& cache, std::int64_t p) { k.clear(cache, p); });
  for (const std::vector<std::int64_t>& stale : stale_positions(cached, failing)) {
    if (stale.empty() || stale.size() > most_stale) continue;
    const std::string text = fmt::format("the {}{} of position{} {} {}", cached.entry(), stale.size() == 1 ? "" : "s",
                                         stale.size() == 1 ? "" : "s", numbers_text({stale.begin(), stale.end()}),
                                         stale.size() == 1 ? "is" : "are");
    if (stale.front() > 0)
      add(fmt::format("{} {} of the position before", text, stale.size() == 1 ? "that" : "those"),
          [stale](const Cached& k, host::Values& cache, std::int64_t) {
            for (std::int64_t p : stale)
              std::copy_n(k.truth.begin() + (p - 1) * k.width, k.width, cache.begin() + p * k.width);
          });
    add(text + " zero", [stale](const Cached& k, host::Values& cache, std::int64_t) {
      for (std::int64_t p : stale) k.clear(cache, p);
    });
  }
  add(entry("of each position is that of the position before"), [](const Cached& k, host::Values& cache, std::int64_t) {
    std::copy_backward(k.truth.begin(), k.truth.end() - k.width, cache.end());
  });
}

}  // namespace

const HeadSizes& head_sizes(const Step& step) {
  return step.op == Op::scores ? step.as<ScoresParams>().sizes : step.as<MixParams>().sizes;
}

host::Attention attention_of(const StepRows& rows, std::size_t row) {
  return {head_sizes(rows.step), rows.inputs.positions[row] + 1, rows.inputs.total,
          rows.config.cache_width(rows.step.caches[0].cache, rows.step.layer)};
}

std::optional<host::Rounding> cache_rounding(BlockType type) {
  switch (type) {
    case BlockType::f16: return host::Rounding::f16;
    case BlockType::bf16: return host::Rounding::bf16;
    case BlockType::q8_0: return host::Rounding::q8_0;
    case BlockType::q4_0: return host::Rounding::q4_0;
    default: return std::nullopt;
  }
}

host::Values cached_as_kept(const StepRows& rows) {
  const host::Values& cache = rows.inputs.in[1];
  const auto type = rows.is(Fault::Kind::cache_type) ? cache_rounding(type_kept(*rows.fault)) : std::nullopt;
  const std::int64_t width = rows.config.cache_width(rows.step.caches[0].cache, rows.step.layer);
  const bool is_sound = std::all_of(cache.begin(), cache.end(), is_finite);
  return type && is_sound ? host::rounded_entries(cache, width, *type) : cache;
}

void add_attention_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const Cached cached(o);
  list.set_work(cached.is_scores() ? cached.sizes.head_dim : o.c.in[1].shape[0]);
  add_stale(cached, failing, list);
  list.add(StepCause::permutation,
           fmt::format("query head j reads {} head j mod {}", cached.entry(), cached.sizes.kv_heads),
           [cached](const StepUnit& unit) { return cached.attended(unit, cached.truth, true); });
  add_cache_types(cached, list);
}

Cost cost_of_attention(const Step& step, const ModelConfig&, double rows, int total) {
  const HeadSizes& sizes = head_sizes(step);
  return {0, rows * total * sizes.heads * sizes.head_dim};
}

}  // namespace moe_diag
