// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <set>
#include <string>

#include "core/conformance/conformance.hpp"
#include "core/conformance/recorded_run.hpp"
#include "core/plugin/host.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/locale.hpp"
#include "tests/support/process.hpp"
#include "tests/support/stages.hpp"

// What core/api/sink.hpp promises, asked of every sink that is built, and of sinks that break one promise each.
namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

using OptionList = std::vector<std::pair<std::string, std::string>>;

std::vector<ConformanceCheck> checks_of(const std::string& path, const OptionList& options = {},
                                        std::chrono::milliseconds call_limit = std::chrono::minutes(1)) {
  std::vector<ConformanceCheck> checks;
  check_conformance(path, {options, call_limit}, [&](const ConformanceCheck& check) { checks.push_back(check); });
  return checks;
}

TEST_CASE("every sink that is built keeps every promise") {
  int sinks = 0;
  for (const PluginRecord& record : PluginHost({MOE_DIAG_PLUGINS}).list()) {
    if (record.kind != PluginKind::sink || !record.absent.empty()) continue;
    ++sinks;
    const auto checks = checks_of(record.path);
    CHECK(checks.size() == 17);
    for (const ConformanceCheck& check : checks) {
      INFO(record.name << ": " << check.promise << ": " << check.failure);
      CHECK(check.failure.empty());
    }
  }
  CHECK(sinks >= 2);
}

std::string bad_path(const std::string& test_case) {
  return std::string(MOE_DIAG_BAD_PLUGINS) + "/" + test_case + "/moe_diag_sink_bad.so";
}

struct Breach {
  const char* breaks;
  const char* promise;
  const char* failure;
};
// The address sanitizer ends the process at the very write.
#if defined(__SANITIZE_ADDRESS__)
constexpr Breach past_view_breach{"past_view", "it is built, opened and given an event",
                                  "embedding, position 1): the process ended there"};
#else
constexpr Breach past_view_breach{"past_view", "tensors, and what lies beside them",
                                  "consume: wrote at byte 2048 of the 2048 bytes of embedding"};
#endif

TEST_CASE("a sink that breaks a promise is told which, and what was seen") {
  const TemporaryFolder locales, elsewhere;
  ::setenv("MOE_DIAG_TEST_FAR", (elsewhere / "far").c_str(), 1);
  if (!make_comma_locale(locales).empty()) ::setenv("LOCPATH", locales.str().c_str(), 1);
  for (const Breach& breach : {
           Breach{"build", "building it touches nothing on disk", "/built"},
           Breach{"options_read", "it reads the options it lists", "lists the option 'unread' and does not read it"},
           Breach{"options_unknown", "an unknown option is refused", "wanted an Error of kind usage, found none"},
           Breach{"thread", "every type and shape of event is taken",
                  "embedding, position 1): called from another thread"},
           Breach{"build_far", "building it touches nothing on disk", "wrote "},
           Breach{"outside", "nothing is written outside --out", "/outside"},
           Breach{"far", "nothing is written outside --out", "/far"},
           Breach{"far_child", "nothing is written outside --out", "/far"},
           Breach{"far_removed", "nothing is written outside --out", "removed "},
           Breach{"bytes", "no more is written than it says", "output: said at most 100 bytes, wrote "},
           Breach{"place", "no more is written than it says", "output: said elsewhere, wrote sums.npy"},
           Breach{"repeat", "the same events give the same bytes", "sums.npy differs between two runs"},
           Breach{"view", "tensors, and what lies beside them", "consume: wrote at byte 0 of the "},
           past_view_breach,
           Breach{"copy", "what is kept is copied", "sums.npy differs when tensor and positions are overwritten"},
           Breach{"empty", "a run without events is complete", "wrote nothing below --out"},
           Breach{"existing", "an existing output is refused", "open: wanted an Error of kind usage, found none"},
           Breach{"overwrite", "an existing output is replaced with --overwrite",
                  "sums.npy differs from that of a run"},
           Breach{"unclosed", "what was never closed is replaced with --overwrite", "sums.npy.part differs"},
           Breach{"unwritable", "where nothing can be written, open fails", "wanted an Error of kind environment"},
           Breach{"locale", "the locale changes no byte", "sums.npy differs under"},
           Breach{"die", "it is built, opened and given an event",
                  "consume (prompt 'short', lane 'truth', embedding, position 1): the process died: Aborted"},
           Breach{"refuse_all", "it is built, opened and given an event", "consume: it refuses every stage"},
           Breach{"throw", "it is built, opened and given an event",
                  "embedding, position 1): threw something that is not an exception"},
           Breach{"last_event", "every type and shape of event is taken",
                  "consume (prompt 'short', lane 'truth', layer 0, moe_router_weights, positions 0 to 1): weights of "
                  "lane 0 "
                  "came after the experts of lane 2"},
       }) {
    INFO(breach.breaks);
    const auto checks = checks_of(bad_path("breaks_promise"), {{"breaks", breach.breaks}});
    const auto check = std::find_if(checks.begin(), checks.end(),
                                    [&](const ConformanceCheck& c) { return c.promise.starts_with(breach.promise); });
    REQUIRE(check != checks.end());
    if (!check->not_tried.empty()) WARN(breach.promise << ": " << check->not_tried);
    if (check->not_tried.empty()) CHECK_THAT(check->failure, Contains(breach.failure));
  }
}

TEST_CASE("one that breaks none keeps all, and stages that a sink refuses are left out") {
  for (const char* breaks : {"nothing", "refuse_indices"}) {
    const auto checks = checks_of(bad_path("breaks_promise"), {{"breaks", breaks}});
    CHECK(checks.size() == 17);
    for (const ConformanceCheck& check : checks) CHECK(check.failure == "");
    CHECK(checks.at(0).note ==
          (breaks == std::string("nothing") ? "" : "left out, since it refuses them: moe_router_indices"));
  }
}

TEST_CASE("a call that does not return is broken off, and said with what it was given") {
  const auto first = checks_of(bad_path("breaks_promise"), {{"breaks", "hang"}}, std::chrono::milliseconds(300));
  REQUIRE(first.size() == 17);
  CHECK(first[0].failure ==
        "consume (prompt 'short', lane 'truth', embedding, position 1): had not returned after 0.3 s");
  for (std::size_t i = 1; i < first.size(); ++i) CHECK(first[i].not_tried == "a call did not return");

  const auto later = checks_of(bad_path("breaks_promise"), {{"breaks", "hang_late"}}, std::chrono::seconds(2));
  REQUIRE(later.size() == 17);
  CHECK(later[5].failure ==
        "consume (prompt 'short', lane 'truth', layer 2, attn_norm, position 1): had not returned after 2 s");
  for (std::size_t i = 6; i < later.size(); ++i) CHECK(later[i].not_tried == "a call did not return");
}

TEST_CASE("what sinks are tried with is what a run of several lanes gives them") {
  const std::vector<RecordedEvent>& events = recorded_run().events;
  std::set<std::string_view> stages;
  std::set<int> layers, lanes, prompts;
  std::set<DType> types;
  std::set<std::pair<int, std::size_t>> passes;  // a site that comes more than once in a prompt
  int interleaved = 0, with_gaps = 0;
  for (std::size_t i = 0; i < events.size(); ++i) {
    const RecordedEvent& e = events[i];
    stages.insert(name_of(e.site.stage));
    layers.insert(e.site.layer);
    lanes.insert(e.lane);
    prompts.insert(e.prompt);
    types.insert(e.dtype);
    if (e.site.stage == stages::moe_ffn_out && e.site.layer == 1 && e.lane == 1) passes.insert({e.prompt, i});
    if (i > 0 && events[i - 1].site == e.site && events[i - 1].lane != e.lane) ++interleaved;
    if (e.positions.back() - e.positions.front() >= std::ssize(e.positions)) ++with_gaps;
  }
  CHECK(stages.size() == qwen3moe.stages.size());
  CHECK(layers == std::set<int>{-1, 0, 1, 2});
  CHECK(lanes == std::set<int>{0, 1, 2});  // the fourth is absent
  CHECK(prompts == std::set<int>{0, 1});
  CHECK(types == std::set<DType>{DType::f32, DType::f64, DType::i32});
  CHECK(passes.size() > prompts.size());
  CHECK(interleaved == static_cast<int>(events.size()) / 3 * 2);  // three lanes, one after the other, at every site
  CHECK(with_gaps > 0);
  // Forward order within each pass: a site never comes before one that it needs.
  for (std::size_t i = 1; i < events.size(); ++i)
    if (events[i].prompt == events[i - 1].prompt && events[i].site < events[i - 1].site)
      CHECK(events[i - 1].site.stage == stages::lm_head);
}

TEST_CASE("the command says a line a check, and ends as a claim does") {
  const std::string sink = bad_path("breaks_promise");
  const TemporaryFolder locales;
  if (!make_comma_locale(locales).empty()) ::setenv("LOCPATH", locales.str().c_str(), 1);
  const Finished kept = run_tool("plugins --conformance " + quoted(sink));
  CHECK(kept.code == 0);
  CHECK_THAT(kept.out, Contains("ok      it is built, opened and given an event\n") && Contains("17 kept, 0 broken"));

  const Finished broken = run_tool("plugins --conformance " + quoted(sink) + " --option breaks=empty");
  CHECK(broken.code == 1);
  CHECK_THAT(broken.out, Contains("BROKEN  a run without events is complete\n        wrote nothing below --out\n"));
  CHECK_THAT(broken.out, Contains("16 kept, 1 broken"));

  const auto refused = [](const std::string& arguments, int code, const std::string& message) {
    const Finished finished = run_tool("plugins --conformance " + arguments);
    INFO(arguments);
    CHECK(finished.code == code);
    CHECK_THAT(finished.err, Contains(message));
  };
  refused("/nowhere/moe_diag_sink_x.so", 2, "no such file");
  refused("''", 2, "wanted a plugin");
  refused("README.md", 2, "wanted a plugin, a file called moe_diag_sink_<name>.so or moe_diag_backend_<name>.so");
  refused("moe_diag_tool_x.so", 2, "wanted a plugin");
  refused(quoted(bad_path("wrong_abi")), 4, "it has ABI 4711");
  refused(quoted(bad_path("not_a_library")), 4, "not a shared library");
  refused(quoted(sink) + " --option breaks", 2, "wanted KEY=VALUE");
  refused(quoted(sink) + " --option break=copy", 2, "unknown key 'break', did you mean 'breaks'?");
  refused(quoted(sink) + " --option breaks=glass", 2, "--option breaks=glass: expected one of nothing, build");
  refused(quoted(sink) + " --option file=../x", 2, "expected a path below --out");
}

}  // namespace
}  // namespace moe_diag
