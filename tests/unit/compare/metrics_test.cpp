// SPDX-License-Identifier: MIT
// The metrics of rows and their last places: against numpy (tests/golden/metrics) and against values made by hand.
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/compare/distribution.hpp"
#include "core/compare/measure.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// A row as a lane of f64 or of f32 holds it.
class Row {
 public:
  explicit Row(const std::vector<double>& values, bool f32 = false)
      : wide_(values), narrow_(values.begin(), values.end()), f32_(f32) {}

  Tensor tensor() const {
    const Shape shape{static_cast<std::int64_t>(wide_.size())};
    return f32_ ? Tensor{narrow_.data(), DType::f32, shape} : Tensor{wide_.data(), DType::f64, shape};
  }
  std::int64_t size() const { return static_cast<std::int64_t>(wide_.size()); }

 private:
  std::vector<double> wide_;
  std::vector<float> narrow_;
  bool f32_;
};

double kl_logits(const Row& a, const Row& b) { return kl_of_logits(a.tensor(), 0, b.tensor(), 0, a.size()); }
double kl_probs(const Row& a, const Row& b) { return kl_of_probs(a.tensor(), 0, b.tensor(), 0, a.size()); }
double overlap(const Row& a, const Row& b, int k) { return topk_overlap(a.tensor(), 0, b.tensor(), 0, a.size(), k); }
double ulps(const Row& a, const Row& b) { return ulp_distance(a.tensor(), 0, b.tensor(), 0, a.size()); }

Row row(std::initializer_list<double> values) { return Row(std::vector<double>(values)); }
Row row_f32(std::initializer_list<double> values) { return Row(std::vector<double>(values), true); }

// Equal to within `relative`, infinities included, or to within what is left of a divergence of two rounded logarithms.
bool near(double value, double expected, double relative) {
  return value == expected || std::fabs(value - expected) <= relative * std::fabs(expected) + 1e-29;
}

}  // namespace

TEST_CASE("metrics of rows equal numpy's") {
  std::ifstream in(MOE_DIAG_SOURCE_DIR "/tests/golden/metrics/metrics.json");
  const auto cases = nlohmann::json::parse(in);
  REQUIRE(cases.size() >= 19);
  for (const auto& golden : cases) {
    INFO(golden["name"].get<std::string>());
    const auto is_f32 = [&](char side) { return golden["f32"].get<std::string>().find(side) != std::string::npos; };
    const auto values = [&](const char* key) { return golden[key].get<std::vector<double>>(); };
    const Row a(values("a"), is_f32('a')), b(values("b"), is_f32('b'));
    CHECK(near(kl_logits(a, b), golden["kl_of_logits"], 1e-7));
    const auto& kl = golden["kl_of_probs"];
    const double kl_of_p = kl == "inf" ? infinity : kl.get<double>();
    CHECK(near(kl_probs(Row(values("probs_a")), Row(values("probs_b"))), kl_of_p, 1e-7));
    CHECK(ulps(a, b) == golden["ulp"].get<double>());
    for (const auto& [k, share] : golden["topk_overlap"].items())
      CHECK(overlap(a, b, std::stoi(k)) == share.get<double>());
    Measure m;
    m.add(a.tensor(), 0, b.tensor(), 0, a.size());
    CHECK(near(noise_ratio(m.rel_l2(), 1e-7), golden["rel_l2"].get<double>() / 1e-7, 1e-12));
  }
}

TEST_CASE("kl by hand: halves and quarters") {
  const Row half = row({0.5, 0.5}), quarter = row({0.25, 0.75});
  CHECK(near(kl_probs(quarter, half), 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3), 1e-14));
  CHECK(near(kl_probs(half, quarter), 0.25 * std::log(0.5) + 0.75 * std::log(1.5), 1e-14));
  // The same of logits, to which any constant may be added.
  const Row half_logits = row({7, 7}), quarter_logits = row({-100, -100 + std::log(3.0)});
  CHECK(near(kl_logits(quarter_logits, half_logits), kl_probs(quarter, half), 1e-12));
  CHECK(kl_logits(half_logits, half_logits) == 0);
  CHECK(kl_logits(row({-3, -3}), half_logits) == 0);
  CHECK(kl_probs(quarter, quarter) == 0);
}

TEST_CASE("kl where one side has nothing") {
  CHECK(kl_probs(row({0, 1}), row({0.5, 0.5})) == infinity);
  CHECK(near(kl_probs(row({0.5, 0.5}), row({0, 1})), std::log(2.0), 1e-14));
  CHECK(kl_probs(row({0, 1}), row({0, 1})) == 0);
  CHECK(kl_probs(row({1, 0}), row({5e-324, 1})) == infinity);
  CHECK(near(kl_probs(row({1, 1}), row({5e-324, 1})), 1, 1e-12));
  // A softmax is never 0, only too small for a number: 800 nats are 800 nats.
  CHECK(near(kl_logits(row({-800, 0}), row({0, -800})), 800, 1e-12));
}

TEST_CASE("kl sees a row that does not sum to 1, and is never negative") {
  const Row b = row({0.2, 0.3, 0.5});
  for (double factor : {0.5, 0.99, 1.01, 2.0}) {
    const Row a = row({0.2 * factor, 0.3 * factor, 0.5 * factor});
    CHECK(near(kl_probs(a, b), -std::log(factor) - 1 + factor, 1e-10));
    CHECK(kl_probs(a, b) > 0);
  }
}

TEST_CASE("kl of what is not finite is NaN, and so is that of a negative probability") {
  const Row right = row({0.5, 0.5});
  for (double bad : {nan, infinity, -infinity}) {
    CHECK(std::isnan(kl_logits(row({bad, 0.5}), right)));
    CHECK(std::isnan(kl_logits(right, row_f32({0.5, bad}))));
    CHECK(std::isnan(kl_probs(row_f32({bad, 0.5}), right)));
    CHECK(std::isnan(kl_probs(right, row({0.5, bad}))));
  }
  CHECK(std::isnan(kl_probs(row({-0.1, 1.1}), right)));
  CHECK(std::isnan(kl_probs(right, row({-0.1, 1.1}))));
}

TEST_CASE("topk_overlap: the lower index first of equals, NaN never agrees") {
  const Row b = row({1, 5, 5, 5, 0});  // its best two are 1 and 2
  CHECK(overlap(row({9, 8, 0, 0, 0}), b, 2) == 0.5);
  CHECK(overlap(row({0, 3, 3, 3, 3}), b, 2) == 1);
  CHECK(overlap(row({0, 0, 0, 8, 9}), b, 2) == 0);
  CHECK(overlap(row({0, 0, 0, 8, 9}), b, 5) == 1);
  CHECK(overlap(row_f32({infinity, 8, 7, 0, -infinity}), b, 2) == 0.5);
  CHECK(std::isnan(overlap(row({0, 3, 3, 3, nan}), b, 2)));
  CHECK(std::isnan(overlap(b, row({0, 3, 3, 3, nan}), 2)));
}

TEST_CASE("ulp counts floats") {
  const float one = 1, next = std::nextafter(one, 2.0F), two = 2;
  CHECK(ulps(row_f32({one}), row_f32({next})) == 1);
  CHECK(ulps(row_f32({one, next}), row_f32({one, next})) == 0);
  CHECK(ulps(row_f32({one, one}), row_f32({next, two})) == 1 << 23);
  CHECK(ulps(row_f32({0.0}), row_f32({-0.0})) == 0);
  const double smallest = std::numeric_limits<float>::denorm_min();
  CHECK(ulps(row_f32({smallest}), row_f32({-smallest})) == 2);
  const double largest = std::numeric_limits<float>::max();
  CHECK(ulps(row_f32({largest}), row_f32({-largest})) == 2.0 * 0x7F7FFFFF);
  // What f32 cannot tell apart is equal, whichever side is f64.
  CHECK(ulps(row({1 + 1e-9}), row_f32({1})) == 0);
  CHECK(ulps(row({1 + 1e-7}), row_f32({1})) == 1);
  CHECK(ulps(row({1e-60}), row({-1e-60})) == 0);
}

TEST_CASE("ulp of what is not finite is NaN, an f64 too large for f32 included") {
  for (double bad : {nan, infinity, 1e300})
    for (const auto& [x, y] : {std::pair(bad, 1.0), std::pair(1.0, bad), std::pair(bad, bad)})
      CHECK(std::isnan(ulps(row({0, x}), row({0, y}))));
}

TEST_CASE("an error is 0 in units of any floor, or infinite above a floor of 0") {
  CHECK(near(noise_ratio(3e-7, 1e-7), 3, 1e-15));
  CHECK(noise_ratio(0, 1e-7) == 0);
  CHECK(noise_ratio(0, 0) == 0);
  CHECK(noise_ratio(1e-300, 0) == infinity);
  CHECK(std::isnan(noise_ratio(nan, 1)));
  CHECK(std::isnan(noise_ratio(1, nan)));
}

}  // namespace moe_diag::test
