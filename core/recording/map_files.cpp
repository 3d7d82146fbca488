// SPDX-License-Identifier: MIT
#include "core/recording/map_files.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "core/file/safetensors_file.hpp"
#include "core/recording/npy_rows.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {

namespace fs = std::filesystem;

std::string MapArray::where() const {
  return tensor.empty() ? path : fmt::format("{}: tensor {}", path, quoted_bytes(tensor));
}

int MapHit::number(const std::string& variable) const {
  const std::string digits = text(variable);
  if (digits.empty()) return -1;
  int number = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || stop != digits.data() + digits.size())
    refuse_recording(fmt::format("{}: {} {} is too large a number", array->where(), variable, shown(digits)));
  return number;
}

std::string MapHit::text(const std::string& variable) const {
  const auto found = variables.find(variable);
  return found == variables.end() ? "" : found->second;
}

MapFiles::MapFiles(const std::string& folder) : folder_(folder) {
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    if (entry->path().filename().string().starts_with('.')) {
      entry.disable_recursion_pending();
    } else {
      const std::string name = entry->path().lexically_relative(folder).generic_string();
      (entry->is_regular_file(ignored) ? names_ : others_).push_back(name);
    }
  }
  if (error)
    throw Error(ErrorKind::environment, fmt::format("{}: cannot read the folder: {}", folder, error.message()));
  std::sort(names_.begin(), names_.end());
}

std::string MapFiles::some_names() const {
  std::vector<std::string> names;
  for (const std::string& name : names_) names.push_back(shown(name));
  return names.empty() ? "nothing" : listed(names);
}

std::vector<MapHit> MapFiles::find(const std::string& pattern, const std::string& where, const std::string& type,
                                   std::uint64_t skip) {
  const std::size_t hash = pattern.find('#');
  const NamePattern path(pattern.substr(0, hash), where);
  const NamePattern tensor(hash == std::string::npos ? "" : pattern.substr(hash + 1), where);
  std::vector<MapHit> hits;
  for (const std::string& name : others_)
    if (path.match(name))
      refuse_recording(fmt::format("{}: {}/{} has this name, and is no regular file", where, folder_, shown(name)));
  for (const std::string& name : names_) {
    const auto variables = path.match(name);
    if (!variables) continue;
    const Opened& opened = open(name, type, skip);
    const bool has_tensors = !opened.arrays.empty() && !opened.arrays.front().tensor.empty();
    if (has_tensors && hash == std::string::npos)
      refuse_recording(fmt::format("{}: {}/{} has several tensors: say which one behind '#'", where, folder_, name));
    if (!has_tensors && hash != std::string::npos)
      refuse_recording(
          fmt::format("{}: {}/{} is one array, expected a .safetensors file before '#'", where, folder_, name));
    for (const MapArray& array : opened.arrays)
      if (auto all = tensor.match(array.tensor, *variables)) hits.push_back({std::move(*all), &array});
  }
  return hits;
}

const MapFiles::Opened& MapFiles::open(const std::string& name, const std::string& type, std::uint64_t skip) {
  const auto [entry, is_new] = opened_.try_emplace(name + '\n' + type + '\n' + std::to_string(skip));
  Opened& opened = entry->second;
  if (!is_new) return opened;
  std::error_code ignored;
  if (fs::file_size(folder_ + '/' + name, ignored) == 0)
    refuse_recording(fmt::format("{}/{}: has 0 bytes, expected an array", folder_, name));
  if (!type.empty())
    open_raw(name, type, skip, opened);
  else if (name.ends_with(".npy"))
    open_npy(name, opened);
  else if (name.ends_with(".safetensors"))
    open_safetensors(name, opened);
  else
    refuse_recording(
        fmt::format("{}/{}: expected a file .npy or .safetensors; for values without a header, the map says their "
                    "'type'. Files of torch.save: `python -m moe_diag convert DIR` makes .safetensors of them",
                    folder_, name));
  return opened;
}

void MapFiles::open_npy(const std::string& name, Opened& opened) const {
  MappedNpy npy = MappedNpy::open(folder_ + '/' + name, name, /*is_cut=*/false, /*is_bf16_u2=*/false);
  opened.arrays.push_back(
      {npy.file.path(), "", name, npy.facts.element, npy.facts.shape, npy.facts.data, npy.head_bytes});
  opened.file = std::make_unique<MappedFile>(std::move(npy.file));
}

void MapFiles::open_safetensors(const std::string& name, Opened& opened) const {
  const std::string path = folder_ + '/' + name;
  opened.file = std::make_unique<MappedFile>(MappedFile::open(path));
  const auto bytes = opened.file->bytes();
  SafetensorsFile parsed;
  try {
    parsed = parse_safetensors({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  } catch (const Error& e) {
    refuse_recording(fmt::format("{}: {}", path, e.what()));
  }
  std::vector<NamedRange> ranges;
  for (const SafeTensor& tensor : parsed.tensors) {
    const auto data = std::as_bytes(std::span(tensor.data.data(), tensor.data.size()));
    const auto first = static_cast<std::uint64_t>(data.data() - bytes.data());
    ranges.push_back({tensor.name, first, first + data.size()});
    const auto element = element_of_safetensors(tensor.dtype);
    if (element)  // others are nothing that a stage has
      opened.arrays.push_back({path, tensor.name, name + '#' + tensor.name, *element, tensor.shape, data, first});
  }
  opened.file->name_ranges(std::move(ranges));
}

void MapFiles::open_raw(const std::string& name, const std::string& type, std::uint64_t skip, Opened& opened) const {
  constexpr std::pair<std::string_view, Element> types[] = {
      {"f64", Element::f64}, {"f32", Element::f32}, {"f16", Element::f16}, {"bf16", Element::bf16},
      {"i16", Element::i16}, {"i32", Element::i32}, {"i64", Element::i64}};
  const auto* row = std::find_if(std::begin(types), std::end(types), [&](const auto& t) { return t.first == type; });
  const std::string path = folder_ + '/' + name;
  opened.file = std::make_unique<MappedFile>(MappedFile::open(path));
  const auto bytes = opened.file->bytes();
  const std::size_t size = size_of(row->second);
  if (bytes.size() < skip || (bytes.size() - skip) % size != 0)
    refuse_recording(fmt::format("{}: has {} bytes, expected {} and behind them values of {} bytes ({})", path,
                                 bytes.size(), skip, size, type));
  opened.file->name_ranges({{name, skip, bytes.size()}});
  opened.arrays.push_back({path,
                           "",
                           name,
                           row->second,
                           {static_cast<std::int64_t>((bytes.size() - skip) / size)},
                           bytes.subspan(skip),
                           skip});
}

}  // namespace moe_diag
