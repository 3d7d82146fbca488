// SPDX-License-Identifier: MIT
#include <algorithm>

#include "plugins/backends/cuda/device.hpp"
#include "plugins/backends/cuda/kernels.hpp"

namespace moe_diag::cuda {
namespace {

constexpr int few_positions = 4;    // up to which each is computed on its own
constexpr int key_threads = 128;    // keys a block of `score_tile` computes, one a thread
constexpr int value_threads = 128;  // columns of a value a block of `mix_tile` computes

// The first `count` values of a segment, 0 behind them; `aligned`: to 16 bytes.
__device__ __forceinline__ void load_key(const float* from, int count, bool aligned, float (&k)[segment]) {
#pragma unroll
  for (int i = 0; i < segment; i += 4) {
    float4 some{0, 0, 0, 0};
    if (aligned) {
      if (i < count) some = *reinterpret_cast<const float4*>(from + i);
    } else {
      if (i < count) some.x = from[i];
      if (i + 1 < count) some.y = from[i + 1];
      if (i + 2 < count) some.z = from[i + 2];
      if (i + 3 < count) some.w = from[i + 3];
    }
    k[i] = some.x;
    k[i + 1] = some.y;
    k[i + 2] = some.z;
    k[i + 3] = some.w;
  }
}

// Q positions of one head by 128 keys. A thread keeps a segment of its key in registers.
template <int Q>
__global__ void __launch_bounds__(key_threads)
    score_tile(const float* q, const float* keys, Attention a, float scale, float* out) {
  extern __shared__ __align__(16) float qs[];  // [Q][padded]
  const int h = a.head_dim, padded = (h + segment - 1) / segment * segment;
  const int head = blockIdx.z, row0 = blockIdx.y * Q, key = blockIdx.x * key_threads + threadIdx.x;
  const int first = *a.first, seen_by_last = first + min(row0 + Q, a.rows);
  const bool needed = static_cast<int>(blockIdx.x) * key_threads < seen_by_last;  // the same in all threads
  float totals[Q] = {};
  if (needed) {
    for (int i = threadIdx.x; i < Q * padded; i += key_threads) {
      const int row = row0 + i / padded, k = i % padded;
      qs[i] = row < a.rows && k < h ? q[(std::int64_t{row} * a.heads + head) * h + k] : 0.0f;
    }
    __syncthreads();
    const float* from = keys + (std::int64_t{key} * a.kv_heads + head / (a.heads / a.kv_heads)) * h;
    for (int at = 0; at < padded; at += segment) {
      float k[segment];
      load_key(from + at, key < seen_by_last ? h - at : 0, h % 4 == 0, k);
#pragma unroll
      for (int r = 0; r < Q; ++r) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < segment; i += 4) {
          const float4 some = *reinterpret_cast<const float4*>(qs + r * padded + at + i);
          sum = fmaf(k[i], some.x, sum);
          sum = fmaf(k[i + 1], some.y, sum);
          sum = fmaf(k[i + 2], some.z, sum);
          sum = fmaf(k[i + 3], some.w, sum);
        }
        totals[r] += sum;
      }
    }
  }
  if (key >= a.total) return;
#pragma unroll
  for (int r = 0; r < Q; ++r)
    if (row0 + r < a.rows)
      out[(std::int64_t{row0 + r} * a.heads + head) * a.total + key] =
          key <= first + row0 + r ? totals[r] * scale : 0.0f;
}

// Q positions of one head by 128 columns, keys in segments as everywhere.
template <int Q>
__global__ void __launch_bounds__(value_threads)
    mix_tile(const float* p, const float* values, Attention a, float* out) {
  __shared__ float ps[Q][segment];
  const int h = a.head_dim, head = blockIdx.z, row0 = blockIdx.y * Q;
  const int column = blockIdx.x * value_threads + threadIdx.x;
  const int first = *a.first, seen_by_last = first + min(row0 + Q, a.rows);
  const float* from = values + std::int64_t{head / (a.heads / a.kv_heads)} * h + min(column, h - 1);
  const std::int64_t stride = std::int64_t{a.kv_heads} * h;
  float totals[Q] = {};
  for (int at = 0; at < seen_by_last; at += segment) {
    __syncthreads();
    for (int i = threadIdx.x; i < Q * segment; i += value_threads) {
      const int row = row0 + i / segment, key = at + i % segment;
      ps[i / segment][i % segment] =
          row < a.rows && key <= first + row ? p[(std::int64_t{row} * a.heads + head) * a.total + key] : 0.0f;
    }
    __syncthreads();
    float sums[Q] = {};
    const int count = min(segment, seen_by_last - at);
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      const float v = from[(at + i) * stride];
#pragma unroll
      for (int r = 0; r < Q; ++r)
        // A later position's NaN is no business of an earlier one's.
        if (at + i <= first + row0 + r) sums[r] = fmaf(ps[r][i], v, sums[r]);
    }
#pragma unroll
    for (int r = 0; r < Q; ++r)
      if (at <= first + row0 + r) totals[r] += sums[r];
  }
  if (column >= h) return;
#pragma unroll
  for (int r = 0; r < Q; ++r)
    if (row0 + r < a.rows) out[(std::int64_t{row0 + r} * a.heads + head) * h + column] = totals[r];
}

// One position: `value_groups` groups of threads take a segment of keys each.
constexpr int value_groups = 8;
__global__ void __launch_bounds__(value_threads* value_groups)
    mix_one(const float* p, const float* values, Attention a, float* out) {
  __shared__ float sums[value_groups][value_threads];
  const int h = a.head_dim, head = blockIdx.z, row = blockIdx.y, seen = *a.first + row + 1;
  const int column = blockIdx.x * value_threads + threadIdx.x, group = threadIdx.y;
  const float* from = values + std::int64_t{head / (a.heads / a.kv_heads)} * h + min(column, h - 1);
  const float* share = p + (std::int64_t{row} * a.heads + head) * a.total;
  const std::int64_t stride = std::int64_t{a.kv_heads} * h;
  float total = 0.0f;
  for (int base = 0; base < seen; base += value_groups * segment) {
    const int at = base + group * segment, end = min(at + segment, seen);
    float sum = 0.0f;
#pragma unroll 16
    for (int key = at; key < end; ++key) sum = fmaf(share[key], from[key * stride], sum);
    sums[group][threadIdx.x] = sum;
    __syncthreads();
    if (group == 0)
      for (int g = 0; g < value_groups && base + g * segment < seen; ++g) total += sums[g][threadIdx.x];
    __syncthreads();
  }
  if (group == 0 && column < h) out[(std::int64_t{row} * a.heads + head) * h + column] = total;
}

template <int Q>
void launch_scores(const float* q, const float* keys, const Attention& a, float scale, float* out,
                   cudaStream_t stream) {
  const int padded = (a.head_dim + segment - 1) / segment * segment;
  const dim3 grid(static_cast<unsigned>((a.total + key_threads - 1) / key_threads),
                  static_cast<unsigned>((a.rows + Q - 1) / Q), static_cast<unsigned>(a.heads));
  score_tile<Q>
      <<<grid, key_threads, static_cast<std::size_t>(Q * padded) * sizeof(float), stream>>>(q, keys, a, scale, out);
  MOE_DIAG_CUDA(cudaGetLastError());
}

template <int Q>
void launch_mix(const float* p, const float* values, const Attention& a, float* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((a.head_dim + value_threads - 1) / value_threads),
                  static_cast<unsigned>((a.rows + Q - 1) / Q), static_cast<unsigned>(a.heads));
  mix_tile<Q><<<grid, value_threads, 0, stream>>>(p, values, a, out);
  MOE_DIAG_CUDA(cudaGetLastError());
}

}  // namespace

void scores(const float* q, const float* keys, const Attention& a, float scale, float* out, cudaStream_t stream) {
  if (a.rows <= few_positions) return launch_scores<1>(q, keys, a, scale, out, stream);
  launch_scores<16>(q, keys, a, scale, out, stream);
}

void mix(const float* p, const float* values, const Attention& a, float* out, cudaStream_t stream) {
  if (a.rows > few_positions) return launch_mix<16>(p, values, a, out, stream);
  const dim3 grid(static_cast<unsigned>((a.head_dim + value_threads - 1) / value_threads),
                  static_cast<unsigned>(a.rows), static_cast<unsigned>(a.heads));
  mix_one<<<grid, dim3(value_threads, value_groups), 0, stream>>>(p, values, a, out);
  MOE_DIAG_CUDA(cudaGetLastError());
}

}  // namespace moe_diag::cuda
