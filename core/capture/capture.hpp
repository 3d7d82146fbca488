// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/api/sink.hpp"
#include "core/bus/bus.hpp"
#include "core/capture/event_queue.hpp"
#include "core/plan/plan.hpp"
#include "core/plugin/host.hpp"
#include "core/plugin/slow_calls.hpp"

namespace moe_diag {

// "sink 'mine' (plugin stats)", for messages.
std::string label_of(const SinkSpec& sink);

// When a sink's call that does not return is told of, and to whom.
struct Patience {
  std::chrono::milliseconds slow_call;
  SlowCalls::Warn warn;
};

// Feeds sinks with what captures select, by way of a queue: sinks work on a thread of their own.
class Capture final : public Hook {
 public:
  // Builds the sinks that the captures feed, which touches nothing on disk; refuses unknown plugins and options.
  Capture(const Contract& contract, std::vector<WatchedCapture> captures, PluginHost& host);

  bool has_sinks() const;
  // Null for a sink that none of the captures feeds. As Contract::sinks.
  const Sink* sink(std::size_t index) const { return sinks_[index].sink.get(); }

  // `interrupted` is asked while the run waits for a sink; it may be empty.
  void open(const RunInfo& run, EventQueue::Interrupted interrupted, Patience patience);
  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;
  // Waits until the sinks have all there is and closes each; the first failure is thrown when all had their chance.
  void close();

  const std::vector<std::string>& completed() const { return completed_; }

 private:
  struct Fed {
    std::string label;
    std::unique_ptr<Sink> sink;         // null: none of the captures feeds it
    std::vector<std::int32_t> merged;   // positions that several captures ask for
    std::span<const std::int32_t> all;  // positions of the site at hand in the whole run,
    std::span<const std::int32_t> now;  // and of this pass
  };

  void find_positions(std::size_t sink, int lane, const Sighting& sighting);
  void feed(int lane, Sighting& sighting);
  void consume(const Event& event, std::span<const int> receivers);
  template <class Body>
  void call(const PluginCall& call, Body&& body);

  const Contract& contract_;
  std::vector<WatchedCapture> captures_;
  std::vector<Fed> sinks_;      // as Contract::sinks
  std::vector<int> receivers_;  // sinks that want the same rows
  std::vector<std::string> completed_;
  std::unique_ptr<SlowCalls> slow_calls_;
  std::unique_ptr<EventQueue> queue_;  // last: its thread uses the sinks
};

}  // namespace moe_diag
