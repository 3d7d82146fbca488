// SPDX-License-Identifier: MIT
#include <array>
#include <cstdio>
#include <memory>
#include <set>
#include <sstream>

#include "core/plugin/host.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

struct Symbol {
  std::string type, name;
};

std::vector<Symbol> symbols_of(const std::string& path, const std::string& which) {
  const std::string command = "nm -D -P " + which + " '" + path + "'";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), &::pclose);
  REQUIRE(pipe != nullptr);
  std::vector<Symbol> symbols;
  std::array<char, 65536> line{};
  while (std::fgets(line.data(), line.size(), pipe.get())) {
    Symbol symbol;
    std::istringstream(line.data()) >> symbol.name >> symbol.type;
    symbols.push_back(symbol);
  }
  return symbols;
}

TEST_CASE("shipped plugins need nothing of the core and export their two aliases") {
  const auto records = PluginHost({MOE_DIAG_PLUGINS}).list();
  int loaded = 0;
  for (const PluginRecord& record : records) {
    INFO(record.path);
    if (!record.absent.empty()) continue;  // a note that a plugin was not built
    ++loaded;
    const auto needed = symbols_of(record.path, "--undefined-only");
    CHECK(needed.size() > 10);
    for (const Symbol& symbol : needed) {
      INFO(symbol.name);
      CHECK(symbol.name.find("moe_diag") == std::string::npos);
    }

    std::set<std::string> strong;
    for (const Symbol& symbol : symbols_of(record.path, "--defined-only")) {
      INFO(symbol.name << " " << symbol.type);
      // What templates of the standard library and the one public exception class leave cannot be hidden: weak (W, V)
      // or unique (u).
      const bool weak = symbol.type == "W" || symbol.type == "V" || symbol.type == "u";
      // The address sanitizer marks every exported variable with a symbol of its own.
      const bool marker = symbol.name.find("__odr_asan.") == 0;
      if (!weak && !marker) strong.insert(symbol.name);
      if (weak && symbol.name.find("moe_diag") != std::string::npos)
        CHECK(symbol.name.find("N8moe_diag5ErrorE") != std::string::npos);
    }
    CHECK(strong == std::set<std::string>{"moe_diag_create", "moe_diag_manifest"});
  }
  CHECK(loaded >= 3);
}

}  // namespace
}  // namespace moe_diag
