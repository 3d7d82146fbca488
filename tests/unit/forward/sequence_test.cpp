// SPDX-License-Identifier: MIT
#include <vector>

#include "core/forward/sequence.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

// {first, count} of each
std::vector<std::vector<int>> cut(int prompt, int length, int chunk) {
  std::vector<std::vector<int>> list;
  for (const Stretch& s : stretches_of(prompt, length, chunk)) list.push_back({s.first, s.count});
  return list;
}

}  // namespace

TEST_CASE("a prompt is cut into chunks, and what follows it into single positions") {
  CHECK(cut(5, 5, 0) == std::vector<std::vector<int>>{{0, 5}});
  CHECK(cut(5, 5, 9) == std::vector<std::vector<int>>{{0, 5}});
  CHECK(cut(5, 5, 2) == std::vector<std::vector<int>>{{0, 2}, {2, 2}, {4, 1}});
  CHECK(cut(4, 6, 2) == std::vector<std::vector<int>>{{0, 2}, {2, 2}, {4, 1}, {5, 1}});
  CHECK(cut(1, 3, 0) == std::vector<std::vector<int>>{{0, 1}, {1, 1}, {2, 1}});
}

TEST_CASE("a pass has its tokens, the length of the whole sequence, and always a row of the head") {
  const std::vector<std::int32_t> sequence = {10, 11, 12, 13, 14};
  const auto head_first = [&](Stretch s, int from) { return pass_over({0, sequence}, s, from).head_first; };
  const Pass pass = pass_over({7, sequence}, {2, 2}, 0);
  CHECK(pass.sequence == 7);
  CHECK(pass.tokens.data() == sequence.data() + 2);
  CHECK(pass.rows() == 2);
  CHECK(pass.first == 2);
  CHECK(pass.total == 5);
  CHECK(head_first({0, 5}, 4) == 4);
  CHECK(head_first({0, 2}, 4) == 1);  // nobody looks yet: the last row alone
  CHECK(head_first({2, 2}, 3) == 1);
  CHECK(head_first({4, 1}, 0) == 0);
}

}  // namespace moe_diag
