// SPDX-License-Identifier: MIT
#include "core/repro/step_cut.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>

#include "core/forward/given_inputs.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t most_different = 32, most_largest = 16;  // logits that stay of a row

using Ids = std::set<std::int32_t>;

std::vector<std::int32_t> list_of(const Ids& ids) { return {ids.begin(), ids.end()}; }

// Adds the ids around each: what is off by one reads them.
void add_neighbours(Ids& ids, int count) {
  for (const std::int32_t id : list_of(ids))
    for (const std::int32_t near : {id - 1, id + 1})
      if (near >= 0 && near < count) ids.insert(near);
}

// The indices of the `most` largest.
void add_largest(const host::Values& values, std::size_t most, Ids& ids) {
  std::vector<std::int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  const std::size_t count = std::min(most, order.size());
  // NaN counts as the largest, so that the order is one.
  const auto size = [&](std::int32_t i) {
    const double v = values[static_cast<std::size_t>(i)];
    return std::isnan(v) ? std::numeric_limits<double>::infinity() : v;
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::int32_t a, std::int32_t b) { return size(a) != size(b) ? size(a) > size(b) : a < b; });
  ids.insert(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count));
}

// Logits of a row that say what is wrong: those that differ most, and the largest of each lane.
std::vector<std::int32_t> rows_of_head(const SeenStep& seen, int row, int vocab,
                                       const std::vector<std::int32_t>& elements) {
  Ids ids(elements.begin(), elements.end());
  const host::Values a = host::values_of(seen.output.tensor(), row, 1);
  add_largest(a, most_largest, ids);
  host::Values difference = a;
  if (!seen.other.bytes.empty()) {
    const host::Values b = host::values_of(seen.other.tensor(), row, 1);
    add_largest(b, most_largest, ids);
    for (std::size_t i = 0; i < a.size(); ++i) difference[i] = std::fabs(a[i] - b[i]);
  }
  add_largest(difference, most_different, ids);
  add_neighbours(ids, vocab);
  return list_of(ids);
}

// The chosen experts of the rows, and the one after each, which wrong dispatch takes instead.
std::vector<std::int32_t> experts_of(const SeenStep& seen, int row, int count, const ModelConfig& config) {
  Ids ids;
  for (const GivenValues& values : seen.inputs) {
    if (!is(values.stage, Role::choice)) continue;
    const GivenValues rows = rows_of(values, row, count);
    const auto* chosen = rows.tensor().as<std::int32_t>();
    for (std::int64_t i = 0; i < rows.shape.count(); ++i) {
      if (chosen[i] < 0 || chosen[i] >= config.experts) continue;
      ids.insert(chosen[i]);
      ids.insert((chosen[i] + 1) % config.experts);
    }
  }
  for (std::int32_t id = 0; static_cast<int>(ids.size()) < config.used; ++id) ids.insert(id);
  return list_of(ids);
}

}  // namespace

int number_of(std::int32_t id, const std::vector<std::int32_t>& kept) {
  if (kept.empty()) return id;
  const auto at = std::lower_bound(kept.begin(), kept.end(), id);
  return at != kept.end() && *at == id ? static_cast<int>(at - kept.begin()) : -1;
}

std::vector<Cut> cuts_of(const SeenStep& seen, const Step& step, const ModelConfig& config, int position,
                         const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& elements) {
  const auto narrowed = [&](int first, int count) {
    Cut cut{first, count, {}, {}};
    const WeightRows reads = operator_of(step).weights;
    if (reads == WeightRows::of_experts) cut.experts = experts_of(seen, first - seen.first, count, config);
    if (is(step.out[0], Role::logits))
      cut.vocabulary = rows_of_head(seen, position - seen.first, config.vocab, elements);
    if (reads == WeightRows::of_tokens) {
      Ids ids(tokens.begin() + first, tokens.begin() + first + count);
      add_neighbours(ids, config.vocab);
      cut.vocabulary = list_of(ids);
    }
    if (static_cast<int>(cut.experts.size()) == config.experts) cut.experts.clear();
    if (static_cast<int>(cut.vocabulary.size()) == config.vocab) cut.vocabulary.clear();
    return cut;
  };
  std::vector<Cut> cuts = {narrowed(position, 1), narrowed(seen.first, seen.count), Cut{position, 1, {}, {}},
                           Cut{seen.first, seen.count, {}, {}}};
  for (auto cut = cuts.begin(); cut != cuts.end();)
    cut = std::count(cuts.begin(), cut, *cut) > 0 ? cuts.erase(cut) : cut + 1;
  return cuts;
}

std::vector<GivenValues> inputs_of(const SeenStep& seen, const Step& step, const Cut& cut) {
  std::vector<GivenValues> inputs;
  for (const GivenValues& values : seen.inputs) {
    const bool of_all = is_of_all_positions(step, values.stage);
    inputs.push_back(of_all ? rows_of(values, 0, cut.first + cut.count)
                            : rows_of(values, cut.first - seen.first, cut.count));
    if (!is(values.stage, Role::choice) || cut.experts.empty()) continue;
    std::vector<std::byte>& bytes = inputs.back().bytes;
    for (std::size_t at = 0; at < bytes.size(); at += sizeof(std::int32_t)) {
      std::int32_t id = 0;
      std::memcpy(&id, bytes.data() + at, sizeof id);
      id = number_of(id, cut.experts);
      std::memcpy(bytes.data() + at, &id, sizeof id);
    }
  }
  return inputs;
}

}  // namespace moe_diag
