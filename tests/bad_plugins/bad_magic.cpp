// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

// A manifest of something else.
constexpr PluginManifest changed_manifest() {
  PluginManifest m = good_manifest;
  m.magic[0] = 'X';
  m.magic[1] = '\n';
  return m;
}
constexpr PluginManifest manifest = changed_manifest();

}  // namespace
}  // namespace moe_diag

MOE_DIAG_EXPORT_BAD(moe_diag::manifest, &moe_diag::make_idle_sink)
