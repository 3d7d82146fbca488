// SPDX-License-Identifier: MIT
// Whole forward passes over four layers of the full width of Qwen3-30B-A3B: nobody looking, and every stage looked
// at. The ratios between lines of one run are what counts.
#include <benchmark/benchmark.h>

#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

Model four_layers() {
  SyntheticSpec spec;
  spec.preset = "qwen3-30b-a3b";
  spec.layers = 4;
  return Model::synthetic(spec);
}

std::vector<std::int32_t> tokens_of(std::int64_t count) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<std::int32_t>(i * 7919 % 151936));
  return tokens;
}

// Looks at every stage and drops it.
class Watcher final : public Hook {
 public:
  bool wants(int, int, Site site) const override { return site.stage != stages::lm_head; }
  void show(Sighting& sighting) override { benchmark::DoNotOptimize(sighting.tensor(0).data); }
};

void forward(benchmark::State& state, const std::string& numerics, bool watched) {
  const auto tokens = tokens_of(state.range(0));
  Lockstep lockstep(four_layers(), {lane_spec("lane", {{"numerics", numerics}})}, static_cast<int>(tokens.size()));
  Watcher watcher;
  std::vector<Hook*> hooks;
  if (watched) hooks.push_back(&watcher);
  for (auto _ : state) lockstep.run(tokens, hooks, {}, 1 << 20, static_cast<int>(tokens.size()) - 1);
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
// The time of all threads is shown beside the time that passed: on a busy machine it is the one to compare.
void timed(benchmark::internal::Benchmark* b) {
  b->UseRealTime()->MeasureProcessCPUTime()->Unit(benchmark::kMillisecond);
}
BENCHMARK_CAPTURE(forward, f64, "f64", false)->Arg(1)->Arg(32)->Apply(timed);
BENCHMARK_CAPTURE(forward, f32, "f32", false)->Arg(1)->Arg(32)->Arg(128)->Apply(timed);
BENCHMARK_CAPTURE(forward, bf16, "bf16", false)->Arg(1)->Arg(32)->Arg(128)->Apply(timed);
BENCHMARK_CAPTURE(forward, q8_k, "q8_k", false)->Arg(1)->Arg(32)->Arg(128)->Apply(timed);
BENCHMARK_CAPTURE(forward, f32_watched, "f32", true)->Arg(32)->Apply(timed);

}  // namespace
}  // namespace moe_diag::test
