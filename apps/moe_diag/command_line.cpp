// SPDX-License-Identifier: MIT
#include "apps/moe_diag/command_line.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/api/error.hpp"
#include "core/text/nearest.hpp"

namespace moe_diag {
namespace {

std::vector<std::string> commands_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  return names;
}

// The place of the command; the end when there is none. Options before it are of all commands, and one may take a
// value.
std::size_t command_at(const std::vector<std::string>& words, const CLI::App& app) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i].empty() || words[i][0] != '-') return i;
    const CLI::Option* option = app.get_option_no_throw(words[i]);
    if (option && option->get_items_expected_max() > 0) ++i;
  }
  return words.size();
}

void add_options_of(const CLI::App& app, std::vector<std::string>& names) {
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames())
      if (std::find(names.begin(), names.end(), "--" + name) == names.end()) names.push_back("--" + name);
}

}  // namespace

std::vector<std::string> words_for_cli11(int argc, char** argv, const CLI::App& app) {
  std::vector<std::string> words(argv + std::min(argc, 1), argv + argc), known = commands_of(app);
  std::size_t at = command_at(words, app);
  const bool asks_for_help = at < words.size() && words[at] == "help";
  if (asks_for_help) {
    words.erase(words.begin() + static_cast<std::ptrdiff_t>(at));
    at = command_at(words, app);
  }
  if (at < words.size() && words[at] == "version")
    words[at] = "--version";
  else if (at < words.size() && std::find(known.begin(), known.end(), words[at]) == known.end())
    throw Error(ErrorKind::usage, unknown("command", words[at], known) + "; see moe-diag --help");
  if (asks_for_help) words.emplace_back("--help");
  std::reverse(words.begin(), words.end());
  return words;
}

std::string misspelt_option(const CLI::App& app) {
  const CLI::App* command = &app;
  if (const auto chosen = app.get_subcommands(); !chosen.empty()) command = chosen.front();
  std::vector<std::string> known;
  add_options_of(*command, known);
  if (command != &app) add_options_of(app, known);
  for (const std::string& word : app.remaining(true)) {
    if (word.size() < 2 || word[0] != '-') continue;
    const std::string name = word.substr(0, word.find('='));
    return fmt::format("{}; see {} --help", unknown("option", name, known),
                       command == &app ? "moe-diag" : "moe-diag " + command->get_name());
  }
  return "";
}

}  // namespace moe_diag
