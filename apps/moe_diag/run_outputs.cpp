// SPDX-License-Identifier: MIT
#include "apps/moe_diag/run_outputs.hpp"

#include <fmt/format.h>

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "core/api/output_file.hpp"
#include "core/report/github.hpp"
#include "core/report/junit.hpp"
#include "core/report/report.hpp"

namespace moe_diag {
namespace {

std::string verdict_file(const RunOptions& options) { return options.out + "/verdict.json"; }

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

void check_can_write(const std::string& file, std::string_view option) {
  const std::filesystem::path path(file);
  const std::string folder = path.parent_path().string();
  if (std::filesystem::is_directory(path))
    throw Error(ErrorKind::usage, fmt::format("{}: it is a folder; name a file with {}", file, option));
  if (::access(folder.empty() ? "." : folder.c_str(), W_OK) != 0)
    throw Error(ErrorKind::environment, fmt::format("{}: cannot be written there: {}; choose another place with {}",
                                                    file, std::strerror(errno), option));
}

void append(const std::string& file, const std::string& text) {
  OutputFile out(file, std::filesystem::exists(file) ? OutputFile::Mode::modify : OutputFile::Mode::create);
  out.write(text.data(), text.size());
  out.close();
}

}  // namespace

void check_outputs(const Contract& contract, const RunOptions& options) {
  if (std::filesystem::exists(verdict_file(options)) && !options.overwrite)
    throw Error(ErrorKind::usage,
                verdict_file(options) +
                    ": the verdict of an earlier run is there; choose another --out, or replace it with --overwrite");
  for (const SinkSpec& sink : contract.sinks)
    for (const Options::Entry& entry : sink.options.entries())
      if (std::filesystem::path(entry.value).lexically_normal() == "verdict.json")
        throw Error(ErrorKind::usage,
                    fmt::format("{}: sink '{}': verdict.json is the name of the verdict itself: choose "
                                "another",
                                entry.where, sink.name));
}

void check_outputs(const RunOutputs& outputs) {
  if (outputs.github && outputs.json == "-")
    throw Error(ErrorKind::usage, "--json - and --github both write to standard output: write the JSON to a file");
  if (!outputs.json.empty() && outputs.json != "-") check_can_write(outputs.json, "--json");
  if (!outputs.junit.empty()) check_can_write(outputs.junit, "--junit");
  if (const std::string file = variable("GITHUB_STEP_SUMMARY"); outputs.github && !file.empty())
    check_can_write(file, "GITHUB_STEP_SUMMARY");
}

// Files first: whoever reads the report may stop reading at any line.
void deliver(const Verdict& verdict, const RunOptions& options, const RunOutputs& outputs) {
  std::filesystem::create_directories(options.out);
  write_whole_file(verdict_file(options), json_report(verdict, MOE_DIAG_VERSION));
  if (outputs.json != "-")
    print(console_report(verdict, outputs.details) + "verdict    " + verdict_file(options) + '\n');
}

void deliver_all(std::span<const Verdict> verdicts, bool several, const RunOutputs& outputs) {
  const std::string json =
      several ? json_report(verdicts, MOE_DIAG_VERSION) : json_report(verdicts.front(), MOE_DIAG_VERSION);
  if (!outputs.json.empty() && outputs.json != "-") write_whole_file(outputs.json, json);
  if (!outputs.junit.empty()) write_whole_file(outputs.junit, junit_report(verdicts, MOE_DIAG_VERSION));
  if (outputs.github) {
    if (const std::string file = variable("GITHUB_STEP_SUMMARY"); !file.empty()) append(file, github_summary(verdicts));
    print(github_annotations(verdicts, workspace()));
  }
  if (outputs.json == "-") print(json);
}

void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

std::string workspace() { return variable("GITHUB_WORKSPACE"); }

}  // namespace moe_diag
