// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/api/sink.hpp"
#include "core/bus/bus.hpp"
#include "core/plan/plan.hpp"
#include "core/plugin/host.hpp"

namespace moe_diag {

// Feeds sinks with what captures select.
class Capture final : public Hook {
 public:
  // Builds the sinks that the captures feed, which touches nothing on disk; refuses unknown plugins and options.
  Capture(const Contract& contract, std::vector<WatchedCapture> captures, PluginHost& host);

  bool has_sinks() const;
  void open(const RunInfo& run);
  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;
  // Closes every sink; the first failure is thrown when all had their chance.
  void close();

  const std::vector<std::string>& completed() const { return completed_; }

 private:
  struct Fed {
    std::string label;
    std::unique_ptr<Sink> sink;  // null: none of the captures feeds it
  };

  void find_positions(int sink, int lane, const Sighting& sighting);
  void feed(Fed& fed, int lane, Sighting& sighting);

  const Contract& contract_;
  std::vector<WatchedCapture> captures_;
  std::vector<Fed> sinks_;               // as Contract::sinks
  std::vector<std::int32_t> positions_;  // of the event at hand
  std::vector<std::byte> picked_;        // its rows, when they are not side by side
  std::vector<std::string> completed_;
};

}  // namespace moe_diag
