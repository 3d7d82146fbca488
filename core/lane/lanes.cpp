// SPDX-License-Identifier: MIT
#include "core/lane/lanes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/lane/assisted_lane.hpp"
#include "core/lane/known_lane.hpp"
#include "core/lane/recorded_lane.hpp"
#include "core/lane/replay_lane.hpp"
#include "core/lane/rounded_lane.hpp"
#include "core/ops/predicted.hpp"
#include "core/ops/variant.hpp"
#include "core/plugin/guard.hpp"
#include "core/recording/numerics_fit.hpp"

namespace moe_diag {
namespace {

// Without marking the key as read: whether a lane may have a device is for its backend to say.
std::string device_of(const Options& options) {
  const Options::Entry* entry = options.entry("device");
  return entry ? entry->value : "";
}

// What the steps write, first to last.
CallPlace place_of(std::span<const Step> steps) {
  CallPlace place;
  if (steps.empty()) return place;
  if (const Step& first = steps.front(); first.out.size() > 0) place.first = Site{first.out[0], first.layer};
  if (const Step& last = steps.back(); last.out.size() > 0)
    place.last = Site{last.out[last.out.size() - 1], last.layer};
  return place;
}

// The words of a backend about a lane.
void check(const RunningLane& lane, std::size_t stages) {
  const Description& d = lane.description;
  const auto is_of_values = [](DType type) { return type != DType::i32 && name_of(type) != "unknown"; };
  std::string wrong;
  if (d.numerics.empty()) wrong = "it has no name of its numerics";
  if (!is_of_values(d.values) || !std::all_of(d.storage.begin(), d.storage.end(), is_of_values))
    wrong = "a type of values is i32, or none";
  if (!d.storage.empty() && d.storage.size() != stages)
    wrong = fmt::format("its storage is of {} stages, the architecture has {}", d.storage.size(), stages);
  if (!wrong.empty()) throw Error(ErrorKind::environment, fmt::format("{}: describe: {}", lane.label(), wrong));
}

// A stage that is said to be kept in 16 bits has no values with more.
void check_storage(const LaneSpec& spec, const Recording& recording, const Description& said) {
  std::set<Stage, bool (*)(Stage, Stage)> stages(comes_before);
  for (const Site& site : recording.sites())
    if (payload_of(site.stage) == Payload::values) stages.insert(site.stage);
  for (const Stage stage : stages) {
    const DType stored = said.stored(stage);
    if (!has_16_bits(stored)) continue;
    if (const DType found = type_of_values(recording, stage); found != stored)
      throw Error(ErrorKind::usage,
                  fmt::format("{}: {}: stored: {} is said to be kept in {}, and its recorded values have {}: say "
                              "{{..., {}: {}}}",
                              spec.options.where(), spec.options.owner(), name_of(stage), name_of(stored),
                              has_16_bits(found) ? fmt::format("the bits of {}", name_of(found)) : "more bits",
                              name_of(stage), name_of(found)));
  }
}

}  // namespace

RunningLane::RunningLane(const LaneSpec& spec)
    : name(spec.name), backend(spec.backend), label_(fmt::format("lane '{}' (backend {})", spec.name, spec.backend)) {}

void RunningLane::attach(std::unique_ptr<Lane> lane) {
  lane_ = std::move(lane);
  if (lane_) abilities_ = guard({label_, "abilities"}, [&] { return lane_->abilities(); });
  forget_caches();
}

std::unique_ptr<Lane> RunningLane::replace(std::unique_ptr<Lane> lane) {
  std::unique_ptr<Lane> before = std::move(lane_);
  attach(std::move(lane));
  return before;
}

void RunningLane::begin(const Pass& pass) {
  first_ = pass.first;
  sequence_ = pass.sequence;
  cached_ = pass.first + pass.rows();
  guard({label_, "begin"}, [&] { lane_->begin(pass); });
}
void RunningLane::run(std::span<const Step> steps) {
  guard({label_, "run", place_of(steps)}, [&] { lane_->run(steps); });
}
Tensor RunningLane::read(Site site, Rows rows) {
  return guard({label_, "read"}, [&] {
    return lane_->has(site, {first_ + rows.first, rows.count}) ? lane_->read(site, rows) : Tensor();
  });
}
void RunningLane::write(Site site, Rows rows, const Tensor& values) {
  guard({label_, "write"}, [&] { lane_->write(site, rows, values); });
}

Tensor RunningLane::read_cache(Cache cache, int layer, Stretch positions, const ModelConfig& config) {
  if (!abilities_.shows_caches) return {};
  const Tensor tensor = guard({label_, "read_cache"}, [&] { return lane_->read_cache(cache, layer, positions); });
  const Shape expected{positions.count, config.cache_width(cache, layer)};
  if (tensor && (!(tensor.shape == expected) || tensor.dtype == DType::i32))
    throw Error(ErrorKind::environment,
                fmt::format("{}: read_cache: {} of layer {} came as {} [{}, {}], expected values [{}, {}]", label_,
                            name_of(cache), layer, name_of(tensor.dtype), tensor.shape[0], tensor.shape[1], expected[0],
                            expected[1]));
  return tensor;
}
void RunningLane::write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) {
  guard({label_, "write_cache"}, [&] { lane_->write_cache(cache, layer, positions, values); });
}

DeviceMemory RunningLane::device_memory() const {
  return guard({label_, "device_memory"}, [&] { return lane_->device_memory(); });
}

Lanes::Lanes(const Contract& contract, const Model& model, PluginHost& host, const Request& request,
             const Recordings* recordings)
    : Lanes(contract, std::vector(contract.lanes.size(), &model), host, request, recordings) {}

Lanes::Lanes(const Contract& contract, std::vector<const Model*> models, PluginHost& host, const Request& request,
             const Recordings* recordings)
    : contract_(contract),
      host_(host),
      request_(request),
      recordings_(recordings),
      models_(std::move(models)),
      rounded_(models_.size(), nullptr),
      varied_(models_.size()) {
  for (const Model* model : models_)
    if (programs_.count(model) == 0) programs_[model] = build_program(*model);
  for (const LaneSpec& spec : contract.lanes) {
    lanes_.emplace_back(spec);
    backend_of_.push_back(nullptr);
  }
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    lanes_[i].inputs = index_of(contract.lanes[i].inputs);
    lanes_[i].routing = index_of(contract.lanes[i].routing);
    lanes_[i].needs = index_of(contract.lanes[i].base);
    add_rounded_weights(i);
    add_variants(i);
    describe(i, host, request);
  }
  mark_unfed();
}

void Lanes::add_rounded_weights(std::size_t i) {
  const WeightType* type = find_weight_type(contract_.lanes[i].engine.weights);
  if (!type || !type->rounding || contract_.lanes[i].recorded || contract_.lanes[i].replay) return;
  const Model* model = models_[i];
  rounded_[i] =
      &copies_.try_emplace({model, std::string(type->name)}, model->view(), programs_.at(model), *type).first->second;
}

// The steps of the lane's program in the forms that its engine has.
void Lanes::add_variants(std::size_t i) {
  const LaneSpec& spec = contract_.lanes[i];
  if (spec.engine.variants.empty()) return;
  auto program = std::make_shared<Program>(model_program(i));
  for (const auto& [key, name] : spec.engine.variants) {
    bool is_used = false;
    for (Step& step : *program) is_used = find_variant(key, name)->apply(step.params) || is_used;
    if (!is_used && !contract_.step)
      throw Error(ErrorKind::usage, fmt::format("{}: {}: variant: {}: no step of this model has such a form",
                                                spec.options.where(), spec.options.owner(), key));
  }
  varied_[i] = std::move(program);
}

std::uint64_t Lanes::bytes_of_copies(const std::vector<bool>& marked) const {
  std::set<const RoundedWeights*> all;
  for (std::size_t i = 0; i < marked.size(); ++i)
    if (marked[i] && rounded_[i]) all.insert(rounded_[i]);
  std::uint64_t bytes = 0;
  for (const RoundedWeights* one : all) bytes += one->bytes();
  return bytes;
}

// A lane cannot run without what feeds it or completes it, however long the chain.
void Lanes::mark_unfed() {
  for (std::size_t round = 0; round < lanes_.size(); ++round)
    for (RunningLane& lane : lanes_)
      for (int feeder : {lane.inputs, lane.routing, lane.needs})
        if (lane.absent.empty() && feeder >= 0 && !lanes_[static_cast<std::size_t>(feeder)].absent.empty()) {
          lane.unfed = true;
          lane.absent = fmt::format("lane '{}', which {}, is absent: {}", lanes_[static_cast<std::size_t>(feeder)].name,
                                    feeder == lane.needs ? "is its base" : "feeds it",
                                    lanes_[static_cast<std::size_t>(feeder)].absent);
        }
}

void Lanes::describe(std::size_t i, PluginHost& host, const Request& request) {
  const LaneSpec& spec = contract_.lanes[i];
  RunningLane& lane = lanes_[i];
  if (spec.recorded) {
    lane.description = RecordedLane::description(*contract_.step);
    return;
  }
  if (spec.replay) return describe_replay(i);
  try {
    std::unique_ptr<Backend>& backend = backends_[{spec.backend, device_of(spec.options)}];
    if (!backend) backend = host.make_backend(spec.backend, spec.options);
    backend_of_[i] = backend.get();
    lane.description =
        guard({lane.label(), "describe"}, [&] { return backend->describe(view(i), spec.options, request); });
    check(lane, config().stages.size());
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::absent) throw;
    lane.absent = e.what();
    return;
  }
  host.check_options(PluginKind::backend, spec.backend, spec.options);
  describe_engine(i);
}

void Lanes::describe_replay(std::size_t i) {
  const LaneSpec& spec = contract_.lanes[i];
  const Recording* recording = recordings_ ? recordings_->of(i) : nullptr;
  if (!recording) {
    lanes_[i].absent = recordings_ ? recordings_->absent(i) : "its recording was not opened";
    return;
  }
  Description& d = lanes_[i].description = ReplayLane::description(spec, *recording, config());
  const EngineNumerics engine = engine_of(spec);
  lanes_[i].engine = text_of(spec.engine);
  if (!spec.replay->fit.empty()) lanes_[i].engine += (lanes_[i].engine.empty() ? "" : ", ") + spec.replay->fit;
  d.storage = storage_of(engine, config().stages, d);
  check_storage(spec, *recording, d);
  d.reads = engine.reads;
  d.weights = engine.weights;
  d.accumulator = engine.accumulator;
  d.kv_cache = engine.kv_cache;
  d.kv_rotate = engine.kv_rotate;
}

// The words of the contract about the lane's engine, beside those of the backend about itself.
void Lanes::describe_engine(std::size_t i) {
  const LaneSpec& spec = contract_.lanes[i];
  if (spec.engine.empty()) return;
  if (const std::string why = obstacle_to_rounding(spec.engine, program(i), config()); !why.empty())
    throw Error(ErrorKind::usage, fmt::format("{}: {}: {}", spec.options.where(), spec.options.owner(), why));
  Description& d = lanes_[i].description;
  const auto refuse_beside_own = [&](std::string_view key, const std::string& word) {
    if (!word.empty() && rounds_activations(d.numerics))
      throw Error(ErrorKind::usage,
                  fmt::format("{}: {}: {}: {}: the numerics {} read {} in a way of their own; use f32 or f64",
                              spec.options.where(), spec.options.owner(), key, word, d.numerics,
                              key == "reads" ? "activations" : "weights"));
  };
  refuse_beside_own("reads", spec.engine.reads);
  refuse_beside_own("weights", spec.engine.weights);
  lanes_[i].engine = text_of(spec.engine);
  d.storage = storage_of(spec.engine, config().stages, d);
  if (!spec.engine.reads.empty()) d.reads = spec.engine.reads;
  if (!spec.engine.weights.empty()) d.weights = spec.engine.weights;
  if (!spec.engine.accumulator.empty()) d.accumulator = spec.engine.accumulator;
  if (rounded_[i] && !d.asynchronous) d.weight_bytes += rounded_[i]->bytes();
  if (!spec.engine.kv_cache.empty()) d.kv_cache = spec.engine.kv_cache;
  if (!spec.engine.kv_rotate.empty()) d.kv_rotate = spec.engine.kv_rotate;
}

std::unique_ptr<Lane> Lanes::opened(std::size_t i, RunningLane& lane) {
  const LaneSpec& spec = contract_.lanes[i];
  if (spec.recorded) return std::make_unique<RecordedLane>(*contract_.step, config());
  if (spec.replay) {
    const Recording& recording = *recordings_->of(i);
    return std::make_unique<ReplayLane>(recording, config(), requests_of(contract_, spec, recording));
  }
  if (rounded_[i]) rounded_[i]->make();
  std::unique_ptr<Lane> own = backend_of_[i]->open(view(i), spec.options);
  if (!own) return own;
  if (!spec.base.empty() || needs_base(*own, program(i))) {
    own = on_base(i, std::move(own), lane);
  } else {
    lane.plain_operators = left_to_plain_operators(*own, program(i));
    if (!lane.plain_operators.empty()) own = std::make_unique<AssistedLane>(std::move(own), config(), program(i));
  }
  if (!spec.engine.empty())
    own =
        std::make_unique<RoundedLane>(std::move(own), config(), program(i), spec.engine, lanes_[i].description.storage);
  const int inputs = index_of(spec.inputs);
  if (inputs < 0) return own;
  const LaneSpec& engine = contract_.lanes[static_cast<std::size_t>(inputs)];
  if (!engine.replay) return own;
  const Recording& recording = *recordings_->of(static_cast<std::size_t>(inputs));
  return std::make_unique<KnownLane>(std::move(own), program(i), config(), recording,
                                     requests_of(contract_, engine, recording));
}

// The lane of a kernel, over one that computes all other steps.
std::unique_ptr<Lane> Lanes::on_base(std::size_t i, std::unique_ptr<Lane> kernel, RunningLane& lane) {
  auto composition = std::make_shared<const Composition>(*kernel, program(i));
  const bool is_kernels = !composition->operators().empty();
  if (!is_kernels && !contract_.step)
    throw Error(ErrorKind::usage,
                fmt::format("{}: the backend '{}' computes no step of this model: what it supports does not occur",
                            contract_.lanes[i].backend_at, contract_.lanes[i].backend));
  std::unique_ptr<Lane> base;
  if (const int named = index_of(contract_.lanes[i].base); named >= 0) {
    if (rounded_[static_cast<std::size_t>(named)] != rounded_[i])
      throw Error(ErrorKind::usage, fmt::format("{}: {}: its base '{}' has other `weights`: say the same of both",
                                                contract_.lanes[i].options.where(), contract_.lanes[i].options.owner(),
                                                contract_.lanes[i].base));
    if (contract_.lanes[static_cast<std::size_t>(named)].engine.variants != contract_.lanes[i].engine.variants)
      throw Error(ErrorKind::usage, fmt::format("{}: {}: its base '{}' has another `variant`: say the same of both",
                                                contract_.lanes[i].options.where(), contract_.lanes[i].options.owner(),
                                                contract_.lanes[i].base));
    RunningLane of_base(contract_.lanes[static_cast<std::size_t>(named)]);
    base = opened(static_cast<std::size_t>(named), of_base);
    lane.base = lanes_[static_cast<std::size_t>(named)].description;
  } else {
    base = default_base_of(i, lane);
  }
  if (!base) throw Error(ErrorKind::environment, lane.label() + ": its base opened no lane");
  if (!is_kernels) return base;  // the step alone is none of the kernel's
  lane.composition = composition;
  return std::make_unique<ComposedLane>(std::move(kernel), std::move(base), config(), std::move(composition));
}

// In the kernel's numerics where the backend has them.
std::unique_ptr<Lane> Lanes::default_base_of(std::size_t i, RunningLane& lane) {
  const std::string backend_name(default_base);
  const PluginRecord plugin = host_.find(PluginKind::backend, backend_name);
  const std::string& wanted = lanes_[i].description.numerics;
  const bool has_them = std::any_of(plugin.options.begin(), plugin.options.end(), [&](const OptionInfo& o) {
    return std::string_view(o.name) == "numerics" && option::has_item(o.choices, ' ', wanted);
  });
  Options options(fmt::format("the base of {}", lane.label()), contract_.lanes[i].options.where());
  options.add("numerics", has_them ? wanted : "f32", options.where());
  const std::unique_ptr<Backend>& backend = bases_.emplace_back(host_.make_backend(backend_name, options));
  lane.base = backend->describe(view(i), options, request_);
  std::unique_ptr<Lane> base = backend->open(view(i), options);
  if (!base || left_to_plain_operators(*base, program(i)).empty()) return base;
  return std::make_unique<AssistedLane>(std::move(base), config(), program(i));
}

// A lane of the contract's lane i.
void Lanes::attach(std::size_t i, RunningLane& lane) {
  std::unique_ptr<Lane> from_backend = guard({lane.label(), "open"}, [&] { return opened(i, lane); });
  if (!from_backend) throw Error(ErrorKind::environment, lane.label() + ": open: returned no lane");
  lane.attach(std::move(from_backend));
}

void Lanes::open(const std::vector<bool>& needed) {
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    RunningLane& lane = lanes_[i];
    if (!needed[i] || !lane.absent.empty() || lane.runs()) continue;
    try {
      attach(i, lane);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::absent) throw;
      lane.absent = e.what();
    }
  }
  mark_unfed();
}

int Lanes::add_fed_copy(int lane, int feeder) {
  const auto i = static_cast<std::size_t>(lane);
  LaneSpec spec = contract_.lanes[i];
  spec.name = fmt::format("{} fed by {}", spec.name, lanes_[static_cast<std::size_t>(feeder)].name);
  RunningLane copy(spec);
  copy.inputs = feeder;
  attach(i, copy);
  copy.description = lanes_[i].description;
  copy.engine = lanes_[i].engine;
  copy.needs = lanes_[i].needs;
  lanes_.push_back(std::move(copy));
  models_.push_back(models_[i]);
  rounded_.push_back(rounded_[i]);
  varied_.push_back(varied_[i]);
  return static_cast<int>(lanes_.size()) - 1;
}

void Lanes::drop_copies() {
  lanes_.erase(lanes_.begin() + static_cast<std::ptrdiff_t>(contract_.lanes.size()), lanes_.end());
  models_.resize(contract_.lanes.size());
  rounded_.resize(contract_.lanes.size());
  varied_.resize(contract_.lanes.size());
}

int Lanes::index_of(std::string_view name) const {
  for (std::size_t i = 0; i < lanes_.size(); ++i)
    if (!name.empty() && lanes_[i].name == name) return static_cast<int>(i);
  return -1;
}

std::vector<int> Lanes::feeding_order() const {
  std::vector<int> order;
  std::vector<bool> placed(lanes_.size(), false);
  const auto ready = [&](int feeder) { return feeder < 0 || placed[static_cast<std::size_t>(feeder)]; };
  for (std::size_t round = 0; round < lanes_.size(); ++round)
    for (std::size_t i = 0; i < lanes_.size(); ++i)
      if (!placed[i] && lanes_[i].runs() && ready(lanes_[i].inputs) && ready(lanes_[i].routing)) {
        placed[i] = true;
        order.push_back(static_cast<int>(i));
      }
  return order;
}

}  // namespace moe_diag
