// SPDX-License-Identifier: MIT
// A fused MoE in C, to be called through ctypes: fused_moe_native.py judges it.
//
//   cc -O2 -shared -fPIC fused_moe.c -o fused_moe.so -lm
//
// x, out are [rows, hidden], ids and scale [rows, used], gate and up [experts, width, hidden], down [experts, hidden,
// width]. With -DWRONG_BELOW_16 a path for few rows leaves out the last 16 values of each expert.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

static float dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (double)a[i] * b[i];
  return (float)sum;
}

int fused_moe(float* out, const float* x, const int32_t* ids, const float* scale, const float* gate, const float* up,
              const float* down, int64_t rows, int64_t used, int64_t hidden, int64_t width) {
  float* act = malloc((size_t)width * sizeof(float));
  if (!act) return 1;
  int64_t kept = width;
#ifdef WRONG_BELOW_16
  if (rows < 16) kept = width - 16;
#endif
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t h = 0; h < hidden; ++h) out[r * hidden + h] = 0;
    for (int64_t s = 0; s < used; ++s) {
      const int64_t at = ids[r * used + s] * width * hidden;
      for (int64_t i = 0; i < kept; ++i) {
        const float g = dot(gate + at + i * hidden, x + r * hidden, hidden);
        act[i] = g / (1 + expf(-g)) * dot(up + at + i * hidden, x + r * hidden, hidden);
      }
      for (int64_t h = 0; h < hidden; ++h)
        out[r * hidden + h] += scale[r * used + s] * dot(down + at + h * width, act, kept);
    }
  }
  free(act);
  return 0;
}
