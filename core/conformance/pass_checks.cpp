// SPDX-License-Identifier: MIT
#include "core/conformance/pass_checks.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/conformance/made_inputs.hpp"
#include "core/conformance/plain_pass.hpp"
#include "core/conformance/step_checks.hpp"
#include "core/conformance/walked_lane.hpp"

namespace moe_diag {
namespace {

// Calls `look(lane)` with a fresh lane of every model for whole passes that the backend takes, up to the first failure.
template <class Look>
Seen for_each_whole(BackendTrial& t, Look look) {
  Seen seen = not_tried("it takes none of the models for whole passes");
  for (const TriedModel& model : tried_models()) {
    if (!model.is_whole) continue;
    std::unique_ptr<TriedLane> lane = t.open(model);
    if (!lane) continue;
    WalkedLane walked(std::move(lane));
    seen = look(walked);
    if (!seen.failure.empty() || !seen.not_tried.empty()) return seen;
  }
  return seen;
}

// The errors that rounding allows the logits of a whole pass, and the logits in double.
struct Truth {
  std::vector<double> allowed;
  CopiedTensor logits;
};

Truth truth_of(const WalkedLane& walked, const LaneNumerics& numerics, std::span<const std::int32_t> tokens) {
  const TriedModel& model = walked.model();
  PlainPass pass = plain_pass(model, tokens);
  Truth truth{allowed_errors(model, model.program, pass, numerics), {}};
  compute_plainly(model, model.program, pass);
  const Site site = walked.logits();
  const Shape shape = model.config().shape_of(site, pass.rows, pass.rows);
  truth.logits = CopiedTensor(Tensor{pass.of[site.stage.index()].data(), DType::f64, shape});
  return truth;
}

bool same_bytes(const CopiedTensor& a, const CopiedTensor& b, Stage stage) { return !first_difference(a, b, stage, 0); }

bool is_third(std::size_t i) { return i % 3 == 2; }
bool is_seventh(std::size_t i) { return i % 7 == 3; }

// Steps taken together give as many as one by one or fewer: the same at any time.
std::string inconstant(TriedLane& lane, const std::vector<std::size_t>& before) {
  const std::span<const Step> program = lane.model().program;
  for (std::size_t i = 0; i < program.size(); ++i)
    if (const std::size_t now = lane.supports(program.subspan(i)); now != before[i])
      return fmt::format("supports: said {} of the {} steps from {} on, and says {} now", before[i], program.size() - i,
                         text_of(program[i]), now);
  return "";
}

std::vector<std::size_t> supported(TriedLane& lane) {
  std::vector<std::size_t> all;
  const std::span<const Step> program = lane.model().program;
  for (std::size_t i = 0; i < program.size(); ++i) all.push_back(lane.supports(program.subspan(i)));
  return all;
}

bool same_abilities(const Abilities& a, const Abilities& b) {
  return a.recomputes == b.recomputes && a.rewinds == b.rewinds && a.shows_caches == b.shows_caches;
}

}  // namespace

Seen opens_what_it_claims(BackendTrial& t) {
  std::string operators;
  std::size_t opened = 0;
  for (const TriedModel& model : tried_models()) {
    const std::unique_ptr<TriedLane> lane = t.open(model);
    if (!lane) continue;
    ++opened;
    const Abilities abilities = lane->abilities();
    const std::vector<std::size_t> before = supported(*lane);
    lane->begin_at(made_tokens(model.config(), 2));
    if (std::string failure = inconstant(*lane, before); !failure.empty()) return failed(failure);
    if (before.front() == model.program.size()) lane->run(model.program);
    if (std::string failure = inconstant(*lane, before); !failure.empty()) return failed(failure);
    if (!same_abilities(abilities, lane->abilities())) return failed("abilities: they are others behind a pass");
    for (const Step& step : model.program)
      if (!lane->computes(step) && operators.find(operator_of(step).name) == operators.npos)
        operators += fmt::format("{}{}", operators.empty() ? "" : ", ", operator_of(step).name);
  }
  const std::string refused = t.refusals();
  if (opened == 0) return failed("it refuses every model: " + refused);
  Seen seen;
  if (!refused.empty()) seen.note = "not tried, since it refuses them: " + refused;
  if (!operators.empty())
    seen.note += fmt::format("{}left to the plain operators: {}", seen.note.empty() ? "" : "; ", operators);
  return seen;
}

Seen passes_are_right(BackendTrial& t) {
  return for_each_whole(t, [](WalkedLane& walked) {
    const std::vector<std::int32_t> tokens = made_tokens(walked.model().config(), 40);
    for (const Portion portion : {Portion{0, 16}, {16, 1}, {17, 7}, {24, 16, 15}})
      if (std::string failure = walked.walk(tokens, portion, 1); !failure.empty()) return failed(failure);
    const std::vector<std::int32_t> longer = made_tokens(walked.model().config(), most_rows + 9);
    for (const Portion portion : {Portion{0, most_rows, most_rows - 1}, {most_rows, 1}, {most_rows + 1, 8}})
      if (std::string failure = walked.walk(longer, portion, 3); !failure.empty()) return failed(failure);
    walked.run_unobserved(tokens, {0, 16}, 4);
    walked.run_unobserved(tokens, {16, 1}, 4);
    walked.run_unobserved(tokens, {17, 22}, 4);
    walked.run_unobserved(tokens, {39, 1}, 4);
    const CopiedTensor chunks = walked.own().read_all(walked.logits());
    const CopiedTensor whole = walked.run_unobserved(tokens, {0, 40, 39}, 5);
    Seen seen;
    seen.note = same_bytes(whole, chunks, walked.logits().stage) ? "the same bytes in one pass and in several"
                                                                 : "other bytes in one pass than in several";
    return seen;
  });
}

Seen sequences_are_separate(BackendTrial& t) {
  return for_each_whole(t, [](WalkedLane& walked) {
    const ModelConfig& config = walked.model().config();
    const std::vector<std::int32_t> both = made_tokens(config, 44);
    const std::vector<std::int32_t> one(both.begin(), both.begin() + 24), other(both.begin() + 24, both.end());
    if (std::string failure = walked.walk(one, {0, 24}, 1); !failure.empty()) return failed(failure);
    if (std::string failure = walked.walk(other, {0, 9}, 2); !failure.empty())
      return failed("a second sequence: " + failure);
    if (std::string failure = walked.walk(one, {0, 20}, 1); !failure.empty())
      return failed("the first sequence again: " + failure);
    if (!walked.own().abilities().rewinds) return Seen{"", "it says that it does not rewind"};
    for (const Portion back : {Portion{8, 5}, {13, 3}, {3, 21}})
      if (std::string failure = walked.walk(one, back, 1); !failure.empty())
        return failed(fmt::format("rewound to position {}: {}", back.first, failure));
    return Seen();
  });
}

Seen passes_of_any_length(BackendTrial& t) {
  return for_each_whole(t, [&](WalkedLane& walked) {
    const LaneNumerics numerics = numerics_of(walked.own());
    for (const int rows : {1, 33, 7, most_rows, 2}) {
      const std::vector<std::int32_t> tokens = made_tokens(walked.model().config(), rows);
      const Portion all{0, rows};
      const CopiedTensor found = walked.run_unobserved(tokens, all, rows);
      WalkedLane fresh(t.open(walked.model()));
      const CopiedTensor expected = fresh.run_unobserved(tokens, all, 1);
      if (same_bytes(found, expected, walked.logits().stage)) continue;
      const Truth truth = truth_of(walked, numerics, tokens);
      if (std::string failure = difference_of(found, expected, truth.allowed); !failure.empty())
        return failed(fmt::format("{}, {} rows behind passes of other lengths, beside a fresh lane: {}",
                                  name_of(walked.logits().stage), rows, failure));
    }
    return Seen();
  });
}

Seen observed_or_not(BackendTrial& t) {
  return for_each_whole(t, [](WalkedLane& walked) {
    const LaneNumerics numerics = numerics_of(walked.own());
    const std::vector<std::int32_t> both = made_tokens(walked.model().config(), 48);
    const std::vector<std::int32_t> tokens(both.begin(), both.begin() + 24), others(both.begin() + 24, both.end());
    const Truth truth = truth_of(walked, numerics, tokens);
    const Portion all{0, 24};
    walked.watch(tokens, all, 1);
    const CopiedTensor expected = walked.own().read_all(walked.logits());
    if (std::string failure = difference_of(expected, truth.logits, truth.allowed); !failure.empty())
      return failed(fmt::format("{}, every output wanted, beside the plain operators: {}",
                                name_of(walked.logits().stage), failure));
    Seen seen{"", "the same bytes"};
    const auto compare = [&](const CopiedTensor& found, const char* wanted) {
      if (same_bytes(found, expected, walked.logits().stage)) return;
      seen.note = "within rounding, other bytes";
      if (std::string failure = difference_of(found, expected, truth.allowed); !failure.empty() && seen.failure.empty())
        seen.failure = fmt::format("{}, {} wanted, beside every output wanted: {}", name_of(walked.logits().stage),
                                   wanted, failure);
    };
    walked.watch(others, all, 2);  // so that nothing of the same tokens lies in unwanted outputs
    compare(walked.run_unobserved(tokens, all, 3), "the last output alone");
    walked.watch(others, all, 4);
    compare(walked.run_observed(tokens, 5, is_third), "every third output");
    walked.watch(others, all, 6);
    compare(walked.run_observed(tokens, 7, is_seventh), "every seventh output");
    return seen;
  });
}

}  // namespace moe_diag
