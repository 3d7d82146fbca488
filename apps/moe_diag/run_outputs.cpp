// SPDX-License-Identifier: MIT
#include "apps/moe_diag/run_outputs.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/api/output_file.hpp"
#include "core/report/github.hpp"
#include "core/report/junit.hpp"
#include "core/report/next_steps.hpp"
#include "core/report/report.hpp"
#include "core/report/text.hpp"
#include "core/run/earlier_run.hpp"

namespace moe_diag {
namespace {

std::string verdict_file(const RunOptions& options) { return options.out + "/verdict.json"; }

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

void append(const std::string& file, const std::string& text) {
  const OutputPlace place = find_output(file);
  if (place.kind == OutputPlace::Kind::stream) return write_whole_file(file, text);
  OutputFile out(place.target,
                 place.kind == OutputPlace::Kind::file ? OutputFile::Mode::modify : OutputFile::Mode::create);
  out.write(text.data(), text.size());
  out.close();
}

// Contracts that could not be read do not say what else is an input: only a report is replaced then.
bool is_replaceable_report(const std::string& file) {
  if (find_output(file).kind != OutputPlace::Kind::file) return true;
  constexpr std::string_view begin = "<?xml";
  std::ifstream in(file, std::ios::binary);
  std::string text(begin.size(), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  return in.gcount() == 0 || text == begin;
}

// A summary is added to a text file only, never to a model.
bool is_text(const std::string& file) {
  if (find_output(file).kind != OutputPlace::Kind::file) return true;
  std::ifstream in(file, std::ios::binary);
  std::string begin(4096, ' ');
  in.read(begin.data(), static_cast<std::streamsize>(begin.size()));
  return begin.find('\0') == std::string::npos;
}

std::string step_summary(const RunOutputs& outputs) { return outputs.github ? variable("GITHUB_STEP_SUMMARY") : ""; }

}  // namespace

void check_outputs(const Contract& contract, const RunOptions& options) {
  if (check_folder(options.out, "--out").kind == OutputPlace::Kind::folder) {
    const bool is_own = options.is_default_out && is_verdict_of(verdict_file(options), contract.metadata.id);
    check_output(verdict_file(options), options.overwrite || is_own, "--out");
  }
}

void check_outputs(const RunOutputs& outputs, bool overwrite) {
  if (outputs.github && outputs.json == "-")
    throw Error(ErrorKind::usage, "--json - and --github both write to standard output: write the JSON to a file");
  if (!outputs.json.empty() && outputs.json != "-") check_output(outputs.json, overwrite, "--json");
  if (!outputs.junit.empty()) check_output(outputs.junit, overwrite, "--junit");
  if (const std::string file = step_summary(outputs); !file.empty()) check_output(file, true, "GITHUB_STEP_SUMMARY");
}

CallFiles files_of(std::span<const Contract> contracts, std::span<const RunOptions> options,
                   const RunOutputs& outputs) {
  CallFiles files;
  for (const Contract& contract : contracts) files.read(contract);
  for (const RunOptions& one : options) files.write("the verdict", verdict_file(one));
  if (!outputs.json.empty() && outputs.json != "-") files.write("--json", outputs.json);
  if (!outputs.junit.empty()) files.write("--junit", outputs.junit);
  if (const std::string file = step_summary(outputs); !file.empty()) files.write("GITHUB_STEP_SUMMARY", file);
  return files;
}

void add_places(const RunOutputs& outputs, std::vector<WrittenPlace>& places) {
  const auto add = [&](const char* who, const std::string& file) {
    try {
      // A stream lies nowhere: what is written to it one after the other stays.
      if (find_output(file).kind != OutputPlace::Kind::stream) places.push_back({"", who, resolved(file)});
    } catch (const Error&) {  // it leads nowhere: that is told before anything is computed
    }
  };
  if (!outputs.json.empty() && outputs.json != "-") add("--json", outputs.json);
  if (!outputs.junit.empty()) add("--junit", outputs.junit);
}

void deliver_mistakes(const std::string& mistakes, const RunOutputs& outputs, bool overwrite, CallFiles inputs) {
  if (outputs.github) print(github_annotations(mistakes, workspace()));
  // The caller tells the mistake; a report that cannot be written is left out.
  const auto attempt = [&](const char* who, const std::string& file, const auto& write) {
    if (file.empty()) return;
    try {
      inputs.write(who, file);
      write();
    } catch (const Error&) {
    }
  };
  attempt("--junit", outputs.junit, [&] {
    check_output(outputs.junit, overwrite, "--junit");
    if (is_replaceable_report(outputs.junit)) write_whole_file(outputs.junit, junit_report(mistakes, MOE_DIAG_VERSION));
  });
  attempt("GITHUB_STEP_SUMMARY", step_summary(outputs), [&] {
    if (is_text(step_summary(outputs))) append(step_summary(outputs), github_summary(mistakes));
  });
}

void deliver_failure(const Verdict& verdict, const RunOptions& options, const RunOutputs& outputs) {
  try {
    claim_folder(options.out, "--out");
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
  claim_folder(options.out, "--out");
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
    if (const std::string file = step_summary(outputs); !file.empty()) append(file, github_summary(verdicts));
    print(github_annotations(verdicts, workspace()));
  }
  if (outputs.json == "-") print(json);
}

void print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

std::string workspace() { return variable("GITHUB_WORKSPACE"); }

}  // namespace moe_diag
