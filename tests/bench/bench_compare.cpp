// SPDX-License-Identifier: MIT
// All metrics of two tensors in one pass, beside a plain sum over the same bytes.
#include <benchmark/benchmark.h>

#include <vector>

#include "core/compare/measure.hpp"

namespace moe_diag {
namespace {

constexpr std::int64_t count = 1 << 22;

template <class A, class B>
void measure(benchmark::State& state) {
  const std::vector<A> a(count, A{1});
  const std::vector<B> b(count, B{2});
  const Tensor ta{a.data(), sizeof(A) == 8 ? DType::f64 : DType::f32, {count}};
  const Tensor tb{b.data(), sizeof(B) == 8 ? DType::f64 : DType::f32, {count}};
  for (auto _ : state) {
    Measure m;
    m.add(ta, 0, tb, 0, count);
    benchmark::DoNotOptimize(m);
  }
  state.SetBytesProcessed(state.iterations() * count * static_cast<std::int64_t>(sizeof(A) + sizeof(B)));
}
BENCHMARK(measure<float, float>);
BENCHMARK(measure<float, double>);
BENCHMARK(measure<double, double>);

void plain_sum(benchmark::State& state) {
  const std::vector<double> a(count, 1);
  const Tensor t{a.data(), DType::f64, {count}};
  for (auto _ : state) benchmark::DoNotOptimize(sum(t, 0, count));
  state.SetBytesProcessed(state.iterations() * count * 8);
}
BENCHMARK(plain_sum);

}  // namespace
}  // namespace moe_diag
