// SPDX-License-Identifier: MIT
// Ids of a strided view that was dumped flat: the k best of each row are the first columns of all experts, sorted.
#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

struct Routed {
  std::vector<float> scores;             // [rows, experts]
  std::vector<std::int32_t> best, flat;  // [rows, used]: the best of each row, and the same view dumped flat
};

Routed route(const ModelConfig& config, int rows, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::normal_distribution<float> normal;
  Routed routed;
  std::vector<std::int32_t> sorted;
  for (int r = 0; r < rows; ++r) {
    std::vector<float> scores(static_cast<std::size_t>(config.experts));
    for (float& score : scores) score = normal(random);
    std::vector<std::int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int a, int b) { return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)]; });
    routed.scores.insert(routed.scores.end(), scores.begin(), scores.end());
    routed.best.insert(routed.best.end(), order.begin(), order.begin() + config.used);
    sorted.insert(sorted.end(), order.begin(), order.end());
  }
  routed.flat.assign(sorted.begin(), sorted.begin() + rows * config.used);
  return routed;
}

// A dump of one call, and the reason why it is refused.
std::string refusal(const ModelConfig& config, int rows, const std::vector<std::int32_t>& ids,
                    const std::vector<float>& scores = {}) {
  MadeDump dump(config);
  dump.head();
  dump.calls({R"({"rows": )" + std::to_string(rows) + "}"});
  dump.put("layer_01/moe_router_indices.npy", npy_bytes("<i4", {rows, config.used}, bytes_of(ids)));
  if (!scores.empty())
    dump.put("layer_01/moe_router_logits.npy", npy_bytes("<f4", {rows, config.experts}, bytes_of(scores)));
  return dump.refusal();
}

}  // namespace

TEST_CASE("a strided view that was dumped flat is refused, and sound ids are not") {
  ModelConfig config = small_config();
  for (const auto& [experts, used, rows] :
       {std::tuple{128, 8, 16}, {128, 8, 9}, {60, 4, 15}, {12, 3, 64}, {32, 4, 64}}) {
    config.experts = experts;
    config.used = used;
    for (int seed = 0; seed < 8; ++seed) {
      CAPTURE(experts, used, rows, seed);
      const Routed routed = route(config, rows, seed);
      CHECK(refusal(config, rows, routed.best).empty());
      CHECK_THAT(
          refusal(config, rows, routed.flat),
          Catch::Matchers::Contains("a strided view dumped flat? The " + std::to_string(used) + " best of each row"));
    }
  }
}

TEST_CASE("few rows are no evidence of a strided view, and scores clear the ids") {
  ModelConfig config = small_config();
  config.experts = 128;
  config.used = 8;
  CHECK(refusal(config, 3, route(config, 3, 1).flat).empty());
  std::vector<std::int32_t> in_turn(16 * 8);  // a router that takes experts in turn
  std::iota(in_turn.begin(), in_turn.end(), 0);
  CHECK_THAT(refusal(config, 16, in_turn), Catch::Matchers::Contains("a strided view dumped flat?"));
  std::vector<float> scores(16 * 128, 0.5f);
  for (std::size_t i = 0; i < in_turn.size(); ++i) scores[i / 8 * 128 + static_cast<std::size_t>(in_turn[i])] = 2;
  CHECK(refusal(config, 16, in_turn, scores).empty());
  const Routed routed = route(config, 16, 2);
  CHECK_THAT(refusal(config, 16, routed.flat, routed.scores), Catch::Matchers::Contains("a strided view dumped flat?"));
}

}  // namespace moe_diag
