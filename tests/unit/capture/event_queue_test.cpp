// SPDX-License-Identifier: MIT
// Events reach their consumer whole, in order and each once, whatever the queue's size and whoever is slow.
#include "core/capture/event_queue.hpp"

#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
using std::chrono::milliseconds;

// Rows of `width` values that say whose they are.
std::vector<std::int32_t> rows_of(int lane, int serial, std::size_t count, std::size_t width) {
  std::vector<std::int32_t> rows(count * width);
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i] = lane * 1'000'000 + serial * 1'000 + static_cast<std::int32_t>(i % 997);
  return rows;
}

struct Arrived {
  int lane = 0, serial = 0;
  std::vector<std::int32_t> positions, values;
  std::vector<int> receivers;
};

Arrived copy_of(const Event& e, std::span<const int> receivers) {
  const auto* values = e.tensor.as<std::int32_t>();
  return {e.lane,
          e.prompt,
          {e.positions.begin(), e.positions.end()},
          {values, values + e.tensor.shape.count()},
          {receivers.begin(), receivers.end()}};
}

// A pass of rows from position `base` on, of which some positions are delivered.
void push(EventQueue& queue, int lane, int serial, const std::vector<std::int32_t>& positions, std::int32_t base = 0,
          std::size_t width = 16, std::vector<int> receivers = {0}) {
  const auto count = static_cast<std::size_t>(positions.back() - base + 1);
  const auto rows = rows_of(lane, serial, count, width);
  Event event{serial, lane, {stages::moe_router_indices, 1}, positions, {}, 0};
  event.tensor = {
      rows.data(), DType::i32, {static_cast<std::int64_t>(positions.size()), static_cast<std::int64_t>(width)}};
  queue.push(event, base, receivers);
}

std::vector<std::int32_t> picked(int lane, int serial, const std::vector<std::int32_t>& positions,
                                 std::int32_t base = 0, std::size_t width = 16) {
  const auto rows = rows_of(lane, serial, static_cast<std::size_t>(positions.back() - base + 1), width);
  std::vector<std::int32_t> values;
  for (std::int32_t p : positions) {
    const auto row = rows.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(p - base) * width);
    values.insert(values.end(), row, row + static_cast<std::ptrdiff_t>(width));
  }
  return values;
}

void nothing() {}

}  // namespace

TEST_CASE("events arrive whole and in order through queues of any size, larger ones than it included") {
  for (const std::size_t capacity : {1UL, 600UL, 1024UL, 4096UL, 100'000UL, 10'000'000UL}) {
    INFO("queue of " << capacity << " bytes");
    std::vector<Arrived> arrived;
    {
      EventQueue queue(std::max<std::size_t>(capacity, 256),
                       [&](const Event& e, std::span<const int> r) { arrived.push_back(copy_of(e, r)); }, {});
      for (int i = 0; i < 500; ++i) {
        std::vector<std::int32_t> positions(static_cast<std::size_t>(i % 7 + 1));
        std::iota(positions.begin(), positions.end(), i % 5);
        if (i % 3 == 0) positions.push_back(positions.back() + 4);
        push(queue, i % 4, i, positions, i % 5, static_cast<std::size_t>(i % 61 + 1), {0, i % 2 + 1});
      }
      queue.call(nothing);
    }
    REQUIRE(arrived.size() == 500);
    for (int i = 0; i < 500; ++i) {
      const Arrived& a = arrived[static_cast<std::size_t>(i)];
      INFO("event " << i);
      REQUIRE(a.serial == i);
      CHECK(a.lane == i % 4);
      CHECK(a.receivers == std::vector<int>{0, i % 2 + 1});
      CHECK(a.values == picked(a.lane, i, a.positions, i % 5, static_cast<std::size_t>(i % 61 + 1)));
    }
  }
}

TEST_CASE("nothing is lost with many threads that push into a small queue, and each one's order is kept") {
  constexpr int threads = 8, each = 400;
  std::vector<Arrived> arrived;
  {
    EventQueue queue(8192, [&](const Event& e, std::span<const int> r) { arrived.push_back(copy_of(e, r)); }, {});
    std::vector<std::thread> pushing;
    for (int lane = 0; lane < threads; ++lane)
      pushing.emplace_back([&queue, lane] {
        for (int i = 0; i < each; ++i) push(queue, lane, i, {2, 3, 5}, 1);
      });
    for (std::thread& thread : pushing) thread.join();
    queue.call(nothing);
  }
  REQUIRE(arrived.size() == threads * each);
  std::vector<int> next(threads, 0);
  for (const Arrived& a : arrived) {
    REQUIRE(a.serial == next[static_cast<std::size_t>(a.lane)]++);
    REQUIRE(a.values == picked(a.lane, a.serial, {2, 3, 5}, 1));
  }
}

TEST_CASE("a slow consumer holds its caller up only when the queue is full") {
  std::promise<void> gate;
  std::shared_future<void> open = gate.get_future().share();
  std::atomic<int> consumed = 0;
  EventQueue queue(1 << 20,
                   [&](const Event&, std::span<const int>) {
                     open.wait();
                     ++consumed;
                   },
                   {});
  // 64 rows of 64 values are 16 KiB: these have room, all of them, while the consumer has not finished one.
  for (int i = 0; i < 50; ++i) {
    std::vector<std::int32_t> all(64);
    std::iota(all.begin(), all.end(), 0);
    push(queue, 0, i, all, 0, 64);
  }
  CHECK(consumed == 0);
  // These have not: the caller waits until the gate opens.
  std::atomic<bool> pushed = false;
  std::thread pushing([&] {
    for (int i = 0; i < 50; ++i) {
      std::vector<std::int32_t> all(64);
      std::iota(all.begin(), all.end(), 0);
      push(queue, 0, i, all, 0, 64);
    }
    pushed = true;
  });
  std::this_thread::sleep_for(milliseconds(100));
  CHECK_FALSE(pushed);
  gate.set_value();
  pushing.join();
  queue.call(nothing);
  CHECK(consumed == 100);
}

TEST_CASE("what the consumer throws reaches who pushes, and nothing is consumed after it") {
  for (const int nth : {0, 1, 7, 99}) {
    std::atomic<int> consumed = 0;
    EventQueue queue(4096,
                     [&](const Event&, std::span<const int>) {
                       if (consumed == nth) throw Error(ErrorKind::environment, "the disk is full");
                       ++consumed;
                     },
                     {});
    std::string error;
    try {
      for (int i = 0; i < 1000; ++i) push(queue, 0, i, {0, 1});
      queue.call(nothing);
    } catch (const Error& e) {
      error = e.what();
    }
    CHECK(error == "the disk is full");
    CHECK(consumed == nth);
    bool called = false;
    CHECK_THROWS_AS(queue.call([&] { called = true; }), Error);
    CHECK_THROWS_AS(push(queue, 0, 0, {0}), Error);
    CHECK_FALSE(called);
  }
  EventQueue other(4096, [](const Event&, std::span<const int>) { throw std::runtime_error("broken"); }, {});
  push(other, 0, 0, {0});
  CHECK_THROWS_WITH(other.call(nothing), "broken");
}

TEST_CASE("calls run on the consumer's thread, behind the events, and their errors end nothing") {
  std::vector<std::thread::id> ids;
  int consumed = 0;
  EventQueue queue(4096,
                   [&](const Event&, std::span<const int>) {
                     ids.push_back(std::this_thread::get_id());
                     ++consumed;
                   },
                   {});
  push(queue, 0, 0, {0});
  push(queue, 0, 1, {0});
  int seen = -1;
  queue.call([&] {
    ids.push_back(std::this_thread::get_id());
    seen = consumed;
  });
  CHECK(seen == 2);
  CHECK(ids[0] == ids[2]);
  CHECK(ids[0] != std::this_thread::get_id());
  CHECK_THROWS_WITH(queue.call([] { throw Error(ErrorKind::usage, "no such folder"); }), "no such folder");
  push(queue, 0, 2, {0});
  queue.call(nothing);
  CHECK(consumed == 3);
}

TEST_CASE("a caller that waits can be interrupted, and what waits is dropped with the queue") {
  std::promise<void> gate;
  std::shared_future<void> open = gate.get_future().share();
  std::atomic<int> consumed = 0;
  std::atomic<bool> interrupted = false;
  std::string error;
  {
    EventQueue queue(
        4096,
        [&](const Event&, std::span<const int>) {
          open.wait();
          ++consumed;
        },
        [&] { return interrupted.load(); });
    std::thread later([&] {
      std::this_thread::sleep_for(milliseconds(120));
      interrupted = true;
    });
    try {
      for (int i = 0; i < 1000; ++i) push(queue, 0, i, {0, 1});
    } catch (const Error& e) {
      error = e.what();
    }
    later.join();
    gate.set_value();
  }
  CHECK_THAT(error, Contains("interrupted") && Contains("had not reached their sinks"));
  CHECK(consumed < 1000);
}

TEST_CASE("a queue that no memory holds is refused by name") {
  CHECK_THROWS_WITH(EventQueue(std::size_t{1} << 62, [](const Event&, std::span<const int>) {}, {}),
                    Contains("queue_mb"));
}

#if defined(__SANITIZE_ADDRESS__)
TEST_CASE("the address sanitizer knows what lies beside an event in the queue") {
  std::atomic<int> open{0}, closed{0};
  const auto consume = [&](const Event& event, std::span<const int>) {
    const Tensor& tensor = event.tensor;
    open += __asan_region_is_poisoned(const_cast<void*>(tensor.data), tensor.bytes()) == nullptr;
    closed += __asan_address_is_poisoned(tensor.as<std::byte>() + tensor.bytes());
  };
  EventQueue queue(1 << 16, consume, {});
  for (int serial = 0; serial < 40; ++serial)
    push(queue, 0, serial, {0, 1, 2, 3}, 0, static_cast<std::size_t>(serial + 1));
  queue.call([] {});
  CHECK(open == 40);
  CHECK(closed == 40);
}
#endif

}  // namespace moe_diag
