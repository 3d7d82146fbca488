// SPDX-License-Identifier: MIT
// What the pages show as output is what comes out.
#include <filesystem>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

// A command of a page, and the lines that the page shows after it.
struct Shown {
  std::string command;
  std::vector<std::string> lines;
};

// Of every block between `<!-- output: ... -->` and `<!-- end of output -->`.
std::vector<Shown> shown_on(const fs::path& page) {
  std::vector<Shown> blocks;
  std::istringstream lines(read_text(page));
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("<!-- output:", 0) == 0) inside = true;
    if (line.rfind("<!-- end of output", 0) == 0) inside = false;
    const std::string prompt = "$ moe-diag ";
    if (!inside || line.rfind("```", 0) == 0 || line.rfind("<!--", 0) == 0) continue;
    if (line.rfind(prompt, 0) == 0)
      blocks.push_back({line.substr(prompt.size()), {}});
    else if (!blocks.empty() && !line.empty())
      blocks.back().lines.push_back(line);
  }
  return blocks;
}

// Times, folders and what names the machine differ.
std::string without_machine(const std::string& line) {
  std::string text = std::regex_replace(line, std::regex("^time .*"), "time");
  text = std::regex_replace(text, std::regex("^verdict .*"), "verdict");
  return std::regex_replace(text, std::regex("[0-9]+ threads?, [a-z0-9]+"), "THREADS");
}

}  // namespace

TEST_CASE("every output on a page is what its command prints, line after line") {
  std::size_t outputs = 0;
  for (const std::string name : {"README.md", "docs/ci.md", "docs/diagnosis.md"}) {
    const fs::path page = fs::path(MOE_DIAG_SOURCE_DIR) / name;
    if (!fs::exists(page)) continue;
    for (const Shown& shown : shown_on(page)) {
      ++outputs;
      const TemporaryFolder folder;
      const std::string command =
          std::regex_replace(shown.command, std::regex("--out [^ ]+"), "--out " + quoted(folder / "out"));
      const Finished run = run_tool(command);
      INFO(name << ": moe-diag " << command << "\n" << run.out << run.err);
      std::istringstream printed(run.out);
      std::string line;
      for (const std::string& expected : shown.lines) {
        INFO("the page shows: " << expected);
        bool found = false;
        while (!found && std::getline(printed, line)) found = without_machine(line) == without_machine(expected);
        REQUIRE(found);
      }
    }
  }
  CHECK(outputs >= 2);
}

}  // namespace moe_diag
