// SPDX-License-Identifier: MIT
#pragma once

namespace moe_diag {

// A place in the contract file, 1-based.
struct Where {
  int line = 0, column = 0;
};

}  // namespace moe_diag
