// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

// Another version's manifest: whoever reads a field after the ABI number goes wrong.
struct OtherManifest {
  char magic[8];
  std::uint32_t abi_version, bytes, kind;
  std::uintptr_t build_stamp, name, summary;
};
constexpr OtherManifest manifest = {{'M', 'O', 'E', 'D', 'I', 'A', 'G', '\0'}, 4711, 0, 9, 1, 1, 1};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_EXPORT_BAD(moe_diag::manifest, &moe_diag::make_idle_sink)
