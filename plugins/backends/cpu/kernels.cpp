// SPDX-License-Identifier: MIT
#include "plugins/backends/cpu/kernels.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "plugins/backends/cpu/kernels.cpp"
#include <hwy/foreach_target.h>
// Highway wants its own header after the loop's.
#include <hwy/highway.h>
#include <hwy/targets.h>

#include <vector>

#include "plugins/backends/cpu/pack-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace moe_diag::cpu::HWY_NAMESPACE {

// ---- decoding ------------------------------------------------------------------------------------------------------

#if MOE_DIAG_PACK_VECTORS

template <class T>
using Whole = hn::Rebind<std::int32_t, typename Pack<T>::D>;

// One vector of int32 as T.
template <class T, class V>
HWY_INLINE hn::Vec<typename Pack<T>::D> to_values(V whole) {
  if constexpr (sizeof(T) == 4)
    return hn::ConvertTo(typename Pack<T>::D(), whole);
  else
    return hn::PromoteTo(typename Pack<T>::D(), whole);
}

// Vector i of 16 small integers, as int32.
template <class T, class I>
HWY_INLINE hn::Vec<Whole<T>> whole_at(const I* p, int i) {
  return hn::PromoteTo(Whole<T>(), hn::LoadU(hn::Rebind<I, typename Pack<T>::D>(), p + i * Pack<T>::width));
}
template <class T>
HWY_INLINE hn::Vec<Whole<T>> bits(hn::Vec<Whole<T>> v, int shift, int mask) {
  return hn::And(hn::ShiftRightSame(v, shift), hn::Set(Whole<T>(), mask));
}

template <class T>
HWY_INLINE Pack<T> bytes_of(const std::int8_t* p) {
  Pack<T> r;
  for (int i = 0; i < Pack<T>::vectors; ++i) r.v[i] = to_values<T>(whole_at<T>(p, i));
  return r;
}
template <class T>
HWY_INLINE Pack<T> nibbles_of(const std::uint8_t* p, int shift) {
  Pack<T> r;
  for (int i = 0; i < Pack<T>::vectors; ++i) r.v[i] = to_values<T>(bits<T>(whole_at<T>(p, i), shift, 15));
  return r;
}
// Six bits, four from `low` and two from `high`, less 32.
template <class T>
HWY_INLINE Pack<T> sixes_of(const std::uint8_t* low, int low_shift, const std::uint8_t* high, int high_shift) {
  Pack<T> r;
  for (int i = 0; i < Pack<T>::vectors; ++i) {
    const auto top = hn::ShiftLeft<4>(bits<T>(whole_at<T>(high, i), high_shift, 3));
    const auto all = hn::Or(bits<T>(whole_at<T>(low, i), low_shift, 15), top);
    r.v[i] = to_values<T>(hn::Sub(all, hn::Set(Whole<T>(), 32)));
  }
  return r;
}
template <class T>
HWY_INLINE Pack<T> halves_of(const std::byte* p, BlockType type) {
  using D = typename Pack<T>::D;
  const hn::Rebind<float, D> single;
  Pack<T> r;
  for (int i = 0; i < Pack<T>::vectors; ++i) {
    std::uint16_t raw[Pack<T>::width];
    std::memcpy(raw, p + static_cast<std::size_t>(i) * sizeof raw, sizeof raw);
    const auto half = hn::LoadU(hn::Rebind<std::uint16_t, D>(), raw);
    const auto value =
        type == BlockType::f16
            ? hn::PromoteTo(single, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), half))
            : hn::BitCast(single, hn::ShiftLeft<16>(hn::PromoteTo(hn::Rebind<std::uint32_t, D>(), half)));
    if constexpr (sizeof(T) == 4)
      r.v[i] = value;
    else
      r.v[i] = hn::PromoteTo(D(), value);
  }
  return r;
}

#else

template <class T>
HWY_INLINE Pack<T> bytes_of(const std::int8_t* p) {
  return each<T>([&](int i) { return static_cast<T>(p[i]); });
}
template <class T>
HWY_INLINE Pack<T> nibbles_of(const std::uint8_t* p, int shift) {
  return each<T>([&](int i) { return static_cast<T>(p[i] >> shift & 15); });
}
template <class T>
HWY_INLINE Pack<T> sixes_of(const std::uint8_t* low, int low_shift, const std::uint8_t* high, int high_shift) {
  return each<T>(
      [&](int i) { return static_cast<T>(((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32); });
}
template <class T>
HWY_INLINE Pack<T> halves_of(const std::byte* p, BlockType type) {
  return each<T>([&](int i) { return decode<T>(type, p, i); });
}

#endif

template <class T>
HWY_INLINE void decode_block(const BlockQ8_0& b, T* out) {
  const Pack<T> d = fill(static_cast<T>(float_from_f16(b.d)));
  for (int i = 0; i < 32; i += 16) store(d * bytes_of<T>(b.q + i), out + i);
}

template <class T>
HWY_INLINE void decode_block(const BlockQ4_K& b, T* out) {
  const T d = static_cast<T>(float_from_f16(b.d)), dmin = static_cast<T>(float_from_f16(b.dmin));
  for (int g = 0; g < 8; ++g) {
    const ScaleMin sm = q4_k_scale_min(b.groups, g);
    const Pack<T> scale = fill(d * static_cast<T>(sm.scale)), min = fill(dmin * static_cast<T>(sm.min));
    const std::uint8_t* q = b.q + g / 2 * 32;
    for (int i = 0; i < 32; i += 16) store(scale * nibbles_of<T>(q + i, g % 2 * 4) - min, out + g * 32 + i);
  }
}

template <class T>
HWY_INLINE void decode_block(const BlockQ6_K& b, T* out) {
  const T d = static_cast<T>(float_from_f16(b.d));
  for (int g = 0; g < 16; ++g) {
    const int half = g / 8, j = g % 8 * 16;  // element within the half
    const Pack<T> q = sixes_of<T>(b.ql + half * 64 + j % 64, j / 64 * 4, b.qh + half * 32 + j % 32, j / 32 * 2);
    store(fill(d * static_cast<T>(b.groups[g])) * q, out + g * 16);
  }
}

template <class Block, class T>
HWY_INLINE void decode_blocks(const std::byte* row, std::int64_t cols, int elements, T* out) {
  for (std::int64_t k = 0; k < cols; k += elements, row += sizeof(Block)) {
    Block b;
    std::memcpy(&b, row, sizeof b);
    decode_block(b, out + k);
  }
}

template <class T>
HWY_INLINE void decode_halves(BlockType type, const std::byte* row, std::int64_t cols, T* out) {
  std::int64_t k = 0;
  for (; k + 16 <= cols; k += 16) store(halves_of<T>(row + k * 2, type), out + k);
  for (; k < cols; ++k) out[k] = decode<T>(type, row, k);
}

template <class T>
HWY_INLINE void decode_floats(const std::byte* row, std::int64_t cols, T* out) {
  for (std::int64_t k = 0; k < cols; ++k) {
    float v;
    std::memcpy(&v, row + k * 4, sizeof v);
    out[k] = v;
  }
}

// Types without a faster decoder.
template <class T>
HWY_INLINE void decode_plainly(BlockType type, const std::byte* row, std::int64_t cols, T* out) {
  with_block(type, [&](auto block) HWY_ATTR {
    for (std::int64_t k = 0; k < cols; k += block.elements, row += sizeof block) {
      std::memcpy(&block, row, sizeof block);
      for (int i = 0; i < block.elements; ++i) out[k + i] = decode<T>(block, i);
    }
  });
}

template <class T>
void decode_row(BlockType type, const std::byte* row, std::int64_t cols, T* out) {
  for (std::int64_t k = cols; k < padded(cols); ++k) out[k] = 0;
  switch (type) {
    case BlockType::f32: return decode_floats(row, cols, out);
    case BlockType::f16:
    case BlockType::bf16: return decode_halves(type, row, cols, out);
    case BlockType::q8_0: return decode_blocks<BlockQ8_0>(row, cols, 32, out);
    case BlockType::q4_k: return decode_blocks<BlockQ4_K>(row, cols, 256, out);
    case BlockType::q6_k: return decode_blocks<BlockQ6_K>(row, cols, 256, out);
    default: return decode_plainly(type, row, cols, out);
  }
}

// ---- products ------------------------------------------------------------------------------------------------------

// R rows times C vectors, all sums in registers.
template <int R, int C, class T>
HWY_INLINE void product_tile(const T* w, const T* const* x, T* const* y, std::int64_t cols, std::int64_t at) {
  const std::int64_t stride = padded(cols);
  Pack<T> sums[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = fill(T{0});
  const auto accumulate = [&](std::int64_t k, auto load_x) HWY_ATTR {
    Pack<T> row[R];
    for (int r = 0; r < R; ++r) row[r] = load(w + r * stride + k);
    for (int c = 0; c < C; ++c) {
      const Pack<T> v = load_x(x[c] + k);
      for (int r = 0; r < R; ++r) sums[r][c] = fma(row[r], v, sums[r][c]);
    }
  };
  std::int64_t k = 0;
  for (; k + 16 <= cols; k += 16) accumulate(k, [](const T* p) HWY_ATTR { return load(p); });
  if (k < cols) accumulate(k, [&](const T* p) HWY_ATTR { return load_first(p, cols - k); });
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) y[c][at + r] = sum(sums[r][c]);
}

// As many sums as the registers of the instruction set hold.
template <class T>
struct Tile {
#if MOE_DIAG_PACK_VECTORS
  static constexpr int vectors = Pack<T>::vectors;
  static constexpr bool many = HWY_MAX_BYTES == 64;
  static constexpr int rows = vectors == 4 ? 1 : many && vectors == 1 ? 4 : 2;
  static constexpr int count = many ? 4 : 2;
#else
  static constexpr int rows = 1, count = 1;
#endif
};

template <int R, class T>
HWY_INLINE void product_rows(const T* w, const T* const* x, T* const* y, int count, std::int64_t cols,
                             std::int64_t at) {
  constexpr int C = Tile<T>::count;
  int c = 0;
  for (; c + C <= count; c += C) product_tile<R, C>(w, x + c, y + c, cols, at);
  for (; c < count; ++c) product_tile<R, 1>(w, x + c, y + c, cols, at);
}

template <class T>
void products(const T* w, int rows, const T* const* x, T* const* y, int count, std::int64_t cols, std::int64_t at) {
  constexpr int R = Tile<T>::rows;
  int r = 0;
  for (; r + R <= rows; r += R) product_rows<R>(w + r * padded(cols), x, y, count, cols, at + r);
  for (; r < rows; ++r) product_rows<1>(w + r * padded(cols), x, y, count, cols, at + r);
}

template <class T>
T dot(const T* a, const T* b, std::int64_t n) {
  Pack<T> s = fill(T{0});
  for_each_pack(n,
                [&](std::int64_t k, std::int64_t m) HWY_ATTR { s = fma(load_some(a + k, m), load_some(b + k, m), s); });
  return sum(s);
}

// ---- everything else -----------------------------------------------------------------------------------------------

template <class T>
void rms_norm(const T* x, const T* w, T eps, std::int64_t n, T* y) {
  const T mean = dot(x, x, n) / static_cast<T>(n);
  const Pack<T> factor = fill(T{1} / std::sqrt(mean + eps));
  for_each_pack(n, [&](std::int64_t k, std::int64_t m)
                       HWY_ATTR { store_some(load_some(x + k, m) * factor * load_some(w + k, m), y + k, m); });
}

template <class T>
void softmax(const T* x, std::int64_t n, T* y) {
  T highest = x[0];
  for (std::int64_t k = 1; k < n; ++k) highest = x[k] > highest ? x[k] : highest;
  const Pack<T> most = fill(highest);
  Pack<T> s = fill(T{0});
  for_each_pack(n, [&](std::int64_t k, std::int64_t m) HWY_ATTR {
    store_some(exponential(load_some(x + k, m) - most), y + k, m);
    s = s + load_some(y + k, m);
  });
  const Pack<T> total = fill(sum(s));
  for_each_pack(n, [&](std::int64_t k, std::int64_t m) HWY_ATTR { store_some(load_some(y + k, m) / total, y + k, m); });
}

template <class T>
void rope(const T* x, const T* cosines, const T* sines, int heads, std::int64_t h, T* y) {
  const std::int64_t half = h / 2;
  for (int head = 0; head < heads; ++head, x += h, y += h) {
    for_each_pack(half, [&](std::int64_t k, std::int64_t m) HWY_ATTR {
      const Pack<T> a = load_some(x + k, m), b = load_some(x + half + k, m);
      const Pack<T> c = load_some(cosines + k, m), s = load_some(sines + k, m);
      store_some(a * c - b * s, y + k, m);
      store_some(b * c + a * s, y + half + k, m);
    });
  }
}

template <class T>
void swiglu(const T* gate, const T* up, std::int64_t n, T* y) {
  for_each_pack(n, [&](std::int64_t k, std::int64_t m) HWY_ATTR {
    const Pack<T> g = load_some(gate + k, m);
    const Pack<T> silu = g / (fill(T{1}) + exponential(fill(T{0}) - g));
    store_some(silu * load_some(up + k, m), y + k, m);
  });
}

template <class T>
void add(const T* a, const T* b, std::int64_t n, T* y) {
  for (std::int64_t k = 0; k < n; ++k) y[k] = a[k] + b[k];
}

template <class T>
void scale(const T* x, T factor, std::int64_t n, T* y) {
  for (std::int64_t k = 0; k < n; ++k) y[k] = x[k] * factor;
}

template <class T>
void mix(const T* p, const T* x, std::int64_t stride, std::int64_t count, std::int64_t n, T* y) {
  for_each_pack(n, [&](std::int64_t k, std::int64_t m) HWY_ATTR {
    Pack<T> s = fill(T{0});
    for (std::int64_t i = 0; i < count; ++i) s = fma(fill(p[i]), load_some(x + i * stride + k, m), s);
    store_some(s, y + k, m);
  });
}

template <class T>
constexpr Kernels<T> table = {decode_row<T>, products<T>, dot<T>, rms_norm<T>, softmax<T>,
                              rope<T>,       swiglu<T>,   add<T>, scale<T>,    mix<T>};

extern const OperandKernels operand_table;  // operands.cpp
extern const Kernels<float> f32_table = table<float>;
extern const Kernels<double> f64_table = table<double>;

}  // namespace moe_diag::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moe_diag::cpu {

std::span<const InstructionSet> instruction_sets() {
  static const std::vector<InstructionSet> usable = [] {
    std::vector<InstructionSet> list;
    [[maybe_unused]] const std::int64_t supported = hwy::SupportedTargets();
#if HWY_TARGETS & HWY_AVX3
    if (supported & HWY_AVX3)
      list.push_back({"avx512", &N_AVX3::f32_table, &N_AVX3::f64_table, &N_AVX3::operand_table});
#endif
#if HWY_TARGETS & HWY_AVX2
    if (supported & HWY_AVX2) list.push_back({"avx2", &N_AVX2::f32_table, &N_AVX2::f64_table, &N_AVX2::operand_table});
#endif
#if HWY_TARGETS & HWY_NEON
    if (supported & HWY_NEON) list.push_back({"neon", &N_NEON::f32_table, &N_NEON::f64_table, &N_NEON::operand_table});
#endif
    // What the compiler may assume of every processor it builds for; without such flags, plain code.
    list.push_back({MOE_DIAG_PACK_VECTORS ? "baseline" : "scalar", &HWY_NAMESPACE::f32_table, &HWY_NAMESPACE::f64_table,
                    &HWY_NAMESPACE::operand_table});
    return list;
  }();
  return usable;
}

}  // namespace moe_diag::cpu
#endif
