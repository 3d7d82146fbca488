// SPDX-License-Identifier: MIT
// The cpu lanes' promises: what must not change a byte.
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

const std::vector<std::string> all_numerics = {"f64", "f32", "bf16", "q8_k"};

std::vector<std::int32_t> tokens_of(int count) {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(i * 97 % 509);
  return tokens;
}

Model tiny(const std::string& quant = "q4_k_m", const std::string& preset = "tiny") {
  SyntheticSpec spec;
  spec.preset = preset;
  spec.seed = 7;
  spec.quant = quant;
  return Model::synthetic(spec);
}

Recorder record(const std::string& quant, const Keys& keys, const std::vector<std::int32_t>& tokens,
                int chunk = 1 << 20, const std::string& preset = "tiny") {
  Lockstep lockstep(tiny(quant, preset), {lane_spec("lane", keys)}, static_cast<int>(tokens.size()));
  return lockstep.record(tokens, chunk);
}

void check_same(Recorder& a, Recorder& b, const std::string& what) {
  REQUIRE(a.all().size() >= 23 * 4 + 3);
  REQUIRE(a.all().size() == b.all().size());
  for (const auto& [key, seen] : a.all()) {
    INFO(what << ": " << name_of(key.second.stage) << ", layer " << key.second.layer);
    CHECK(seen == b.at(0, key.second));
  }
}

// When layer 1's attn_norm is shown: what the lane has as qkv_matmul, which is the step behind it.
class Peek final : public Hook {
 public:
  explicit Peek(RunningLane& lane) : lane_(lane) {}
  bool wants(int, int, Site) const override { return true; }
  void show(Sighting& sighting) override {
    if (!(sighting.site == Site{stages::attn_norm, 1})) return;
    const Tensor t = lane_.read({stages::qkv_matmul, 1}, sighting.rows());
    seen_.assign(t.as<std::byte>(), t.as<std::byte>() + t.bytes());
  }
  const std::vector<std::byte>& seen() const { return seen_; }

 private:
  RunningLane& lane_;
  std::vector<std::byte> seen_;
};

}  // namespace

TEST_CASE("a lane that returns early computes ahead of those who look, unless its values are replaced") {
  for (const bool early : {false, true})
    for (const bool fed : {false, true}) {
      Lockstep lockstep(
          tiny(),
          {lane_spec("truth", {{"numerics", "f64"}}),
           lane_spec("lane", fed ? Keys{{"numerics", "f32"}, {"inputs", "truth"}} : Keys{{"numerics", "f32"}})},
          9);
      Recorder plain = lockstep.record(tokens_of(9));
      lockstep.lanes()[1].description.asynchronous = early;
      Peek peek(lockstep.lanes()[1]);
      Recorder seen(2);
      lockstep.run(tokens_of(9), {&seen, &peek});
      for (const auto& [key, what] : plain.all()) CHECK(what == seen.all().at(key));
      const bool was_ahead = peek.seen() == seen.at(1, {stages::qkv_matmul, 1}).bytes;
      INFO("early " << early << ", fed " << fed);
      CHECK(was_ahead == (early && !fed));
    }
}

TEST_CASE("a fault is in what comes behind it, though a lane computes ahead") {
  Lockstep lockstep(tiny(), {lane_spec("lane", {{"numerics", "f32"}})}, 3);
  lockstep.lanes()[0].description.asynchronous = true;
  Recorder healthy(1), faulty(1);
  lockstep.run(tokens_of(3), {&healthy});
  PlantedFault fault;
  fault.lane = 0;
  fault.spec.kind = FaultSpec::Kind::nan;
  fault.spec.stage = stages::attn_norm;
  fault.spec.layer = 1;
  lockstep.run(tokens_of(3), {&faulty}, {fault});
  CHECK(healthy.at(0, {stages::qkv_matmul, 0}) == faulty.at(0, {stages::qkv_matmul, 0}));
  CHECK_FALSE(healthy.at(0, {stages::qkv_matmul, 1}) == faulty.at(0, {stages::qkv_matmul, 1}));
}

TEST_CASE("threads change no byte") {
  for (const std::string& numerics : all_numerics) {
    Recorder one = record("q4_k_m", {{"numerics", numerics}, {"threads", "1"}}, tokens_of(33));
    for (const std::string threads : {"2", "7"}) {
      Recorder many = record("q4_k_m", {{"numerics", numerics}, {"threads", threads}}, tokens_of(33));
      check_same(one, many, numerics + ", " + threads + " threads");
    }
  }
}

TEST_CASE("the instruction set changes no byte of a lane in f32, bf16 or q8_k") {
  for (const std::string numerics : {"f32", "bf16", "q8_k"})
    for (const std::string quant : {"f32", "f16", "bf16", "q8_0", "q4_k_m"}) {
      Recorder best = record(quant, {{"numerics", numerics}}, tokens_of(9));
      for (const std::string set : {"avx512", "avx2", "neon", "scalar"}) {
        try {
          Recorder other = record(quant, {{"numerics", numerics}, {"instruction_set", set}}, tokens_of(9));
          check_same(best, other, numerics + ", " + quant + ", " + set);
        } catch (const Error& e) {
          // Not every processor has every set; all have the plain one.
          INFO(e.what());
          CHECK(set != "scalar");
          CHECK(e.kind() == ErrorKind::usage);
        }
      }
    }
}

TEST_CASE("every numerics computes differently, and says what it is") {
  std::vector<Recorder> lanes;
  for (const std::string& numerics : all_numerics) {
    Lockstep lockstep(tiny(), {lane_spec("lane", {{"numerics", numerics}})}, 3);
    CHECK(lockstep.lanes()[0].description.numerics == numerics);
    lanes.push_back(lockstep.record({1, 2, 3}));
    for (std::size_t i = 0; i + 1 < lanes.size(); ++i)
      CHECK_FALSE(lanes[i].at(0, {stages::lm_head, -1}) == lanes.back().at(0, {stages::lm_head, -1}));
  }
}

TEST_CASE("a token alone, in a batch of 33 and in chunks gives the same bytes") {
  for (const std::string& numerics : all_numerics) {
    Recorder batch = record("q4_k_m", {{"numerics", numerics}}, tokens_of(33));
    Recorder alone = record("q4_k_m", {{"numerics", numerics}}, tokens_of(33), 1);
    check_same(batch, alone, numerics + ", token by token");
    Recorder chunks = record("q4_k_m", {{"numerics", numerics}}, tokens_of(33), 8);
    check_same(batch, chunks, numerics + ", chunks of 8");
  }
}

TEST_CASE("an architecture with other operators gives the same bytes in every form") {
  const std::string preset = "tiny-qwen2moe";
  for (const std::string& numerics : all_numerics) {
    Recorder batch = record("q4_k_m", {{"numerics", numerics}}, tokens_of(33), 33, preset);
    for (int chunk : {1, 8}) {
      Recorder chunks = record("q4_k_m", {{"numerics", numerics}}, tokens_of(33), chunk, preset);
      check_same(batch, chunks, numerics + ", chunks of " + std::to_string(chunk));
    }
    Recorder threads = record("q4_k_m", {{"numerics", numerics}, {"threads", "7"}}, tokens_of(33), 33, preset);
    check_same(batch, threads, numerics + ", 7 threads");
    if (numerics == "f64") continue;
    Recorder plain =
        record("q4_k_m", {{"numerics", numerics}, {"instruction_set", "scalar"}}, tokens_of(33), 33, preset);
    check_same(batch, plain, numerics + ", scalar");
  }
}

TEST_CASE("looking changes no byte") {
  for (const std::string& numerics : all_numerics) {
    Lockstep lockstep(tiny(), {lane_spec("lane", {{"numerics", numerics}})}, 33);
    Recorder everything(1), head_only(1, false);
    lockstep.run(tokens_of(33), {&everything});
    lockstep.run(tokens_of(33), {&head_only});
    REQUIRE(head_only.all().size() == 1);
    CHECK(everything.at(0, {stages::lm_head, -1}) == head_only.at(0, {stages::lm_head, -1}));
  }
}

TEST_CASE("a change of one input bit changes bytes") {
  Recorder a = record("q4_k_m", {{"numerics", "f32"}}, {1, 2, 3});
  Recorder b = record("q4_k_m", {{"numerics", "f32"}}, {1, 2, 4});
  CHECK_FALSE(a.at(0, {stages::lm_head, -1}) == b.at(0, {stages::lm_head, -1}));
}

}  // namespace moe_diag::test
