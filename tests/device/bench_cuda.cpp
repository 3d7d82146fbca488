// SPDX-License-Identifier: MIT
// Speed of one cuda lane, and what the device can do at most.
//   bench_cuda [LAYERS]          a synthetic Qwen3-30B-A3B in the types of Q4_K_M; 48 layers unless said
//   bench_cuda LAYERS TOKENS     only a prompt of that length, once: for a profiler
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>

#include "tests/support/lockstep.hpp"

namespace moe_diag::test {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median_seconds(int repeats, const std::function<void()>& body) {
  body();
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    const double start = now();
    body();
    times.push_back(now() - start);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

std::vector<std::int32_t> tokens_of(int count, int vocab) {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back((i * 7919 + 13) % vocab);
  return tokens;
}

// Looks at every stage and keeps nothing.
class Discard final : public Hook {
 public:
  bool wants(int, int, Site) const override { return true; }
  void show(Sighting& sighting) override { bytes_ += sighting.tensor(0).bytes(); }
  std::uint64_t bytes() const { return bytes_; }

 private:
  std::uint64_t bytes_ = 0;
};

class Bench {
 public:
  Bench(Model model, int longest) : lockstep_(std::move(model), {spec()}, longest) {}

  // A prompt of which the last row's logits are wanted.
  void prompt(int count, Hook* hook = nullptr) {
    const std::vector<std::int32_t> tokens = tokens_of(count, lockstep_.model().config().vocab);
    Bus bus;
    if (hook) bus.add(*hook);
    Forward forward(lockstep_.model(), lockstep_.lanes(), bus, {}, {true});
    forward.pass({tokens, 0, count, hook ? 0 : count - 1}, 0);
    lockstep_.lanes()[0].read(Stage::lm_head, {count - 1, 1});
  }

  // Tokens one by one after a prompt; each waits for the logits of the one before.
  double decode(int before, int count) {
    const std::vector<std::int32_t> tokens = tokens_of(before + count, lockstep_.model().config().vocab);
    const std::span<const std::int32_t> all = tokens;
    const int total = before + count;
    Bus bus;
    Forward forward(lockstep_.model(), lockstep_.lanes(), bus, {}, {true});
    forward.pass({all.subspan(0, static_cast<std::size_t>(before)), 0, total, before - 1}, 0);
    double start = 0;
    for (int i = 0; i < count; ++i) {
      if (i == 4) start = now();
      forward.pass({all.subspan(static_cast<std::size_t>(before + i), 1), before + i, total, 0}, 0);
      lockstep_.lanes()[0].read(Stage::lm_head, {0, 1});
    }
    return (count - 4) / (now() - start);
  }

 private:
  static LaneSpec spec() {
    LaneSpec spec = lane_spec("lane", {});
    spec.backend = "cuda";
    return spec;
  }
  Lockstep lockstep_;
};

void run(int layers, int only) {
  // What a process does once (context, kernels) is no part of opening a model.
  SyntheticSpec spec;
  const double first = now();
  Bench(Model::synthetic(spec), 8).prompt(3);
  fmt::print("first use   {:.2f} s\n", now() - first);
  spec.preset = "qwen3-30b-a3b";
  spec.layers = layers;
  spec.quant = "q4_k_m";
  double start = now();
  Model model = Model::synthetic(spec);
  const double bytes = static_cast<double>(model.bytes());
  fmt::print("made        {:.2f} GB, {} layers, in {:.2f} s\n", bytes / 1e9, model.config().layers, now() - start);
  start = now();
  Bench bench(std::move(model), 512);
  fmt::print("open        {:.2f} s, {:.1f} GB/s\n", now() - start, bytes / 1e9 / (now() - start));
  std::fflush(stdout);
  if (only > 0) return bench.prompt(only);
  for (int count : {1, 8, 32, 128, 512}) {
    const double seconds = median_seconds(count < 512 ? 5 : 3, [&] { bench.prompt(count); });
    fmt::print("prompt {:4} {:8.2f} ms {:9.1f} tok/s\n", count, seconds * 1e3, count / seconds);
    std::fflush(stdout);
  }
  fmt::print("decode      {:8.1f} tok/s after 32\n", bench.decode(32, 68));
  fmt::print("decode      {:8.1f} tok/s after 440\n", bench.decode(440, 68));
  for (int count : {3, 32, 512}) {
    Discard discard;
    bench.prompt(count, &discard);
    const double seen = static_cast<double>(discard.bytes());
    const double seconds = median_seconds(2, [&] { bench.prompt(count, &discard); });
    fmt::print("captured {:4} {:8.2f} ms, {:.3f} GB\n", count, seconds * 1e3, seen / 1e9);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace moe_diag::test

int main(int argc, char** argv) {
  try {
    moe_diag::test::run(argc > 1 ? std::atoi(argv[1]) : 48, argc > 2 ? std::atoi(argv[2]) : 0);
  } catch (const moe_diag::Error& e) {
    fmt::print(stderr, "bench_cuda: {}\n", e.what());
    return 4;
  }
  return 0;
}
