// SPDX-License-Identifier: MIT
// Footprints of real steps of the tiny model whose outputs were changed in known places.
#include "core/compare/footprint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "core/compare/step_units.hpp"
#include "core/ops/operator.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/step_bench.hpp"

namespace moe_diag::test {
namespace {

// Rows [first, end) of a tensor.
Tensor cut(Tensor t, std::int64_t first, std::int64_t end) {
  if (!t) return t;
  t.data = static_cast<const std::byte*>(t.data) +
           static_cast<std::size_t>(first * t.shape.row()) * (t.dtype == DType::f64 ? 8 : 4);
  t.shape.dims[0] = end - first;
  return t;
}

// A step of seven positions whose output is changed.
struct Changed {
  StepBench bench;
  StepCase c;
  std::vector<float> values;

  Changed(Stage stage, int layer, const std::string& numerics = "f32")
      : bench({"tiny", 0, "q4_k_m", 3}, numerics, {5, 17, 400, 33, 2, 2, 90}),
        c(bench.clean(*find_step(bench.program(), {stage, layer}), stage)) {
    values.assign(c.a.as<float>(), c.a.as<float>() + c.a.shape.count());
    c.a.data = values.data();
  }
  float& at(std::int64_t row, std::int64_t column) {
    return values[static_cast<std::size_t>(row * c.a.shape.row() + column)];
  }
  // As a pass over the rows [first, end) sees it.
  StepCase pass(int first, int end) const {
    StepCase part = c;
    for (Tensor* t : {&part.a, &part.b, &part.routing_a, &part.routing_b, &part.in[0]}) *t = cut(*t, first, end);
    part.in[1] = cut(part.in[1], reads_cache(*c.step) ? 0 : first, end);
    part.tokens = part.tokens.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(end - first));
    part.first_position = first;
    return part;
  }
  Footprint footprint(const std::vector<int>& borders = {0, 7}) const {
    FootprintMaker maker;
    for (std::size_t i = 0; i + 1 < borders.size(); ++i) {
      const StepCase part = pass(borders[i], borders[i + 1]);
      maker.add(part, units_of(part, bench.config()));
    }
    return maker.made();
  }
};

std::vector<std::string> names(const Footprint& print) {
  std::vector<std::string> list;
  for (const auto& tensor : print.tensors) list.push_back(tensor.name);
  return list;
}

}  // namespace

TEST_CASE("only the tensors whose columns are wrong are named") {
  Changed changed(stages::qkv_matmul, 2);
  REQUIRE(changed.c.a.shape.row() == 768);  // 512 of q, 128 of k, 128 of v
  for (int r = 0; r < 7; ++r)
    for (int k = 0; k < 640; ++k) changed.at(r, k) *= 1.25F;
  const Footprint print = changed.footprint();
  CHECK(print.text == "columns 0 to 639 (all of attn_q, attn_k) of all 7 positions compared, 0 to 6");
  CHECK(names(print) == std::vector<std::string>{"blk.2.attn_q.weight", "blk.2.attn_k.weight"});
  CHECK(print.columns == std::vector<Range>{{0, 639}});
  CHECK(print.tensors[1].all == Range{512, 639});
  CHECK(print.tensors[1].columns == std::vector<Range>{{512, 639}});

  for (int r = 0; r < 7; ++r)
    for (int k = 640; k < 650; ++k) changed.at(r, k) = 0;
  CHECK(changed.footprint().text ==
        "columns 0 to 649 (all of attn_q, attn_k; part of attn_v) of all 7 positions compared, 0 to 6");
  for (int r = 0; r < 7; ++r)
    for (int k = 650; k < 768; ++k) changed.at(r, k) = 0;
  CHECK(changed.footprint().text == "all columns of all 7 positions compared, 0 to 6");
  CHECK(changed.footprint().tensors.size() == 3);
}

TEST_CASE("all columns are all columns: one that is right is told") {
  Changed changed(stages::attn_out, 1);
  for (int r = 0; r < 7; ++r)
    for (int k = 0; k < 256; ++k)
      if (k != 100) changed.at(r, k) *= 2;
  CHECK(changed.footprint().text == "columns 0 to 99, 101 to 255 of all 7 positions compared, 0 to 6");
  for (int r = 0; r < 7; ++r) changed.at(r, 100) *= 2;
  CHECK(changed.footprint().text == "all columns of all 7 positions compared, 0 to 6");
}

TEST_CASE("columns that are right by chance end no range, however coarse the numerics") {
  for (const std::string numerics : {"f32", "bf16", "q8_k"}) {
    INFO(numerics);
    Changed changed(stages::attn_out, 1, numerics);
    std::mt19937 random(3);
    std::normal_distribution<float> noise;
    for (int k = 0; k < 256; ++k) changed.at(4, k) += noise(random);  // one row only
    CHECK(changed.footprint().text == "all columns of position 4");
    for (int k = 64; k < 256; ++k) changed.at(4, k) = static_cast<float>(changed.c.b.as<double>()[4 * 256 + k]);
    CHECK(changed.footprint().text == "columns 0 to 63 of position 4");
  }
}

TEST_CASE("positions are those of the sequence, over all passes") {
  Changed changed(stages::attn_out, 1);
  for (int r = 3; r < 7; ++r)
    for (int k = 0; k < 256; ++k) changed.at(r, k) = 0;
  for (const std::vector<int>& borders : {std::vector<int>{0, 7}, {0, 3, 6, 7}, {6, 7, 0, 3, 3, 6}}) {
    FootprintMaker maker;
    for (std::size_t i = 0; i + 1 < borders.size(); ++i) {
      if (borders[i] >= borders[i + 1]) continue;
      const StepCase part = changed.pass(borders[i], borders[i + 1]);
      maker.add(part, units_of(part, changed.bench.config()));
    }
    const Footprint print = maker.made();
    CHECK(print.text == "all columns of positions 3 to 6");
    CHECK(print.positions == std::vector<int>{3, 4, 5, 6});
    CHECK(print.compared_positions == std::vector<int>{0, 1, 2, 3, 4, 5, 6});
    CHECK(print.compared == 7 * 256);
  }
  CHECK(changed.footprint({3, 4}).text == "all columns of position 3, the only one compared");
}

TEST_CASE("keys of attention are named with their heads") {
  Changed changed(stages::attn_scores, 1);
  const std::int64_t keys = changed.c.a.shape[2], heads = changed.c.a.shape[1];
  for (int r = 3; r < 7; ++r)
    for (std::int64_t h = 0; h < heads; ++h) changed.at(r, h * keys + 3) += 1;
  CHECK(changed.footprint().text == "key 3 of all heads of positions 3 to 6");
  for (int r = 3; r < 7; ++r)
    for (std::int64_t h = 0; h < heads; ++h)
      if (h != 1) changed.at(r, h * keys + 3) -= 1;
  CHECK(changed.footprint().text == "key 3 of head 1 of positions 3 to 6");
}

TEST_CASE("experts are told as ranges, with those between them that did not run") {
  Changed changed(stages::moe_expert_out, 2);
  const auto* ids = changed.c.routing_a.as<std::int32_t>();
  const std::vector<std::int32_t> ran(ids, ids + 21);
  for (std::int64_t slot = 0; slot < 21; ++slot)
    if (ran[static_cast<std::size_t>(slot)] >= 6)
      for (int k = 0; k < 256; ++k) changed.values[static_cast<std::size_t>(slot * 256 + k)] = 0;
  const Footprint print = changed.footprint();
  std::vector<int> wrong, idle;
  for (int id = 6; id < 12; ++id) (std::count(ran.begin(), ran.end(), id) > 0 ? wrong : idle).push_back(id);
  std::vector<int> told;
  for (const auto& part : print.experts) {
    told.push_back(part.expert);
    CHECK(part.rows == part.all_rows);
  }
  CHECK(told == wrong);
  CHECK(std::is_sorted(print.ran.begin(), print.ran.end()));
  INFO(print.text << ", idle " << numbers_text(idle));
  CHECK_THAT(print.text, Catch::Matchers::StartsWith(fmt::format("experts {} to {}", wrong.front(), wrong.back())));
  CHECK_THAT(print.text, Catch::Matchers::Contains(" only, all their rows; all columns of "));
}

TEST_CASE("numbers are told as inclusive ranges") {
  CHECK(numbers_text({3}) == "3");
  CHECK(numbers_text({3, 4}) == "3 to 4");
  CHECK(numbers_text({0, 3, 4, 5, 9}) == "0, 3 to 5, 9");
}

TEST_CASE("positions that start again with a chunk are named, and one row alone cannot tell it from no rotation") {
  Changed changed(stages::k_post_rope, 1);
  const StepCase& c = changed.c;
  const auto turn = [&](std::int64_t row, std::int64_t position) {
    const host::Values turned = host::rope(host::values_of(c.in[0], row, 1), changed.bench.config().head_dim, position,
                                           {c.step->as<RopeParams>().theta});
    std::copy(turned.begin(), turned.end(), changed.values.begin() + row * c.a.shape.row());
  };
  for (std::int64_t r = 3; r < 7; ++r) turn(r, r - 3);
  const StepExplanation chunk = changed.bench.explain(changed.pass(3, 7));
  CHECK(chunk.cause == StepCause::shifted_position);
  CHECK(chunk.text == "the positions start again at 0 with the chunk");
  const StepExplanation alone = changed.bench.explain(changed.pass(3, 4));
  CHECK(alone.cause == StepCause::shifted_position);
  CHECK(alone.text == "rotated as at position 0: not at all, or the positions start again");

  StepExplanation first = chunk;
  add_later_pass(first, chunk, 5);
  CHECK(first.text == chunk.text);
  StepExplanation none;
  add_later_pass(first, none, 5);
  CHECK(first.text == chunk.text);
  StepExplanation other = chunk;
  other.cause = StepCause::zero;
  add_later_pass(first, other, 5);
  CHECK_THAT(first.text,
             Catch::Matchers::Contains(chunk.text + " fits one pass, and not the values from position 5 on"));
  CHECK(first.cause == StepCause::plain_operator);
}

TEST_CASE("a key gone stale in a row before those looked at is found by the column that is wrong") {
  Changed changed(stages::attn_scores, 1);
  StepCase c = changed.pass(5, 7);
  const ModelConfig& config = changed.bench.config();
  host::Values keys = host::values_of(c.in[1]);
  const std::int64_t width = config.kv_width();
  for (const std::int64_t stale : {2, 4})
    std::copy_n(host::values_of(c.in[1]).begin() + (stale - 1) * width, width, keys.begin() + stale * width);
  for (std::int64_t r = 5; r < 7; ++r) {
    const host::Attention attention(head_sizes(*c.step), r + 1, c.a.shape[2], width);
    const host::Values row =
        host::scores(attention, host::values_of(changed.c.in[0], r, 1), keys, c.step->as<ScoresParams>().scale);
    std::copy(row.begin(), row.end(), changed.values.begin() + r * c.a.shape.row());
  }
  const StepExplanation e = changed.bench.explain(c);
  CHECK(e.cause == StepCause::stale_kv);
  CHECK(e.text == "the keys of positions 2, 4 are those of the position before");
}

TEST_CASE("a value gone stale in a row before those looked at is found") {
  Changed changed(stages::attention, 1);
  StepCase c = changed.pass(5, 7);
  const ModelConfig& config = changed.bench.config();
  const std::int64_t width = config.kv_width(), offset = c.step->caches[0].column;
  host::Values values;
  for (std::int64_t p = 0; p < 7; ++p) {
    const host::Values row = host::values_of(c.in[1], p == 2 ? 1 : p, 1);
    values.insert(values.end(), row.begin() + offset, row.begin() + offset + width);
  }
  for (std::int64_t r = 5; r < 7; ++r) {
    const host::Attention attention(head_sizes(*c.step), r + 1, changed.c.in[0].shape[2], width);
    const host::Values row = host::mix(attention, host::values_of(changed.c.in[0], r, 1), values);
    std::copy(row.begin(), row.end(), changed.values.begin() + r * c.a.shape.row());
  }
  const StepExplanation e = changed.bench.explain(c);
  CHECK(e.cause == StepCause::stale_kv);
  CHECK(e.text == "the value of position 2 is that of the position before");
}

}  // namespace moe_diag::test
