// SPDX-License-Identifier: MIT
#include "core/run/capture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/plugin/guard.hpp"

namespace moe_diag {

Capture::Capture(const Contract& contract, const Plan& plan, PluginHost& host) : contract_(contract), plan_(plan) {
  for (const SinkSpec& spec : contract.sinks) {
    std::unique_ptr<Sink> sink = host.make_sink(spec.sink, spec.options);
    refuse_unread(spec.options, spec.sink);
    sinks_.push_back({fmt::format("sink '{}' (plugin {})", spec.name, spec.sink), std::move(sink)});
  }
}

void Capture::open(const RunInfo& run) {
  for (Fed& fed : sinks_) guard(fed.label, "open", [&] { fed.sink->open(run); });
}

bool Capture::wants(int prompt, int lane, Site site) const {
  return std::any_of(plan_.captures.begin(), plan_.captures.end(), [&](const WatchedCapture& c) {
    return c.sites.contains(site) && !c.positions[static_cast<std::size_t>(prompt)].empty() &&
           std::count(c.lanes.begin(), c.lanes.end(), lane) > 0;
  });
}

void Capture::show(Sighting& sighting) {
  for (const WatchedCapture& capture : plan_.captures)
    if (capture.sites.contains(sighting.site))
      for (int lane : capture.lanes) feed(capture, lane, sighting);
}

void Capture::feed(const WatchedCapture& capture, int lane, Sighting& sighting) {
  const Tensor all = sighting.tensor(lane);
  if (!all) return;
  Event event{sighting.prompt, lane, sighting.site, {}, all};
  const std::size_t row_bytes = static_cast<std::size_t>(all.shape.row()) * size_of(all.dtype);
  positions_.clear();
  picked_.clear();
  for (int position : capture.positions[static_cast<std::size_t>(sighting.prompt)]) {
    const int row = position - sighting.position(0);
    if (row < 0 || row >= sighting.rows().count) continue;
    positions_.push_back(position);
  }
  if (positions_.empty()) return;
  event.positions = positions_;
  event.tensor.shape.dims[0] = static_cast<std::int64_t>(positions_.size());
  const auto first_row = static_cast<std::size_t>(positions_.front() - sighting.position(0));
  const bool contiguous = positions_.back() - positions_.front() + 1 == static_cast<int>(positions_.size());
  if (contiguous) {
    event.tensor.data = all.as<std::byte>() + first_row * row_bytes;
  } else {
    for (std::int32_t position : positions_) {
      const std::byte* row =
          all.as<std::byte>() + static_cast<std::size_t>(position - sighting.position(0)) * row_bytes;
      picked_.insert(picked_.end(), row, row + row_bytes);
    }
    event.tensor.data = picked_.data();
  }
  for (int sink : capture.sinks) {
    Fed& fed = sinks_[static_cast<std::size_t>(sink)];
    guard(fed.label, "consume", [&] { fed.sink->consume(event); });
  }
}

void Capture::close() {
  std::optional<Error> first;
  for (std::size_t i = 0; i < sinks_.size(); ++i) {
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
