// SPDX-License-Identifier: MIT
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/contract/fault.hpp"
#include "core/contract/metric.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/known_keys.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

std::string text_of(const std::filesystem::path& page) {
  std::ifstream in(page, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::string guide() { return text_of(MOE_DIAG_SOURCE_DIR "/contracts/README.md"); }

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

// The pages that people read, from the top of the tree.
std::vector<std::filesystem::path> pages() {
  const std::filesystem::path top = MOE_DIAG_SOURCE_DIR;
  std::vector<std::filesystem::path> list{top / "README.md", top / "CONTRIBUTING.md", top / "contracts/README.md"};
  for (const auto& entry : std::filesystem::directory_iterator(top / "docs"))
    if (entry.path().extension() == ".md") list.push_back(entry.path());
  std::sort(list.begin(), list.end());
  return list;
}

TEST_CASE("every contract in the pages is right") {
  std::size_t contracts = 0;
  for (const auto& page : pages())
    for (const std::string& block : yaml_blocks(text_of(page))) {
      if (block.rfind("metadata:", 0) != 0) continue;  // a workflow, or a part
      ++contracts;
      INFO(page << "\n" << block);
      CHECK_NOTHROW(parse_contract(block, (page.parent_path() / "block.yaml").string()));
    }
  CHECK(contracts >= 3);
}

TEST_CASE("the guide says of every metric which threshold and stages it takes") {
  const std::string text = guide();
  for (const MetricInfo& m : metric_table) {
    INFO(m.name);
    const std::string row = row_of(text, m.name);
    REQUIRE_FALSE(row.empty());
    CHECK((row.find("`at_least`") != std::string::npos) == m.larger_is_better);
    CHECK((row.find("`at_most`") != std::string::npos) == !m.larger_is_better);
    if (!has_stage(m.metric)) {
      CHECK(row.find("of whole passes") != std::string::npos);
    } else if (fitting_stages(m.metric, qwen3moe.stages) == "every stage") {
      CHECK(row.find("every stage") != std::string::npos);
    } else if (fitting_stages(m.metric, qwen3moe.stages).find("every stage but") == 0) {
      CHECK(row.find("every stage but `moe_router_indices`") != std::string::npos);
    } else {
      for (const Stage s : qwen3moe.stages)
        CHECK((row.find('`' + std::string(name_of(s)) + '`') != std::string::npos) == fits(m.metric, s));
    }
  }
}

TEST_CASE("the guide says of every fault which stages it fits") {
  const std::string all = guide(), text = all.substr(all.find("\nFaults of values change"));
  for (const FaultInfo& f : fault_table) {
    INFO(f.name);
    const std::string row = row_of(text, f.name), stages = row.substr(row.rfind(" | ", row.size() - 3) + 3);
    REQUIRE_FALSE(row.empty());
    std::string expected = "`" + fitting_stages(f.kind, qwen3moe.stages) + "` |";
    if (expected.find("every stage but") == 1) {
      expected = "every stage but `moe_router_indices` |";
    } else {
      for (std::size_t at = expected.find(", "); at != std::string::npos; at = expected.find(", ", at + 4))
        expected.replace(at, 2, "`, `");
    }
    CHECK(stages == expected);
  }
}

TEST_CASE("the guide explains every key that is taken") {
  const std::string text = guide();
  for (const std::string path : {"", "metadata", "model", "prompts.short", "capture.0", "falsifiers.STEP-ERROR",
                                 "falsifiers.STEP-ERROR.controls.0"}) {
    const auto keys = known_keys(path);
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
