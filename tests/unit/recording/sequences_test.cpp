// SPDX-License-Identifier: MIT
#include "core/recording/sequences.hpp"

#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

using Take = RecordingOptions::Take;

struct Made {
  int first = 0, rows = 0;
  std::vector<std::int32_t> tokens;
};

std::vector<RecordedCall> calls_of(const std::vector<Made>& made) {
  std::vector<RecordedCall> calls;
  for (const Made& m : made) {
    RecordedCall call;
    call.number = static_cast<int>(calls.size());
    call.request = "a";
    call.first = m.first;
    call.rows = m.tokens.empty() ? m.rows : static_cast<int>(m.tokens.size());
    call.tokens = m.tokens;
    calls.push_back(call);
  }
  return calls;
}

// The call that counts at each position; -1: none.
std::vector<int> counting(const std::vector<Made>& made, Take take) {
  const std::vector<RecordedCall> calls = calls_of(made);
  const Sequences sequences(calls, take, "DUMP");
  std::vector<int> counting;
  for (int p = 0; p < sequences.requests()[0].end; ++p) {
    const Span* span = sequences.find(0, p);
    counting.push_back(span ? span->call : -1);
  }
  return counting;
}

std::string refusal(const std::vector<Made>& made, Take take = Take::last) {
  try {
    counting(made, take);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

std::vector<std::int32_t> tokens(const std::vector<Made>& made) {
  const std::vector<RecordedCall> calls = calls_of(made);
  return Sequences(calls, Take::last, "DUMP").requests()[0].tokens;
}

}  // namespace

TEST_CASE("of rejected drafts the rows count that were computed with the accepted tokens") {
  // Drafts 7 and 8 at positions 3 and 4; 7 is accepted, 8 is not: 9 follows. The row of 8 does not count.
  const std::vector<Made> made{{0, 0, {1, 2}}, {2, 0, {3, 7, 8}}, {4, 0, {9, 5, 6}}, {5, 0, {4}}};
  CHECK(counting(made, Take::last) == std::vector<int>{0, 0, 1, 1, 2, 3});
  CHECK(counting(made, Take::first) == std::vector<int>{0, 0, 1, 1, 2, 3});
  CHECK(tokens(made) == std::vector<std::int32_t>{1, 2, 3, 7, 9, 4});
}

TEST_CASE("a draft that comes again behind a rejected one is another row") {
  // 8 at position 4 stood behind the rejected 7, and comes again behind 6: the first row is of another sequence.
  const std::vector<Made> made{{0, 0, {1, 2}}, {2, 0, {3, 7, 8}}, {3, 0, {6, 8}}};
  CHECK(counting(made, Take::first) == std::vector<int>{0, 0, 1, 2, 2});
  CHECK(counting(made, Take::last) == std::vector<int>{0, 0, 1, 2, 2});
}

TEST_CASE("without tokens, take decides about drafts") {
  const std::vector<Made> made{{0, 2, {}}, {2, 3, {}}, {3, 1, {}}};
  CHECK(counting(made, Take::last) == std::vector<int>{0, 0, 1, 2});
  CHECK(counting(made, Take::first) == std::vector<int>{0, 0, 1, 1, 1});
  CHECK(tokens(made).empty());
}

TEST_CASE("a sequence that is computed again counts once") {
  const std::vector<Made> made{{0, 0, {1, 2, 3}}, {3, 0, {4}}, {4, 0, {5}}, {0, 0, {1, 2}}, {2, 0, {3, 4, 5, 6}}};
  CHECK(counting(made, Take::last) == std::vector<int>{3, 3, 4, 4, 4, 4});
  CHECK(counting(made, Take::first) == std::vector<int>{0, 0, 0, 1, 2, 4});
  CHECK(tokens(made) == std::vector<std::int32_t>{1, 2, 3, 4, 5, 6});
}

TEST_CASE("a part that is computed again leaves what stands behind it") {
  const std::vector<Made> made{{0, 0, {1, 2, 3, 4, 5}}, {5, 0, {6}}, {1, 0, {2, 3}}};
  CHECK(counting(made, Take::last) == std::vector<int>{0, 2, 2, 0, 0, 1});
  CHECK(counting(made, Take::first) == std::vector<int>{0, 0, 0, 0, 0, 1});
}

TEST_CASE("positions that were not recorded stay apart") {
  const std::vector<Made> made{{2, 0, {3}}, {5, 0, {6, 7}}, {1, 0, {2, 3, 4}}};
  CHECK(refusal(made).empty());
  CHECK(counting(made, Take::last) == std::vector<int>{-1, 2, 2, 2, -1, 1, 1});
  CHECK(counting(made, Take::first) == std::vector<int>{-1, 2, 0, 2, -1, 1, 1});
  CHECK(tokens(made).empty());
}

TEST_CASE("going back without a reason is refused") {
  CHECK(refusal({{0, 0, {1, 2, 3}}, {3, 0, {4}}, {0, 0, {1, 9, 3}}}) ==
        "DUMP: call 2 of request a goes back to position 0, the request had come to position 3: expected the same "
        "tokens there, found token 9 at position 1, in call 0 it is 2. Give another sequence a `request` of its own; a "
        "call without `first` begins behind the one before");
  CHECK_THAT(refusal({{0, 3, {}}, {0, 3, {}}}),
             Catch::Matchers::Contains("expected tokens that show that the same is computed again, found none"));
  CHECK_THAT(refusal({{0, 0, {1}}, {0, 0, {2}}}), Catch::Matchers::Contains("found token 2 at position 0"));
  CHECK_THAT(refusal({{0, 0, {1, 2}}, {0, 2, {}}}, Take::first), Catch::Matchers::Contains("found none"));
}

TEST_CASE("many calls that go back do not take long") {
  std::vector<Made> made{{0, 0, std::vector<std::int32_t>(4, 1)}};
  for (int i = 0; i < 20000; ++i) made.push_back({4 + 2 * i, 0, {1, 2, 3}});
  CHECK(counting(made, Take::last).size() == 40005);
}

}  // namespace moe_diag
