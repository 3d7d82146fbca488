// SPDX-License-Identifier: MIT
#include "core/plugin/oracle_backend.hpp"

#include <string_view>

#include "core/api/error.hpp"

namespace moe_diag {

std::string oracle_backend(PluginHost& host, const std::string& purpose) {
  for (const PluginRecord& plugin : host.list()) {
    if (plugin.kind != PluginKind::backend || !plugin.refusal.empty() || !plugin.absent.empty()) continue;
    for (const OptionInfo& o : plugin.options)
      if (std::string_view(o.name) == "numerics" && option::has_item(o.choices, ' ', "f64")) return plugin.name;
  }
  throw Error(ErrorKind::absent, "there is no backend that computes in f64, in which " + purpose);
}

}  // namespace moe_diag
