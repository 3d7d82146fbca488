// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "apps/moe_diag/commands.hpp"
#include "core/arch/architecture.hpp"
#include "core/recording/known_maps.hpp"

namespace moe_diag {

void add_maps(CLI::App& app, Context&) {
  CLI::App* command = app.add_subcommand("maps", "List the maps of other tools' dumps, or print one");
  std::vector<std::string> architectures_known;
  for (const Architecture* a : architectures()) architectures_known.emplace_back(a->name);
  auto name = std::make_shared<std::string>();
  auto chosen = std::make_shared<std::string>("qwen3moe");
  command->add_option("NAME", *name, "Print this one, to be changed and named with --map FILE");
  command->add_option("ARCHITECTURE", *chosen, "Whose stages it has, as a GGUF file names it")
      ->check(CLI::IsMember(architectures_known))
      ->capture_default_str();
  command->footer("A map says where the files of a dump have what: docs/maps.md.");
  command->callback([name, chosen] {
    if (name->empty()) {
      for (const KnownMap& map : known_maps()) fmt::print("{:<12} {}\n", map.name, map.what);
      return;
    }
    for (const Architecture* a : architectures())
      if (a->name == *chosen) fmt::print("{}", known_map_text(*name, a->stages));
  });
}

}  // namespace moe_diag
