// SPDX-License-Identifier: MIT
#include "core/run/capture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/plugin/guard.hpp"

namespace moe_diag {

Capture::Capture(const Contract& contract, std::vector<WatchedCapture> captures, PluginHost& host)
    : contract_(contract), captures_(std::move(captures)), sinks_(contract.sinks.size()) {
  for (const WatchedCapture& capture : captures_)
    for (int i : capture.sinks) {
      const SinkSpec& spec = contract.sinks[static_cast<std::size_t>(i)];
      Fed& fed = sinks_[static_cast<std::size_t>(i)];
      if (fed.sink) continue;
      fed = {fmt::format("sink '{}' (plugin {})", spec.name, spec.sink), host.make_sink(spec.sink, spec.options)};
    }
}

bool Capture::has_sinks() const {
  return std::any_of(sinks_.begin(), sinks_.end(), [](const Fed& fed) { return fed.sink != nullptr; });
}

void Capture::open(const RunInfo& run) {
  for (Fed& fed : sinks_)
    if (fed.sink) guard(fed.label, "open", [&] { fed.sink->open(run); });
}

bool Capture::wants(int prompt, int lane, Site site) const {
  return std::any_of(captures_.begin(), captures_.end(), [&](const WatchedCapture& c) {
    return c.sites.contains(site) && !c.positions[static_cast<std::size_t>(prompt)].empty() &&
           std::count(c.lanes.begin(), c.lanes.end(), lane) > 0;
  });
}

// One event for a sink, lane and site, however many captures ask for it.
void Capture::show(Sighting& sighting) {
  for (std::size_t sink = 0; sink < sinks_.size(); ++sink)
    for (int lane = 0; lane < static_cast<int>(contract_.lanes.size()); ++lane) {
      find_positions(static_cast<int>(sink), lane, sighting);
      if (!positions_.empty()) feed(sinks_[sink], lane, sighting);
    }
}

void Capture::find_positions(int sink, int lane, const Sighting& sighting) {
  positions_.clear();
  for (const WatchedCapture& c : captures_) {
    if (!c.sites.contains(sighting.site) || std::count(c.lanes.begin(), c.lanes.end(), lane) == 0 ||
        std::count(c.sinks.begin(), c.sinks.end(), sink) == 0)
      continue;
    for (int position : c.positions[static_cast<std::size_t>(sighting.prompt)]) {
      const int row = position - sighting.position(0);
      if (row >= 0 && row < sighting.rows().count) positions_.push_back(position);
    }
  }
  std::sort(positions_.begin(), positions_.end());
  positions_.erase(std::unique(positions_.begin(), positions_.end()), positions_.end());
}

void Capture::feed(Fed& fed, int lane, Sighting& sighting) {
  const Tensor all = sighting.tensor(lane);
  if (!all) return;
  const std::size_t row_bytes = static_cast<std::size_t>(all.shape.row()) * size_of(all.dtype);
  const auto row_at = [&](std::int32_t position) {
    return all.as<std::byte>() + static_cast<std::size_t>(position - sighting.position(0)) * row_bytes;
  };
  Event event{sighting.prompt, lane, sighting.site, positions_, all};
  event.tensor.shape.dims[0] = static_cast<std::int64_t>(positions_.size());
  event.tensor.data = row_at(positions_.front());
  if (positions_.back() - positions_.front() + 1 != static_cast<int>(positions_.size())) {
    picked_.clear();
    for (std::int32_t position : positions_)
      picked_.insert(picked_.end(), row_at(position), row_at(position) + row_bytes);
    event.tensor.data = picked_.data();
  }
  guard(fed.label, "consume", [&] { fed.sink->consume(event); });
}

void Capture::close() {
  std::optional<Error> first;
  for (std::size_t i = 0; i < sinks_.size(); ++i) {
    if (!sinks_[i].sink) continue;
    try {
      guard(sinks_[i].label, "close", [&] { sinks_[i].sink->close(); });
      completed_.push_back(contract_.sinks[i].name);
    } catch (const Error& e) {
      if (!first) first = e;
    }
  }
  if (first) throw *first;
}

}  // namespace moe_diag
