// SPDX-License-Identifier: MIT
#include "core/arch/architecture.hpp"

#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "core/forward/program.hpp"
#include "core/model/model.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {

TEST_CASE("every file of core/arch is an architecture of its name") {
  std::set<std::string> files, names;
  for (const auto& entry : std::filesystem::directory_iterator(MOE_DIAG_SOURCE_DIR "/core/arch"))
    if (entry.path().extension() == ".cpp" && entry.path().stem() != "architecture")
      files.insert(entry.path().stem().string());
  for (const Architecture* a : architectures()) names.emplace(a->name);
  CHECK(names == files);
  CHECK(names.size() == architectures().size());
}

TEST_CASE("every preset of an architecture has a program that reads each of its tensors, in the order of the file") {
  for (const Architecture* a : architectures()) {
    for (const SyntheticPreset& preset : a->presets) {
      if (preset.config.layers > 8) continue;  // of full size
      const Model model = Model::synthetic({std::string(preset.name), 0, "f32", 1});
      CHECK(&model.architecture() == a);
      std::map<const Weight*, int> times;
      for (const Step& step : build_program(model))
        for (const Weight* weight : step.weights) ++times[weight];
      for (const Weight& weight : model.view().weights) {
        INFO(weight.name);
        CHECK(times[&weight] == 1);
      }
      CHECK(times.size() == model.view().weights.size());
    }
  }
}

}  // namespace moe_diag
