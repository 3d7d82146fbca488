// SPDX-License-Identifier: MIT
// One thread: rows of a weight decoded and multiplied, per numerics, type and number of vectors, and plain reading of
// the same bytes.
#include <benchmark/benchmark.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "plugins/backends/cpu/kernels.hpp"

namespace moe_diag::cpu {
namespace {

constexpr std::int64_t cols = 2048, rows = 4096;

// Vectors and rows of one type, as the numerics of a lane read them.
void products(benchmark::State& state, Numerics numerics) {
  const BlockInfo& block = block_table[state.range(0)];
  const auto count = static_cast<int>(state.range(1));
  const Reading reading = reading_of(numerics, block.type);
  const std::size_t row_bytes = static_cast<std::size_t>(cols / block.elements * block.bytes);
  const std::vector<std::byte> weight(row_bytes * rows, std::byte{0x11});
  std::vector<float> x(static_cast<std::size_t>(count * cols), 0.5F), y(static_cast<std::size_t>(count * rows));
  const std::size_t stride = is_quantised(reading) ? quantised_bytes(reading, cols) : 0;
  std::vector<std::byte> operands(static_cast<std::size_t>(count) * stride);
  std::vector<RowsQ4_K> room(cols / 32);  // aligned; the rows of any type, unpacked or decoded, fit in
  auto* const unpacked = reinterpret_cast<std::byte*>(room.data());
  auto* const decoded = reinterpret_cast<float*>(room.data());
  std::vector<const float*> px;
  std::vector<const std::byte*> pq;
  std::vector<float*> py;
  for (int i = 0; i < count; ++i) {
    px.push_back(x.data() + i * cols);
    pq.push_back(operands.data() + static_cast<std::size_t>(i) * stride);
    py.push_back(y.data() + i * rows);
  }
  const Kernels<float>& k = *instruction_sets().front().f32;
  const OperandKernels& o = *instruction_sets().front().operands;
  for (auto _ : state) {
    for (int i = 0; is_quantised(reading) && i < count; ++i)
      o.quantise(reading, px[static_cast<std::size_t>(i)], cols,
                 operands.data() + static_cast<std::size_t>(i) * stride);
    for (std::int64_t r = 0; r < rows; r += rows_at_once) {
      const std::byte* first = weight.data() + static_cast<std::size_t>(r) * row_bytes;
      if (is_quantised(reading)) {
        o.unpack(block.type, first, row_bytes, rows_at_once, unpacked);
        o.products(block.type, unpacked, rows_at_once, pq.data(), py.data(), count, cols, r);
        continue;
      }
      for (std::int64_t i = 0; i < rows_at_once; ++i)
        k.decode_row(block.type, first + static_cast<std::size_t>(i) * row_bytes, cols, decoded + i * cols);
      if (reading == Reading::bf16) o.round(reading, decoded, rows_at_once * cols, decoded);
      k.products(decoded, rows_at_once, px.data(), py.data(), count, cols, r);
    }
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(weight.size()));
  state.counters["FLOP/s"] =
      benchmark::Counter(2.0 * cols * rows * count, benchmark::Counter::kIsIterationInvariantRate);
  state.SetLabel(std::string(block.name) + ", " + std::to_string(count) + " vectors, " +
                 std::string(instruction_sets().front().name));
}
BENCHMARK_CAPTURE(products, f32, Numerics::f32)->ArgsProduct({{0, 1, 2, 3, 4, 5}, {1, 4, 32}});
BENCHMARK_CAPTURE(products, bf16, Numerics::bf16)->ArgsProduct({{0, 1, 2, 3, 4, 5}, {1, 4, 32}});
BENCHMARK_CAPTURE(products, q8_k, Numerics::q8_k)->ArgsProduct({{3, 4, 5}, {1, 4, 32}});

void read_memory(benchmark::State& state) {
  const std::vector<std::uint64_t> memory(std::size_t{1} << 27, 1);  // 1 GiB: no cache holds it
  for (auto _ : state) benchmark::DoNotOptimize(std::accumulate(memory.begin(), memory.end(), std::uint64_t{0}));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(memory.size() * 8));
}
BENCHMARK(read_memory);

}  // namespace
}  // namespace moe_diag::cpu
