// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/params.hpp"
#include "core/api/step.hpp"

// Public implementations write the same mathematics in forms that differ in a constant or in rounding. The model's
// definition is the form without a name; a lane may state another. docs/numerics.md lists them with their sources.
namespace moe_diag {

struct Variant {
  std::string_view key, name;  // as a contract states them: {rope_angles: multiplied}
  std::string_view text;
  bool (*apply)(Params&);  // false for a step that has no such form
};
std::span<const Variant> all_variants();
const Variant* find_variant(std::string_view key, std::string_view name);  // null: there is none

// Each once, in the order of the table; the names that a key has.
std::vector<std::string> variant_keys();
std::vector<std::string> variant_names(std::string_view key);

// "angles multiplied up in f32: `variant: {rope_angles: multiplied}`", for the cause of a step.
std::string text_of(RopeAngles angles);
std::string text_of(Denominator denominator);

// True for a step in another form than the model's. Backends compute the model's own: the plain operator computes this
// one.
bool is_variant(const Step& step);
// The steps that come before the first of them.
std::size_t before_variant(std::span<const Step> steps);

}  // namespace moe_diag
