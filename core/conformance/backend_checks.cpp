// SPDX-License-Identifier: MIT
#include "core/conformance/backend_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "core/conformance/made_inputs.hpp"
#include "core/conformance/pass_checks.hpp"
#include "core/conformance/step_checks.hpp"

namespace moe_diag {
namespace {

struct Promise {
  std::string text;
  Seen (*look)(BackendTrial&);
};

// The first model that the backend takes with these options, else the first: what it throws is then about options.
const TriedModel& taken_model(BackendTrial& t) {
  for (const TriedModel& model : tried_models()) try {
      if (!model.is_whole) continue;
      t.describe(model, t.options());
      return model;
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::absent) throw;
    }
  return tried_models().front();
}

// The kind of the error with which describing ends, as text; empty: it ends without one.
std::string refusal_of(BackendTrial& t, const PluginOptions& changed) {
  const TriedModel& model = taken_model(t);
  try {
    t.describe(model, t.options(changed));
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::absent) throw;
    return e.kind() == ErrorKind::usage ? "usage" : fmt::format("environment: {}", e.what());
  } catch (const std::exception& e) {
    return fmt::format("another exception: {}", e.what());
  }
  return "";
}

std::string not_refused(BackendTrial& t, const std::string& key, const std::string& value) {
  const std::string found = refusal_of(t, {{key, value}});
  if (found == "usage") return "";
  return fmt::format("{}: '{}': wanted an Error of kind usage, found {}", key, value, found.empty() ? "none" : found);
}

Seen reads_its_options(BackendTrial& t) {
  const Options options = t.options();
  t.describe(taken_model(t), options);
  for (const OptionInfo& option : t.record().options)
    if (!options.asked(option.name))
      return failed(fmt::format("lists the option '{}' and does not read it in describe", option.name));
  return {};
}

Seen refuses_unknown_option(BackendTrial& t) { return failed(not_refused(t, "no_backend_reads_this", "1")); }

Seen refuses_wrong_values(BackendTrial& t) {
  for (const OptionInfo& option : t.record().options)
    if (!accepts(option, "no such value"))
      if (std::string seen = not_refused(t, option.name, "no such value"); !seen.empty()) return failed(seen);
  return {};
}

const std::vector<Promise>& of_options() {
  static const std::vector<Promise> promises{
      {"it reads the options it lists", &reads_its_options},
      {"an unknown option is refused", &refuses_unknown_option},
      {"a value that an option cannot have is refused", &refuses_wrong_values},
  };
  return promises;
}

const std::vector<Promise>& of_numerics() {
  static const std::vector<Promise> promises{
      {"it opens what it describes, and supports() and abilities() stay as they are", &opens_what_it_claims},
      {fmt::format("a step errs by at most {:g} times its predicted rounding, 1 to {} rows", failing_error, most_rows),
       &steps_are_right},
      {"so does a span of steps that it computes together only", &spans_are_right},
      {"so does a step on large, tiny, denormal, constant and zero inputs", &extremes_are_right},
      {"a NaN or an infinity stays in its row, and is not lost", &rows_are_separate},
      {"the same inputs give the same bytes, in every lane", &steps_repeat},
      {"a sequence in several passes is computed as in one", &passes_are_right},
      {"sequences do not mix, and one is continued from any position", &sequences_are_separate},
      {"a pass of any length follows any other", &passes_of_any_length},
      {"what is wanted changes no result", &observed_or_not},
      {"a stage that was written is read, in every type", &reads_what_was_written},
      {"a cache is shown as it is, and takes what is written", &shows_its_caches},
  };
  return promises;
}

// The numerics to be tried; one without a name where it has no such option.
std::vector<std::string> numerics_of(const TriedPlugin& plugin, const PluginOptions& given) {
  for (const auto& [key, value] : given)
    if (key == "numerics") return {value};
  for (const OptionInfo& option : plugin.record.options) {
    if (std::string_view(option.name) != "numerics" || option.type != OptionType::choice) continue;
    std::istringstream words(option.choices);
    std::vector<std::string> all;
    for (std::string word; words >> word;) all.push_back(word);
    return all;
  }
  return {""};
}

Seen tried(TriedPlugin& plugin, const std::string& numerics, Seen (*look)(BackendTrial&)) {
  return in_own_process(plugin.call_limit, [&](const std::filesystem::path&, CallTrail& trail) {
    BackendTrial trial(plugin, trail, numerics);
    try {
      return look(trial);
    } catch (const NotTried& e) {
      return not_tried(e.why);
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::absent) return not_tried(e.what());
      throw;
    }
  });
}

// Computes once what the processes of several numerics compare with.
void prepare() {
  for (const TriedModel& model : tried_models())
    for (const std::size_t step : model.steps) {
      if (has_keys(model.program[step])) continue;
      plain_step(model, step, rows_of(model), {});
      if (has_choice(model.program[step])) plain_step(model, step, skewed_rows, {Making::random, true});
      for (const Making making : extremes) plain_step(model, step, extreme_rows, {making});
    }
}

// Why nothing can be tried, such as a device that is not there; empty: it can.
std::string absence(TriedPlugin& plugin, const std::string& numerics) {
  return tried(plugin, numerics,
               [](BackendTrial& t) {
                 taken_model(t);
                 return Seen();
               })
      .not_tried;
}

}  // namespace

void check_backend(TriedPlugin& plugin, const ConformanceOptions& options,
                   const std::function<void(const ConformanceCheck&)>& report) {
  tried_models();  // before the first process that needs them
  std::string why_not;
  const auto check = [&](const std::string& numerics, const Promise& promise) {
    if (promise.text.find(options.only) == std::string::npos) return true;
    const Seen seen = why_not.empty() ? tried(plugin, numerics, promise.look) : not_tried(why_not);
    if (seen.hangs) why_not = "a call did not return";
    report({(numerics.empty() ? "" : numerics + ": ") + promise.text, seen.failure, seen.note, seen.not_tried});
    return seen.failure.empty();
  };
  for (const Promise& promise : of_options()) check("", promise);
  bool is_prepared = false;
  for (const std::string& numerics : numerics_of(plugin, options.plugin)) {
    if (why_not.empty()) why_not = absence(plugin, numerics);
    if (why_not.empty() && !std::exchange(is_prepared, true)) prepare();
    bool opens = true;
    for (const Promise& promise : of_numerics()) {
      if (!opens && why_not.empty()) why_not = "it is not opened";
      const bool kept = check(numerics, promise);
      if (&promise == &of_numerics().front()) opens = kept;
    }
    if (why_not != "a call did not return") why_not.clear();
  }
}

}  // namespace moe_diag
