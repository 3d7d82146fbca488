// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

// A file that was renamed.
constexpr PluginManifest changed_manifest() {
  PluginManifest m = good_manifest;
  m.name = "worse";
  return m;
}
constexpr PluginManifest manifest = changed_manifest();

}  // namespace
}  // namespace moe_diag

MOE_DIAG_EXPORT_BAD(moe_diag::manifest, &moe_diag::make_idle_sink)
