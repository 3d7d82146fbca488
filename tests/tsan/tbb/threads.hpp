// SPDX-License-Identifier: MIT
#pragma once

// What the project uses of oneTBB, on plain threads, for builds with ThreadSanitizer alone: the packaged library is not
// built with it, so that it would report every hand-over of work as a race. Threads take pieces of a loop off a relaxed
// counter, which orders nothing: races between the bodies of a loop are found.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace tbb {
namespace threads {

// Of the calling thread: its place in its arena, and how many threads that has.
struct Place {
  int index = 0, width = 2;
};
inline thread_local Place place;

// A worker's start. Not a template: what std::thread leaves of one in a plugin's symbols cannot be hidden.
inline void enter(void (*work)(const void* context, std::size_t index), const void* context, std::size_t index) {
  place = {static_cast<int>(index), 1};
  work(context, index);
}

// Calls body(piece) for every piece, on the threads of the arena, and rethrows the first exception.
template <class Body>
void run(std::size_t pieces, const Body& body) {
  std::atomic<std::size_t> next{0};
  const auto width = std::clamp<std::size_t>(pieces, 1, static_cast<std::size_t>(place.width));
  std::vector<std::exception_ptr> thrown(width);
  const auto work = [&](std::size_t index) {
    try {
      for (std::size_t i = next.fetch_add(1, std::memory_order_relaxed); i < pieces;
           i = next.fetch_add(1, std::memory_order_relaxed))
        body(i);
    } catch (...) {
      thrown[index] = std::current_exception();
    }
  };
  void (*const call)(const void*, std::size_t) = [](const void* context, std::size_t index) {
    (*static_cast<decltype(&work)>(context))(index);
  };
  const void* const context = &work;
  std::vector<std::thread> others;
  for (std::size_t index = 1; index < width; ++index) others.emplace_back(&enter, call, context, index);
  work(0);
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& e : thrown)
    if (e) std::rethrow_exception(e);
}

}  // namespace threads

class task_arena {
 public:
  explicit task_arena(int width) : width_(width) {}

  template <class Body>
  void execute(const Body& body) {
    const threads::Place outside = threads::place;
    threads::place = {0, width_};
    try {
      body();
    } catch (...) {
      threads::place = outside;
      throw;
    }
    threads::place = outside;
  }

 private:
  int width_;
};

namespace this_task_arena {
inline int current_thread_index() { return threads::place.index; }
}  // namespace this_task_arena

// Arenas are as wide as they say here.
struct global_control {
  enum parameter { max_allowed_parallelism };
  global_control(parameter, std::size_t) {}
};

template <class Index>
class blocked_range {
 public:
  blocked_range(Index begin, Index end, std::size_t grain = 1) : begin_(begin), end_(end), grain_(grain) {}
  Index begin() const { return begin_; }
  Index end() const { return end_; }
  std::size_t grainsize() const { return grain_; }

 private:
  Index begin_, end_;
  std::size_t grain_;
};

template <class Index, class Body>
void parallel_for(const blocked_range<Index>& range, const Body& body) {
  const auto grain = static_cast<Index>(range.grainsize());
  const Index count = range.end() - range.begin();
  threads::run(static_cast<std::size_t>((count + grain - 1) / grain), [&](std::size_t piece) {
    const Index first = range.begin() + static_cast<Index>(piece) * grain;
    body(blocked_range<Index>(first, std::min(range.end(), first + grain), range.grainsize()));
  });
}

template <class Body>
void parallel_for(std::size_t first, std::size_t last, const Body& body) {
  threads::run(last - first, [&](std::size_t i) { body(first + i); });
}

template <class T>
class enumerable_thread_specific {
 public:
  T& local() {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<T>& value = values_[std::this_thread::get_id()];
    if (!value) value = std::make_unique<T>();
    return *value;
  }

 private:
  std::mutex mutex_;
  std::map<std::thread::id, std::unique_ptr<T>> values_;
};

}  // namespace tbb
