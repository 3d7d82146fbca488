// SPDX-License-Identifier: MIT
#include "plugins/backends/cpu/operands.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "plugins/backends/cpu/operands.cpp"
#include <hwy/foreach_target.h>
// Highway wants its own header after the loop's.
#include <hwy/highway.h>

#include <algorithm>
#include <array>

#include "plugins/backends/cpu/pack-inl.hpp"
#include "plugins/backends/cpu/words-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace moe_diag::cpu::HWY_NAMESPACE {

// ---- reading activations -------------------------------------------------------------------------------------------

void round_to(Reading reading, const float* x, std::int64_t n, float* y) {
  if (reading == Reading::f16) {
    std::transform(x, x + n, y, nearest_f16);
    return;
  }
  for_each_pack(
      n, [&](std::int64_t k, std::int64_t m) HWY_ATTR { store_some(nearest_bf16(load_some(x + k, m)), y + k, m); });
}

// The largest magnitude of n values, a multiple of 16; NaN when one is not finite.
HWY_INLINE float largest_of(const float* x, int n) {
  Pack<float> largest = fill(0.0F), zeros = fill(0.0F);
  for (int k = 0; k < n; k += 16) {
    const Pack<float> v = load(x + k);
    largest = larger(larger(v, fill(0.0F) - v), largest);
    zeros = zeros + v * fill(0.0F);
  }
  float all[16];
  store(largest, all);
  return sum(zeros) == 0 ? *std::max_element(all, all + 16) : std::nanf("");
}

// Writes n whole numbers, the middle two of each four in each other's place.
HWY_INLINE void store_swapped(const float* whole, int n, std::int16_t* q) {
  for (int k = 0; k < n; k += 4) {
    q[k] = static_cast<std::int16_t>(whole[k]);
    q[k + 1] = static_cast<std::int16_t>(whole[k + 2]);
    q[k + 2] = static_cast<std::int16_t>(whole[k + 1]);
    q[k + 3] = static_cast<std::int16_t>(whole[k + 3]);
  }
}

// The whole number nearest to x * factor, halves to even, with no rounding of the product before: beside 3 * 2^22 the
// sum of a fused multiply-add has no more bits. For products below 2^22.
HWY_INLINE Pack<float> nearest_product(const Pack<float>& x, const Pack<float>& factor) {
  const Pack<float> magic = fill(12582912.0F);
  return fma(x, factor, magic) - magic;
}

// d = largest / 127, kept as f16; q nearest to the rounded product x * (127 / largest), halves to even.
HWY_INLINE void quantise_block(const float* x, float largest, ActivationsQ8_0& block) {
  const float inverse = 127.0F / largest;
  block.d = nearest_f16(largest / 127.0F);
  const Pack<float> factor = fill(inverse < HUGE_VALF ? inverse : 0.0F);  // largest is 0, or next to it
  float whole[32];
  for (int k = 0; k < 32; k += 16) store(nearest(load(x + k) * factor), whole + k);
  store_swapped(whole, 32, block.q);
}

// The value of largest magnitude becomes -127: d = -value / 127; q nearest to x / d, halves to even.
HWY_INLINE void quantise_block(const float* x, float largest, ActivationsQ8_K& block) {
  const float value = *std::find_if(x, x + 256, [&](float v) { return std::fabs(v) == largest; });
  float inverse = -127.0F / value;
  if (!(std::fabs(inverse) < HUGE_VALF)) inverse = 0;  // value is 0, or next to it
  block.d = inverse == 0 ? 0 : 1.0F / inverse;
  float whole[256], sums[8] = {};
  for (int k = 0; k < 256; k += 16) {
    const Pack<float> q = nearest_product(load(x + k), fill(inverse));
    store(select_less(fill(127.0F), q, fill(127.0F), q), whole + k);
    sums[k / 32] += sum(load(whole + k));
  }
  store_swapped(whole, 256, block.q);
  store_swapped(sums, 8, block.sums);
}

template <class Block>
HWY_INLINE void quantise_blocks(const float* x, std::int64_t n, std::byte* out) {
  for (std::int64_t k = 0; k < n; k += Block::elements, out += sizeof(Block)) {
    Block block{};
    const float largest = largest_of(x + k, Block::elements);
    if (std::isnan(largest))
      block.d = largest;  // makes every product NaN
    else
      quantise_block(x + k, largest, block);
    std::memcpy(out, &block, sizeof block);
  }
}

void quantise(Reading reading, const float* x, std::int64_t n, std::byte* out) {
  if (reading == Reading::q8_0) return quantise_blocks<ActivationsQ8_0>(x, n, out);
  quantise_blocks<ActivationsQ8_K>(x, n, out);
}

// ---- unpacking weights ---------------------------------------------------------------------------------------------

// One block of each of 16 rows.
using RowPointers = std::array<const std::byte*, rows_at_once>;

// `count` (a multiple of 4) words of each row from byte `offset` on, word by word: out[i][r].
HWY_INLINE void gather(const RowPointers& rows, std::size_t offset, int count, std::uint32_t (*out)[rows_at_once]) {
  for (int i = 0; i < count; i += 4, offset += 16)
    for (std::size_t r = 0; r < rows_at_once; r += 4)
      transpose(rows[r] + offset, rows[r + 1] + offset, rows[r + 2] + offset, rows[r + 3] + offset, &out[i][r]);
}

// Four values of each row from the bytes of one word, as two pairs: 0 and 2, 1 and 3.
HWY_INLINE void store_pairs(const Words& even, const Words& odd, const Words& scale, std::int16_t (*q)[16][2]) {
  store(multiply_halves(even, scale), q[0]);
  store(multiply_halves(odd, scale), q[1]);
}

HWY_INLINE void f16_column(const RowPointers& rows, std::size_t offset, float* out) {
  for (std::size_t r = 0; r < rows_at_once; ++r) {
    std::uint16_t d;
    std::memcpy(&d, rows[r] + offset, sizeof d);
    out[r] = float_from_f16(d);
  }
}

HWY_INLINE void unpack_block(const RowPointers& rows, RowsQ8_0& out) {
  f16_column(rows, offsetof(BlockQ8_0, d), out.d);
  std::uint32_t words[8][rows_at_once];
  gather(rows, offsetof(BlockQ8_0, q), 8, words);
  for (int i = 0; i < 8; ++i) {
    const Words w = load_words(words[i]);
    store(low_bytes(w), out.q[2 * i]);
    store(high_bytes(w), out.q[2 * i + 1]);
  }
}

// Byte `i` of each row's word in both halves of it.
HWY_INLINE Words in_both_halves(const Words& w, int i) {
  const Words byte = bits(w, 8 * i, 0xFF);
  return either(byte, shift_left<16>(byte));
}

HWY_INLINE void unpack_block(const RowPointers& rows, RowsQ4_K& out) {
  f16_column(rows, offsetof(BlockQ4_K, d), out.d);
  f16_column(rows, offsetof(BlockQ4_K, dmin), out.dmin);
  std::uint32_t head[4][rows_at_once], words[32][rows_at_once];
  gather(rows, 0, 4, head);
  gather(rows, offsetof(BlockQ4_K, q), 32, words);
  // The twelve bytes of scales and mins, as q4_k_scale_min() reads them, four groups at a time.
  const Words a = load_words(head[1]), b = load_words(head[2]), c = load_words(head[3]);
  const Words scales[2] = {bits(a, 0, 0x3F3F3F3F),
                           either(bits(c, 0, 0x0F0F0F0F), shift_left<4>(bits(a, 6, 0x03030303)))};
  const Words mins[2] = {bits(b, 0, 0x3F3F3F3F), either(bits(c, 4, 0x0F0F0F0F), shift_left<4>(bits(b, 6, 0x03030303)))};
  for (int i = 0; i < 2; ++i) {
    store(bits(mins[i], 0, 0x00FF00FF), out.min[2 * i]);
    store(bits(mins[i], 8, 0x00FF00FF), out.min[2 * i + 1]);
  }
  for (int g = 0; g < 8; ++g) {
    const Words scale = in_both_halves(scales[g / 4], g % 4);
    const int shift = g % 2 * 4;
    for (int i = 0; i < 8; ++i) {
      const Words w = load_words(words[g / 2 * 8 + i]);
      store_pairs(bits(w, shift, 0x000F000F), bits(w, shift + 8, 0x000F000F), scale, out.q + g * 16 + 2 * i);
    }
  }
}

HWY_INLINE void unpack_block(const RowPointers& rows, RowsQ6_K& out) {
  f16_column(rows, offsetof(BlockQ6_K, d), out.d);
  std::uint32_t low[32][rows_at_once], high[16][rows_at_once], scales[4][rows_at_once];
  gather(rows, offsetof(BlockQ6_K, ql), 32, low);
  gather(rows, offsetof(BlockQ6_K, qh), 16, high);
  gather(rows, offsetof(BlockQ6_K, groups), 4, scales);
  const Words middle = fill_words(0x00200020);
  const auto six = [&](const Words& l, int low_shift, const Words& h, int high_shift) HWY_ATTR {
    const Words all = either(bits(l, low_shift, 0x000F000F), shift_left<4>(bits(h, high_shift, 0x00030003)));
    return subtract_halves(all, middle);
  };
  for (int g = 0; g < 16; ++g) {
    const Words scale = signed_byte_in_both_halves(load_words(scales[g / 4]), g % 4);
    const int half = g / 8, j = g % 8 * 16;  // element within the half
    const int low_shift = j / 64 * 4, high_shift = j / 32 * 2;
    for (int i = 0; i < 4; ++i) {
      const Words l = load_words(low[half * 16 + j % 64 / 4 + i]), h = load_words(high[half * 8 + j % 32 / 4 + i]);
      store_pairs(six(l, low_shift, h, high_shift), six(l, low_shift + 8, h, high_shift + 8), scale,
                  out.q + g * 8 + 2 * i);
    }
  }
}

template <class Block, class Rows>
HWY_INLINE void unpack_blocks(const std::byte* first, std::size_t row_bytes, int rows, std::byte* out) {
  static constexpr std::array<std::byte, sizeof(Block)> nothing{};
  for (std::size_t at = 0; at < row_bytes; at += sizeof(Block), out += sizeof(Rows)) {
    RowPointers pointers;
    for (int r = 0; r < rows_at_once; ++r)
      pointers[static_cast<std::size_t>(r)] =
          r < rows ? first + static_cast<std::size_t>(r) * row_bytes + at : nothing.data();
    unpack_block(pointers, *reinterpret_cast<Rows*>(out));
  }
}

void unpack(BlockType type, const std::byte* first, std::size_t row_bytes, int rows, std::byte* out) {
  switch (type) {
    case BlockType::q8_0: return unpack_blocks<BlockQ8_0, RowsQ8_0>(first, row_bytes, rows, out);
    case BlockType::q4_k: return unpack_blocks<BlockQ4_K, RowsQ4_K>(first, row_bytes, rows, out);
    case BlockType::q6_k: return unpack_blocks<BlockQ6_K, RowsQ6_K>(first, row_bytes, rows, out);
    default: return;  // the others have no whole numbers
  }
}

// ---- products ------------------------------------------------------------------------------------------------------

// C vectors by 16 rows, all sums in registers.
template <class Rows, class Activations, int C>
HWY_INLINE void product_tile(const std::byte* w, int rows, const std::byte* const* x, float* const* y,
                             std::int64_t blocks, std::int64_t at) {
  Pack<float> sums[C];
  for (int c = 0; c < C; ++c) sums[c] = fill(0.0F);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const Rows& block = reinterpret_cast<const Rows*>(w)[b];
    const Activations* in[C];
    for (int c = 0; c < C; ++c) in[c] = reinterpret_cast<const Activations*>(x[c]) + b;
    PairSums whole[C];
    for (int c = 0; c < C; ++c) whole[c] = no_sums();
    for (int p = 0; p < Activations::elements / 2; ++p) {
      const Words row = load_words(block.q[p]);
      for (int c = 0; c < C; ++c) add_products(row, in[c]->q + 2 * p, whole[c]);
    }
    const Pack<float> d = load(block.d);
    for (int c = 0; c < C; ++c) sums[c] = fma(d * fill(in[c]->d), values_of(whole[c]), sums[c]);
    if constexpr (requires { block.min; }) {
      const Pack<float> dmin = fill(0.0F) - load(block.dmin);
      for (int c = 0; c < C; ++c) {
        PairSums mins = no_sums();
        for (int p = 0; p < 4; ++p) add_products(load_words(block.min[p]), in[c]->sums + 2 * p, mins);
        sums[c] = fma(dmin * fill(in[c]->d), values_of(mins), sums[c]);
      }
    }
  }
  for (int c = 0; c < C; ++c) rows == rows_at_once ? store(sums[c], y[c] + at) : store_first(sums[c], y[c] + at, rows);
}

template <class Rows, class Activations>
HWY_INLINE void product_tiles(const std::byte* w, int rows, const std::byte* const* x, float* const* y, int count,
                              std::int64_t cols, std::int64_t at) {
  const std::int64_t blocks = cols / Activations::elements;
  int c = 0;
  for (; c + 4 <= count; c += 4) product_tile<Rows, Activations, 4>(w, rows, x + c, y + c, blocks, at);
  for (; c < count; ++c) product_tile<Rows, Activations, 1>(w, rows, x + c, y + c, blocks, at);
}

void products(BlockType type, const std::byte* w, int rows, const std::byte* const* x, float* const* y, int count,
              std::int64_t cols, std::int64_t at) {
  switch (type) {
    case BlockType::q8_0: return product_tiles<RowsQ8_0, ActivationsQ8_0>(w, rows, x, y, count, cols, at);
    case BlockType::q4_k: return product_tiles<RowsQ4_K, ActivationsQ8_K>(w, rows, x, y, count, cols, at);
    case BlockType::q6_k: return product_tiles<RowsQ6_K, ActivationsQ8_K>(w, rows, x, y, count, cols, at);
    default: return;
  }
}

extern const OperandKernels operand_table = {round_to, quantise, unpack, products};

}  // namespace moe_diag::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
