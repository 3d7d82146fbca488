// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "core/ops/matrix.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag::host {

// Row tokens[i] of the table each: [n, cols].
Values embed(const Matrix& table, std::span<const std::int32_t> tokens);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator embed_op;

}  // namespace moe_diag
