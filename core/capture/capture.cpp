// SPDX-License-Identifier: MIT
#include "core/capture/capture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "core/plugin/guard.hpp"

namespace moe_diag {

std::string label_of(const SinkSpec& sink) { return fmt::format("sink '{}' (plugin {})", sink.name, sink.sink); }

Capture::Capture(const Contract& contract, std::vector<WatchedCapture> captures, PluginHost& host)
    : contract_(contract), captures_(std::move(captures)), sinks_(contract.sinks.size()) {
  for (const WatchedCapture& capture : captures_)
    for (int i : capture.sinks) {
      const SinkSpec& spec = contract.sinks[static_cast<std::size_t>(i)];
      Fed& fed = sinks_[static_cast<std::size_t>(i)];
      if (fed.sink) continue;
      fed.label = label_of(spec);
      fed.sink = host.make_sink(spec.sink, spec.options);
    }
}

bool Capture::has_sinks() const {
  return std::any_of(sinks_.begin(), sinks_.end(), [](const Fed& fed) { return fed.sink != nullptr; });
}

void Capture::open(const RunInfo& run, EventQueue::Interrupted interrupted, Patience patience) {
  slow_calls_ = std::make_unique<SlowCalls>(patience.slow_call, std::move(patience.warn));
  const auto deliver = [this](const Event& event, std::span<const int> receivers) { consume(event, receivers); };
  queue_ = std::make_unique<EventQueue>(contract_.queue_bytes(), deliver, std::move(interrupted));
  for (Fed& fed : sinks_)
    if (fed.sink) queue_->call([&] { call({fed.label, "open"}, [&] { fed.sink->open(run); }); });
}

// On the queue's thread.
template <class Body>
void Capture::call(const PluginCall& call, Body&& body) {
  const SlowCalls::Watch watch(*slow_calls_, call);
  guard(call, std::forward<Body>(body));
}

bool Capture::wants(int prompt, int lane, Site site) const {
  return std::any_of(captures_.begin(), captures_.end(), [&](const WatchedCapture& c) {
    return c.sites.contains(site) && !c.positions[static_cast<std::size_t>(prompt)].empty() &&
           std::count(c.lanes.begin(), c.lanes.end(), lane) > 0;
  });
}

void Capture::show(Sighting& sighting) {
  for (int lane = 0; lane < static_cast<int>(contract_.lanes.size()); ++lane) {
    for (std::size_t sink = 0; sink < sinks_.size(); ++sink) find_positions(sink, lane, sighting);
    feed(lane, sighting);
  }
}

// Each position once, however many captures ask for it.
void Capture::find_positions(std::size_t sink, int lane, const Sighting& sighting) {
  Fed& fed = sinks_[sink];
  fed.all = {};
  for (const WatchedCapture& c : captures_) {
    if (!c.sites.contains(sighting.site) || std::count(c.lanes.begin(), c.lanes.end(), lane) == 0 ||
        std::count(c.sinks.begin(), c.sinks.end(), static_cast<int>(sink)) == 0)
      continue;
    const std::vector<int>& positions = c.positions[static_cast<std::size_t>(sighting.prompt)];
    if (fed.all.empty()) {
      fed.all = positions;
      continue;
    }
    if (fed.all.data() != fed.merged.data()) fed.merged.assign(fed.all.begin(), fed.all.end());
    fed.merged.insert(fed.merged.end(), positions.begin(), positions.end());
    std::sort(fed.merged.begin(), fed.merged.end());
    fed.merged.erase(std::unique(fed.merged.begin(), fed.merged.end()), fed.merged.end());
    fed.all = fed.merged;
  }
  const auto first = std::lower_bound(fed.all.begin(), fed.all.end(), sighting.position(0));
  const auto end = std::lower_bound(first, fed.all.end(), sighting.position(sighting.rows().count));
  fed.now = fed.all.subspan(static_cast<std::size_t>(first - fed.all.begin()), static_cast<std::size_t>(end - first));
}

// One event for all sinks that want the same rows of a lane.
void Capture::feed(int lane, Sighting& sighting) {
  for (std::size_t i = 0; i < sinks_.size(); ++i) {
    const Fed& first = sinks_[i];
    if (first.now.empty()) continue;
    const Tensor tensor = sighting.tensor(lane);
    if (!tensor) return;
    receivers_.clear();
    for (std::size_t j = i; j < sinks_.size(); ++j) {
      Fed& other = sinks_[j];
      if (!std::equal(first.all.begin(), first.all.end(), other.all.begin(), other.all.end())) continue;
      receivers_.push_back(static_cast<int>(j));
      if (j > i) other.now = {};
    }
    Event event{sighting.prompt, lane, sighting.site, first.now, tensor, static_cast<std::int64_t>(first.all.size())};
    event.tensor.shape.dims[0] = static_cast<std::int64_t>(first.now.size());
    queue_->push(event, sighting.position(0), receivers_);
  }
}

void Capture::consume(const Event& event, std::span<const int> receivers) {
  const CallPlace place{contract_.prompts[static_cast<std::size_t>(event.prompt)].id,
                        contract_.lanes[static_cast<std::size_t>(event.lane)].name, event.site, event.site,
                        event.positions};
  for (int i : receivers) {
    const Fed& fed = sinks_[static_cast<std::size_t>(i)];
    call({fed.label, "consume", place}, [&] { fed.sink->consume(event); });
  }
}

void Capture::close() {
  std::optional<Error> first;
  for (std::size_t i = 0; i < sinks_.size(); ++i) {
    Fed& fed = sinks_[i];
    if (!fed.sink) continue;
    try {
      queue_->call([&] { call({fed.label, "close"}, [&] { fed.sink->close(); }); });
      completed_.push_back(contract_.sinks[i].name);
    } catch (const Error& e) {
      if (!first) first = e;
    }
  }
  if (first) throw *first;
}

}  // namespace moe_diag
