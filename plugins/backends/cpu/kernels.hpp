// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/api/blocks.hpp"
#include "plugins/backends/cpu/operands.hpp"

// The arithmetic of the cpu lanes, one table of functions per instruction set. T is float or double.
//
// Every sum over a row follows one rule, so that the bytes do not depend on the instruction set, on threads, or on how
// many rows are computed at once: 16 partial sums, element k goes to sum k mod 16, fused multiply-adds in the order of
// k, then halves are added: 8, 4, 2, 1. float results are the same bytes under every table; double ones use the C
// library's exp and hold that promise per machine.
namespace moe_diag::cpu {

inline constexpr std::int64_t lanes_of_sum = 16;

// Elements a decoded row is padded to, with zeros.
constexpr std::int64_t padded(std::int64_t cols) { return (cols + lanes_of_sum - 1) / lanes_of_sum * lanes_of_sum; }

template <class T>
struct Kernels {
  // out[0, padded(cols)) = the row's values, zeros behind them.
  void (*decode_row)(BlockType type, const std::byte* row, std::int64_t cols, T* out);

  // y[i][at + r] = w[r] . x[i] for `rows` decoded rows, `padded(cols)` apart, and `count` vectors of `cols` values.
  void (*products)(const T* w, int rows, const T* const* x, T* const* y, int count, std::int64_t cols, std::int64_t at);

  T (*dot)(const T* a, const T* b, std::int64_t n);

  // y = x / sqrt(mean(x^2) + eps) * w
  void (*rms_norm)(const T* x, const T* w, T eps, std::int64_t n, T* y);

  // y = exp(x - max x) / sum
  void (*softmax)(const T* x, std::int64_t n, T* y);

  // Pairs (i, i + h/2) of each of `heads` vectors of h turned by the angles whose cosines and sines are given.
  void (*rope)(const T* x, const T* cosines, const T* sines, int heads, std::int64_t h, T* y);

  // y = gate / (1 + exp(-gate)) * up
  void (*swiglu)(const T* gate, const T* up, std::int64_t n, T* y);

  void (*add)(const T* a, const T* b, std::int64_t n, T* y);
  void (*scale)(const T* x, T factor, std::int64_t n, T* y);

  // y = sum over i, in order, of p[i] * x[i * stride + (0..n)]
  void (*mix)(const T* p, const T* x, std::int64_t stride, std::int64_t count, std::int64_t n, T* y);
};

struct InstructionSet {
  std::string_view name;  // "scalar", "avx2", "avx512"
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  const OperandKernels* operands;
};

// The tables this processor can run, best first; the last is the plain one.
std::span<const InstructionSet> instruction_sets();

template <class T>
const Kernels<T>& kernels(const InstructionSet& set) {
  if constexpr (sizeof(T) == sizeof(float))
    return *set.f32;
  else
    return *set.f64;
}

}  // namespace moe_diag::cpu
