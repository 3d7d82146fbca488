// SPDX-License-Identifier: MIT
// The mistakes of a kernel that multiplies: columns that it leaves out, sums in 16 bits, parts of a block type that it
// forgets.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/ops/block_scales.hpp"
#include "core/ops/hypotheses.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/matrix.hpp"

namespace moe_diag {
namespace {

using host::Values;
using Elements = std::span<const std::int64_t>;
using Row = std::function<Values(std::int64_t expert, std::int64_t row)>;  // of the weight, as decoded
using host::Sum;

// Chosen elements of units: each row of the weight is decoded once.
Values products(const StepKnowledge& known, std::int64_t cols, const FailingUnits& units, Elements elements,
                const Row& row_of, const Sum& sum) {
  std::map<int, std::vector<std::size_t>> by_expert;
  std::vector<Values> x;
  for (std::size_t i = 0; i < units.size(); ++i) {
    by_expert[std::max(units[i]->expert, 0)].push_back(i);
    x.push_back(input_of(known, *units[i], cols));
  }
  const Weight* bias = known.step().bias(units[0]->part);
  const Values added = bias ? host::decode_row(host::Matrix(*bias), 0) : Values();
  Values out(units.size() * elements.size());
  for (std::size_t j = 0; j < elements.size(); ++j) {
    const double constant = bias ? added[static_cast<std::size_t>(elements[j])] : 0;
    for (const auto& [expert, members] : by_expert) {
      const Values row = row_of(expert, elements[j]);
      for (const std::size_t i : members) out[i * elements.size() + j] = sum(row, x[i]) + constant;
    }
  }
  return out;
}

// Rows as they are stored. All hypotheses look at the same few first, so these are decoded once.
Row as_stored(const Weight& weight) {
  constexpr std::size_t most = 256;
  const auto kept = std::make_shared<std::map<std::pair<std::int64_t, std::int64_t>, Values>>();
  return [&weight, kept](std::int64_t expert, std::int64_t row) {
    const auto found = kept->find({expert, row});
    if (found != kept->end()) return found->second;
    Values values = host::decode_row(host::Matrix(weight, expert), row);
    if (kept->size() < most) kept->emplace(std::pair(expert, row), values);
    return values;
  };
}

Hypothesis computed(const StepKnowledge& known, const Weight& weight, StepCause cause, std::string text, Row row,
                    Sum sum) {
  Hypothesis h{cause, std::move(text), 1, static_cast<double>(weight.cols)};
  h.elements = [&known, cols = weight.cols, row = std::move(row), sum = std::move(sum)](const FailingUnits& units,
                                                                                        Elements elements) {
    return products(known, cols, units, elements, row, sum);
  };
  return h;
}

// ---- columns that are left out -------------------------------------------------------------------------------------

// Columns that a sum is made of.
struct Range {
  std::int64_t first = 0, end = 0;

  friend bool operator==(const Range&, const Range&) = default;
};

// The halves, thirds, quarters and eighths of ranks, all but one of them, and whole tiles.
std::vector<Range> ranges_of(std::int64_t cols) {
  std::vector<Range> ranges;
  const auto add = [&](std::int64_t first, std::int64_t end) {
    const Range range{first, end};
    if (first < end && end - first < cols && std::find(ranges.begin(), ranges.end(), range) == ranges.end())
      ranges.push_back(range);
  };
  for (const std::int64_t ranks : {2, 3, 4, 8}) {
    if (cols / ranks * ranks != cols && ranks != 3) continue;
    for (std::int64_t rank = 0; rank < ranks; ++rank) add(rank * (cols / ranks), (rank + 1) * (cols / ranks));
    add(0, cols / ranks * (ranks - 1));
    add(cols / ranks, cols);
  }
  for (const std::int64_t tile : {4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 512, 1024}) add(0, cols / tile * tile);
  return ranges;
}

void add_partial_sums(const StepKnowledge& known, const Weight& weight, const Row& row_of,
                      std::vector<Hypothesis>& list) {
  for (const Range range : ranges_of(weight.cols)) {
    const auto sum = [range](std::span<const double> row, std::span<const double> x) {
      const auto first = static_cast<std::size_t>(range.first), n = static_cast<std::size_t>(range.end) - first;
      return host::dot(row.subspan(first, n), x.subspan(first, n));
    };
    list.push_back(computed(known, weight, StepCause::partial_sum,
                            fmt::format("only columns {} to {} of the {} of {} are summed", range.first, range.end - 1,
                                        weight.cols, weight.name),
                            row_of, sum));
    const auto twice = [range](std::span<const double> row, std::span<const double> x) {
      const auto first = static_cast<std::size_t>(range.first), n = static_cast<std::size_t>(range.end) - first;
      return host::dot(row, x) + host::dot(row.subspan(first, n), x.subspan(first, n));
    };
    list.push_back(computed(known, weight, StepCause::partial_sum,
                            fmt::format("columns {} to {} of the {} of {} are added twice", range.first, range.end - 1,
                                        weight.cols, weight.name),
                            row_of, twice));
  }
}

// The sum of the first of several warps, which take turns with chunks of columns.
void add_first_warps(const StepKnowledge& known, const Weight& weight, const Row& row_of,
                     std::vector<Hypothesis>& list) {
  for (const std::int64_t chunk : {8, 16, 32, 64, 128, 256})
    for (const std::int64_t warps : {2, 4, 8}) {
      if (weight.cols <= chunk * warps) continue;  // one turn is a range of columns
      const auto sum = [chunk, warps](std::span<const double> row, std::span<const double> x) {
        double all = 0;
        for (std::size_t k = 0; k < row.size(); ++k)
          if (static_cast<std::int64_t>(k) / chunk % warps == 0) all += row[k] * x[k];
        return all;
      };
      list.push_back(
          computed(known, weight, StepCause::partial_sum,
                   fmt::format("only the first {} of every {} columns of {} are summed, as by one of {} warps", chunk,
                               chunk * warps, weight.name, warps),
                   row_of, sum));
    }
}

// ---- sums in 16 bits -----------------------------------------------------------------------------------------------

// Sums as the lane has them where they are next to those computed, and nearly all of the unit are the same: a product
// is rounded by some and fused into the sum by others, which moves few sums by a step or two.
template <class Type>
void settle(const StepKnowledge& known, const FailingUnits& units, Elements elements, Values& sums) {
  constexpr double nearly_all = 0.85, steps = 4;
  for (std::size_t u = 0; u < units.size(); ++u) {
    const StepUnit& unit = *units[u];
    std::vector<std::size_t> off;
    const auto lane = [&](std::size_t j) { return value_at(known.step_case.a, unit.in_a(elements[j])); };
    for (std::size_t j = 0; j < elements.size(); ++j) {
      const double own = sums[u * elements.size() + j];
      if (!(std::fabs(lane(j) - own) <= unit.tolerance(explained_error, std::fabs(own)))) off.push_back(j);
    }
    if (static_cast<double>(off.size()) > (1 - nearly_all) * static_cast<double>(elements.size())) continue;
    const double reach = steps * unit.rms * precision_of(dtype_of<Type>()).epsilon();
    for (const std::size_t j : off)
      if (std::fabs(lane(j) - sums[u * elements.size() + j]) <= reach) sums[u * elements.size() + j] = lane(j);
  }
}

template <class Type>
void add_sums_in(const StepKnowledge& known, const Weight& weight, const Row& row_of, std::vector<Hypothesis>& list) {
  constexpr double roundings = 16;   // times as long as a multiplication
  constexpr std::int64_t least = 8;  // columns: fewer could be added in another order, too
  if (weight.cols < least) return;
  Hypothesis h{StepCause::accumulation,
               fmt::format("the sums are kept in {}, added column by column", cpp_name_of(dtype_of<Type>())), 1,
               roundings * static_cast<double>(weight.cols)};
  h.elements = [&known, &weight, row_of](const FailingUnits& units, Elements elements) {
    Values sums = products(known, weight.cols, units, elements, row_of, host::added_in<Type>);
    settle<Type>(known, units, elements, sums);
    return sums;
  };
  list.push_back(std::move(h));
}

// ---- parts of a block ----------------------------------------------------------------------------------------------

// A row whose blocks are changed before they are decoded.
template <class Block, class Change>
Row changed(const Weight& weight, Change change) {
  return [&weight, change](std::int64_t expert, std::int64_t r) {
    Values row(static_cast<std::size_t>(weight.cols));
    const std::byte* bytes = weight.row(expert, r);
    for (std::size_t k = 0; k < row.size(); k += Block::elements, bytes += sizeof(Block)) {
      Block block;
      std::memcpy(&block, bytes, sizeof block);
      change(block);
      for (int i = 0; i < Block::elements; ++i) row[k + static_cast<std::size_t>(i)] = decode<double>(block, i);
    }
    return row;
  };
}

template <class Block>
void add_parts_of(const StepKnowledge& known, const Weight& weight, std::vector<Hypothesis>& list) {
  const std::string name = fmt::format("{} ({})", weight.name, name_of(weight.type));
  if constexpr (requires(Block b) { b.dmin; })
    list.push_back(computed(known, weight, StepCause::skipped, "the mins are not subtracted: " + name,
                            changed<Block>(weight, [](Block& b) { b.dmin = 0; }), host::dot));
  if constexpr (requires(Block b) { b.m; })
    list.push_back(computed(known, weight, StepCause::skipped, "the mins are not added: " + name,
                            changed<Block>(weight, [](Block& b) { b.m = 0; }), host::dot));
}

void add_scales_of_others(const StepKnowledge& known, const Weight& weight, std::vector<Hypothesis>& list) {
  if (!host::has_scales(weight, weight.type)) return;
  for (const int shift : {1, -1})
    list.push_back(computed(
        known, weight, StepCause::permutation,
        fmt::format("each group of {} weights has the scale of the group {} it: {} ({})",
                    host::scale_group(weight.type), shift == 1 ? "after" : "before", weight.name, name_of(weight.type)),
        [&weight, shift](std::int64_t expert, std::int64_t r) {
          host::Matrix matrix(weight, expert);
          matrix.scale_shift = shift;
          return host::decode_row(matrix, r);
        },
        host::dot));
}

}  // namespace

std::vector<Hypothesis> product_hypotheses(const StepKnowledge& known, const Weight& weight,
                                           const FailingUnits& failing) {
  constexpr std::int64_t least_values = 16;  // fewer may be any of so many sums
  if (weight.rows * static_cast<std::int64_t>(failing.size()) < least_values) return {};
  std::vector<Hypothesis> list;
  with_block(weight.type, [&](auto block) { add_parts_of<decltype(block)>(known, weight, list); });
  add_scales_of_others(known, weight, list);
  const Row row_of = as_stored(weight);
  add_partial_sums(known, weight, row_of, list);
  add_first_warps(known, weight, row_of, list);
  add_sums_in<BF16>(known, weight, row_of, list);
  add_sums_in<F16>(known, weight, row_of, list);
  return list;
}

}  // namespace moe_diag
