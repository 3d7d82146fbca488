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
constexpr int keys_at_once = 32;    // of whose values are asked for together
constexpr int value_groups = 4;     // of as many threads, which take a segment of keys each of one position

__host__ __device__ constexpr int padded_head(int h) { return (h + segment - 1) / segment * segment; }

// Loads that are asked for at once must not hang on conditions: where there is nothing, something else is read and not
// used.

// The first `count` of four values, 0 behind them; Whole: all are there, at a multiple of 16 bytes.
template <bool Whole>
__device__ __forceinline__ float4 load_four(const float* from, int count) {
  if constexpr (Whole) {
    return *reinterpret_cast<const float4*>(from);
  } else {
    return {count > 0 ? from[0] : 0.0f, count > 1 ? from[1] : 0.0f, count > 2 ? from[2] : 0.0f,
            count > 3 ? from[3] : 0.0f};
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

// The same, of a key in device memory, of which the first `count` values are there.
template <bool Whole>
__device__ __forceinline__ float dot_segment(const float* key, int count, const float* q) {
  float k[segment];
#pragma unroll
  for (int i = 0; i < segment; i += 4) {
    const float4 some = load_four<Whole>(key + i, count - i);
    k[i] = some.x, k[i + 1] = some.y, k[i + 2] = some.z, k[i + 3] = some.w;
  }
  return dot_segment(k, q);
}

constexpr int key_stride = segment + 4;  // of keys in shared memory, for reads of 16 bytes from different banks

std::size_t score_bytes(int positions, int head_dim) {
  return static_cast<std::size_t>(positions * padded_head(head_dim) + key_threads * key_stride) * sizeof(float);
}

// Brings one segment of the block's keys, those before `seen`, to shared memory.
template <bool Whole>
__device__ __forceinline__ void load_keys(const float* keys, const Attention& a, int kv_head, int at, int seen,
                                          float* ks) {
  constexpr int quads = segment / 4, at_once = 8;
  const int first = blockIdx.x * key_threads;
#pragma unroll 1
  for (int i = threadIdx.x; i < key_threads * quads; i += at_once * key_threads) {
    float4 some[at_once];
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const int key = min(first + (i + j * key_threads) / quads, seen - 1), k = at + (i + j * key_threads) % quads * 4;
      some[j] = load_four<Whole>(keys + (std::int64_t{key} * a.kv_heads + kv_head) * a.head_dim + k, a.head_dim - k);
    }
#pragma unroll
    for (int j = 0; j < at_once; ++j) {
      const int place = i + j * key_threads;
      *reinterpret_cast<float4*>(ks + place / quads * key_stride + place % quads * 4) = some[j];
    }
  }
}

// Q positions of one head by 128 keys. A thread keeps a segment of its key in registers.
template <int Q>
__global__ void __launch_bounds__(key_threads)
    score_tile(const float* q, const float* keys, Attention a, float scale, float* out) {
  extern __shared__ __align__(16) float qs[];  // [Q][padded], then keys
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
    float* ks = qs + Q * padded;
    for (int at = 0; at < padded; at += segment) {
      const int kv_head = head / (a.heads / a.kv_heads);
      if (h % segment == 0)
        load_keys<true>(keys, a, kv_head, at, seen_by_last, ks);
      else
        load_keys<false>(keys, a, kv_head, at, seen_by_last, ks);
      __syncthreads();
      float k[segment];
#pragma unroll
      for (int i = 0; i < segment; i += 4) {
        const float4 some = *reinterpret_cast<const float4*>(ks + threadIdx.x * key_stride + i);
        k[i] = some.x, k[i + 1] = some.y, k[i + 2] = some.z, k[i + 3] = some.w;
      }
#pragma unroll
      for (int r = 0; r < Q; ++r) totals[r] += dot_segment(k, qs + r * padded + at);
      __syncthreads();
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

// Sixteen keys of a segment from i on; `left`: of them, those that the last position sees.
template <int Q, bool All>
__device__ __forceinline__ void mix_sixteen(const float* from, std::int64_t stride, int left,
                                            const float (&ps)[Q][segment], int i, int seen, float (&sums)[Q]) {
  float v[4][4];
#pragma unroll
  for (int j = 0; j < 16; ++j) v[j / 4][j % 4] = from[(All ? j : min(j, left - 1)) * stride];
#pragma unroll
  for (int j = 0; j < 4; ++j) mix_four<Q, All>(v[j], ps, i + 4 * j, seen, sums);
}

// Q positions of one head by 128 columns, keys in segments as everywhere.
template <int Q>
__global__ void __launch_bounds__(value_threads)
    mix_tile(const float* p, const float* values, Attention a, float* out) {
  constexpr int shares = Q * segment / value_threads;  // a thread brings of each segment
  __shared__ __align__(16) float ps[Q][segment];
  wait_for_earlier();
  const int h = a.head_dim, head = blockIdx.z, row0 = blockIdx.y * Q;
  const int column = blockIdx.x * value_threads + threadIdx.x;
  const int first = *a.first, seen_by_last = first + min(row0 + Q, a.rows);
  const float* from = values + std::int64_t{head / (a.heads / a.kv_heads)} * h + min(column, h - 1);
  const std::int64_t stride = std::int64_t{a.kv_heads} * h;
  float next[shares];
  const auto fetch = [&](int at) {
#pragma unroll
    for (int j = 0; j < shares; ++j) {
      const int i = threadIdx.x + j * value_threads, row = min(row0 + i / segment, a.rows - 1), key = at + i % segment;
      const float share = p[(std::int64_t{row} * a.heads + head) * a.total + min(key, a.total - 1)];
      next[j] = key <= first + row ? share : 0.0f;
    }
  };
  fetch(0);
  float totals[Q] = {};
  for (int at = 0; at < seen_by_last; at += segment) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < shares; ++j) {
      const int i = threadIdx.x + j * value_threads;
      ps[i / segment][i % segment] = next[j];
    }
    __syncthreads();
    if (at + segment < seen_by_last) fetch(at + segment);
    float sums[Q] = {};
    const int seen = first + row0 + 1 - at;  // keys of this segment that the first position sees, and more
    for (int i = 0; i < min(segment, seen_by_last - at); i += 16) {
      const float* some = from + (at + i) * stride;
      if (seen >= i + 16)
        mix_sixteen<Q, true>(some, stride, 16, ps, i, seen, sums);
      else
        mix_sixteen<Q, false>(some, stride, seen_by_last - at - i, ps, i, seen, sums);
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
    for (int key = at; key < end; key += keys_at_once) {
      float v[keys_at_once];
#pragma unroll
      for (int i = 0; i < keys_at_once; ++i) v[i] = from[min(key + i, end - 1) * stride];
#pragma unroll
      for (int i = 0; i < keys_at_once; ++i)
        if (key + i < end) sum = fmaf(share[key + i], v[i], sum);
    }
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
    for (int at = 0; at < padded; at += segment)
      total += h % segment == 0 ? dot_segment<true>(from + at, h - at, qs + at)
                                : dot_segment<false>(from + at, h - at, qs + at);
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
  allow_shared(score_tile<Q>, score_bytes(Q, a.head_dim));
  launch(score_tile<Q>, grid, key_threads, score_bytes(Q, a.head_dim), stream, q, keys, a, scale, out);
}

}  // namespace

void scores(const float* q, const float* keys, const Attention& a, float scale, float* out, cudaStream_t stream) {
  if (a.rows <= few_positions) return launch_scores<1>(q, keys, a, scale, out, stream);
  launch_scores<16>(q, keys, a, scale, out, stream);
}

void mix(const float* p, const float* values, const Attention& a, float* out, cudaStream_t stream) {
  dim3 grid(blocks_for(a.head_dim, value_threads), static_cast<unsigned>(a.rows), static_cast<unsigned>(a.heads));
  if (a.rows <= few_positions) return launch(mix_one, grid, value_threads * value_groups, 0, stream, p, values, a, out);
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
