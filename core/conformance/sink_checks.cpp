// SPDX-License-Identifier: MIT
#include "core/conformance/sink_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <clocale>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <set>
#include <tuple>

#include "core/conformance/trial.hpp"
#include "core/conformance/write_watch.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using OptionList = Trial::OptionList;

// Runs what is tried with all writing outside `allowed` refused and noted.
template <class Body>
Seen watched(const fs::path& allowed, Body&& body) {
  const WriteWatch watch(allowed);
  try {
    body();
  } catch (...) {
    if (WriteWatch::refused().empty()) throw;  // else the sink met the refusal
  }
  if (!WriteWatch::refused().empty()) return failed(WriteWatch::refused());
  if (watch.unavailable().empty()) return {};
  return {"", "", "only its working folder was looked at: " + watch.unavailable()};
}

// Path and bytes of everything below a folder.
using Content = std::vector<std::pair<std::string, std::string>>;
Content content_of(const fs::path& folder) {
  Content content;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    std::string bytes;
    if (entry.is_regular_file()) {
      std::ifstream file(entry.path(), std::ios::binary);
      bytes.assign(std::istreambuf_iterator<char>(file), {});
    }
    content.emplace_back(entry.path().lexically_relative(folder).string(), std::move(bytes));
  }
  std::sort(content.begin(), content.end());
  return content;
}

// The first file that two runs left differently, or nothing.
std::string difference(const Content& a, const Content& b) {
  for (const auto& [first, second] : {std::pair(&a, &b), std::pair(&b, &a)})
    for (const auto& file : *first)
      if (std::find(second->begin(), second->end(), file) == second->end()) return file.first;
  return "";
}

// The error a call ends with, of a kind that the sink's interface asks for; else what was seen instead.
template <class Call>
std::string not_refused(ErrorKind wanted, Call&& call) {
  const std::string_view exit_code = wanted == ErrorKind::usage ? "usage" : "environment";
  try {
    call();
  } catch (const Error& e) {
    if (e.kind() == wanted && !std::string_view(e.what()).empty()) return "";
    return fmt::format("wanted an Error of kind {}, found another kind: {}", exit_code, e.what());
  } catch (const std::exception& e) {
    return fmt::format("wanted an Error of kind {}, found another exception: {}", exit_code, e.what());
  }
  return fmt::format("wanted an Error of kind {}, found none", exit_code);
}

Seen builds_quietly(Trial& t) {
  const fs::path nowhere = t.folder() / "nowhere";  // not there, so nothing can be in it
  const Seen seen = watched(nowhere, [&] { t.make(); });
  if (const Content content = content_of(t.folder()); !content.empty()) return failed("made " + content.front().first);
  return seen;
}

Seen lists_its_options(Trial& t) {
  const Options options = t.options();
  t.make(options);
  for (const OptionInfo& option : t.record().options)
    if (!options.asked(option.name))
      return failed(fmt::format("lists the option '{}' and does not read it in its constructor", option.name));
  return {};
}

Seen refuses_unknown_option(Trial& t) {
  return failed(not_refused(ErrorKind::usage, [&] { t.make(t.options({{"no_sink_reads_this", "1"}})); }));
}

Seen refuses_wrong_values(Trial& t) {
  for (const OptionInfo& option : t.record().options) {
    const std::string value = option.type == OptionType::path ? "../outside" : "no such value";
    if (accepts(option, value)) continue;
    if (const std::string seen = not_refused(ErrorKind::usage,
                                             [&] {
                                               t.make(t.options({{option.name, value}}));
                                             });
        !seen.empty())
      return failed(fmt::format("{}: '{}': {}", option.name, value, seen));
  }
  return {};
}

// As in a run: built by one thread, used by another.
Seen takes_every_event(Trial& t) {
  const TrialRun run(t.out());
  const auto sink = t.make();
  std::future<void> used = std::async(std::launch::async, [&] {
    t.open(*sink, run.info);
    for (const RecordedEvent& event : t.events()) t.consume(*sink, event.view());
    t.close(*sink);
  });
  used.get();
  if (t.writes() && content_of(t.out()).empty()) return failed("wrote nothing below --out");
  return {};
}

Seen writes_below_out(Trial& t) {
  const fs::path out = t.out("below/out");
  const Seen seen = watched(out, [&] { t.deliver(out); });
  for (const auto& [path, bytes] : content_of(t.folder()))
    if (path != "below" && path != "below/out" && !path.starts_with("below/out/")) return failed("wrote " + path);
  return seen;
}

Load load_of(const std::vector<RecordedEvent>& events) {
  Load load;
  std::set<std::tuple<int, int, Site>> arrays;
  for (const RecordedEvent& event : events) {
    arrays.insert({event.prompt, event.lane, event.site});
    load.rows += std::ssize(event.positions);
    load.bytes += event.bytes.size();
  }
  load.tensors = std::ssize(arrays);
  return load;
}

Seen writes_what_it_said(Trial& t) {
  const auto sink = t.make();
  const SinkOutput said = t.output(*sink, load_of(t.events()));
  if (!said.known) return {"", "it does not say how much it writes"};
  const fs::path out = t.out();
  const fs::path place = (out / said.path).lexically_normal();
  t.deliver(out);
  std::uint64_t written = 0;
  for (const auto& [path, bytes] : content_of(out)) {
    written += bytes.size();
    const fs::path inside = (out / path).lexically_normal().lexically_relative(place);
    if (!bytes.empty() && (inside.empty() || *inside.begin() == ".."))
      return failed(fmt::format("output: said {}, wrote {}", said.path, path));
  }
  if (written <= said.bytes) return {};
  return failed(fmt::format("output: said at most {} bytes, wrote {}", said.bytes, written));
}

Seen repeats(Trial& t) {
  t.deliver(t.out("one"));
  t.deliver(t.out("two"));
  const std::string file = difference(content_of(t.out("one")), content_of(t.out("two")));
  return failed(file.empty() ? "" : file + " differs between two runs with the same events");
}

// The tensor between two stretches that nobody may touch.
Seen leaves_tensors_alone(Trial& t) {
  const TrialRun run(t.out());
  const auto sink = t.make();
  t.open(*sink, run.info);
  const std::string margin(256, 'Z');
  for (const RecordedEvent& event : t.events()) {
    const std::string bytes(reinterpret_cast<const char*>(event.bytes.data()), event.bytes.size());
    const std::string before = margin + bytes + margin;
    std::string around = before;
    Event view = event.view();
    view.tensor.data = around.data() + margin.size();
    t.consume(*sink, view);
    if (around == before) continue;
    const auto at = std::mismatch(around.begin(), around.end(), before.begin()).first - around.begin();
    const auto offset = at - static_cast<std::ptrdiff_t>(margin.size());
    return failed(fmt::format("consume: wrote at byte {} of the {} bytes of {}", offset, event.bytes.size(),
                              name_of(event.site.stage)));
  }
  t.close(*sink);
  return {};
}

Seen copies_what_it_keeps(Trial& t) {
  t.deliver(t.out("kept"));
  const TrialRun run(t.out("gone"));
  const auto sink = t.make();
  t.open(*sink, run.info);
  std::vector<RecordedEvent> events = t.events();
  for (RecordedEvent& event : events) {
    t.consume(*sink, event.view());
    std::fill(event.bytes.begin(), event.bytes.end(), std::byte{0xA5});
    std::fill(event.positions.begin(), event.positions.end(), 77);
  }
  t.close(*sink);
  const std::string file = difference(content_of(t.out("kept")), content_of(t.out("gone")));
  return failed(file.empty() ? "" : file + " differs when tensor and positions are overwritten after the call");
}

Seen completes_without_events(Trial& t) {
  const TrialRun run(t.out());
  t.deliver(run.info, {});
  if (t.writes() && content_of(t.out()).empty()) return failed("wrote nothing below --out");
  return {};
}

Seen refuses_existing_output(Trial& t) {
  if (!t.writes()) return {"", "it writes no file"};
  t.deliver(t.out());
  const Content before = content_of(t.out());
  const TrialRun run(t.out());
  const std::string seen = not_refused(ErrorKind::usage, [&] { t.open(*t.make(), run.info); });
  if (!seen.empty()) return failed("open: " + seen);
  const std::string file = difference(before, content_of(t.out()));
  return failed(file.empty() ? "" : "changed " + file);
}

// Whatever an earlier run left, complete or not, the result is the same.
Seen replaces(Trial& t, const std::function<void(const TrialRun&)>& before) {
  TrialRun run(t.out());
  before(run);
  run.info.overwrite = true;
  std::vector<RecordedEvent> events = t.events();
  events.resize((events.size() + 1) / 2);
  t.deliver(run.info, events);
  const TrialRun fresh(t.out("fresh"));
  t.deliver(fresh.info, events);
  const std::string file = difference(content_of(t.out()), content_of(t.out("fresh")));
  return failed(file.empty() ? "" : file + " differs from that of a run into an empty folder");
}

Seen replaces_with_overwrite(Trial& t) {
  return replaces(t, [&](const TrialRun& run) { t.deliver(run.info, t.events()); });
}

Seen replaces_what_was_not_closed(Trial& t) {
  return replaces(t, [&](const TrialRun& run) {
    const auto sink = t.make();
    t.open(*sink, run.info);
    for (const RecordedEvent& event : t.events()) t.consume(*sink, event.view());
  });
}

Seen says_where_it_cannot_write(Trial& t) {
  if (!t.writes()) return {"", "it writes no file"};
  std::ofstream(t.folder() / "file") << "x";
  const TrialRun run(t.folder() / "file");
  const std::string seen = not_refused(ErrorKind::environment, [&] { t.open(*t.make(), run.info); });
  if (!seen.empty()) return failed("open, below a file: " + seen);
  const Content content = content_of(t.folder());
  return failed(content == Content{{"file", "x"}} ? "" : "changed " + content.front().first);
}

Seen ignores_the_locale(Trial& t) {
  t.deliver(t.out("plain"));
  const char* comma = nullptr;
  for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"})
    if (!comma) comma = std::setlocale(LC_ALL, name);
  if (!comma) return {"", "", "no locale with a decimal comma is installed here, such as de_DE.UTF-8"};
  t.deliver(t.out("comma"));
  const std::string file = difference(content_of(t.out("plain")), content_of(t.out("comma")));
  return failed(file.empty() ? "" : fmt::format("{} differs under {}", file, comma));
}

struct Promise {
  const char* text;
  Seen (*look)(Trial&);
};
constexpr Promise promises[] = {
    {"building it touches nothing on disk", &builds_quietly},
    {"it reads the options it lists, and no others", &lists_its_options},
    {"an unknown option is refused", &refuses_unknown_option},
    {"a value that an option cannot have is refused", &refuses_wrong_values},
    {"every type and shape of event is taken, on another thread", &takes_every_event},
    {"nothing is written outside --out", &writes_below_out},
    {"no more is written than it says beforehand, and there", &writes_what_it_said},
    {"the same events give the same bytes", &repeats},
    {"tensors, and what lies beside them, stay as they are", &leaves_tensors_alone},
    {"what is kept is copied", &copies_what_it_keeps},
    {"a run without events is complete", &completes_without_events},
    {"an existing output is refused, unchanged", &refuses_existing_output},
    {"an existing output is replaced with --overwrite", &replaces_with_overwrite},
    {"what was never closed is replaced with --overwrite", &replaces_what_was_not_closed},
    {"where nothing can be written, open fails", &says_where_it_cannot_write},
    {"the locale changes no byte", &ignores_the_locale},
};

// Stages whose events the sink refuses as a mistake of the contract, their names in the note.
Seen probe(Trial& t) {
  std::set<std::size_t> seen;
  Seen refused;
  for (const RecordedEvent& event : t.events()) {
    if (!seen.insert(event.site.stage.index()).second) continue;
    const TrialRun run(t.out(std::string(name_of(event.site.stage))));
    const auto sink = t.make();
    t.open(*sink, run.info);
    try {
      t.consume(*sink, event.view());
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::usage) refused.note += fmt::format("{} ", name_of(event.site.stage));
    }
  }
  return refused;
}

Seen tried(TriedPlugin& plugin, Seen (*look)(Trial&)) {
  return in_own_process(plugin.call_limit, [&](const fs::path& folder, CallTrail& trail) {
    Trial trial(plugin, folder, trail);
    return look(trial);
  });
}

// Leaves out the stages that are refused; the check says which.
Seen find_refused(TriedPlugin& plugin) {
  Seen probed = tried(plugin, &probe);
  std::istringstream names(std::exchange(probed.note, ""));
  for (std::string name; names >> name; plugin.refused.insert(name))
    probed.note += fmt::format("{}{}", probed.note.empty() ? "left out, since it refuses them: " : ", ", name);
  return plugin.refused.size() == recorded_run().config.stages.size() ? failed("consume: it refuses every stage")
                                                                      : probed;
}

}  // namespace

void check_sink(TriedPlugin& plugin, const std::function<void(const ConformanceCheck&)>& report) {
  recorded_run();  // before the first process that needs it
  Seen seen = find_refused(plugin);
  report({"it is built, opened and given an event", seen.failure, seen.note, seen.not_tried});
  std::string why_not = seen.failure.empty() ? "" : "it does not take an event";
  for (const Promise& promise : promises) {
    if (seen.hangs) why_not = "a call did not return";
    seen = why_not.empty() ? tried(plugin, promise.look) : not_tried(why_not);
    report({promise.text, seen.failure, seen.note, seen.not_tried});
  }
}

}  // namespace moe_diag
