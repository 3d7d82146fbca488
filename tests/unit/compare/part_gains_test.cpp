// SPDX-License-Identifier: MIT
// Mistakes below the rounding of each row are found in many rows together, and named; sound rounding is not.
#include "core/compare/part_gains.hpp"

#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

constexpr std::size_t columns = 64, experts = 8, used = 2;

// Rows of a made layer: what two experts add, and an error of 5 % of that, drawn anew for the floor.
struct MadeRow {
  std::vector<std::int32_t> chosen;
  std::vector<double> parts;  // [used, columns]
  double sum = 0;             // of the chosen probabilities
  int call_rows = 0;
};
using Mistake = std::function<double(const MadeRow&, std::size_t slot, std::size_t column)>;  // share that is too much

PartGains layers_with(const Mistake& mistake, int seed, int rows = 60, double massive = 1) {
  PartGains gains(0x1p-9);
  std::mt19937 random(static_cast<unsigned>(seed));
  std::normal_distribution<double> normal;
  for (int layer = 0; layer < 4; ++layer)
    for (int r = 0; r < rows; ++r) {
      MadeRow row;
      row.call_rows = r < rows / 3 ? 4 : 40;
      row.chosen = {static_cast<std::int32_t>(random() % experts)};
      row.chosen.push_back(
          static_cast<std::int32_t>((static_cast<std::size_t>(row.chosen[0]) + 1 + random() % 7) % experts));
      row.sum = 0.5 + 0.05 * static_cast<double>(random() % 8);
      for (std::size_t i = 0; i < used * columns; ++i)
        row.parts.push_back(normal(random) * (i % columns == 7 ? massive : 1));
      std::vector<double> error(columns), floor(columns), values(columns);
      for (std::size_t d = 0; d < columns; ++d) {
        const double added = row.parts[d] + row.parts[columns + d];
        values[d] = added + normal(random);
        error[d] = 0.05 * added * normal(random);
        floor[d] = 0.05 * added * normal(random);
        for (std::size_t s = 0; s < used && layer == 2 && mistake; ++s)
          error[d] += mistake(row, s, d) * row.parts[s * columns + d];
      }
      gains.add({stages::post_ffn_residual, layer},
                {0, r, row.call_rows, values, error, floor, row.chosen, row.parts, row.sum});
    }
  return gains;
}

// Of all seeds the one part that stands out, which has to be of layer 2.
void check_found(const Mistake& mistake, const std::string& text, int expert, double massive = 1) {
  for (int seed = 0; seed < 5; ++seed) {
    CAPTURE(seed, text);
    const std::vector<PartGain> found = layers_with(mistake, seed, 60, massive).found();
    REQUIRE(found.size() == 1);
    CHECK(found[0].site.layer == 2);
    CHECK(found[0].times > 1);
    CHECK(found[0].expert == expert);
    CHECK_THAT(found[0].text, Contains(text));
  }
}

}  // namespace

TEST_CASE("parts of sound layers do not stand out") {
  for (const double massive : {1.0, 1000.0})
    for (int seed = 0; seed < 40; ++seed) {
      CAPTURE(seed, massive);
      CHECK(layers_with(nullptr, seed, 60, massive).found().empty());
      CHECK(layers_with(nullptr, seed, 3, massive).found().empty());
    }
  // A gain of all parts of all layers is biased rounding.
  PartGains biased(0x1p-9);
  const std::vector<double> parts(used * columns, 1.0), values(columns, 2.0), error(columns, 0.4), floor(columns, 0.01);
  for (int r = 0; r < 20; ++r)
    biased.add({stages::post_ffn_residual, 0},
               {0, r, 20, values, error, floor, std::vector<std::int32_t>{r % 4, 4 + r % 3}, parts, 0});
  CHECK(biased.found().empty());
}

TEST_CASE("an expert's part that is wrong is found, in few columns as well, and named") {
  const auto of_expert = [](int expert, double share) {
    return [=](const MadeRow& row, std::size_t slot, std::size_t) { return row.chosen[slot] == expert ? share : 0; };
  };
  check_found(of_expert(3, -1), "expert 3's part of the update is missing", 3);
  check_found(of_expert(5, 0.25), "expert 5's part of the update is 2", 5);
  for (const double massive : {1.0, 1000.0})
    check_found([](const MadeRow& row, std::size_t slot,
                   std::size_t d) { return row.chosen[slot] == 4 && d >= 16 && d < 32 ? 0.2 : 0; },
                "columns 16 to 31 of 64", 4, massive);
}

TEST_CASE("weights that were not divided, and small calls, are told from experts") {
  check_found([](const MadeRow& row, std::size_t, std::size_t) { return row.sum - 1; },
              "the update fits weights of experts that were not divided by their sum: ", -1);
  check_found([](const MadeRow& row, std::size_t, std::size_t) { return row.call_rows < 16 ? -0.15 : 0; },
              "in calls of fewer than", -1);
  check_found([](const MadeRow& row, std::size_t, std::size_t) { return row.call_rows >= 16 ? 0.15 : 0; },
              "in calls of no fewer than", -1);
}

}  // namespace moe_diag
