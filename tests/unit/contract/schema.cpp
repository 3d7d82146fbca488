// SPDX-License-Identifier: MIT
// contracts/contract.schema.json says to editors what the parser says: the same keys, the same words.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/contract/metric.hpp"
#include "core/model/synthetic.hpp"
#include "core/ops/numerics.hpp"
#include "core/ops/variant.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/known_keys.hpp"
#include "tests/support/process.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::json;
using Words = std::set<std::string>;
namespace fs = std::filesystem;

const std::string contracts = std::string(MOE_DIAG_SOURCE_DIR) + "/contracts";

Json schema() {
  std::ifstream in(contracts + "/contract.schema.json");
  return Json::parse(in);
}

Words keys_of(const Json& object) {
  Words keys;
  for (const auto& [key, value] : object.items()) keys.insert(key);
  return keys;
}

template <class List>
Words words_of(const List& list) {
  Words words;
  for (const auto& word : list) words.emplace(word);
  return words;
}

// What the schema says of each file, by its name; empty: nothing.
std::vector<std::pair<std::string, std::string>> objections(const std::vector<std::string>& files) {
  std::string command = quoted(MOE_DIAG_PYTHON) + " " +
                        quoted(MOE_DIAG_SOURCE_DIR "/tests/unit/contract/check_schema.py") + " " +
                        quoted(contracts + "/contract.schema.json");
  for (const std::string& file : files) command += " " + quoted(file);
  const Finished python = run_command(command);
  INFO(python.err << "run cmake/bootstrap.sh for a Python with tests/requirements.txt");
  REQUIRE(python.code == 0);
  std::vector<std::pair<std::string, std::string>> list;
  std::istringstream lines(python.out);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t space = line.find(' ');
    list.emplace_back(line.substr(0, space), space + 1 < line.size() ? line.substr(space + 1) : "");
  }
  REQUIRE(list.size() == files.size());
  return list;
}

std::vector<std::string> yaml_files(const std::string& folder) {
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

bool begins_with_one_of(const std::string& name, const std::vector<std::string>& beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(), [&](const std::string& b) { return name.rfind(b, 0) == 0; });
}

}  // namespace

TEST_CASE("the schema has the keys that the parser takes, and no others") {
  const Json s = schema();
  const Json& defs = s["definitions"];
  const std::vector<std::pair<std::string, Json>> places{
      {"", s},
      {"metadata", s["properties"]["metadata"]},
      {"model", s["properties"]["model"]},
      {"prompts.short", s["properties"]["prompts"]["items"]},
      {"capture.0", defs["capture"]},
      {"falsifiers.STEP-ERROR", defs["falsifier"]},
      {"falsifiers.STEP-ERROR.controls.0", defs["fault"]},
  };
  for (const auto& [path, place] : places) {
    INFO("at '" << path << "'");
    CHECK(place["additionalProperties"] == false);
    CHECK(keys_of(place["properties"]) == words_of(known_keys(path)));
  }
  Words planted = keys_of(defs["fault"]["properties"]);
  planted.insert("lane");
  CHECK(keys_of(defs["planted_fault"]["properties"]) == planted);
}

TEST_CASE("the schema has the words that the parser takes, and no others") {
  const Json defs = schema()["definitions"], falsifier = defs["falsifier"]["properties"];
  CHECK(words_of(falsifier["metric"]["enum"]) == words_of(metric_names()));
  Words stages;
  for (const Stage stage : all_stages())
    for (const std::string_view name : {info(stage).name, info(stage).alias})
      if (!name.empty()) stages.emplace(name);
  CHECK(words_of(defs["stage"]["anyOf"][0]["enum"]) == stages);
  stages.insert("all");
  CHECK(words_of(defs["stage_word"]["anyOf"][0]["enum"]) == stages);
  const Json& lane = defs["lane"]["properties"];
  const auto names_of = [](auto rows) {
    Words names;
    for (const auto& row : rows) names.emplace(row.name);
    return names;
  };
  Words reads, with_scale;
  for (const Reads& row : all_reads()) {
    if (row.scale != Reads::Scale::must) reads.emplace(row.name);
    if (row.scale != Reads::Scale::none) with_scale.emplace(row.name);
  }
  CHECK(words_of(lane["reads"]["anyOf"][0]["enum"]) == reads);
  CHECK(keys_of(lane["reads"]["anyOf"][1]["properties"]) == with_scale);
  CHECK(words_of(lane["weights"]["enum"]) == names_of(all_weight_types()));
  CHECK(words_of(lane["accumulator"]["enum"]) == names_of(all_accumulators()));
  CHECK(words_of(lane["stored"]["anyOf"][0]["enum"]) == names_of(all_storage_presets()));
  CHECK(words_of(lane["kv_cache"]["enum"]) == names_of(all_cache_types()));
  CHECK(words_of(lane["kv_rotate"]["enum"]) == names_of(all_cache_rotations()));
  for (const std::string& kind : variant_keys())
    CHECK(words_of(lane["variant"]["properties"][kind]["enum"]) == words_of(variant_names(kind)));
  CHECK(keys_of(lane["variant"]["properties"]) == words_of(variant_keys()));
  CHECK(words_of(defs["synthetic"]["enum"]) == words_of(synthetic_presets()));
  CHECK(words_of(schema()["properties"]["model"]["properties"]["quant"]["enum"]) == words_of(synthetic_quants()));
  CHECK(words_of(defs["fault"]["properties"]["inject"]["enum"]) == words_of(fault_names()));
  Words types;
  for (const BlockInfo& block : block_table) types.emplace(block.name);
  CHECK(words_of(defs["fault"]["properties"]["type"]["enum"]) == types);
}

TEST_CASE("the schema says nothing against a contract that is right") {
  std::vector<std::string> files = yaml_files(contracts);
  REQUIRE(files.size() >= 9);
  for (const std::string& scenario : yaml_files(contracts + "/scenarios")) files.push_back(scenario);
  for (const auto& [name, objection] : objections(files)) {
    INFO(name);
    CHECK(objection.empty());
  }
}

TEST_CASE("the shipped contracts tell editors where the schema is") {
  const std::pair<std::string, std::string> folders[] = {{"", ""}, {"/scenarios", "../"}};
  for (const auto& [folder, up] : folders)
    for (const std::string& file : yaml_files(contracts + folder)) {
      std::ifstream in(file);
      std::string line;
      std::getline(in, line);
      INFO(file);
      CHECK(line == "# yaml-language-server: $schema=" + up + "contract.schema.json");
    }
}

// What is wrong about one value or one map is for the schema to see; what needs a second place, the parser alone sees.
TEST_CASE("the schema refuses what has the wrong form") {
  const std::vector<std::string> of_form{
      "capture_key",  "capture_without", "key_unknown", "fault_unknown",  "fault_with_lane", "fault_without_stage",
      "lane_without", "metric_unknown",  "model_both",  "model_neither",  "model_preset",    "model_quant",
      "number_comma", "number_hex",      "number_inf",  "number_leading", "number_missing",  "number_nan",
      "number_quot",  "name_all",        "nothing_to",  "stage_list",     "stage_unknown",   "threshold_missing",
      "threshold_tw", "threshold_wrong", "token_",      "tokens_empty",   "tolerance_"};
  std::size_t refused = 0, seen = 0;
  for (const auto& [name, objection] : objections(yaml_files(contracts + "/rejected"))) {
    refused += !objection.empty();
    if (!begins_with_one_of(name, of_form)) continue;
    ++seen;
    INFO(name);
    CHECK_FALSE(objection.empty());
  }
  CHECK(seen >= of_form.size());
  CHECK(refused >= 72);
}

}  // namespace moe_diag
