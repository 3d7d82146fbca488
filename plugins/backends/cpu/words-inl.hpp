// SPDX-License-Identifier: MIT
// Included once per instruction set (no pragma once), behind pack-inl.hpp: 16 words of 32 bits, a word of each of 16
// rows, which are also 16 pairs of whole numbers of 16 bits.

#if defined(MOE_DIAG_WORDS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_DIAG_WORDS_INL
#undef MOE_DIAG_WORDS_INL
#else
#define MOE_DIAG_WORDS_INL
#endif

#include "plugins/backends/cpu/pack-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace moe_diag::cpu::HWY_NAMESPACE {

#if MOE_DIAG_PACK_VECTORS

using DWords = hn::CappedTag<std::uint32_t, 16>;
using DHalves = hn::Repartition<std::int16_t, DWords>;
using DWhole = hn::RebindToSigned<DWords>;
constexpr int word_vectors = Pack<float>::vectors, word_width = Pack<float>::width;

#define MOE_DIAG_EACH_WORD(i) for (int i = 0; i < word_vectors; ++i)

struct Words {
  hn::Vec<DWords> v[word_vectors];
};

HWY_INLINE Words load_words(const void* p) {
  Words r;
  MOE_DIAG_EACH_WORD(i) r.v[i] = hn::LoadU(DWords(), static_cast<const std::uint32_t*>(p) + i * word_width);
  return r;
}
HWY_INLINE Words fill_words(std::uint32_t x) {
  Words r;
  MOE_DIAG_EACH_WORD(i) r.v[i] = hn::Set(DWords(), x);
  return r;
}
HWY_INLINE void store(const Words& w, void* p) {
  MOE_DIAG_EACH_WORD(i) hn::StoreU(w.v[i], DWords(), static_cast<std::uint32_t*>(p) + i * word_width);
}
HWY_INLINE Words bits(const Words& w, int shift, std::uint32_t mask) {
  Words r;
  MOE_DIAG_EACH_WORD(i) r.v[i] = hn::And(hn::ShiftRightSame(w.v[i], shift), hn::Set(DWords(), mask));
  return r;
}
template <int shift>
HWY_INLINE Words shift_left(const Words& w) {
  Words r;
  MOE_DIAG_EACH_WORD(i) r.v[i] = hn::ShiftLeft<shift>(w.v[i]);
  return r;
}
HWY_INLINE Words either(const Words& a, const Words& b) {
  Words r;
  MOE_DIAG_EACH_WORD(i) r.v[i] = hn::Or(a.v[i], b.v[i]);
  return r;
}

#define MOE_DIAG_HALVES(name, op)                                                                           \
  HWY_INLINE Words name(const Words& a, const Words& b) {                                                   \
    Words r;                                                                                                \
    MOE_DIAG_EACH_WORD(i)                                                                                   \
    r.v[i] = hn::BitCast(DWords(), hn::op(hn::BitCast(DHalves(), a.v[i]), hn::BitCast(DHalves(), b.v[i]))); \
    return r;                                                                                               \
  }
MOE_DIAG_HALVES(multiply_halves, Mul)
MOE_DIAG_HALVES(subtract_halves, Sub)
#undef MOE_DIAG_HALVES

// The lower, or the higher, byte of each half with its sign.
HWY_INLINE Words high_bytes(const Words& w) {
  Words r;
  MOE_DIAG_EACH_WORD(i) r.v[i] = hn::BitCast(DWords(), hn::ShiftRight<8>(hn::BitCast(DHalves(), w.v[i])));
  return r;
}
HWY_INLINE Words low_bytes(const Words& w) {
  Words r;
  MOE_DIAG_EACH_WORD(i) r.v[i] = hn::BitCast(DWords(), hn::ShiftLeft<8>(hn::BitCast(DHalves(), w.v[i])));
  return high_bytes(r);
}
// Byte `byte` of each word, with its sign, in both halves of it.
HWY_INLINE Words signed_byte_in_both_halves(const Words& w, int byte) {
  Words r;
  MOE_DIAG_EACH_WORD(i) {
    const auto top = hn::ShiftLeftSame(w.v[i], 24 - 8 * byte);
    const auto high = hn::ShiftRight<8>(hn::BitCast(DHalves(), top));  // the upper half is the byte
    const auto upper = hn::And(hn::BitCast(DWords(), high), hn::Set(DWords(), 0xFFFF0000));
    r.v[i] = hn::Or(upper, hn::ShiftRight<16>(upper));
  }
  return r;
}

// Four words of each of four rows: out[i * 16 + r] is word i of row r.
HWY_INLINE void transpose(const std::byte* r0, const std::byte* r1, const std::byte* r2, const std::byte* r3,
                          std::uint32_t* out) {
  const hn::Full128<std::uint8_t> bytes;
  const hn::Full128<std::uint32_t> words;
  const hn::Full128<std::uint64_t> doubles;
  const auto row = [&](const std::byte* p) HWY_ATTR {
    return hn::BitCast(words, hn::LoadU(bytes, reinterpret_cast<const std::uint8_t*>(p)));
  };
  const auto a = row(r0), b = row(r1), c = row(r2), d = row(r3);
  const auto ab01 = hn::BitCast(doubles, hn::InterleaveLower(words, a, b));
  const auto cd01 = hn::BitCast(doubles, hn::InterleaveLower(words, c, d));
  const auto ab23 = hn::BitCast(doubles, hn::InterleaveUpper(words, a, b));
  const auto cd23 = hn::BitCast(doubles, hn::InterleaveUpper(words, c, d));
  hn::StoreU(hn::BitCast(words, hn::InterleaveLower(doubles, ab01, cd01)), words, out);
  hn::StoreU(hn::BitCast(words, hn::InterleaveUpper(doubles, ab01, cd01)), words, out + 16);
  hn::StoreU(hn::BitCast(words, hn::InterleaveLower(doubles, ab23, cd23)), words, out + 32);
  hn::StoreU(hn::BitCast(words, hn::InterleaveUpper(doubles, ab23, cd23)), words, out + 48);
}

// Sums of products of pairs, one a row. Two accumulators, because which of them a processor adds to is its own choice.
struct PairSums {
  hn::Vec<DWhole> a[word_vectors], b[word_vectors];
};
HWY_INLINE PairSums no_sums() {
  PairSums s;
  MOE_DIAG_EACH_WORD(i) s.a[i] = s.b[i] = hn::Zero(DWhole());
  return s;
}
// s[r] += w[r][0] x[0] + w[r][1] x[1]
HWY_INLINE void add_products(const Words& w, const std::int16_t* x, PairSums& s) {
  std::uint32_t both;
  std::memcpy(&both, x, sizeof both);
  const auto pair = hn::BitCast(DHalves(), hn::Set(DWords(), both));
  MOE_DIAG_EACH_WORD(i)
  s.a[i] = hn::ReorderWidenMulAccumulate(DWhole(), hn::BitCast(DHalves(), w.v[i]), pair, s.a[i], s.b[i]);
}
HWY_INLINE Pack<float> values_of(const PairSums& s) {
  Pack<float> r;
  MOE_DIAG_EACH_WORD(i) r.v[i] = hn::ConvertTo(Pack<float>::D(), hn::RearrangeToOddPlusEven(s.a[i], s.b[i]));
  return r;
}

#undef MOE_DIAG_EACH_WORD

#else  // plain

struct Words {
  std::uint32_t v[16];
};

template <class F>
HWY_INLINE Words each_word(F f) {
  Words r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}
HWY_INLINE std::uint32_t pair_of(int low, int high) {
  return static_cast<std::uint16_t>(low) | static_cast<std::uint32_t>(static_cast<std::uint16_t>(high)) << 16;
}
HWY_INLINE int low_half(std::uint32_t w) { return static_cast<std::int16_t>(w & 0xFFFF); }
HWY_INLINE int high_half(std::uint32_t w) { return static_cast<std::int16_t>(w >> 16); }
HWY_INLINE int signed_byte(std::uint32_t w, int byte) { return static_cast<std::int8_t>(w >> (8 * byte) & 0xFF); }

HWY_INLINE Words load_words(const void* p) {
  Words r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
HWY_INLINE Words fill_words(std::uint32_t x) {
  return each_word([&](int) { return x; });
}
HWY_INLINE void store(const Words& w, void* p) { std::memcpy(p, w.v, sizeof w.v); }
HWY_INLINE Words bits(const Words& w, int shift, std::uint32_t mask) {
  return each_word([&](int i) { return w.v[i] >> shift & mask; });
}
template <int shift>
HWY_INLINE Words shift_left(const Words& w) {
  return each_word([&](int i) { return w.v[i] << shift; });
}
HWY_INLINE Words either(const Words& a, const Words& b) {
  return each_word([&](int i) { return a.v[i] | b.v[i]; });
}
HWY_INLINE Words multiply_halves(const Words& a, const Words& b) {
  return each_word(
      [&](int i) { return pair_of(low_half(a.v[i]) * low_half(b.v[i]), high_half(a.v[i]) * high_half(b.v[i])); });
}
HWY_INLINE Words subtract_halves(const Words& a, const Words& b) {
  return each_word(
      [&](int i) { return pair_of(low_half(a.v[i]) - low_half(b.v[i]), high_half(a.v[i]) - high_half(b.v[i])); });
}
HWY_INLINE Words high_bytes(const Words& w) {
  return each_word([&](int i) { return pair_of(signed_byte(w.v[i], 1), signed_byte(w.v[i], 3)); });
}
HWY_INLINE Words low_bytes(const Words& w) {
  return each_word([&](int i) { return pair_of(signed_byte(w.v[i], 0), signed_byte(w.v[i], 2)); });
}
HWY_INLINE Words signed_byte_in_both_halves(const Words& w, int byte) {
  return each_word([&](int i) { return pair_of(signed_byte(w.v[i], byte), signed_byte(w.v[i], byte)); });
}
HWY_INLINE void transpose(const std::byte* r0, const std::byte* r1, const std::byte* r2, const std::byte* r3,
                          std::uint32_t* out) {
  const std::byte* rows[4] = {r0, r1, r2, r3};
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 4; ++i) std::memcpy(out + i * 16 + r, rows[r] + i * 4, sizeof *out);
}

struct PairSums {
  std::int32_t v[16];
};
HWY_INLINE PairSums no_sums() { return {}; }
HWY_INLINE void add_products(const Words& w, const std::int16_t* x, PairSums& s) {
  for (int i = 0; i < 16; ++i) s.v[i] += low_half(w.v[i]) * x[0] + high_half(w.v[i]) * x[1];
}
HWY_INLINE Pack<float> values_of(const PairSums& s) {
  return each<float>([&](int i) { return static_cast<float>(s.v[i]); });
}

#endif

}  // namespace moe_diag::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per instruction set
