// SPDX-License-Identifier: MIT
#include "core/plugin/slow_calls.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moe_diag {

SlowCalls::SlowCalls(std::chrono::milliseconds patience, Warn warn)
    : patience_(patience), warn_(std::move(warn)), thread_([this] { run(); }) {}

SlowCalls::~SlowCalls() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  thread_.join();
}

SlowCalls::Watch::Watch(SlowCalls& calls, const PluginCall& call) : calls_(calls) {
  const std::lock_guard lock(calls_.mutex_);
  calls_.now_ = &call;
  calls_.start_ = std::chrono::steady_clock::now();
  calls_.next_ = calls_.patience_;
}

SlowCalls::Watch::~Watch() {
  const std::lock_guard lock(calls_.mutex_);
  calls_.now_ = nullptr;
}

// What is to be told now; empty: nothing. Holding the mutex, so that the call does not end meanwhile.
std::string SlowCalls::overdue() {
  const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start_);
  if (!now_ || spent < next_) return "";
  next_ = 2 * spent;
  return fmt::format("{}: has not returned for {:.0f} s; the run waits for it", text_of(*now_),
                     std::chrono::duration<double>(spent).count());
}

// Looks now and then: a call must not have to wake this thread.
void SlowCalls::run() {
  const auto pause = std::clamp<std::chrono::milliseconds>(patience_ / 4, std::chrono::milliseconds(1),
                                                           std::chrono::milliseconds(1000));
  std::unique_lock lock(mutex_);
  while (!stopped_.wait_for(lock, pause, [&] { return stop_; })) {
    const std::string text = overdue();
    if (text.empty()) continue;
    lock.unlock();
    warn_(text);
    lock.lock();
  }
}

}  // namespace moe_diag
