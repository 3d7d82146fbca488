// SPDX-License-Identifier: MIT
#include <algorithm>
#include <clocale>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "core/plugin/host.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/made_run.hpp"
#include "tests/support/temporary_folder.hpp"

// What core/api/sink.hpp promises, asked of every sink that is built.
namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using OptionList = std::vector<std::pair<std::string, std::string>>;

class Candidate {
 public:
  explicit Candidate(std::string name) : name_(std::move(name)) {
    // A sink writes a folder or a file; the first form that its constructor takes is its own.
    for (const OptionList& options :
         {OptionList{{"dir", "made"}}, OptionList{{"file", "made.json"}}, OptionList{{"file", "made.h5"}}}) {
      try {
        host().make_sink(name_, made_options("sink 'it'", options));
        options_ = options;
        return;
      } catch (const Error&) {
      }
    }
  }

  static PluginHost& host() {
    static PluginHost host({MOE_DIAG_PLUGINS});
    return host;
  }

  const std::string& name() const { return name_; }
  std::string output(const TemporaryFolder& out) const { return out / options_.at(0).second; }
  std::unique_ptr<Sink> make() const { return host().make_sink(name_, made_options("sink 'it'", options_)); }
  std::unique_ptr<Sink> make_with(const std::string& key) const {
    OptionList options = options_;
    options.push_back({key, "1"});
    return host().make_sink(name_, made_options("sink 'it'", options));
  }

 private:
  std::string name_;
  OptionList options_;
};

std::vector<Candidate> candidates() {
  std::vector<Candidate> list;
  for (const PluginRecord& record : Candidate::host().list())
    if (record.kind == PluginKind::sink) list.emplace_back(record.name);
  REQUIRE(list.size() >= 2);
  return list;
}

void deliver(Sink& sink, const RunInfo& run, const std::vector<MadeEvent>& events) {
  sink.open(run);
  for (const MadeEvent& event : events) sink.consume(event.view());
  sink.close();
}

std::optional<ErrorKind> kind_of_error(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    CHECK(std::string(e.what()).size() > 20);
    return e.kind();
  }
  return std::nullopt;
}

// Path and bytes of everything below a folder.
std::vector<std::pair<std::string, std::string>> content_of(const std::string& folder) {
  std::vector<std::pair<std::string, std::string>> content;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.is_regular_file())
      content.emplace_back(entry.path().lexically_relative(folder).string(), read_text(entry.path().string()));
  std::sort(content.begin(), content.end());
  return content;
}

TEST_CASE("building a sink touches nothing; an unknown option is refused") {
  const TemporaryFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.str());
  for (const Candidate& candidate : candidates()) {
    INFO(candidate.name());
    CHECK(candidate.make() != nullptr);
    CHECK(kind_of_error([&] { candidate.make_with("no_sink_reads_this"); }) == ErrorKind::usage);
    CHECK(fs::is_empty(folder.str()));
  }
  fs::current_path(before);
}

TEST_CASE("a sink takes every kind of event, and the same events give the same bytes") {
  for (const Candidate& candidate : candidates()) {
    INFO(candidate.name());
    const TemporaryFolder one, two;
    for (const TemporaryFolder* folder : {&one, &two}) {
      MadeRun run(folder->str());
      deliver(*candidate.make(), run.info, made_events());
    }
    CHECK_FALSE(content_of(one.str()).empty());
    CHECK(content_of(one.str()) == content_of(two.str()));
  }
}

TEST_CASE("a sink copies what it keeps: the tensor is gone after the call") {
  for (const Candidate& candidate : candidates()) {
    INFO(candidate.name());
    const TemporaryFolder kept, gone;
    MadeRun run_kept(kept.str()), run_gone(gone.str());
    deliver(*candidate.make(), run_kept.info, made_events());

    const auto sink = candidate.make();
    sink->open(run_gone.info);
    for (MadeEvent& event : made_events()) {
      sink->consume(event.view());
      std::fill(event.bytes.begin(), event.bytes.end(), std::byte{0xA5});
      std::fill(event.positions.begin(), event.positions.end(), 77);
    }
    sink->close();
    CHECK(content_of(kept.str()) == content_of(gone.str()));
  }
}

TEST_CASE("a run without events is complete as well") {
  for (const Candidate& candidate : candidates()) {
    INFO(candidate.name());
    const TemporaryFolder folder;
    MadeRun run(folder.str());
    deliver(*candidate.make(), run.info, {});
    CHECK_FALSE(content_of(folder.str()).empty());
  }
}

TEST_CASE("a finished output is refused unchanged, and replaced with overwrite") {
  for (const Candidate& candidate : candidates()) {
    INFO(candidate.name());
    const TemporaryFolder folder, fresh;
    MadeRun run(folder.str()), fresh_run(fresh.str());
    deliver(*candidate.make(), run.info, made_events());
    const auto before = content_of(folder.str());
    CHECK(kind_of_error([&] { candidate.make()->open(run.info); }) == ErrorKind::usage);
    CHECK(content_of(folder.str()) == before);

    const std::vector<MadeEvent> other = {made_event(1, 0, {Stage::lm_head, -1}, {3}, DType::f64, {9}, 3)};
    run.info.overwrite = true;
    deliver(*candidate.make(), run.info, other);
    deliver(*candidate.make(), fresh_run.info, other);
    CHECK(content_of(folder.str()) == content_of(fresh.str()));
  }
}

TEST_CASE("a sink that is not closed leaves nothing that overwrite cannot replace") {
  for (const Candidate& candidate : candidates()) {
    INFO(candidate.name());
    const TemporaryFolder folder, fresh;
    MadeRun run(folder.str()), fresh_run(fresh.str());
    {
      const auto sink = candidate.make();
      sink->open(run.info);
      for (const MadeEvent& event : made_events()) sink->consume(event.view());
    }
    run.info.overwrite = true;
    deliver(*candidate.make(), run.info, made_events());
    deliver(*candidate.make(), fresh_run.info, made_events());
    CHECK(content_of(folder.str()) == content_of(fresh.str()));
  }
}

TEST_CASE("where nothing can be written, opening fails and says where") {
  for (const Candidate& candidate : candidates()) {
    INFO(candidate.name());
    const TemporaryFolder folder;
    write_text(folder / "file", "x");
    MadeRun run(folder / "file");
    CHECK(kind_of_error([&] { candidate.make()->open(run.info); }) == ErrorKind::environment);
    CHECK(content_of(folder.str()).size() == 1);
  }
}

TEST_CASE("a locale with a decimal comma changes no byte") {
  const TemporaryFolder plain, comma;
  const std::string before = std::setlocale(LC_ALL, nullptr);
  bool have = false;
  for (const Candidate& candidate : candidates()) {
    INFO(candidate.name());
    MadeRun run_plain(plain.str()), run_comma(comma.str());
    deliver(*candidate.make(), run_plain.info, made_events());
    for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"}) have = have || std::setlocale(LC_ALL, name);
    deliver(*candidate.make(), run_comma.info, made_events());
    std::setlocale(LC_ALL, before.c_str());
  }
  if (!have) WARN("no locale with a decimal comma is installed: nothing was compared under one");
  CHECK(content_of(plain.str()) == content_of(comma.str()));
}

}  // namespace
}  // namespace moe_diag
