// SPDX-License-Identifier: MIT
// What the pages show as output is what comes out.
#include <filesystem>
#include <regex>
#include <set>
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
// Commands that follow one another, between `<!-- output: ... -->` and `<!-- end of output -->`.
using Block = std::vector<Shown>;

std::vector<Block> shown_on(const fs::path& page) {
  std::vector<Block> blocks;
  std::istringstream lines(read_text(page));
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("<!-- output:", 0) == 0) {
      inside = true;
      blocks.emplace_back();
    }
    if (line.rfind("<!-- end of output", 0) == 0) inside = false;
    const std::string prompt = "$ moe-diag ";
    if (!inside || line.rfind("```", 0) == 0 || line.rfind("<!--", 0) == 0) continue;
    if (line.rfind(prompt, 0) == 0)
      blocks.back().push_back({line.substr(prompt.size()), {}});
    else if (!blocks.back().empty() && !line.empty())
      blocks.back().back().lines.push_back(line);
  }
  return blocks;
}

// What the commands write, and read of each other, is in a folder of the block.
std::string in_folder(std::string command, const std::string& folder, std::set<std::string>& written) {
  std::smatch out;
  if (std::regex_search(command, out, std::regex("--out ([^ ]+)"))) written.insert(out[1]);
  for (const std::string& name : written)
    command = std::regex_replace(command, std::regex(" " + name + "(?=/| |$)"), " " + folder + "/" + name);
  return command;
}

std::string without(std::string text, const std::string& part) {
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at)) text.erase(at, part.size());
  return text;
}

// Times, folders and what names the machine differ.
std::string without_machine(const std::string& line) {
  std::string text = std::regex_replace(line, std::regex("^time .*"), "time");
  text = std::regex_replace(text, std::regex("^verdict .*"), "verdict");
  text = std::regex_replace(text, std::regex("; [0-9.]+ KiB$"), "; KIB");  // texts of a case hold paths
  return std::regex_replace(text, std::regex("[0-9]+ threads?, [a-z0-9]+"), "THREADS");
}

}  // namespace

TEST_CASE("every output on a page is what its command prints, line after line") {
  std::size_t outputs = 0;
  for (const std::string name : {"README.md", "docs/ci.md", "docs/diagnosis.md", "docs/repro.md"}) {
    const fs::path page = fs::path(MOE_DIAG_SOURCE_DIR) / name;
    if (!fs::exists(page)) continue;
    for (const Block& block : shown_on(page)) {
      const TemporaryFolder folder;
      std::set<std::string> written;
      for (const Shown& shown : block) {
        ++outputs;
        const std::string command = in_folder(shown.command, folder.str(), written);
        const Finished run = run_tool(command);
        INFO(name << ": moe-diag " << command << "\n" << run.out << run.err);
        std::istringstream printed(without(run.out, folder.str() + "/"));
        std::string line;
        for (const std::string& expected : shown.lines) {
          INFO("the page shows: " << expected);
          bool found = false;
          while (!found && std::getline(printed, line)) found = without_machine(line) == without_machine(expected);
          REQUIRE(found);
        }
      }
    }
  }
  CHECK(outputs >= 8);
}

}  // namespace moe_diag
