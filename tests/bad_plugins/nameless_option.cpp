// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

constexpr OptionInfo options[] = {{nullptr, OptionType::text, "", OptionAbsent::fallback, "", "nothing"}};
constexpr PluginManifest changed_manifest() {
  PluginManifest m = good_manifest;
  m.options = options;
  m.option_count = 1;
  return m;
}
constexpr PluginManifest manifest = changed_manifest();

}  // namespace
}  // namespace moe_diag

MOE_DIAG_EXPORT_BAD(moe_diag::manifest, &moe_diag::make_idle_sink)
