// SPDX-License-Identifier: MIT
#include "core/compare/routing.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "tests/support/catch.hpp"

namespace moe_diag::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// One row of two lanes: a in f32, b in f64.
struct Lanes {
  std::vector<std::int32_t> ids_a, ids_b;
  std::vector<float> logits_a;
  std::vector<double> logits_b;

  Routing routing() const {
    const auto used = static_cast<std::int64_t>(ids_a.size()), experts = static_cast<std::int64_t>(logits_a.size());
    return {{ids_a.data(), DType::i32, {1, used}},
            {ids_b.data(), DType::i32, {1, used}},
            {logits_a.data(), DType::f32, {1, experts}},
            {logits_b.data(), DType::f64, {1, experts}},
            static_cast<int>(experts)};
  }
  std::vector<Flip> flips() const { return flips_of_row(routing(), 0); }
  Flip only() const {
    const std::vector<Flip> all = flips();
    REQUIRE(all.size() == 1);
    return all.front();
  }
};

// The k largest of a softmax in T, the lower id first of equals: what a lane does.
template <class T>
std::vector<std::int32_t> choose(const std::vector<T>& logits, std::size_t k) {
  const T top = *std::max_element(logits.begin(), logits.end());
  std::vector<T> p;
  T sum = 0;
  for (T x : logits) {
    p.push_back(std::exp(x - top));
    sum += p.back();
  }
  for (T& x : p) x /= sum;
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t x, std::int32_t y) {
    return p[static_cast<std::size_t>(x)] > p[static_cast<std::size_t>(y)];
  });
  ids.resize(k);
  return ids;
}

}  // namespace

TEST_CASE("the same experts in another order are no flip") {
  CHECK(Lanes{{2, 0}, {0, 2}, {3, 0, 3}, {3, 0, 3}}.flips().empty());
  CHECK(Lanes{{2, 0}, {0, 2}, {NAN, 0, 3}, {3, 0, 3}}.flips().empty());
}

TEST_CASE("a flip between equals is a tie, to within the rounding of f32") {
  const Flip exact = Lanes{{0, 2}, {0, 1}, {5, 2, 2}, {5, 2, 2}}.only();
  CHECK(exact.expert == 2);
  CHECK(exact.instead_of == 1);
  CHECK(exact.margin == 0.0);
  CHECK(exact.error == 0.0);
  CHECK(exact.kind == FlipKind::tie);
  // 8 units in the last place at 1, of floats: 9.5e-7. The row's largest logit is 1.
  CHECK(Lanes{{0, 2}, {0, 1}, {1, 0.5F, 0.5F}, {1, 0.5 + 9e-7, 0.5}}.only().kind == FlipKind::tie);
  CHECK(Lanes{{0, 2}, {0, 1}, {1, 0.5F, 0.5F}, {1, 0.5 + 1e-6, 0.5}}.only().kind == FlipKind::drift);
  // At 100 they are 100 times as wide.
  CHECK(Lanes{{0, 2}, {0, 1}, {100, 0.5F, 0.5F}, {100, 0.5 + 9e-5, 0.5}}.only().kind == FlipKind::tie);
  CHECK(Lanes{{0, 2}, {0, 1}, {100, 0.5F, 0.5F}, {100, 0.5 + 1e-4, 0.5}}.only().kind == FlipKind::drift);
}

TEST_CASE("a flip that follows from the logits each lane has is drift") {
  const Flip flip = Lanes{{0, 2}, {0, 1}, {5, 2.0F, 2.25F}, {5, 2.5, 2.0}}.only();
  CHECK(flip.kind == FlipKind::drift);
  CHECK(flip.margin == 0.5);
  CHECK(flip.error == 0.75);
  CHECK(text_of(flip) == "expert 2 instead of 1, margin 0.5, logit error 0.75: drift");
}

TEST_CASE("a flip against the lane's own logits is real, even where the error is larger than the margin") {
  CHECK(Lanes{{0, 2}, {0, 1}, {5, 2.5F, 2.0F}, {5, 2.5, 2.0}}.only().kind == FlipKind::real);
  CHECK(Lanes{{0, 2}, {0, 1}, {5, 4.5F, 4.0F}, {5, 2.5, 2.0}}.only().kind == FlipKind::real);
  CHECK(Lanes{{0, 2}, {0, 1}, {5, 2.001F, 2.0F}, {5, 2.0, 2.0}}.only().kind == FlipKind::real);
}

TEST_CASE("a flip is real as well when it is the other lane whose choice is wrong") {
  const Flip flip = Lanes{{0, 1}, {0, 2}, {5, 2.5F, 2.0F}, {5, 2.5, 2.0}}.only();
  CHECK(flip.margin == -0.5);
  CHECK(flip.kind == FlipKind::real);
}

TEST_CASE("several flips are paired best to best") {
  const std::vector<Flip> flips = Lanes{{4, 3, 0}, {0, 1, 2}, {9, 2, 1, 3, 4}, {9, 4, 3, 1, 2}}.flips();
  REQUIRE(flips.size() == 2);
  CHECK(flips[0].expert == 4);
  CHECK(flips[0].instead_of == 1);
  CHECK(flips[1].expert == 3);
  CHECK(flips[1].instead_of == 2);
  for (const Flip& flip : flips) CHECK(flip.kind == FlipKind::drift);
}

TEST_CASE("what is not finite explains nothing, and no number is made of it") {
  const auto f = [](double x) { return static_cast<float>(x); };
  for (double bad : {nan, infinity, -infinity}) {
    CHECK(Lanes{{0, 2}, {0, 1}, {5, 2, f(bad)}, {5, 2, 2}}.only().kind == FlipKind::real);
    CHECK(Lanes{{0, 2}, {0, 1}, {5, f(bad), 2}, {5, 2, 2}}.only().kind == FlipKind::real);
    CHECK(Lanes{{0, 2}, {0, 1}, {5, 2, 2}, {5, bad, 2}}.only().kind == FlipKind::real);
    CHECK(Lanes{{0, 2}, {0, 1}, {5, 2, 2}, {5, 2, bad}}.only().kind == FlipKind::real);
    const Flip flip = Lanes{{0, 2}, {0, 1}, {5, 2, f(bad)}, {5, 2, bad}}.only();
    CHECK_FALSE(flip.error.has_value());
    CHECK_THAT(text_of(flip), Catch::Matchers::Contains("logit error not known: real"));
  }
}

TEST_CASE("a faulty id is a flip with a name and without numbers") {
  const auto text = [](std::vector<std::int32_t> a, std::vector<std::int32_t> b) {
    const Flip flip = Lanes{std::move(a), std::move(b), {5, 3, 2, 1}, {5, 3, 2, 1}}.only();
    CHECK(flip.kind == FlipKind::real);
    CHECK(flip.is_misnamed());
    CHECK_FALSE(flip.margin.has_value());
    CHECK_FALSE(flip.error.has_value());
    CHECK(text_of(flip) == choice_text(flip));
    return choice_text(flip);
  };
  CHECK(text({0, 1, 0}, {0, 1, 2}) == "expert 0 is named twice, expert 2 is missing");
  CHECK(text({1, 0, -7}, {0, 1, 2}) == "expert -7 does not exist (the model has experts 0 to 3), expert 2 is missing");
  CHECK(text({4, 0, 1}, {0, 1, 2}) == "expert 4 does not exist (the model has experts 0 to 3), expert 2 is missing");
  CHECK(text({0, 1, 2}, {0, 1, 1}) == "expert 2 is chosen; in the lane beside it, expert 1 is named twice");
  CHECK(text({0, 1, 0}, {0, 1, 0}) == "expert 0 is named twice; in the lane beside it, expert 0 is named twice");

  const std::vector<Flip> thrice = Lanes{{0, 0, 0}, {0, 1, 2}, {5, 3, 2, 1}, {5, 3, 2, 1}}.flips();
  REQUIRE(thrice.size() == 2);
  CHECK(choice_text(thrice[0]) == "expert 0 is named 3 times, expert 1 is missing");
  CHECK(choice_text(thrice[1]) == "expert 0 is named 3 times, expert 2 is missing");

  // Beside a flip that is none of its own making.
  const std::vector<Flip> mixed = Lanes{{3, 1, 1}, {0, 1, 2}, {1, 4, 0, 2}, {3, 4, 2, 1}}.flips();
  REQUIRE(mixed.size() == 2);
  CHECK(mixed[0].kind == FlipKind::drift);
  CHECK(choice_text(mixed[0]) == "expert 3 instead of 0");
  CHECK(choice_text(mixed[1]) == "expert 1 is named twice, expert 2 is missing");

  const std::vector<std::int32_t> a = {3, 1, 1}, b = {0, 1, 2};
  const std::vector<Flip> named = misnamed_of_row({a.data(), DType::i32, {1, 3}}, {b.data(), DType::i32, {1, 3}}, 0, 4);
  REQUIRE(named.size() == 1);
  CHECK(named[0].expert == 1);
}

TEST_CASE("probabilities that underflow in f32 are equal there, whatever their logits") {
  // exp(-200) and exp(-300) are 0 in f32 and not in f64.
  CHECK(Lanes{{0, 1}, {0, 2}, {0, -300, -200}, {0, -300, -200}}.only().kind == FlipKind::drift);
  CHECK(Lanes{{0, 1}, {0, 2}, {0, -60, -50}, {0, -60, -50}}.only().kind == FlipKind::real);
}

TEST_CASE("whatever the logits, no lane that keeps to them makes a real flip, and a wrong choice is always one") {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  int flips = 0, ties = 0;
  for (int round = 0; round < 20'000; ++round) {
    const double size = std::pow(10.0, round % 5 - 2), error = std::pow(10.0, -(round / 5 % 8));
    Lanes lanes;
    for (int e = 0; e < 16; ++e) {
      // Every third round on a coarse grid, where many are equal.
      double x = size * normal(random);
      if (round % 3 == 0) x = std::round(x / size * 4) / 4 * size;
      lanes.logits_b.push_back(x);
      lanes.logits_a.push_back(static_cast<float>(x + size * error * normal(random) * (round % 7 != 0)));
    }
    lanes.ids_a = choose(lanes.logits_a, 5);
    lanes.ids_b = choose(lanes.logits_b, 5);
    for (const Flip& flip : lanes.flips()) {
      INFO(round << ' ' << text_of(flip));
      CHECK(flip.kind != FlipKind::real);
      ++flips;
      ties += flip.kind == FlipKind::tie;
    }
    // The worst expert in place of the best.
    const auto order = choose(lanes.logits_a, 16);
    const auto gap =
        lanes.logits_a[static_cast<std::size_t>(order[0])] - lanes.logits_a[static_cast<std::size_t>(order[15])];
    lanes.ids_b = lanes.ids_a;
    lanes.ids_a[0] = order[15];
    if (gap > 1e-4 * size) CHECK(lanes.only().kind == FlipKind::real);
  }
  CHECK(flips > 1000);
  CHECK(ties > 100);
}

}  // namespace moe_diag::test
