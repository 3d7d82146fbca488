// SPDX-License-Identifier: MIT
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/contract/metric.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

std::string readme() {
  std::ifstream in(MOE_DIAG_SOURCE_DIR "/contracts/README.md", std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// The text of every fenced block of the language `yaml`.
std::vector<std::string> yaml_blocks(const std::string& text) {
  std::vector<std::string> blocks;
  const std::string fence = "```yaml\n";
  for (std::size_t at = text.find(fence); at != std::string::npos; at = text.find(fence, at)) {
    at += fence.size();
    const std::size_t end = text.find("```", at);
    blocks.push_back(text.substr(at, end - at));
    at = end;
  }
  return blocks;
}

// The line of the table that explains a metric.
std::string row_of(const std::string& text, std::string_view name) {
  const std::size_t at = text.find("\n| `" + std::string(name) + "` |");
  return at == std::string::npos ? "" : text.substr(at + 1, text.find('\n', at + 1) - at - 1);
}

TEST_CASE("every contract in the guide is right") {
  const auto blocks = yaml_blocks(readme());
  CHECK(blocks.size() == 4);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    INFO("block " << i << "\n" << blocks[i]);
    CHECK_NOTHROW(parse_contract(blocks[i], "contracts/README.md"));
  }
}

TEST_CASE("the guide says of every metric which threshold and stages it takes") {
  const std::string text = readme();
  for (const MetricInfo& m : metric_table) {
    INFO(m.name);
    const std::string row = row_of(text, m.name);
    REQUIRE_FALSE(row.empty());
    CHECK((row.find("`at_least`") != std::string::npos) == m.larger_is_better);
    CHECK((row.find("`at_most`") != std::string::npos) == !m.larger_is_better);
    if (!has_stage(m.metric)) {
      CHECK(row.find("of whole passes") != std::string::npos);
    } else if (fitting_stages(m.metric) == "every stage") {
      CHECK(row.find("every stage") != std::string::npos);
    } else if (fitting_stages(m.metric).find("every stage but") == 0) {
      CHECK(row.find("every stage but `moe_router_indices`") != std::string::npos);
    } else {
      for (const StageInfo& s : stage_table)
        CHECK((row.find('`' + std::string(s.name) + '`') != std::string::npos) == fits(m.metric, s.stage));
    }
  }
}

// Reads a contract that has an unknown key `x` at `path`, and returns the keys that the message lists.
std::vector<std::string> keys_at(const std::string& path) {
  std::ifstream in(MOE_DIAG_SOURCE_DIR "/contracts/quickstart.yaml");
  std::ostringstream text;
  text << in.rdbuf();
  std::vector<std::string> keys;
  try {
    parse_contract(text.str(), "c.yaml", {{path.empty() ? "xxxxxxxx" : path + ".xxxxxxxx", "1"}});
  } catch (const Error& e) {
    const std::string what = e.what(), mark = "Known: ";
    if (what.find(mark) == std::string::npos) return keys;
    std::istringstream list(what.substr(what.find(mark) + mark.size()));
    for (std::string key; std::getline(list, key, ',');) keys.push_back(key.substr(key.find_first_not_of(' ')));
  }
  return keys;
}

TEST_CASE("the guide explains every key that is taken") {
  const std::string text = readme();
  for (const std::string path : {"", "metadata", "model", "prompts.short", "capture.0", "falsifiers.STEP-ERROR",
                                 "falsifiers.STEP-ERROR.controls.0"}) {
    const auto keys = keys_at(path);
    INFO("at '" << path << "'");
    CHECK(keys.size() >= 2);
    for (const std::string& key : keys) {
      INFO(key);
      CHECK((text.find("| `" + key + "`") != std::string::npos || text.find(", `" + key + "`") != std::string::npos));
    }
  }
}

}  // namespace
}  // namespace moe_diag
