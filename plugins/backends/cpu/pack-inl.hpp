// SPDX-License-Identifier: MIT
// Included once per instruction set (no pragma once): a pack of 16 values and the operations kernels.cpp is written in.
// With fused multiply-add in hardware a pack is vectors of Highway, without it an array: the same results, bit by bit.

#if defined(MOE_DIAG_PACK_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MOE_DIAG_PACK_INL
#undef MOE_DIAG_PACK_INL
#else
#define MOE_DIAG_PACK_INL
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace moe_diag::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#undef MOE_DIAG_PACK_VECTORS

#if HWY_NATIVE_FMA && !HWY_HAVE_SCALABLE

#define MOE_DIAG_PACK_VECTORS 1

template <class T>
struct Pack {
  using D = hn::CappedTag<T, 16>;
  static constexpr int width = static_cast<int>(HWY_MAX_BYTES / sizeof(T) < 16 ? HWY_MAX_BYTES / sizeof(T) : 16);
  static constexpr int vectors = 16 / width;
  hn::Vec<D> v[vectors];
};

#define MOE_DIAG_EACH(i) for (int i = 0; i < Pack<T>::vectors; ++i)

template <class T>
HWY_INLINE Pack<T> fill(T x) {
  Pack<T> r;
  MOE_DIAG_EACH(i) r.v[i] = hn::Set(typename Pack<T>::D(), x);
  return r;
}
template <class T>
HWY_INLINE Pack<T> load(const T* p) {
  Pack<T> r;
  MOE_DIAG_EACH(i) r.v[i] = hn::LoadU(typename Pack<T>::D(), p + i * Pack<T>::width);
  return r;
}
template <class T>
HWY_INLINE void store(const Pack<T>& a, T* p) {
  MOE_DIAG_EACH(i) hn::StoreU(a.v[i], typename Pack<T>::D(), p + i * Pack<T>::width);
}
template <class T>
HWY_INLINE Pack<T> fma(const Pack<T>& a, const Pack<T>& b, const Pack<T>& c) {
  Pack<T> r;
  MOE_DIAG_EACH(i) r.v[i] = hn::MulAdd(a.v[i], b.v[i], c.v[i]);
  return r;
}

#define MOE_DIAG_BINARY(name, op)                               \
  template <class T>                                            \
  HWY_INLINE Pack<T> name(const Pack<T>& a, const Pack<T>& b) { \
    Pack<T> r;                                                  \
    MOE_DIAG_EACH(i) r.v[i] = hn::op(a.v[i], b.v[i]);           \
    return r;                                                   \
  }
MOE_DIAG_BINARY(operator+, Add)
MOE_DIAG_BINARY(operator-, Sub)
MOE_DIAG_BINARY(operator*, Mul)
MOE_DIAG_BINARY(operator/, Div)
#undef MOE_DIAG_BINARY

// a where a > b, else b: NaN in either gives b.
template <class T>
HWY_INLINE Pack<T> larger(const Pack<T>& a, const Pack<T>& b) {
  Pack<T> r;
  MOE_DIAG_EACH(i) r.v[i] = hn::IfThenElse(hn::Gt(a.v[i], b.v[i]), a.v[i], b.v[i]);
  return r;
}
template <class T>
HWY_INLINE Pack<T> select_less(const Pack<T>& a, const Pack<T>& b, const Pack<T>& yes, const Pack<T>& no) {
  Pack<T> r;
  MOE_DIAG_EACH(i) r.v[i] = hn::IfThenElse(hn::Lt(a.v[i], b.v[i]), yes.v[i], no.v[i]);
  return r;
}
HWY_INLINE Pack<float> nearest(const Pack<float>& a) {
  using T = float;
  Pack<T> r;
  MOE_DIAG_EACH(i) r.v[i] = hn::Round(a.v[i]);
  return r;
}
HWY_INLINE Pack<float> towards_zero(const Pack<float>& a) {
  using T = float;
  Pack<T> r;
  MOE_DIAG_EACH(i) r.v[i] = hn::Trunc(a.v[i]);
  return r;
}
// The bf16 nearest to each value, ties to even; NaN stays NaN.
HWY_INLINE Pack<float> nearest_bf16(const Pack<float>& a) {
  using T = float;
  const hn::RebindToUnsigned<Pack<T>::D> du;
  Pack<T> r;
  MOE_DIAG_EACH(i) {
    const auto bits = hn::BitCast(du, a.v[i]);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
    const auto up = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd);
    const auto rounded = hn::BitCast(Pack<T>::D(), hn::And(up, hn::Set(du, 0xFFFF0000)));
    r.v[i] = hn::IfThenElse(hn::Eq(a.v[i], a.v[i]), rounded, a.v[i]);
  }
  return r;
}
// 2^n for whole n in [-126, 127].
HWY_INLINE Pack<float> power_of_two(const Pack<float>& n) {
  using T = float;
  const hn::RebindToSigned<Pack<T>::D> di;
  Pack<T> r;
  MOE_DIAG_EACH(i) {
    const auto whole = hn::ConvertTo(di, n.v[i]);
    r.v[i] = hn::BitCast(Pack<T>::D(), hn::ShiftLeft<23>(hn::Add(whole, hn::Set(di, 127))));
  }
  return r;
}

#undef MOE_DIAG_EACH

#else  // no fused multiply-add in hardware

#define MOE_DIAG_PACK_VECTORS 0

template <class T>
struct Pack {
  T v[16];
};

template <class T, class F>
HWY_INLINE Pack<T> each(F f) {
  Pack<T> r;
  for (int i = 0; i < 16; ++i) r.v[i] = f(i);
  return r;
}
template <class T>
HWY_INLINE Pack<T> fill(T x) {
  return each<T>([&](int) { return x; });
}
template <class T>
HWY_INLINE Pack<T> load(const T* p) {
  return each<T>([&](int i) { return p[i]; });
}
template <class T>
HWY_INLINE void store(const Pack<T>& a, T* p) {
  for (int i = 0; i < 16; ++i) p[i] = a.v[i];
}
template <class T>
HWY_INLINE Pack<T> fma(const Pack<T>& a, const Pack<T>& b, const Pack<T>& c) {
  return each<T>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
template <class T>
HWY_INLINE Pack<T> operator+(const Pack<T>& a, const Pack<T>& b) {
  return each<T>([&](int i) { return a.v[i] + b.v[i]; });
}
template <class T>
HWY_INLINE Pack<T> operator-(const Pack<T>& a, const Pack<T>& b) {
  return each<T>([&](int i) { return a.v[i] - b.v[i]; });
}
template <class T>
HWY_INLINE Pack<T> operator*(const Pack<T>& a, const Pack<T>& b) {
  return each<T>([&](int i) { return a.v[i] * b.v[i]; });
}
template <class T>
HWY_INLINE Pack<T> operator/(const Pack<T>& a, const Pack<T>& b) {
  return each<T>([&](int i) { return a.v[i] / b.v[i]; });
}
template <class T>
HWY_INLINE Pack<T> larger(const Pack<T>& a, const Pack<T>& b) {
  return each<T>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
template <class T>
HWY_INLINE Pack<T> select_less(const Pack<T>& a, const Pack<T>& b, const Pack<T>& yes, const Pack<T>& no) {
  return each<T>([&](int i) { return a.v[i] < b.v[i] ? yes.v[i] : no.v[i]; });
}
HWY_INLINE Pack<float> nearest(const Pack<float>& a) {
  return each<float>([&](int i) { return std::nearbyintf(a.v[i]); });
}
HWY_INLINE Pack<float> towards_zero(const Pack<float>& a) {
  return each<float>([&](int i) { return std::truncf(a.v[i]); });
}
HWY_INLINE Pack<float> nearest_bf16(const Pack<float>& a) {
  return each<float>([&](int i) {
    std::uint32_t bits;
    std::memcpy(&bits, &a.v[i], sizeof bits);
    const std::uint32_t up = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
    float rounded;
    std::memcpy(&rounded, &up, sizeof rounded);
    return std::isnan(a.v[i]) ? a.v[i] : rounded;
  });
}
HWY_INLINE Pack<float> power_of_two(const Pack<float>& n) {
  return each<float>([&](int i) {
    // Out of range only for lanes whose result select_less() throws away.
    const int whole = n.v[i] >= -126 && n.v[i] <= 127 ? static_cast<int>(n.v[i]) : 0;
    const std::uint32_t bits = static_cast<std::uint32_t>(whole + 127) << 23;
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
  });
}

#endif

// The rest is the same text for both.

// The first n of 16 values, zeros behind them.
template <class T>
HWY_INLINE Pack<T> load_first(const T* p, std::int64_t n) {
  T all[16] = {};
  std::memcpy(all, p, static_cast<std::size_t>(n) * sizeof(T));
  return load(all);
}
template <class T>
HWY_INLINE void store_first(const Pack<T>& a, T* p, std::int64_t n) {
  T all[16];
  store(a, all);
  std::memcpy(p, all, static_cast<std::size_t>(n) * sizeof(T));
}

// Calls body(k, n) for each 16 elements of a row of n_all; the last may be short.
template <class Body>
HWY_INLINE void for_each_pack(std::int64_t n_all, Body body) {
  std::int64_t k = 0;
  for (; k + 16 <= n_all; k += 16) body(k, std::int64_t{16});
  if (k < n_all) body(k, n_all - k);
}

template <class T>
HWY_INLINE Pack<T> load_some(const T* p, std::int64_t n) {
  return n == 16 ? load(p) : load_first(p, n);
}
template <class T>
HWY_INLINE void store_some(const Pack<T>& a, T* p, std::int64_t n) {
  n == 16 ? store(a, p) : store_first(a, p, n);
}

// The one reduction tree: halves added, 8, 4, 2, 1.
template <class T>
HWY_INLINE T sum(const Pack<T>& a) {
  T s[16];
  store(a, s);
  for (int i = 0; i < 8; ++i) s[i] += s[i + 8];
  for (int i = 0; i < 4; ++i) s[i] += s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// e^x within 1 ulp. Cody-Waite reduction to |r| <= ln2 / 2 and a polynomial of degree 7, as in the Cephes library's
// expf (coefficients: Taylor's, exact enough at this degree). 2^n is applied in two factors, so that subnormal results
// are rounded once.
HWY_INLINE Pack<float> exponential(const Pack<float>& x) {
  const Pack<float> lowest = fill(-104.0f), highest = fill(88.7228394f);
  const Pack<float> inside = select_less(x, lowest, lowest, select_less(highest, x, highest, x));
  const Pack<float> n = nearest(inside * fill(1.44269504f));
  Pack<float> r = fma(n, fill(-0.693359375f), inside);
  r = fma(n, fill(2.12194440e-4f), r);
  Pack<float> p = fill(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, fill(c));
  const Pack<float> half = nearest(n * fill(0.5f));
  const Pack<float> value = p * power_of_two(half) * power_of_two(n - half);
  const Pack<float> finite = select_less(highest, x, fill(HUGE_VALF), select_less(x, lowest, fill(0.0f), value));
  // NaN compares false both ways: let it through unchanged.
  return select_less(x, fill(HUGE_VALF), finite, select_less(fill(0.0f), x, fill(HUGE_VALF), x));
}

HWY_INLINE Pack<double> exponential(const Pack<double>& x) {
  double v[16];
  store(x, v);
  for (double& e : v) e = std::exp(e);
  return load(v);
}

}  // namespace moe_diag::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per instruction set
