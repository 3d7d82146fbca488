// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

// A manifest that was not filled in.
constexpr PluginManifest changed_manifest() {
  PluginManifest m = good_manifest;
  m.build_stamp = nullptr;
  return m;
}
constexpr PluginManifest manifest = changed_manifest();

}  // namespace
}  // namespace moe_diag

MOE_DIAG_EXPORT_BAD(moe_diag::manifest, &moe_diag::make_idle_sink)
