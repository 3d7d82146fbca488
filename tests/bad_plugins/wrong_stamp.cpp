// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

// Built with another string class.
constexpr PluginManifest changed_manifest() {
  PluginManifest m = good_manifest;
  m.build_stamp = "pointer=8 cplusplus=202002L cxx11_abi=7 sanitizer=none debug_mode=off";
  return m;
}
constexpr PluginManifest manifest = changed_manifest();

}  // namespace
}  // namespace moe_diag

MOE_DIAG_EXPORT_BAD(moe_diag::manifest, &moe_diag::make_idle_sink)
