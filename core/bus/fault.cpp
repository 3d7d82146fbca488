// SPDX-License-Identifier: MIT
#include "core/bus/fault.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "core/contract/fault.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/topk.hpp"

namespace moe_diag {
namespace {

using host::Values;
using Kind = FaultSpec::Kind;

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Bit -1 is the highest of the mantissa: the value changes by a quarter to a half of itself.
template <class T>
T with_bit_flipped(T value, int bit) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t,
                                  std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;
  if (bit < 0) bit = precision_of(dtype_of<T>()).digits - 2;
  return std::bit_cast<T>(static_cast<Bits>(std::bit_cast<Bits>(value) ^ Bits{1} << bit));
}

// One row of values; `beside` is what the lane holds of the stage the fault reads for this row, if it reads one.
template <class T>
void edit_values(const FaultSpec& spec, std::span<T> row, std::span<const double> beside) {
  T& element = row[static_cast<std::size_t>(spec.index)];
  switch (spec.kind) {
    case Kind::nan: element = static_cast<T>(std::numeric_limits<double>::quiet_NaN()); break;
    case Kind::inf: element = static_cast<T>(std::numeric_limits<double>::infinity()); break;
    case Kind::bitflip: element = with_bit_flipped(element, spec.bit); break;
    case Kind::scale:
      for (T& v : row) v = static_cast<T>(v * spec.factor);
      break;
    case Kind::zero: {
      const std::size_t width = beside.empty() ? row.size() : row.size() / beside.size();
      for (std::size_t i = 0; i < row.size(); ++i)
        if (beside.empty() || beside[i / width] == spec.expert) row[i] = static_cast<T>(0);
      break;
    }
    case Kind::f16_overflow:
      for (T& v : row)
        if (const auto x = static_cast<double>(v); std::fabs(x) > spec.limit)
          v = static_cast<T>(std::copysign(std::numeric_limits<double>::infinity(), x));
      break;
    case Kind::uniform_weights:
      std::fill(row.begin(), row.end(), static_cast<T>(1.0 / static_cast<double>(row.size())));
      break;
    default: break;
  }
}

// One row of chosen experts.
void edit_choice(const FaultSpec& spec, std::span<std::int32_t> row, int experts, std::span<const double> probs) {
  const auto chosen = [&](std::int32_t id) { return std::find(row.begin(), row.end(), id); };
  if (spec.kind == Kind::wrong_expert) {
    // The best expert makes room for the first one that was not chosen.
    for (std::int32_t e = 0; e < experts; ++e)
      if (chosen(e) == row.end()) {
        row[0] = e;
        return;
      }
  } else if (spec.kind == Kind::duplicate_ids) {
    row[row.size() - 1] = row[0];
  } else if (spec.kind == Kind::swap_tie) {
    const std::vector<std::int32_t> best = host::topk(probs, static_cast<std::int64_t>(row.size()) + 1).experts;
    if (const auto last = chosen(best[row.size() - 1]); last != row.end()) *last = best.back();
  }
}

}  // namespace

FaultPlanter::FaultPlanter(PlantedFault fault, const Step& step) : fault_(std::move(fault)), step_(step) {}

std::vector<Stage> FaultPlanter::reads() const {
  if (is_computed(fault_.spec)) {
    std::vector<Stage> stages;
    for (std::size_t i = 0; i < step_.in.size(); ++i)
      if (!step_.cached(i)) stages.push_back(step_.in[i]);
    return stages;
  }
  if (fault_.spec.kind == Kind::swap_tie) return {step_.in[0]};
  if (fault_.spec.expert >= 0) return {fault_.spec.stage.sibling(Role::choice)};
  return {};
}

void FaultPlanter::plant(Sighting& sighting, Lanes& lanes) {
  const Tensor held = sighting.now(fault_.lane, sighting.site.stage);
  if (!held) return;
  switch (held.dtype) {
    case DType::f16: return replace<F16>(held, sighting, lanes);
    case DType::bf16: return replace<BF16>(held, sighting, lanes);
    case DType::f32: return replace<float>(held, sighting, lanes);
    case DType::f64: return replace<double>(held, sighting, lanes);
    case DType::i32: return replace<std::int32_t>(held, sighting, lanes);
  }
}

template <class T>
void FaultPlanter::replace(const Tensor& held, Sighting& sighting, Lanes& lanes) {
  const std::vector<T> before(held.as<T>(), held.as<T>() + held.shape.count());
  std::vector<T> values = before;
  if (is_computed(fault_.spec))
    recompute(std::span(values), sighting, lanes.config());
  else
    edit(std::span(values), sighting, lanes.config());
  for (std::size_t i = 0; i < values.size(); ++i) changed_ += std::memcmp(&values[i], &before[i], sizeof(T)) != 0;
  lanes[static_cast<std::size_t>(fault_.lane)].write(sighting.site, sighting.rows(),
                                                     {values.data(), held.dtype, held.shape});
}

// Rows of the sighting that the fault can change.
std::vector<int> FaultPlanter::rows_to_change(const Sighting& sighting) const {
  std::vector<int> rows;
  for (int position : positions_changed(fault_.spec, sighting.pass.total)) {
    const int r = position - sighting.position(0);
    if (r >= 0 && r < sighting.rows().count) rows.push_back(r);
  }
  return rows;
}

// What the lane holds of another stage in those rows.
Values FaultPlanter::read_rows(Stage stage, Sighting& sighting) const {
  const Tensor tensor = sighting.now(fault_.lane, stage);
  const int skipped = sighting.rows().first - sighting.rows_of(stage).first;
  Values values;
  if (!tensor) return values;
  for (int r : rows_to_change(sighting)) {
    const Values row = host::values_of(tensor, r + skipped, 1);
    values.insert(values.end(), row.begin(), row.end());
  }
  return values;
}

// Of all positions so far.
Values FaultPlanter::read_cache(Cache cache, Sighting& sighting) const {
  const Tensor cached = sighting.cached(fault_.lane, cache);
  return cached ? host::values_of(cached) : Values{};
}

// Where the wrong computation and the right one differ, the lane gets the wrong one's values. Elsewhere it keeps its
// own, so that a fault that changes nothing changes no rounding either.
template <class T>
void FaultPlanter::recompute(std::span<T> values, Sighting& sighting, const ModelConfig& config) {
  StepInputs inputs;
  inputs.total = sighting.pass.total;
  if (fault_.spec.kind == Kind::stale_kv) inputs.stale = fault_.spec.positions.resolve(inputs.total);
  if (fault_.spec.kind == Kind::partial_sum) inputs.part = part_of(fault_.spec, terms_of_sum(step_, config));
  const std::vector<int> rows = rows_to_change(sighting);
  for (std::size_t i = 0; i < step_.in.size(); ++i) {
    const CacheUse* use = step_.cached(i);
    inputs.in[i] = use ? read_cache(use->cache, sighting) : read_rows(step_.in[i], sighting);
    if (inputs.in[i].empty()) return;
  }
  for (int r : rows) inputs.positions.push_back(sighting.position(r));
  const auto output =
      static_cast<std::size_t>(std::find(step_.out.begin(), step_.out.end(), fault_.spec.stage) - step_.out.begin());
  const Values right = compute(step_, config, inputs, nullptr, output);
  const Values wrong = compute(step_, config, inputs, &fault_.spec, output);
  const std::size_t width = right.size() / rows.size();
  for (std::size_t i = 0; i < right.size(); ++i)
    if (!same(right[i], wrong[i]))
      values[static_cast<std::size_t>(rows[i / width]) * width + i % width] = static_cast<T>(wrong[i]);
}

template <class T>
void FaultPlanter::edit(std::span<T> values, Sighting& sighting, const ModelConfig& config) const {
  const std::vector<int> rows = rows_to_change(sighting);
  const std::vector<Stage> read = reads();
  const Values all_beside = read.empty() ? Values() : read_rows(read[0], sighting);
  const std::size_t width = values.size() / static_cast<std::size_t>(sighting.rows().count);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::span<T> row = values.subspan(static_cast<std::size_t>(rows[i]) * width, width);
    const std::size_t beside_width = all_beside.size() / rows.size();
    const auto beside = std::span(all_beside).subspan(i * beside_width, beside_width);
    if constexpr (std::is_same_v<T, std::int32_t>)
      edit_choice(fault_.spec, row, config.experts, beside);
    else
      edit_values(fault_.spec, row, beside);
  }
}

}  // namespace moe_diag
