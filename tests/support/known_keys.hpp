// SPDX-License-Identifier: MIT
#pragma once

#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/contract/contract.hpp"

namespace moe_diag {

// What the parser lists as known when it meets a word that is not: it is asked, so that no list is kept twice.
inline std::vector<std::string> known_after(const std::string& path, const std::string& value) {
  std::ifstream in(MOE_DIAG_SOURCE_DIR "/contracts/quickstart.yaml");
  std::ostringstream text;
  text << in.rdbuf();
  std::vector<std::string> words;
  try {
    parse_contract(text.str(), "c.yaml", {{path, value}});
  } catch (const Error& e) {
    const std::string what = e.what(), mark = "Known: ";
    const std::size_t at = what.find(mark);
    if (at == std::string::npos) return words;
    std::istringstream list(what.substr(at + mark.size(), what.find('\n', at) - at - mark.size()));
    for (std::string word; std::getline(list, word, ',');) words.push_back(word.substr(word.find_first_not_of(' ')));
  }
  return words;
}

// The keys that are taken at a place of the quickstart contract; "" is the top.
inline std::vector<std::string> known_keys(const std::string& path) {
  return known_after(path.empty() ? "xxxxxxxx" : path + ".xxxxxxxx", "1");
}

}  // namespace moe_diag
