// SPDX-License-Identifier: MIT
#include "core/recording/site_name.hpp"

#include <fmt/format.h>

#include <charconv>
#include <stdexcept>
#include <system_error>

#include "core/contract/selection.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::string_view layer_prefix = "layer_";

}  // namespace

Stage stage_named(std::string_view name, const ModelConfig& config, const std::string& where) {
  try {
    const StagePick pick = pick_stages(name, config.stages);
    if (pick.named) return pick.stages.front();
  } catch (const std::invalid_argument& e) {
    refuse_recording(fmt::format("{}: {}", where, e.what()));
  }
  refuse_recording(fmt::format("{}: '{}' names no single stage", where, shown(name)));
}

std::optional<int> layer_of_folder(std::string_view name) {
  if (!name.starts_with(layer_prefix)) return std::nullopt;
  name.remove_prefix(layer_prefix.size());
  if (name.empty() || name.size() > 9 || name.find_first_not_of("0123456789") != std::string_view::npos)
    return std::nullopt;
  int layer = 0;
  const auto [stop, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  return error == std::errc() && stop == name.data() + name.size() ? std::optional(layer) : std::nullopt;
}

Site site_named(std::string_view name, const ModelConfig& config, const std::string& where) {
  const std::size_t slash = name.find('/');
  if (slash == std::string_view::npos) {
    const Stage stage = stage_named(name, config, where);
    if (info(stage).scope == Scope::layer)
      refuse_recording(fmt::format("{}: {} is a stage of a layer, expected layer_00/{} and so on", where,
                                   name_of(stage), name_of(stage)));
    return {stage, -1};
  }
  const auto layer = layer_of_folder(name.substr(0, slash));
  if (!layer)
    refuse_recording(fmt::format("{}: '{}': expected layer_ and the number of a layer, as in layer_07", where,
                                 shown(name.substr(0, slash))));
  if (*layer >= config.layers)
    refuse_recording(fmt::format("{}: layer {}: the model has layers 0 to {}", where, *layer, config.layers - 1));
  const Stage stage = stage_named(name.substr(slash + 1), config, where);
  if (info(stage).scope != Scope::layer)
    refuse_recording(
        fmt::format("{}: {} is a stage of the whole model, expected it beside the layers", where, name_of(stage)));
  return {stage, *layer};
}

std::string text_of(Site site) {
  if (site.layer < 0) return std::string(name_of(site.stage));
  return fmt::format("layer {}, {}", site.layer, name_of(site.stage));
}

}  // namespace moe_diag
