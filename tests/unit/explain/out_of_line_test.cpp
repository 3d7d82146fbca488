// SPDX-License-Identifier: MIT
// Positions whose keys or values are further off than those that were looked at are found.
#include "core/explain/out_of_line.hpp"

#include <limits>
#include <vector>

#include "core/model/synthetic.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using test::lane_spec;

class Lockstepped {
 public:
  Lockstepped()
      : lockstep_(Model::synthetic({}),
                  {lane_spec("truth", {{"numerics", "f64"}}), lane_spec("free", {{"numerics", "f32"}})}, 12),
        program_(build_program(lockstep_.model())) {
    lockstep_.run({5, 9, 26, 7, 1, 2, 8, 31, 40, 41, 42, 43}, {});
  }

  // Makes the free lane's row this much larger.
  void scale(Cache cache, int layer, int position, double factor) {
    RunningLane& free = lockstep_.lanes()[1];
    const Tensor row = free.read_cache(cache, layer, {position, 1}, lockstep_.model().config());
    std::vector<double> values;
    for (std::int64_t i = 0; i < row.shape.count(); ++i) values.push_back(row.value(i) * factor);
    free.write_cache(cache, layer, {position, 1}, {values.data(), DType::f64, row.shape});
  }
  std::vector<int> off(Site up_to = {stages::lm_head, -1}) {
    return out_of_line_before({10, 2}, 1, 0, lockstep_.lanes(), steps_up_to(program_, up_to), 2);
  }

 private:
  test::Lockstep lockstep_;
  const Program program_;
};

}  // namespace

TEST_CASE("positions of a lane that is right are in line with each other") { CHECK(Lockstepped().off().empty()); }

TEST_CASE("a key or value that is out of line names its position, once, with what follows from it left out") {
  for (const Cache cache : {caches::keys, caches::values}) {
    Lockstepped lanes;
    lanes.scale(cache, 1, 3, 1.01);
    CHECK(lanes.off() == std::vector<int>{3, 4});
    CHECK(lanes.off({stages::moe_ffn_out, 0}).empty());  // nothing up to there reads it
    CHECK(lanes.off({stages::attn_scores, 1}).empty() == (cache == caches::values));
    lanes.scale(cache, 2, 6, 1.001);  // less than that, further down
    CHECK(lanes.off() == std::vector<int>{3, 4});
    lanes.scale(cache, 2, 8, 2);  // more
    CHECK(lanes.off() == std::vector<int>{3, 4, 8, 9});
    lanes.scale(cache, 0, 9, 1.5);  // the last before those that were looked at, and further up
    CHECK(lanes.off() == std::vector<int>{3, 4, 8, 9});
  }
}

TEST_CASE("NaN is out of line, and what was looked at is the measure") {
  Lockstepped wrong;
  wrong.scale(caches::values, 2, 9, std::numeric_limits<double>::quiet_NaN());
  CHECK(wrong.off() == std::vector<int>{9});
  Lockstepped looked_at;
  looked_at.scale(caches::keys, 1, 3, 1.01);
  looked_at.scale(caches::keys, 1, 11, 1.02);
  CHECK(looked_at.off().empty());
}

}  // namespace moe_diag
