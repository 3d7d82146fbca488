// SPDX-License-Identifier: MIT
#include "core/lane/assisted_lane.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/api/error.hpp"
#include "core/lane/own_steps.hpp"

namespace moe_diag {
namespace {

[[noreturn]] void refuse(const Step& step, std::string_view hidden) {
  throw Error(ErrorKind::environment,
              fmt::format("the backend does not compute {}, and does not show {}, which the plain operator reads",
                          name_of(step.out[0]), hidden));
}

}  // namespace

AssistedLane::AssistedLane(std::unique_ptr<Lane> lane, const ModelConfig& config, const Program& program,
                           Operators operators)
    : lane_(std::move(lane)), config_(config), operators_(operators), layer_(config.stages.size(), -1) {
  std::vector<Site> written(config.stages.size());  // last, of each stage
  for (std::size_t i = 0; i < program.size(); ++i) {
    for (const Stage stage : program[i].in) last_reader_[written[stage.index()]] = i;
    for (const Stage stage : program[i].out) {
      written[stage.index()] = {stage, program[i].layer};
      place_[written[stage.index()]] = i;
    }
  }
}

void AssistedLane::begin(const Pass& pass) {
  tokens_.assign(pass.tokens.begin(), pass.tokens.end());
  pass_ = pass;
  pass_.tokens = tokens_;
  lane_->begin(pass);
}

void AssistedLane::run(std::span<const Step> steps) {
  while (!steps.empty()) {
    const std::size_t own = own_steps(*lane_, steps);
    own > 0 ? run_own(steps.first(own)) : run_plain(steps.front());
    steps = steps.subspan(std::max<std::size_t>(own, 1));
  }
}

// Outputs that steps behind these read are stored, since a plain operator may be the one to read them.
void AssistedLane::run_own(std::span<const Step> steps) {
  steps_.assign(steps.begin(), steps.end());
  for (Step& step : steps_)
    for (const Stage stage : step.out) {
      const Site site{stage, step.layer};
      layer_[stage.index()] = step.layer;
      const auto reader = last_reader_.find(site);
      const std::size_t end = place_.at(site) + static_cast<std::size_t>(steps_.data() + steps_.size() - &step);
      if (reader != last_reader_.end() && reader->second >= end) step.want = true;
    }
  lane_->run(steps_);
}

// Rows that the pass computes of a stage.
Rows AssistedLane::rows_of(Stage stage) const {
  const int first = is_of_head(stage) ? pass_.head_first : 0;
  return {first, pass_.rows() - first};
}

void AssistedLane::run_plain(const Step& step) {
  const Rows rows = rows_of(step.out[0]);
  StepInputs inputs;
  inputs.total = pass_.total;
  for (int r = rows.first; r < rows.first + rows.count; ++r) inputs.positions.push_back(pass_.first + r);
  if (!tokens_.empty()) inputs.tokens.assign(tokens_.begin() + rows.first, tokens_.end());
  for (std::size_t i = 0; i < step.in.size(); ++i) {
    const CacheUse* use = step.cached(i);
    inputs.in[i] = use ? read_cached(step, i, *use) : read_input(step, i, rows);
  }
  for (std::size_t i = 0; i < step.caches.size(); ++i)
    if (info(step.caches[i].cache).is_state) inputs.states[i] = read_state(step, step.caches[i].cache);
  const Operator& op = operators_(step.op);
  for (std::size_t o = 0; o < step.out.size(); ++o)
    write_output(step, o, rows, op.compute({step, config_, inputs, nullptr, o}));
  for (std::size_t i = 0; i < step.caches.size(); ++i)
    if (info(step.caches[i].cache).is_state) {
      const host::Values state = op.next_state({step, config_, inputs, nullptr}, i);
      lane_->write_cache(step.caches[i].cache, step.layer, {inputs.positions.back(), 1},
                         {state.data(), DType::f64, Shape{1, static_cast<std::int64_t>(state.size())}});
    }
}

host::Values AssistedLane::read_input(const Step& step, std::size_t input, Rows rows) {
  const Stage stage = step.in[input];
  const Tensor values = lane_->read({stage, layer_[stage.index()]}, rows);
  if (!values) refuse(step, name_of(stage));
  return host::values_of(values);
}

// All positions so far, once the rows of the pass are in the cache.
host::Values AssistedLane::read_cached(const Step& step, std::size_t input, const CacheUse& use) {
  const Rows rows = rows_of(step.in[input]);
  const host::Values whole = read_input(step, input, rows);
  const std::size_t width = static_cast<std::size_t>(config_.cache_width(use.cache, step.layer));
  const std::size_t row = whole.size() / static_cast<std::size_t>(rows.count);
  host::Values appended;
  for (std::size_t at = static_cast<std::size_t>(use.column); at < whole.size(); at += row)
    appended.insert(appended.end(), whole.begin() + static_cast<std::ptrdiff_t>(at),
                    whole.begin() + static_cast<std::ptrdiff_t>(at + width));
  const Stretch positions{pass_.first + rows.first, rows.count};
  lane_->write_cache(use.cache, step.layer, positions,
                     {appended.data(), DType::f64, Shape{rows.count, static_cast<std::int64_t>(width)}});
  const Tensor cached = lane_->read_cache(use.cache, step.layer, {0, positions.end()});
  if (!cached) refuse(step, fmt::format("its cache of {}", name_of(use.cache)));
  return host::values_of(cached);
}

// Behind the position before the pass.
host::Values AssistedLane::read_state(const Step& step, Cache cache) {
  if (pass_.first == 0) return host::Values(static_cast<std::size_t>(config_.cache_width(cache, step.layer)));
  const Tensor state = lane_->read_cache(cache, step.layer, {pass_.first - 1, 1});
  if (!state) refuse(step, fmt::format("its cache of {}", name_of(cache)));
  return host::values_of(state);
}

void AssistedLane::write_output(const Step& step, std::size_t output, Rows rows, const host::Values& values) {
  const Site site{step.out[output], step.layer};
  const Shape shape = config_.shape_of(site, rows.count, pass_.total);
  if (payload_of(site.stage) == Payload::indices) {
    const std::vector<std::int32_t> ids(values.begin(), values.end());
    return write(site, rows, {ids.data(), DType::i32, shape});
  }
  write(site, rows, {values.data(), DType::f64, shape});
}

void AssistedLane::write(Site site, Rows rows, const Tensor& values) {
  layer_[site.stage.index()] = site.layer;
  lane_->write(site, rows, values);
}

Tensor AssistedLane::read_cache(Cache cache, int layer, Stretch positions) {
  return lane_->read_cache(cache, layer, positions);
}
void AssistedLane::write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) {
  lane_->write_cache(cache, layer, positions, values);
}

std::string left_to_plain_operators(const Lane& lane, const Program& program) {
  std::string names;
  std::vector<Op> seen;
  for (std::span<const Step> rest = program; !rest.empty();) {
    const std::size_t own = own_steps(lane, rest);
    const Op op = rest.front().op;
    if (own == 0 && reads_cache(rest.front()) && !lane.abilities().shows_caches)
      refuse(rest.front(), fmt::format("its cache of {}", name_of(rest.front().caches[0].cache)));
    if (own == 0 && std::find(seen.begin(), seen.end(), op) == seen.end()) {
      seen.push_back(op);
      names += fmt::format("{}{}", names.empty() ? "" : ", ", operator_of(op).name);
    }
    rest = rest.subspan(std::max<std::size_t>(own, 1));
  }
  return names;
}

}  // namespace moe_diag
