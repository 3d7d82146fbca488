// SPDX-License-Identifier: MIT
// Speed of one cuda lane in each of its numerics, and what the device can do at most.
//   bench_cuda [LAYERS]                     a synthetic Qwen3-30B-A3B in the types of Q4_K_M; 48 layers unless said
//   bench_cuda LAYERS NUMERICS TOKENS       only a prompt of that length, twice: for a profiler
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>

#include "tests/device/ceilings.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

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

// Lanes of all numerics share the weights; one runs at a time.
class Bench {
 public:
  Bench(Model model, const std::vector<std::string>& numerics, int longest)
      : numerics_(numerics), lockstep_(std::move(model), specs(numerics), longest) {}

  void choose(const std::string& numerics) {
    chosen_ = static_cast<std::size_t>(std::find(numerics_.begin(), numerics_.end(), numerics) - numerics_.begin());
  }

  // A prompt of which the last row's logits are wanted.
  void prompt(int count, Hook* hook = nullptr) {
    const std::vector<std::int32_t> tokens = tokens_of(count, lockstep_.model().config().vocab);
    Bus bus;
    if (hook) bus.add(*hook);
    Forward forward(lockstep_.lanes(), bus, {}, active());
    forward.pass({tokens, 0, count, hook ? 0 : count - 1}, 0);
    lane().read({stages::lm_head, -1}, {count - 1, 1});
  }

  // Tokens a second, one by one after a prompt; each waits for the logits of the one before.
  double decode(int before, int count) {
    const std::vector<std::int32_t> tokens = tokens_of(before + count, lockstep_.model().config().vocab);
    const std::span<const std::int32_t> all = tokens;
    const int total = before + count;
    Bus bus;
    Forward forward(lockstep_.lanes(), bus, {}, active());
    forward.pass({all.subspan(0, static_cast<std::size_t>(before)), 0, total, before - 1}, 0);
    double start = 0;
    for (int i = 0; i < count; ++i) {
      if (i == 4) start = now();
      forward.pass({all.subspan(static_cast<std::size_t>(before + i), 1), before + i, total, 0}, 0);
      lane().read({stages::lm_head, -1}, {0, 1});
    }
    return (count - 4) / (now() - start);
  }

 private:
  static std::vector<LaneSpec> specs(const std::vector<std::string>& numerics) {
    std::vector<LaneSpec> list;
    for (const std::string& name : numerics) {
      list.push_back(lane_spec(name, {{"numerics", name}}));
      list.back().backend = "cuda";
    }
    return list;
  }
  std::vector<bool> active() const {
    std::vector<bool> list(numerics_.size(), false);
    list[chosen_] = true;
    return list;
  }
  RunningLane& lane() { return lockstep_.lanes()[chosen_]; }

  std::vector<std::string> numerics_;
  std::size_t chosen_ = 0;
  Lockstep lockstep_;
};

// Looks at every stage and keeps nothing.
class Discard final : public Hook {
 public:
  explicit Discard(std::size_t lane) : lane_(static_cast<int>(lane)) {}
  bool wants(int, int lane, Site) const override { return lane == lane_; }
  void show(Sighting& sighting) override { bytes_ += sighting.tensor(lane_).bytes(); }
  std::uint64_t bytes() const { return bytes_; }

 private:
  int lane_;
  std::uint64_t bytes_ = 0;
};

void print_ceilings() {
  const Ceilings c = measure_ceilings();
  fmt::print("device copy {:.2f} TB/s, to the device {:.1f} GB/s, to the host {:.1f} GB/s\n", c.device_copy / 1e12,
             c.to_device / 1e9, c.to_host / 1e9);
  fmt::print("products of 8192: f32 {:.0f} TFLOP/s, bf16 {:.0f} TFLOP/s{}\n", c.f32_products / 1e12,
             c.bf16_products / 1e12, c.f32_products > 0 ? "" : " (not measured: built without cuBLAS)");
  std::fflush(stdout);
}

Model full_size(int layers) {
  SyntheticSpec spec;
  spec.preset = "qwen3-30b-a3b";
  spec.layers = layers;
  spec.quant = "q4_k_m";
  return Model::synthetic(spec);
}

void measure(Bench& bench, const std::string& numerics, std::size_t lane) {
  bench.choose(numerics);
  fmt::print("-- {}\n", numerics);
  double alone = 0;
  for (int count : {1, 8, 32, 64, 128, 512}) {
    alone = median_seconds(7, [&] { bench.prompt(count); });
    fmt::print("prompt {:4} {:8.2f} ms {:9.1f} tok/s\n", count, alone * 1e3, count / alone);
    std::fflush(stdout);
  }
  for (int before : {32, 440}) fmt::print("decode {:8.1f} tok/s after {}\n", bench.decode(before, 68), before);
  for (int count : {3, 512}) {
    Discard discard(lane);
    bench.prompt(count, &discard);
    const double seen = static_cast<double>(discard.bytes());
    const double seconds = median_seconds(3, [&] { bench.prompt(count, &discard); });
    fmt::print("every stage of {:3} {:8.2f} ms, {:.3f} GB\n", count, seconds * 1e3, seen / 1e9);
    std::fflush(stdout);
  }
}

void run(int layers, const std::string& only, int tokens) {
  const std::vector<std::string> numerics =
      only.empty() ? std::vector<std::string>{"f32", "bf16", "q8_1"} : std::vector<std::string>{only};
  if (only.empty()) print_ceilings();
  // What a process does once (context, kernels) is no part of opening a model.
  double start = now();
  Bench(Model::synthetic({}), numerics, 8).prompt(3);
  fmt::print("first use {:.2f} s\n", now() - start);
  start = now();
  Model model = full_size(layers);
  const double bytes = static_cast<double>(model.bytes());
  fmt::print("made {:.2f} GB, {} layers, in {:.2f} s\n", bytes / 1e9, model.config().layers, now() - start);
  start = now();
  Bench bench(std::move(model), numerics, 512);
  fmt::print("open {:.2f} s, {:.1f} GB/s\n", now() - start, bytes / 1e9 / (now() - start));
  std::fflush(stdout);
  if (tokens > 0) {
    for (int turn = 0; turn < 2; ++turn) bench.prompt(tokens);
    return;
  }
  for (std::size_t lane = 0; lane < numerics.size(); ++lane) measure(bench, numerics[lane], lane);
}

}  // namespace
}  // namespace moe_diag::test

int main(int argc, char** argv) {
  try {
    moe_diag::test::run(argc > 1 ? std::atoi(argv[1]) : 48, argc > 2 ? argv[2] : "", argc > 3 ? std::atoi(argv[3]) : 0);
  } catch (const std::exception& e) {
    fmt::print(stderr, "bench_cuda: {}\n", e.what());
    return 4;
  }
  return 0;
}
