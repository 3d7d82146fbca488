// SPDX-License-Identifier: MIT
#include "core/ops/variant.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <variant>

namespace moe_diag {
namespace {

template <RopeAngles angles>
bool with_angles(Params& params) {
  auto* rope = std::get_if<RopeParams>(&params);
  if (rope) rope->angles = angles;
  return rope != nullptr;
}

template <Denominator denominator>
bool with_denominator(Params& params) {
  auto* topk = std::get_if<TopkParams>(&params);
  if (!topk || !topk->renormalised) return false;
  topk->denominator = denominator;
  return true;
}

constexpr std::array variant_table{
    Variant{"rope_angles", "f32", "angles in f32, as transformers and vLLM have them", with_angles<RopeAngles::f32>},
    Variant{"rope_angles", "f32_bf16",
            "angles in f32, their cosines and sines in bf16, as transformers and vLLM have them in a bf16 model",
            with_angles<RopeAngles::f32_bf16>},
    Variant{"rope_angles", "multiplied", "angles multiplied up from pair to pair in f32, as ggml has them on a CPU",
            with_angles<RopeAngles::multiplied>},
    Variant{"renormalisation", "sum_plus_1e-20", "weights over their sum plus 1e-20, as transformers has DeepSeek-V3",
            with_denominator<Denominator::sum_plus_1e20>},
    Variant{"renormalisation", "clamped", "weights over their sum, at least 6.1e-5, as llama.cpp has them",
            with_denominator<Denominator::clamped>},
};

// The row that gives a step these parameters.
const Variant* row_of(const Params& wanted) {
  const auto found = std::find_if(variant_table.begin(), variant_table.end(), [&](const Variant& row) {
    Params made = wanted;
    return row.apply(made) && made == wanted;
  });
  return found == variant_table.end() ? nullptr : &*found;
}

std::string text_of(const Params& params, std::string_view own) {
  const Variant* row = row_of(params);
  return row ? fmt::format("{}: `variant: {{{}: {}}}`", row->text, row->key, row->name)
             : fmt::format("{}, as the model defines them; the oracle states a variant", own);
}

}  // namespace

std::span<const Variant> all_variants() { return variant_table; }

const Variant* find_variant(std::string_view key, std::string_view name) {
  const auto found = std::find_if(variant_table.begin(), variant_table.end(),
                                  [&](const Variant& row) { return row.key == key && row.name == name; });
  return found == variant_table.end() ? nullptr : &*found;
}

std::vector<std::string> variant_keys() {
  std::vector<std::string> keys;
  for (const Variant& row : variant_table)
    if (std::find(keys.begin(), keys.end(), row.key) == keys.end()) keys.emplace_back(row.key);
  return keys;
}

std::vector<std::string> variant_names(std::string_view key) {
  std::vector<std::string> names;
  for (const Variant& row : variant_table)
    if (row.key == key) names.emplace_back(row.name);
  return names;
}

std::string text_of(RopeAngles angles) { return text_of(RopeParams{.angles = angles}, "angles in double"); }
std::string text_of(Denominator denominator) {
  return text_of(TopkParams{.renormalised = true, .denominator = denominator}, "weights over their sum");
}

bool is_variant(const Step& step) { return row_of(step.params) != nullptr; }

std::size_t before_variant(std::span<const Step> steps) {
  return static_cast<std::size_t>(std::find_if(steps.begin(), steps.end(), is_variant) - steps.begin());
}

}  // namespace moe_diag
