// SPDX-License-Identifier: MIT
#include "core/conformance/tried_lane.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "core/conformance/made_inputs.hpp"

namespace moe_diag {
namespace {

std::string text_of(std::span<const Step> steps) {
  const std::string first = text_of(steps.front());
  return steps.size() == 1 ? first : fmt::format("{} to {}", first, text_of(steps.back()));
}

std::string text_of(Site site) { return std::string(name_of(site.stage)); }

std::string text_of(const Shape& shape) {
  std::string text;
  for (int i = 0; i < shape.rank; ++i) text += fmt::format("{}{}", i > 0 ? ", " : "", shape[i]);
  return "[" + text + "]";
}

}  // namespace

TriedLane::TriedLane(std::unique_ptr<Lane> lane, const TriedModel& model, Description description, CallTrail& trail)
    : lane_(std::move(lane)), model_(model), description_(std::move(description)), trail_(trail) {}

std::string TriedLane::place() const {
  const std::string rows = fmt::format("{} row{}", pass_.rows(), pass_.rows() == 1 ? "" : "s");
  return fmt::format("{}, {}{}", model_.name, rows,
                     pass_.first > 0 ? fmt::format(" from position {}", pass_.first) : "");
}

void TriedLane::at(const std::string& call, const std::string& about) const {
  trail_.at(fmt::format("{} ({}{}{})", call, place(), about.empty() ? "" : ": ", about));
}

Abilities TriedLane::abilities() const {
  trail_.at("abilities");
  return lane_->abilities();
}

std::size_t TriedLane::supports(std::span<const Step> steps) const {
  trail_.at(fmt::format("supports ({}: {})", model_.name, text_of(steps)));
  const std::size_t own = lane_->supports(steps);
  if (own > steps.size()) throw Error(ErrorKind::environment, fmt::format("says {} of {} steps", own, steps.size()));
  return own;
}

void TriedLane::begin(const Pass& pass) {
  tokens_.assign(pass.tokens.begin(), pass.tokens.end());
  pass_ = pass;
  pass_.tokens = tokens_;
  at("begin", "");
  lane_->begin(pass_);
}

void TriedLane::run(std::span<const Step> steps) {
  at("run", text_of(steps));
  lane_->run(steps);
}

Tensor TriedLane::read(Site site, Rows rows) {
  at("read", text_of(site));
  return lane_->read(site, rows);
}

bool TriedLane::has(Site site, Stretch positions) const {
  at("has", text_of(site));
  return lane_->has(site, positions);
}

void TriedLane::write(Site site, Rows rows, const Tensor& values) {
  at("write", text_of(site));
  lane_->write(site, rows, values);
}

Tensor TriedLane::read_cache(Cache cache, int layer, Stretch positions) {
  at("read_cache", std::string(name_of(cache)));
  return lane_->read_cache(cache, layer, positions);
}

void TriedLane::write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) {
  at("write_cache", std::string(name_of(cache)));
  lane_->write_cache(cache, layer, positions, values);
}

DeviceMemory TriedLane::device_memory() {
  at("device_memory", "");
  return lane_->device_memory();
}

void TriedLane::begin_at(std::span<const std::int32_t> tokens, int first, int total, std::int64_t sequence,
                         int head_first) {
  const int end = first + static_cast<int>(tokens.size());
  begin({tokens, first, std::max(total, end), head_first, sequence});
}

Rows TriedLane::rows_of(Stage stage) const {
  const int first = is_of_head(stage) ? pass_.head_first : 0;
  return {first, pass_.rows() - first};
}

CopiedTensor TriedLane::read_all(Site site) {
  const Rows rows = rows_of(site.stage);
  const Tensor tensor = read(site, rows);
  if (!tensor) throw Error(ErrorKind::environment, "gave nothing");
  const Shape expected = model_.config().shape_of(site, rows.count, pass_.total);
  const DType type = payload_of(site.stage) == Payload::indices ? DType::i32 : description_.stored(site.stage);
  if (!(tensor.shape == expected) || tensor.dtype != type)
    throw Error(ErrorKind::environment, fmt::format("expected {} {}, found {} {}", name_of(type), text_of(expected),
                                                    name_of(tensor.dtype), text_of(tensor.shape)));
  return CopiedTensor(tensor);
}

void TriedLane::write_all(Site site, const host::Values& values) {
  const Rows rows = rows_of(site.stage);
  const Shape shape = model_.config().shape_of(site, rows.count, pass_.total);
  if (payload_of(site.stage) == Payload::indices) {
    const std::vector<std::int32_t> ids(values.begin(), values.end());
    return write(site, rows, {ids.data(), DType::i32, shape});
  }
  const std::vector<float> singles(values.begin(), values.end());
  write(site, rows, {singles.data(), DType::f32, shape});
}

void TriedLane::poison(const Step& step, double value) {
  for (const Stage stage : step.out) {
    if (payload_of(stage) == Payload::indices) continue;
    const Shape shape = model_.config().shape_of({stage, step.layer}, rows_of(stage).count, pass_.total);
    write_all({stage, step.layer}, host::Values(static_cast<std::size_t>(shape.count()), value));
  }
}

Options BackendTrial::options(const PluginOptions& changed) const {
  PluginOptions list = plugin_.options;
  const auto set = [&](const std::string& key, const std::string& value) {
    list.erase(std::remove_if(list.begin(), list.end(), [&](const auto& o) { return o.first == key; }), list.end());
    list.emplace_back(key, value);
  };
  if (!numerics_.empty()) set("numerics", numerics_);
  for (const auto& [key, value] : changed) set(key, value);
  Options options("lane 'it'", "made.yaml:1:1");
  int line = 2;
  for (const auto& [key, value] : list) options.add(key, value, fmt::format("made.yaml:{}:3", line++));
  return options;
}

Backend& BackendTrial::backend(const Options& options) {
  if (!backend_) {
    trail_.at("create");
    backend_ = plugin_.host.make_backend(plugin_.record.name, options);
  }
  return *backend_;
}

Description BackendTrial::describe(const TriedModel& model, const Options& options) {
  Backend& made = backend(options);
  trail_.at(fmt::format("describe ({})", model.name));
  Description d = made.describe(model.model.view(), options, {most_rows, 2 * most_rows});
  plugin_.host.check_options(PluginKind::backend, plugin_.record.name, options);
  return d;
}

std::unique_ptr<TriedLane> BackendTrial::open(const TriedModel& model) {
  const Options with = options();
  Description description;
  std::unique_ptr<Lane> lane;
  try {
    description = describe(model, with);
    trail_.at(fmt::format("open ({})", model.name));
    lane = backend_->open(model.model.view(), with);
  } catch (const Error& e) {
    if (refused_.empty()) first_refusal_ = e.what();
    refused_ += (refused_.empty() ? "" : "; ") + model.name;
    return nullptr;
  }
  if (!lane) throw Error(ErrorKind::environment, "returned no lane");
  if (!description.storage.empty() && description.storage.size() != model.config().stages.size())
    throw Error(ErrorKind::environment, fmt::format("describe: storage is of {} stages, the architecture has {}",
                                                    description.storage.size(), model.config().stages.size()));
  return std::make_unique<TriedLane>(std::move(lane), model, std::move(description), trail_);
}

std::string BackendTrial::refusals() const {
  return refused_.empty() ? "" : fmt::format("{}: of the first it says: {}", refused_, first_refusal_);
}

}  // namespace moe_diag
