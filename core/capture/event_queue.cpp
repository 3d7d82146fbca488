// SPDX-License-Identifier: MIT
#include "core/capture/event_queue.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)  // as GCC says it, which the presets build with
#include <sanitizer/asan_interface.h>
#define MOE_DIAG_POISON(at, bytes) ASAN_POISON_MEMORY_REGION(at, bytes)
#define MOE_DIAG_UNPOISON(at, bytes) ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#else
#define MOE_DIAG_POISON(at, bytes) static_cast<void>(at)
#define MOE_DIAG_UNPOISON(at, bytes) static_cast<void>(at)
#endif

namespace moe_diag {
namespace {

constexpr std::size_t alignment = 64;  // of entries and of their rows
constexpr auto patience = std::chrono::milliseconds(50);

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

bool side_by_side(std::span<const std::int32_t> positions) {
  return positions.empty() || positions.back() - positions.front() + 1 == static_cast<std::int64_t>(positions.size());
}

std::size_t row_bytes(const Event& event) {
  return static_cast<std::size_t>(event.tensor.shape.row()) * size_of(event.tensor.dtype);
}

const std::byte* row_at(const Event& event, std::int32_t base, std::int32_t position) {
  return event.tensor.as<std::byte>() + static_cast<std::size_t>(position - base) * row_bytes(event);
}

void pick_rows(const Event& event, std::int32_t base, std::byte* to) {
  if (event.tensor.bytes() == 0) return;
  if (side_by_side(event.positions)) {
    std::memcpy(to, row_at(event, base, event.positions.front()), event.tensor.bytes());
    return;
  }
  const std::size_t bytes = row_bytes(event);
  for (std::int32_t position : event.positions) {
    std::memcpy(to, row_at(event, base, position), bytes);
    to += bytes;
  }
}

}  // namespace

Pages EventQueue::ring_of(std::size_t bytes) try { return Pages(bytes); } catch (const std::bad_alloc&) {
  throw Error(
      ErrorKind::environment,
      fmt::format("the queue of captured tensors takes {} MiB, which there are not; lower 'queue_mb'", bytes >> 20));
}

EventQueue::EventQueue(std::size_t bytes, Consume consume, Interrupted interrupted)
    : consume_(std::move(consume)),
      interrupted_(std::move(interrupted)),
      capacity_(aligned(bytes)),
      ring_(ring_of(capacity_)),
      thread_([this] { run(); }) {
  // What lies beside an event is nobody's: the address sanitizer finds a sink that goes there.
  MOE_DIAG_POISON(ring_.data(), capacity_);
}

EventQueue::~EventQueue() {
  {
    const Lock lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  thread_.join();
  MOE_DIAG_UNPOISON(ring_.data(), capacity_);
}

template <class Ready>
void EventQueue::wait(Lock& lock, Ready ready) {
  while (!progress_.wait_for(lock, patience, ready)) {
    if (!interrupted_) continue;
    lock.unlock();
    const bool interrupted = interrupted_();
    lock.lock();
    if (interrupted && !ready())
      throw Error(ErrorKind::environment,
                  fmt::format("interrupted: {} captured tensors had not reached their sinks", pushed_ - consumed_));
  }
}

// Where an entry of so many bytes can lie; null: nowhere before others are released.
std::byte* EventQueue::room_for(std::size_t bytes) {
  if (pushed_ == consumed_) head_ = tail_ = wrapped_at_ = 0;  // what is hot in the cache is used again
  if (wrapped_at_ > 0) return head_ - tail_ >= bytes ? ring_.data() + tail_ : nullptr;
  if (capacity_ - tail_ >= bytes) return ring_.data() + tail_;
  if (head_ < bytes) return nullptr;
  wrapped_at_ = tail_;
  tail_ = 0;
  return ring_.data();
}

std::byte* EventQueue::reserve(std::size_t bytes) {
  std::byte* room = nullptr;
  Lock lock(mutex_);
  wait(lock, [&] { return failure_ || (room = room_for(bytes)); });
  if (failure_) throw *failure_;
  tail_ += bytes;
  return room;
}

void EventQueue::publish() {
  {
    const Lock lock(mutex_);
    ++pushed_;
  }
  work_.notify_one();
}

void EventQueue::push(const Event& event, std::int32_t base, std::span<const int> receivers) {
  const std::lock_guard<std::mutex> alone(pushing_);
  const std::size_t receivers_at = aligned(sizeof(Entry));
  const std::size_t positions_at = receivers_at + receivers.size_bytes();
  const std::size_t rows_at = aligned(positions_at + event.positions.size_bytes());
  const std::size_t end = rows_at + event.tensor.bytes();
  const std::size_t bytes = aligned(end + 1);
  if (bytes > capacity_) {
    push_borrowed(event, base, receivers);
    return;
  }
  std::byte* room = reserve(bytes);
  MOE_DIAG_UNPOISON(room, end);
  const auto copy = [room](auto span, std::size_t at) {
    if (!span.empty()) std::memcpy(room + at, span.data(), span.size_bytes());
    return decltype(span)(reinterpret_cast<decltype(span.data())>(room + at), span.size());
  };
  Entry* entry = new (room) Entry{event, copy(receivers, receivers_at), bytes};
  entry->event.positions = copy(event.positions, positions_at);
  entry->event.tensor.data = room + rows_at;
  pick_rows(event, base, room + rows_at);
  publish();
}

// The entry points to the caller's memory, so the caller waits until it was consumed.
void EventQueue::push_borrowed(const Event& event, std::int32_t base, std::span<const int> receivers) {
  const std::size_t bytes = aligned(sizeof(Entry));
  std::byte* room = reserve(bytes);
  MOE_DIAG_UNPOISON(room, bytes);
  Entry* entry = new (room) Entry{event, receivers, bytes};
  if (side_by_side(event.positions)) {
    entry->event.tensor.data = row_at(event, base, event.positions.front());
  } else {
    picked_ = std::make_unique_for_overwrite<std::byte[]>(event.tensor.bytes());
    pick_rows(event, base, picked_.get());
    entry->event.tensor.data = picked_.get();
  }
  publish();
  Lock lock(mutex_);
  // Not to be interrupted: the consumer reads the caller's memory.
  progress_.wait(lock, [&] { return consumed_ == pushed_; });
  picked_.reset();
  if (failure_) throw *failure_;
}

void EventQueue::call(const std::function<void()>& body) {
  const std::lock_guard<std::mutex> alone(pushing_);
  Lock lock(mutex_);
  wait(lock, [&] { return failure_ || consumed_ == pushed_; });
  if (failure_) throw *failure_;
  call_ = &body;
  work_.notify_one();
  progress_.wait(lock, [&] { return call_ == nullptr; });
  if (call_failure_) throw *std::exchange(call_failure_, std::nullopt);
}

void EventQueue::release(std::size_t bytes) {
  MOE_DIAG_POISON(ring_.data() + head_, bytes);
  head_ += bytes;
  ++consumed_;
  if (wrapped_at_ == 0 || head_ != wrapped_at_) return;
  head_ = wrapped_at_ = 0;
}

// Runs `body` without the lock; none when nothing went wrong.
std::optional<Error> EventQueue::failure_of(Lock& lock, const std::function<void()>& body) {
  lock.unlock();
  std::optional<Error> failure;
  try {
    body();
  } catch (const Error& e) {
    failure = e;
  } catch (const std::exception& e) {
    failure = Error(ErrorKind::environment, e.what());
  }
  lock.lock();
  return failure;
}

void EventQueue::run() {
  Lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || pushed_ != consumed_ || call_; });
    if (stop_) return;
    if (pushed_ != consumed_) {
      const Entry& entry = *std::launder(reinterpret_cast<const Entry*>(ring_.data() + head_));
      if (!failure_) failure_ = failure_of(lock, [&] { consume_(entry.event, entry.receivers); });
      release(entry.bytes);
    } else {
      call_failure_ = failure_of(lock, *call_);
      call_ = nullptr;
    }
    progress_.notify_all();
  }
}

}  // namespace moe_diag
