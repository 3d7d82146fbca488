// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "core/conformance/made_inputs.hpp"
#include "core/conformance/pass_checks.hpp"
#include "core/conformance/step_checks.hpp"
#include "core/conformance/walked_lane.hpp"
#include "core/ops/numerics.hpp"
#include "core/ops/rounding.hpp"

// Checks of what a lane gives back of stages and caches that were written.
namespace moe_diag {
namespace {

// Random values, and some that are not finite.
host::Values some_values(std::size_t count, std::uint64_t seed, bool with_bad = true) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  host::Values values(count);
  for (double& v : values) v = static_cast<double>(float{BF16(normal(random))});  // of every type
  if (with_bad && count > 2) {
    values[0] = std::numeric_limits<double>::quiet_NaN();
    values[1] = -std::numeric_limits<double>::infinity();
  }
  return values;
}

template <class T>
std::vector<std::byte> bytes_of(const host::Values& values) {
  std::vector<T> typed;
  for (const double v : values) typed.push_back(static_cast<T>(v));
  const auto* data = reinterpret_cast<const std::byte*>(typed.data());
  return {data, data + typed.size() * sizeof(T)};
}

CopiedTensor tensor_of(const host::Values& values, DType dtype, const Shape& shape) {
  CopiedTensor tensor;
  tensor.dtype = dtype;
  tensor.shape = shape;
  switch (dtype) {
    case DType::f32: tensor.bytes = bytes_of<float>(values); break;
    case DType::f64: tensor.bytes = bytes_of<double>(values); break;
    case DType::f16: tensor.bytes = bytes_of<F16>(values); break;
    case DType::bf16: tensor.bytes = bytes_of<BF16>(values); break;
    case DType::i32: tensor.bytes = bytes_of<std::int32_t>(values); break;
  }
  return tensor;
}

// A stage whose rows [first, first + count) were replaced; `all` is what it should hold.
struct Written {
  Site site;
  Rows rows;
  const host::Values& all;
  DType as;
};

// What a lane gives back of it; keys behind a row's own position do not count.
std::string failure_of(TriedLane& lane, const Written& written) {
  const CopiedTensor found = lane.read_all(written.site);
  const std::int64_t width = found.shape.row(), keys = found.shape[found.shape.rank - 1];
  const DType stored = payload_of(written.site.stage) == Payload::indices ? DType::f64 : found.dtype;
  const host::Values expected = rounded_to(written.all, stored);
  for (std::int64_t i = 0; i < found.shape.count(); ++i) {
    if (is(written.site.stage, Role::key_values) && i % keys > i / width) continue;
    const double a = found.view().value(i), b = expected[static_cast<std::size_t>(i)];
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    return fmt::format("{}, {}: rows {} to {} were written as {}: position {}, value {}: expected {:.9g}, found {:.9g}",
                       name_of(written.site.stage), lane.place(), written.rows.first,
                       written.rows.first + written.rows.count - 1, name_of(written.as), i / width, i % width, b, a);
  }
  return "";
}

// Writes rows in a type, and looks at all of them.
std::string write_and_read(TriedLane& lane, Site site, Rows rows, DType as, host::Values& all) {
  const ModelConfig& config = lane.model().config();
  const Shape shape = config.shape_of(site, rows.count, lane.pass().total);
  const bool is_choice = payload_of(site.stage) == Payload::indices;
  const std::uint64_t seed = site.stage.index() * 31 + static_cast<std::uint64_t>(as) + 7;
  host::Values values = some_values(static_cast<std::size_t>(shape.count()), seed, !is_choice);
  if (is_choice)
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<double>((i + seed) % static_cast<std::uint64_t>(config.experts));
  const CopiedTensor tensor = tensor_of(values, is_choice ? DType::i32 : as, shape);
  values = host::values_of(tensor.view());
  std::copy(values.begin(), values.end(), all.begin() + rows.first * shape.row());
  lane.write(site, rows, tensor.view());
  return failure_of(lane, {site, rows, all, as});
}

std::string round_trips(TriedLane& lane, Site site) {
  const Rows all_rows{0, lane.pass().rows()};
  const Shape shape = lane.model().config().shape_of(site, all_rows.count, lane.pass().total);
  host::Values all(static_cast<std::size_t>(shape.count()));
  for (const DType as : {DType::f32, DType::f64, DType::f16, DType::bf16})
    for (const Rows rows : {all_rows, Rows{2, 3}, Rows{6, 1}}) {
      if (std::string failure = write_and_read(lane, site, rows, as, all); !failure.empty()) return failure;
    }
  const Tensor part = lane.read(site, {4, 2});
  if (!part || part.shape[0] != 2) return fmt::format("{}: read of 2 rows gave others", name_of(site.stage));
  const CopiedTensor some(part), whole = lane.read_all(site);
  if (!std::equal(some.bytes.begin(), some.bytes.end(),
                  whole.bytes.begin() + static_cast<std::ptrdiff_t>(some.bytes.size() * 2)))
    return fmt::format("{}: read of rows 4 to 5 gave other rows than read of all", name_of(site.stage));
  return "";
}

// The values of one position as a cache of the type keeps them; nothing: its rounding is not known.
host::Values kept(host::Values values, const std::string& type, std::size_t width, DType stored) {
  const CacheType* known = find_cache_type(type);
  if (known && known->rounding && width % static_cast<std::size_t>(host::block_of(*known->rounding)) == 0)
    return host::rounded(values, *known->rounding, static_cast<std::int64_t>(width));
  return rounded_to(std::move(values), stored);
}

// A difference beyond the steps of a cache of few bits.
bool is_off(double found, double expected, const std::string& type) {
  constexpr double of_few_bits = 0.15, of_16_bits = 0.01;
  const bool is_exact = type.empty() || type == "f32";
  const double slack = is_exact ? 0 : type == "f16" || type == "bf16" ? of_16_bits : of_few_bits;
  return !(std::fabs(found - expected) <= slack * (1 + std::fabs(expected)));
}

std::string failure_of_cache(WalkedLane& walked, std::size_t index, int positions, const char* when) {
  const Step& step = walked.model().program[index];
  const CacheUse& use = step.caches[0];
  const host::Values& expected = walked.cached(index);
  const std::int64_t width = walked.model().config().cache_width(use.cache, step.layer);
  const Tensor found = walked.own().read_cache(use.cache, step.layer, {0, positions});
  if (!found || !(found.shape == Shape{positions, width}) || found.dtype == DType::i32)
    return fmt::format("read_cache: {} of positions 0 to {}: expected values [{}, {}], found {}", name_of(use.cache),
                       positions - 1, positions, width, found ? "others" : "nothing");
  const std::string& type = walked.own().description().kv_cache;
  const host::Values right =
      kept(expected, type, static_cast<std::size_t>(width), found.dtype == DType::f64 ? DType::f64 : DType::f32);
  for (std::int64_t i = 0; i < found.shape.count(); ++i)
    if (is_off(found.value(i), right[static_cast<std::size_t>(i)], type))
      return fmt::format("read_cache: {} {}: position {}, value {}: expected {:.9g}, found {:.9g}", name_of(use.cache),
                         when, i / width, i % width, right[static_cast<std::size_t>(i)], found.value(i));
  return "";
}

// Positions 2 to 4 get other values.
void replace(WalkedLane& walked, std::size_t index) {
  const Step& step = walked.model().program[index];
  const auto width = walked.model().config().cache_width(step.caches[0].cache, step.layer);
  const host::Values values = some_values(static_cast<std::size_t>(3 * width), 5, false);
  std::copy(values.begin(), values.end(), walked.cached(index).begin() + 2 * width);
  const CopiedTensor tensor = tensor_of(values, DType::f64, {3, width});
  walked.own().write_cache(step.caches[0].cache, step.layer, {2, 3}, tensor.view());
}

}  // namespace

Seen reads_what_was_written(BackendTrial& t) {
  for (const TriedModel& model : tried_models()) {
    const std::unique_ptr<TriedLane> lane = model.is_whole ? t.open(model) : nullptr;
    if (!lane) continue;
    if (!lane->abilities().recomputes) return not_tried("it does not run a step on inputs that are written to it");
    lane->begin_at(made_tokens(model.config(), 7));
    for (const Step& step : model.program)
      for (const Stage stage : step.out) {
        if (!lane->has({stage, step.layer}, {0, 7})) continue;
        if (std::string failure = round_trips(*lane, {stage, step.layer}); !failure.empty()) return failed(failure);
      }
  }
  return {};
}

Seen shows_its_caches(BackendTrial& t) {
  constexpr int positions = 9;
  Seen seen = not_tried("no step of a program that it takes has a cache of positions");
  for (const TriedModel& model : tried_models()) {
    std::unique_ptr<TriedLane> lane = model.is_whole ? t.open(model) : nullptr;
    if (!lane) continue;
    if (!lane->abilities().shows_caches) return not_tried("it says that it does not show its caches");
    WalkedLane walked(std::move(lane));
    const std::vector<std::int32_t> tokens = made_tokens(model.config(), positions + 2);
    if (std::string failure = walked.walk(tokens, {0, positions}, 1); !failure.empty()) return failed(failure);
    for (std::size_t i = 0; i < model.program.size(); ++i) {
      if (walked.cached(i).empty()) continue;
      seen = {};
      if (std::string failure = failure_of_cache(walked, i, positions, "behind a pass"); !failure.empty())
        return failed(failure);
      replace(walked, i);
      if (std::string failure = failure_of_cache(walked, i, positions, "after positions 2 to 4 were written");
          !failure.empty())
        return failed(failure);
    }
    if (!walked.own().abilities().rewinds) continue;
    if (std::string failure = walked.walk(tokens, {positions, 2}, 1); !failure.empty())
      return failed("behind a cache that was written: " + failure);
  }
  return seen;
}

}  // namespace moe_diag
