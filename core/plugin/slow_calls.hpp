// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "core/plugin/call.hpp"

namespace moe_diag {

// Says which call of a plugin does not return, while it does not. Of one call at a time.
class SlowCalls {
 public:
  // Told of a call that has taken `patience`, and again after twice, four times, ... that. On a thread of this object.
  using Warn = std::function<void(const std::string&)>;
  SlowCalls(std::chrono::milliseconds patience, Warn warn);
  ~SlowCalls();
  SlowCalls(const SlowCalls&) = delete;
  SlowCalls& operator=(const SlowCalls&) = delete;

  // The call takes place while this lives.
  class Watch {
   public:
    Watch(SlowCalls& calls, const PluginCall& call);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    SlowCalls& calls_;
  };

 private:
  void run();
  std::string overdue();

  const std::chrono::milliseconds patience_;
  const Warn warn_;
  std::mutex mutex_;  // of all below
  std::condition_variable stopped_;
  const PluginCall* now_ = nullptr;
  std::chrono::steady_clock::time_point start_;
  std::chrono::milliseconds next_{};  // after the start: when it is told
  bool stop_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace moe_diag
