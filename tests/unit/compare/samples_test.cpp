// SPDX-License-Identifier: MIT
#include "core/compare/samples.hpp"

#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {

TEST_CASE("experts are compared by id, and only those both lanes chose") {
  const std::vector<std::int32_t> ids_a = {4, 7, 1}, ids_b = {7, 2, 4};
  const std::vector<float> values(3 * 5, 0.0F);
  const Tensor t{values.data(), DType::f32, {1, 3, 5}};
  Pair pair{{stages::moe_expert_out, 0}, t, t, {}, {}, 0, 12};
  pair.routing_a = {ids_a.data(), DType::i32, {1, 3}};
  pair.routing_b = {ids_b.data(), DType::i32, {1, 3}};

  const RowSamples row = samples_of_row(pair, 0);
  REQUIRE(row.samples.size() == 2);
  REQUIRE(row.alone.size() == 1);
  CHECK(row.alone[0].expert == 1);
  CHECK(row.alone[0].segments[0].a == 10);
  CHECK(row.samples[0].expert == 4);
  CHECK(row.samples[0].segments[0].a == 0);
  CHECK(row.samples[0].segments[0].b == 10);
  CHECK(row.samples[1].expert == 7);
  CHECK(row.samples[1].segments[0].a == 5);
  CHECK(row.samples[1].segments[0].b == 0);
  CHECK(routing_flips(pair.routing_a, pair.routing_b, 0, 12) == 1);
  CHECK(routing_flips(pair.routing_a, pair.routing_a, 0, 12) == 0);
}

TEST_CASE("the router's weights are one sample of the common experts") {
  const std::vector<std::int32_t> ids_a = {4, 7}, ids_b = {7, 4};
  const std::vector<float> values(2, 0.0F);
  const Tensor t{values.data(), DType::f32, {1, 2}};
  Pair pair{{stages::moe_router_weights, 0}, t, t, {}, {}, 0, 12};
  pair.routing_a = {ids_a.data(), DType::i32, {1, 2}};
  pair.routing_b = {ids_b.data(), DType::i32, {1, 2}};
  const RowSamples row = samples_of_row(pair, 0);
  REQUIRE(row.samples.size() == 1);
  REQUIRE(row.samples[0].segments.size() == 2);
  CHECK(row.samples[0].segments[0].b == 1);
  CHECK(row.samples[0].expert == -1);
}

TEST_CASE("a faulty id is compared with nothing, on either side, and is a flip") {
  const std::vector<float> values(4 * 2, 0.0F);
  const Tensor t{values.data(), DType::f32, {1, 4, 2}};
  const std::vector<std::int32_t> good = {4, 7, 1, 9};
  for (const std::vector<std::int32_t>& faulty :
       {std::vector<std::int32_t>{4, 7, 4, 9}, {4, 7, -1, 9}, {4, 7, 12, 9}, {4, 7, 2'000'000'000, 9}})
    for (const bool swapped : {false, true}) {
      const std::vector<std::int32_t>&ids_a = swapped ? good : faulty, &ids_b = swapped ? faulty : good;
      Pair pair{{stages::moe_expert_out, 0}, t, t, {}, {}, 0, 12};
      pair.routing_a = {ids_a.data(), DType::i32, {1, 4}};
      pair.routing_b = {ids_b.data(), DType::i32, {1, 4}};
      const RowSamples row = samples_of_row(pair, 0);
      REQUIRE(row.samples.size() == 3);
      for (const SampleSegments& sample : row.samples) {
        CHECK(sample.segments[0].a != 4);
        CHECK(sample.segments[0].a == sample.segments[0].b);
      }
      REQUIRE(row.alone.size() == 1);
      CHECK(row.alone[0].segments[0].a == 4);
      CHECK(routing_flips(pair.routing_a, pair.routing_b, 0, 12) == 1);
      CHECK(routing_flips(pair.routing_a, pair.routing_a, 0, 12) == (swapped ? 0 : 1));
    }
}

TEST_CASE("lanes without a common expert give no sample of it") {
  const std::vector<std::int32_t> ids_a = {1}, ids_b = {2};
  const std::vector<float> values(4, 0.0F);
  const Tensor t{values.data(), DType::f32, {1, 1, 4}};
  Pair pair{{stages::moe_expert_up, 0}, t, t, {}, {}, 0, 12};
  pair.routing_a = {ids_a.data(), DType::i32, {1, 1}};
  pair.routing_b = {ids_b.data(), DType::i32, {1, 1}};
  CHECK(samples_of_row(pair, 0).samples.empty());
  CHECK(samples_of_row(pair, 0).alone.size() == 1);
}

TEST_CASE("keys after a row's own position are never compared") {
  const std::vector<float> values(3 * 2 * 8, 0.0F);
  const Tensor t{values.data(), DType::f32, {3, 2, 8}};
  const Pair pair{{stages::attn_softmax, 0}, t, t, {}, {}, 5, 12};  // rows are positions 5, 6, 7 of 8
  for (int r = 0; r < 3; ++r) {
    const RowSamples row = samples_of_row(pair, r);
    REQUIRE(row.samples.size() == 1);
    REQUIRE(row.samples[0].segments.size() == 2);
    CHECK(row.samples[0].segments[1].n == 6 + r);
    CHECK(row.samples[0].segments[1].a == r * 16 + 8);
  }
}

}  // namespace moe_diag::test
