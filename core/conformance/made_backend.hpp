// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "core/api/backend.hpp"

namespace moe_diag {

// A backend that computes nothing: its lanes have every stage, with values that depend on numerics (f64 or f32), site,
// position and element alone. Some logits of f32 are not finite. With `device: absent` its lanes are absent.
std::unique_ptr<Backend> make_made_backend();

}  // namespace moe_diag
