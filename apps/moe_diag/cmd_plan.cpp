// SPDX-License-Identifier: MIT
#include "apps/moe_diag/commands.hpp"
namespace moe_diag {
void add_plan(CLI::App&, Context&) {}
}  // namespace moe_diag
