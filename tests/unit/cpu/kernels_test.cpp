// SPDX-License-Identifier: MIT
// The cpu kernels of every instruction set this processor has, against plain definitions.
#include "plugins/backends/cpu/kernels.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "tests/support/catch.hpp"

namespace moe_diag::cpu {
namespace {

std::mt19937_64& generator() {
  static std::mt19937_64 g(20);
  return g;
}

template <class T>
std::vector<T> random_values(std::int64_t n, double spread = 1) {
  std::normal_distribution<double> normal(0, spread);
  std::vector<T> v(static_cast<std::size_t>(n));
  for (T& x : v) x = static_cast<T>(normal(generator()));
  return v;
}

template <class T>
bool same_value(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}

template <class T>
void check_decoding(const InstructionSet& set, BlockType type, std::int64_t cols) {
  const BlockInfo& block = info(type);
  std::vector<std::byte> row(static_cast<std::size_t>(cols / block.elements * block.bytes));
  for (int round = 0; round < 20; ++round) {
    for (std::byte& b : row) b = static_cast<std::byte>(generator()());
    std::vector<T> out(static_cast<std::size_t>(padded(cols)), T{9});
    kernels<T>(set).decode_row(type, row.data(), cols, out.data());
    std::int64_t wrong = 0;
    for (std::int64_t k = 0; k < padded(cols); ++k)
      wrong += !same_value(out[static_cast<std::size_t>(k)], k < cols ? decode<T>(type, row.data(), k) : T{0});
    INFO(set.name << ", " << name_of(type) << ", " << cols << " columns, " << sizeof(T) << " bytes a value");
    CHECK(wrong == 0);
  }
}

// The summation rule, written out.
template <class T>
T plain_dot(const T* a, const T* b, std::int64_t n) {
  T s[16] = {};
  for (std::int64_t k = 0; k < n; ++k) s[k % 16] = std::fma(a[k], b[k], s[k % 16]);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}

template <class T>
void check_products(const InstructionSet& set, int rows, int count, std::int64_t cols) {
  std::vector<T> w(static_cast<std::size_t>(rows * padded(cols)), T{0});
  for (int r = 0; r < rows; ++r) {
    const std::vector<T> values = random_values<T>(cols);
    std::copy(values.begin(), values.end(), w.begin() + r * padded(cols));
  }
  std::vector<std::vector<T>> x, y;
  std::vector<const T*> px;
  std::vector<T*> py;
  for (int c = 0; c < count; ++c) {
    x.push_back(random_values<T>(cols));
    y.emplace_back(static_cast<std::size_t>(rows + 2), T{77});
  }
  for (int c = 0; c < count; ++c) {
    px.push_back(x[static_cast<std::size_t>(c)].data());
    py.push_back(y[static_cast<std::size_t>(c)].data());
  }
  kernels<T>(set).products(w.data(), rows, px.data(), py.data(), count, cols, 1);
  INFO(set.name << ": " << rows << " rows, " << count << " vectors, " << cols << " columns");
  for (int c = 0; c < count; ++c) {
    const std::vector<T>& out = y[static_cast<std::size_t>(c)];
    CHECK(out.front() == 77);
    CHECK(out.back() == 77);
    for (int r = 0; r < rows; ++r)
      CHECK(same_value(out[static_cast<std::size_t>(r + 1)],
                       plain_dot(w.data() + r * padded(cols), px[static_cast<std::size_t>(c)], cols)));
  }
}

}  // namespace

TEST_CASE("every decoder equals the scalar definition, random bits included") {
  for (const InstructionSet& set : instruction_sets())
    for (const BlockInfo& block : block_table)
      for (std::int64_t cols : {std::int64_t{block.elements}, std::int64_t{block.elements} * 3,
                                std::int64_t{512} + (block.elements == 1 ? 7 : 0)}) {
        check_decoding<float>(set, block.type, cols);
        check_decoding<double>(set, block.type, cols);
      }
}

TEST_CASE("products follow the summation rule, bit by bit") {
  for (const InstructionSet& set : instruction_sets())
    for (int rows : {1, 2, 3, 4, 5, 16})
      for (int count : {1, 2, 3, 4, 5, 33})
        for (std::int64_t cols : {1, 15, 16, 17, 36, 256}) {
          check_products<float>(set, rows, count, cols);
          check_products<double>(set, rows, count, cols);
        }
}

TEST_CASE("the exponential is within 2 ulp of the C library's, over its whole range") {
  for (const InstructionSet& set : instruction_sets()) {
    const Kernels<float>& k = *set.f32;
    double worst = 0;
    for (float x = -87.0F; x < 88.0F; x += 0.0137F) {
      // softmax of {0, x} for x <= 0 has e^x in it; swiglu has e^-gate.
      float gate = -x, up = 1, y = 0;
      k.swiglu(&gate, &up, 1, &y);
      const double expected = static_cast<double>(gate) / (1 + std::exp(static_cast<double>(x)));
      if (std::fabs(expected) > 1e-37) worst = std::max(worst, std::fabs(y / expected - 1));
    }
    INFO(set.name);
    CHECK(worst < 4 * std::numeric_limits<float>::epsilon());
  }
}

TEST_CASE("extreme values: no NaN out of finite gates, none lost from non-finite ones") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const InstructionSet& set : instruction_sets()) {
    const std::vector<float> gate = {-1e30F, -200, -104, -88.8F, 0, 88.8F, 200, 1e30F, infinity}, up(gate.size(), 1.0F);
    std::vector<float> y(gate.size());
    set.f32->swiglu(gate.data(), up.data(), static_cast<std::int64_t>(gate.size()), y.data());
    for (std::size_t i = 0; i + 1 < gate.size(); ++i) CHECK(std::isfinite(y[i]));
    CHECK(y[0] == 0);
    CHECK(y[7] == 1e30F);
    CHECK(y[8] == infinity);
    const float bad = std::numeric_limits<float>::quiet_NaN(), one = 1;
    float out = 0;
    set.f32->swiglu(&bad, &one, 1, &out);
    CHECK(std::isnan(out));

    const std::vector<float> logits = {1000, 999, 0, -1000};
    std::vector<float> p(4);
    set.f32->softmax(logits.data(), 4, p.data());
    CHECK(std::fabs(p[0] - 0.7310586F) < 1e-6F);
    CHECK(std::fabs(p[1] - 0.2689414F) < 1e-6F);
    CHECK(p[2] == 0);
  }
}

TEST_CASE("row kernels give the same bytes under every instruction set") {
  const InstructionSet& plain = instruction_sets().back();
  for (const InstructionSet& set : instruction_sets())
    for (std::int64_t n : {1, 5, 16, 31, 64, 100}) {
      const std::vector<float> a = random_values<float>(n, 3), b = random_values<float>(n);
      std::vector<float> y(static_cast<std::size_t>(n)), z(y.size());
      const auto same = [&](const char* what) {
        INFO(set.name << ": " << what << " of " << n);
        CHECK(std::memcmp(y.data(), z.data(), y.size() * sizeof(float)) == 0);
      };
      set.f32->rms_norm(a.data(), b.data(), 1e-6F, n, y.data());
      plain.f32->rms_norm(a.data(), b.data(), 1e-6F, n, z.data());
      same("rms_norm");
      set.f32->softmax(a.data(), n, y.data());
      plain.f32->softmax(a.data(), n, z.data());
      same("softmax");
      set.f32->swiglu(a.data(), b.data(), n, y.data());
      plain.f32->swiglu(a.data(), b.data(), n, z.data());
      same("swiglu");
      set.f32->mix(b.data(), a.data(), 1, n / 2, n - n / 2, y.data());
      plain.f32->mix(b.data(), a.data(), 1, n / 2, n - n / 2, z.data());
      same("mix");
      if (n % 2 == 0) {
        set.f32->rope(a.data(), b.data(), b.data(), 1, n, y.data());
        plain.f32->rope(a.data(), b.data(), b.data(), 1, n, z.data());
        same("rope");
      }
    }
}

}  // namespace moe_diag::cpu
