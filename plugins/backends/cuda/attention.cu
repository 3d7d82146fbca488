// SPDX-License-Identifier: MIT
#include <algorithm>

#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/launch.cuh"
#include "plugins/backends/cuda/reduce.cuh"

namespace moe_diag::cuda {
namespace {

constexpr int few_positions = 4;    // up to which each is computed on its own
constexpr int key_threads = 128;    // keys a block of `score_tile` computes, one a thread
constexpr int value_threads = 128;  // columns of a value a block of `mix_tile` computes
constexpr int value_groups = 8;     // of as many threads, which take a segment of keys each of one position

__host__ __device__ constexpr int padded_head(int h) { return (h + segment - 1) / segment * segment; }

// The first `count` of four values, 0 behind them; `aligned`: to 16 bytes, and `count` is a multiple of 4.
__device__ __forceinline__ float4 load_four(const float* from, int count, bool aligned) {
  float4 some{0, 0, 0, 0};
  if (count <= 0) return some;
  if (aligned) return *reinterpret_cast<const float4*>(from);
  some.x = from[0];
  if (count > 1) some.y = from[1];
  if (count > 2) some.z = from[2];
  if (count > 3) some.w = from[3];
  return some;
}

// The first `count` values of a segment, 0 behind them.
__device__ __forceinline__ void load_key(const float* from, int count, bool aligned, float (&k)[segment]) {
#pragma unroll
  for (int i = 0; i < segment; i += 4) {
    const float4 some = load_four(from + i, count - i, aligned);
    k[i] = some.x;
    k[i + 1] = some.y;
    k[i + 2] = some.z;
    k[i + 3] = some.w;
  }
}

// A key's segment times that of a query in shared memory.
__device__ __forceinline__ float dot_segment(const float (&k)[segment], const float* q) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < segment; i += 4) {
    const float4 some = *reinterpret_cast<const float4*>(q + i);
    sum = fmaf(k[i], some.x, sum);
    sum = fmaf(k[i + 1], some.y, sum);
    sum = fmaf(k[i + 2], some.z, sum);
    sum = fmaf(k[i + 3], some.w, sum);
  }
  return sum;
}

// The same, of a key in device memory, its first `count` values; few registers.
__device__ __forceinline__ float dot_segment(const float* key, int count, bool aligned, const float* q) {
  float sum = 0.0f;
#pragma unroll 8
  for (int i = 0; i < segment; i += 4) {
    const float4 k = load_four(key + i, count - i, aligned), some = *reinterpret_cast<const float4*>(q + i);
    sum = fmaf(k.x, some.x, sum);
    sum = fmaf(k.y, some.y, sum);
    sum = fmaf(k.z, some.z, sum);
    sum = fmaf(k.w, some.w, sum);
  }
  return sum;
}

// Q positions of one head by 128 keys. A thread keeps a segment of its key in registers.
template <int Q>
__global__ void __launch_bounds__(key_threads)
    score_tile(const float* q, const float* keys, Attention a, float scale, float* out) {
  extern __shared__ __align__(16) float qs[];  // [Q][padded]
  wait_for_earlier();
  const int h = a.head_dim, padded = padded_head(h);
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
      for (int r = 0; r < Q; ++r) totals[r] += dot_segment(k, qs + r * padded + at);
    }
  }
  if (key >= a.total) return;
#pragma unroll
  for (int r = 0; r < Q; ++r)
    if (row0 + r < a.rows)
      out[(std::int64_t{row0 + r} * a.heads + head) * a.total + key] =
          key <= first + row0 + r ? totals[r] * scale : 0.0f;
}

// Adds keys at .. at + 3 of a segment to the sums of Q positions; `seen`: of the first position, or all of them.
template <int Q, bool All>
__device__ __forceinline__ void mix_four(const float (&v)[4], const float (&ps)[Q][segment], int i, int seen,
                                         float (&sums)[Q]) {
#pragma unroll
  for (int r = 0; r < Q; ++r) {
    const float4 p = *reinterpret_cast<const float4*>(&ps[r][i]);
    // A later position's NaN is no business of an earlier one's.
    if (All || i < seen + r) sums[r] = fmaf(p.x, v[0], sums[r]);
    if (All || i + 1 < seen + r) sums[r] = fmaf(p.y, v[1], sums[r]);
    if (All || i + 2 < seen + r) sums[r] = fmaf(p.z, v[2], sums[r]);
    if (All || i + 3 < seen + r) sums[r] = fmaf(p.w, v[3], sums[r]);
  }
}

// Q positions of one head by 128 columns, keys in segments as everywhere.
template <int Q>
__global__ void __launch_bounds__(value_threads)
    mix_tile(const float* p, const float* values, Attention a, float* out) {
  __shared__ __align__(16) float ps[Q][segment];
  wait_for_earlier();
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
    const int seen = first + row0 + 1 - at;  // keys of this segment that the first position sees, and more
#pragma unroll 4
    for (int i = 0; i < min(segment, seen_by_last - at); i += 4) {
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) v[j] = at + i + j < seen_by_last ? from[(at + i + j) * stride] : 0.0f;
      if (seen >= i + 4)
        mix_four<Q, true>(v, ps, i, seen, sums);
      else
        mix_four<Q, false>(v, ps, i, seen, sums);
    }
#pragma unroll
    for (int r = 0; r < Q; ++r)
      if (seen + r > 0) totals[r] += sums[r];
  }
  if (column >= h) return;
#pragma unroll
  for (int r = 0; r < Q; ++r)
    if (row0 + r < a.rows) out[(std::int64_t{row0 + r} * a.heads + head) * h + column] = totals[r];
}

// One position of one head by 128 columns: value_groups groups of threads take a segment of keys each.
__device__ __forceinline__ void mix_position(const float* share, const float* values, const Attention& a, int head,
                                             int column, int seen, float* out) {
  __shared__ float sums[value_groups][value_threads];
  const int h = a.head_dim, group = threadIdx.x / value_threads, at_column = threadIdx.x % value_threads;
  const float* from = values + std::int64_t{head / (a.heads / a.kv_heads)} * h + min(column, h - 1);
  const std::int64_t stride = std::int64_t{a.kv_heads} * h;
  float total = 0.0f;
  for (int base = 0; base < seen; base += value_groups * segment) {
    const int at = base + group * segment, end = min(at + segment, seen);
    float sum = 0.0f;
#pragma unroll 16
    for (int key = at; key < end; ++key) sum = fmaf(share[key], from[key * stride], sum);
    sums[group][at_column] = sum;
    __syncthreads();
    if (group == 0)
      for (int g = 0; g < value_groups && base + g * segment < seen; ++g) total += sums[g][at_column];
    __syncthreads();
  }
  if (group == 0 && column < h) out[column] = total;
}

__global__ void __launch_bounds__(value_threads* value_groups)
    mix_one(const float* p, const float* values, Attention a, float* out) {
  wait_for_earlier();
  const int head = blockIdx.z, row = blockIdx.y, column = blockIdx.x * value_threads + threadIdx.x % value_threads;
  const std::int64_t place = std::int64_t{row} * a.heads + head;
  mix_position(p + place * a.total, values, a, head, column, *a.first + row + 1, out + place * a.head_dim);
}

// scores, softmax and mix of one position of one head.
__global__ void __launch_bounds__(value_threads* value_groups)
    attend_one(const float* q, const float* keys, const float* values, Attention a, float scale, float* out) {
  extern __shared__ __align__(16) float shared[];
  wait_for_earlier();
  const int h = a.head_dim, padded = padded_head(h), head = blockIdx.x, row = blockIdx.y;
  const int seen = *a.first + row + 1;
  const std::int64_t place = std::int64_t{row} * a.heads + head;
  float *qs = shared, *share = shared + padded;
  for (int k = threadIdx.x; k < padded; k += blockDim.x) qs[k] = k < h ? q[place * h + k] : 0.0f;
  __syncthreads();
  const int kv_head = head / (a.heads / a.kv_heads);
  for (int key = threadIdx.x; key < seen; key += blockDim.x) {
    const float* from = keys + (std::int64_t{key} * a.kv_heads + kv_head) * h;
    float total = 0.0f;
    for (int at = 0; at < padded; at += segment) total += dot_segment(from + at, h - at, h % 4 == 0, qs + at);
    share[key] = total * scale;
  }
  __syncthreads();
  // As softmax_rows: the first causal_threads threads share the maximum and the sum.
  const bool sums = threadIdx.x < causal_threads;
  float most = -INFINITY, sum = 0.0f;
  for (int k = threadIdx.x; sums && k < seen; k += causal_threads) most = fmaxf(most, share[k]);
  most = most_of_threads(most, causal_threads);
  for (int k = threadIdx.x; k < seen; k += blockDim.x) share[k] = expf(share[k] - most);
  __syncthreads();
  for (int k = threadIdx.x; sums && k < seen; k += causal_threads) sum += share[k];
  sum = sum_of_threads(sum, causal_threads);
  for (int k = threadIdx.x; k < seen; k += blockDim.x) share[k] /= sum;
  __syncthreads();
  for (int column = threadIdx.x % value_threads; column - static_cast<int>(threadIdx.x) % value_threads < h;
       column += value_threads)
    mix_position(share, values, a, head, column, seen, out + place * h);
}

std::size_t attend_bytes(const Attention& a) {
  return static_cast<std::size_t>(padded_head(a.head_dim) + a.total) * sizeof(float);
}

template <int Q>
void launch_scores(const float* q, const float* keys, const Attention& a, float scale, float* out,
                   cudaStream_t stream) {
  const dim3 grid(blocks_for(a.total, key_threads), blocks_for(a.rows, Q), static_cast<unsigned>(a.heads));
  launch(score_tile<Q>, grid, key_threads, static_cast<std::size_t>(Q * padded_head(a.head_dim)) * sizeof(float),
         stream, q, keys, a, scale, out);
}

}  // namespace

void scores(const float* q, const float* keys, const Attention& a, float scale, float* out, cudaStream_t stream) {
  if (a.rows <= few_positions) return launch_scores<1>(q, keys, a, scale, out, stream);
  launch_scores<16>(q, keys, a, scale, out, stream);
}

void mix(const float* p, const float* values, const Attention& a, float* out, cudaStream_t stream) {
  dim3 grid(blocks_for(a.head_dim, value_threads), static_cast<unsigned>(a.rows), static_cast<unsigned>(a.heads));
  if (a.rows <= few_positions)
    return launch(mix_one, grid, value_threads * value_groups, 0, stream, p, values, a, out);
  constexpr int positions = 16;
  grid.y = blocks_for(a.rows, positions);
  launch(mix_tile<positions>, grid, value_threads, 0, stream, p, values, a, out);
}

bool attend_fits(const Attention& a, std::size_t shared_bytes) {
  constexpr std::size_t others = 8 * 1024;  // what the kernel has of fixed size
  return a.rows <= few_positions && attend_bytes(a) + others <= shared_bytes;
}

void attend(const float* q, const float* keys, const float* values, const Attention& a, float scale, float* out,
            cudaStream_t stream) {
  allow_shared(attend_one, attend_bytes(a) + 8 * 1024);
  launch(attend_one, dim3(static_cast<unsigned>(a.heads), static_cast<unsigned>(a.rows)), value_threads * value_groups,
         attend_bytes(a), stream, q, keys, values, a, scale, out);
}

}  // namespace moe_diag::cuda
