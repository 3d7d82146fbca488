// SPDX-License-Identifier: MIT
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>

#include "core/api/error.hpp"
#include "core/api/event.hpp"
#include "core/lane/pages.hpp"

namespace moe_diag {

// Events on their way to a thread that consumes them: bounded, in order, none lost. The memory is a ring of bytes that
// is touched only as far as it fills, and nothing is allocated for an event.
class EventQueue {
 public:
  // On the queue's thread. What it throws ends the consuming: it reaches the next push() or call().
  using Consume = std::function<void(const Event& event, std::span<const int> receivers)>;
  // Asked while a caller waits; true ends the waiting with an Error. May be empty.
  using Interrupted = std::function<bool()>;

  // Throws Error(environment) when there is no such memory.
  EventQueue(std::size_t bytes, Consume consume, Interrupted interrupted);
  EventQueue(const EventQueue&) = delete;
  EventQueue& operator=(const EventQueue&) = delete;
  // Waits for the event that is being consumed; what is behind it is dropped.
  ~EventQueue();

  // Copies the event, and waits as long as it has no room; one that has none in the whole queue is consumed from the
  // caller's memory before this returns. The event's rows are picked out of its tensor, which begins with the row of
  // position `base` and has one for each from there to the last of `event.positions`. From any thread.
  void push(const Event& event, std::int32_t base, std::span<const int> receivers);

  // Runs `body` on the queue's thread, after all events that were pushed, and throws what it throws.
  void call(const std::function<void()>& body);

 private:
  // What lies in the ring before receivers, positions and rows of an event.
  struct Entry {
    Event event;
    std::span<const int> receivers;
    std::size_t bytes = 0;  // in the ring, all included
  };
  using Lock = std::unique_lock<std::mutex>;

  template <class Ready>
  void wait(Lock& lock, Ready ready);
  std::byte* room_for(std::size_t bytes);
  std::byte* reserve(std::size_t bytes);
  void publish();
  void push_borrowed(const Event& event, std::int32_t base, std::span<const int> receivers);
  std::optional<Error> failure_of(Lock& lock, const std::function<void()>& body);
  void run();
  void release(std::size_t bytes);

  static Pages ring_of(std::size_t bytes);

  const Consume consume_;
  const Interrupted interrupted_;
  const std::size_t capacity_;
  const Pages ring_;
  std::unique_ptr<std::byte[]> picked_;  // rows of an event that has no room and does not lie side by side

  std::mutex pushing_;  // one caller at a time
  std::mutex mutex_;    // of all below
  std::condition_variable work_, progress_;
  std::size_t head_ = 0, tail_ = 0;  // the first entry, and behind the last
  std::size_t wrapped_at_ = 0;       // where the entries end and go on at 0; 0: nowhere
  std::uint64_t pushed_ = 0, consumed_ = 0;
  const std::function<void()>* call_ = nullptr;
  std::optional<Error> call_failure_, failure_;
  bool stop_ = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace moe_diag
