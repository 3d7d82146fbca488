// SPDX-License-Identifier: MIT
// One thread: rows of a weight decoded and multiplied, per type and number of vectors, and plain reading of the same
// bytes.
#include <benchmark/benchmark.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "plugins/backends/cpu/kernels.hpp"

namespace moe_diag::cpu {
namespace {

constexpr std::int64_t cols = 2048, rows = 4096, rows_at_once = 16;

void products(benchmark::State& state) {
  const BlockInfo& block = block_table[state.range(0)];
  const auto count = static_cast<int>(state.range(1));
  const std::size_t row_bytes = static_cast<std::size_t>(cols / block.elements * block.bytes);
  const std::vector<std::byte> weight(row_bytes * rows, std::byte{0x11});
  std::vector<float> x(static_cast<std::size_t>(count * cols), 0.5F), y(static_cast<std::size_t>(count * rows));
  std::vector<float> decoded(rows_at_once * cols);
  std::vector<const float*> px;
  std::vector<float*> py;
  for (int i = 0; i < count; ++i) {
    px.push_back(x.data() + i * cols);
    py.push_back(y.data() + i * rows);
  }
  const Kernels<float>& k = *instruction_sets().front().f32;
  for (auto _ : state)
    for (std::int64_t r = 0; r < rows; r += rows_at_once) {
      for (std::int64_t i = 0; i < rows_at_once; ++i)
        k.decode_row(block.type, weight.data() + static_cast<std::size_t>(r + i) * row_bytes, cols,
                     decoded.data() + i * cols);
      k.products(decoded.data(), rows_at_once, px.data(), py.data(), count, cols, r);
    }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(weight.size()));
  state.counters["FLOP/s"] =
      benchmark::Counter(2.0 * cols * rows * count, benchmark::Counter::kIsIterationInvariantRate);
  state.SetLabel(std::string(block.name) + ", " + std::to_string(count) + " vectors, " +
                 std::string(instruction_sets().front().name));
}
BENCHMARK(products)->ArgsProduct({{0, 1, 2, 3, 4, 5}, {1, 4, 32}});

void read_memory(benchmark::State& state) {
  const std::vector<std::uint64_t> memory(std::size_t{1} << 27, 1);  // 1 GiB: no cache holds it
  for (auto _ : state) benchmark::DoNotOptimize(std::accumulate(memory.begin(), memory.end(), std::uint64_t{0}));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(memory.size() * 8));
}
BENCHMARK(read_memory);

}  // namespace
}  // namespace moe_diag::cpu
