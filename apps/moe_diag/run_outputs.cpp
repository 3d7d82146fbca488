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
#include "core/report/next_steps.hpp"
#include "core/report/report.hpp"
#include "core/report/text.hpp"

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

void check_outputs(const RunOptions& options) {
  if (std::filesystem::exists(verdict_file(options)) && !options.overwrite)
    throw Error(ErrorKind::usage,
                verdict_file(options) +
                    ": the verdict of an earlier run is there; choose another --out, or replace it with --overwrite");
}

void check_outputs(const RunOutputs& outputs) {
  if (outputs.github && outputs.json == "-")
    throw Error(ErrorKind::usage, "--json - and --github both write to standard output: write the JSON to a file");
  if (!outputs.json.empty() && outputs.json != "-") check_can_write(outputs.json, "--json");
  if (!outputs.junit.empty()) check_can_write(outputs.junit, "--junit");
  if (const std::string file = variable("GITHUB_STEP_SUMMARY"); outputs.github && !file.empty())
    check_can_write(file, "GITHUB_STEP_SUMMARY");
}

void add_places(const RunOutputs& outputs, std::vector<OutputPlace>& places) {
  if (!outputs.json.empty() && outputs.json != "-") places.push_back({"", "--json", resolved(outputs.json)});
  if (!outputs.junit.empty()) places.push_back({"", "--junit", resolved(outputs.junit)});
}

void deliver_mistakes(const std::string& mistakes, const RunOutputs& outputs) {
  if (outputs.github) print(github_annotations(mistakes, workspace()));
  try {
    check_outputs(outputs);
    if (!outputs.junit.empty()) write_whole_file(outputs.junit, junit_report(mistakes, MOE_DIAG_VERSION));
    if (const std::string file = variable("GITHUB_STEP_SUMMARY"); outputs.github && !file.empty())
      append(file, github_summary(mistakes));
  } catch (const Error&) {
    // It is told what is wrong with the call; that its reports cannot be written comes after that.
  }
}

void deliver_failure(const Verdict& verdict, const RunOptions& options, const RunOutputs& outputs) {
  try {
    std::filesystem::create_directories(options.out);
    write_whole_file(verdict_file(options), json_report(verdict, MOE_DIAG_VERSION));
  } catch (const std::exception& e) {
    const bool is_told = verdict.failure.find(options.out) != std::string::npos;  // that its folder cannot be written
    if (!is_told) fmt::print(stderr, "moe-diag: the verdict cannot be written: {}\n", e.what());
    return;
  }
  if (outputs.json != "-") print(headline(verdict) + "\nverdict    " + verdict_file(options) + '\n');
}

// Files first: whoever reads the report may stop reading at any line.
void deliver(const Verdict& verdict, const RunOptions& options, const RunOutputs& outputs) {
  std::filesystem::create_directories(options.out);
  write_whole_file(verdict_file(options), json_report(verdict, MOE_DIAG_VERSION));
  if (outputs.json != "-")
    print(console_report(verdict, outputs.details) + "verdict    " + verdict_file(options) + '\n' +
          next_steps(verdict, verdict_file(options), outputs.plugin_dirs));
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
