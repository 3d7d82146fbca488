// SPDX-License-Identifier: MIT
#include "core/recording/cached_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "core/file/safetensors_file.hpp"
#include "core/recording/site_name.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {

namespace fs = std::filesystem;

namespace {

std::vector<fs::path> entries_of(const std::string& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    if (!entry->path().filename().string().starts_with('.')) entries.push_back(entry->path());
  if (error)
    throw Error(ErrorKind::environment, fmt::format("{}: cannot read the folder: {}", folder, error.message()));
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace

CachedRows::CachedRows(const std::string& dump, const ModelConfig& config, const std::vector<RecordedRequest>& requests,
                       bool zeros_ok)
    : zeros_ok_(zeros_ok) {
  const std::string folder = dump + "/cached";
  std::error_code ignored;
  if (!fs::exists(folder, ignored)) return;
  if (!fs::is_directory(folder, ignored))
    refuse_recording(fmt::format("{}: expected a folder of cached keys and values, found a file", folder));
  std::vector<std::string> ids;
  for (const RecordedRequest& request : requests) ids.push_back(request.id);
  for (const fs::path& of_request : entries_of(folder)) {
    const std::string id = of_request.filename().string();
    const auto found = std::find(ids.begin(), ids.end(), id);
    if (found == ids.end()) refuse_recording(fmt::format("{}: {}", of_request.string(), unknown("request", id, ids)));
    const auto request = static_cast<int>(found - ids.begin());
    const int positions = requests[static_cast<std::size_t>(request)].first;
    if (positions == 0)
      refuse_recording(fmt::format("{}: the request is recorded from position 0 on: nothing was cached before",
                                   of_request.string()));
    for (const fs::path& of_layer : entries_of(of_request.string())) {
      const auto layer = layer_of_folder(of_layer.filename().string());
      if (!layer || *layer >= config.layers)
        refuse_recording(
            fmt::format("{}: expected a folder layer_00 to layer_{:02}", of_layer.string(), config.layers - 1));
      for (const fs::path& file : entries_of(of_layer.string()))
        add(file.string(), file.filename().string(), *layer, request, positions, config);
    }
  }
}

void CachedRows::add(const std::string& path, const std::string& file, int layer, int request, int positions,
                     const ModelConfig& config) {
  std::vector<std::string> known;
  for (std::size_t c = 0; c < config.caches.size(); ++c)
    if (!info(config.caches[c]).is_state) known.push_back(std::string(name_of(config.caches[c])) + ".npy");
  const auto found = std::find(known.begin(), known.end(), file);
  if (found == known.end()) refuse_recording(fmt::format("{}: {}", path, unknown("cache", file, known)));
  const Cache cache = config.caches.find(std::string_view(file).substr(0, file.size() - 4));
  MappedNpy npy = MappedNpy::open(path, fmt::format("layer {}, cached {}", layer, name_of(cache)), /*is_cut=*/false,
                                  /*is_bf16_u2=*/false);
  const std::vector<std::int64_t>& shape = npy.facts.shape;
  std::int64_t width = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) width *= shape[i];  // the file has as many: they fit
  const std::int64_t expected = config.cache_width(cache, layer);
  if (is_whole(npy.facts.element) || width != expected || shape[0] != positions)
    refuse_recording(
        fmt::format("{}: found shape {} of {}, expected [{}, {}] of f32, f16 or bf16: a row for each position "
                    "before the first one recorded",
                    path, shape_text(shape), name_of(npy.facts.element), positions, expected));
  bool is_zero = !zeros_ok_;
  for (std::int64_t i = 0; i < positions * width && is_zero; ++i)
    is_zero = value_at(npy.facts.element, npy.facts.data.data(), i) == 0;
  if (is_zero) refuse_recording(fmt::format("{}: every row is 0; if the cache did have zeros, say --zeros-ok", path));
  arrays_.emplace(std::pair(request, std::pair(cache.index(), layer)), std::move(npy));
}

Tensor CachedRows::rows(int request, Cache cache, int layer) const {
  const auto found = arrays_.find({request, {cache.index(), layer}});
  if (found == arrays_.end()) return {};
  const ArrayFacts& facts = found->second.facts;
  std::int64_t width = 1;
  for (std::size_t i = 1; i < facts.shape.size(); ++i) width *= facts.shape[i];
  return {facts.data.data(), read_as(facts.element), Shape{facts.shape[0], width}};
}

}  // namespace moe_diag
