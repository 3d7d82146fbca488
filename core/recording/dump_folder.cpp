// SPDX-License-Identifier: MIT
#include "core/recording/dump_folder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/file/bounded_file.hpp"
#include "core/recording/site_name.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view npy = ".npy", safetensors = ".safetensors", part = ".part", call_prefix = "call_";
constexpr std::size_t most_digits = 8;  // of the number of a call

bool drop_suffix(std::string& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.resize(text.size() - suffix.size());
  return true;
}

// Entries of a folder by name, sorted.
std::vector<fs::directory_entry> entries_of(const std::string& folder) {
  std::vector<fs::directory_entry> entries;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    entries.push_back(*entry);
  if (error)
    throw Error(ErrorKind::environment, fmt::format("{}: cannot read the folder: {}", folder, error.message()));
  std::sort(entries.begin(), entries.end());
  return entries;
}

class Finder {
 public:
  Finder(const std::string& folder, const ModelConfig& config) : folder_(folder), config_(config) {}

  DumpFiles find() {
    for (const fs::directory_entry& entry : entries_of(folder_)) {
      const std::string name = entry.path().filename().string();
      std::error_code ignored;
      if (name.starts_with('.') || name == "cached") continue;
      if (entry.is_directory(ignored))
        add_layer(name);
      else
        add_file("", name);
    }
    check();
    std::sort(files_.arrays.begin(), files_.arrays.end(),
              [](const DumpFiles::Array& a, const DumpFiles::Array& b) { return a.site < b.site; });
    return std::move(files_);
  }

 private:
  void add_layer(const std::string& name) {
    const std::string where = folder_ + '/' + name;
    const auto layer = layer_of_folder(name);
    if (!layer)
      refuse_recording(fmt::format("{}: no folder of a dump, expected layer_00 to layer_{:02}; move it away", where,
                                   config_.layers - 1));
    const auto [other, is_new] = layers_.try_emplace(*layer, name);
    if (!is_new)
      refuse_recording(
          fmt::format("{}: layer {} has two folders, the other is {}: remove one", where, *layer, other->second));
    for (const fs::directory_entry& entry : entries_of(where)) {
      const std::string file = entry.path().filename().string();
      if (!file.starts_with('.')) add_file(name + '/', file);
    }
  }

  // Files that hold no arrays, as notes, are left alone.
  void add_file(const std::string& layer, const std::string& file) {
    const std::string path = folder_ + '/' + layer + file;
    std::string stem = file;
    const bool is_part = drop_suffix(stem, part);
    if (drop_suffix(stem, npy)) {
      const std::string name = layer + stem;
      add_array({site_named(name, config_, path), name + std::string(npy), path, is_part});
    } else if (drop_suffix(stem, safetensors)) {
      add_call(layer, path, stem, is_part);
    } else {
      return;
    }
    if (is_part && files_.leftover.empty()) files_.leftover = path;
  }

  void add_array(DumpFiles::Array array) {
    const auto [other, is_new] = arrays_.try_emplace(array.site, array.path);
    if (!is_new)
      refuse_recording(fmt::format("{}: {} has two arrays, the other is {}: remove one", array.path,
                                   text_of(array.site), other->second));
    files_.arrays.push_back(std::move(array));
  }

  void add_call(const std::string& layer, const std::string& path, const std::string& stem, bool is_part) {
    std::string_view digits = stem;
    const bool is_call = layer.empty() && digits.starts_with(call_prefix);
    if (is_call) digits.remove_prefix(call_prefix.size());
    if (!is_call || digits.empty() || digits.size() > most_digits ||
        digits.find_first_not_of("0123456789") != std::string_view::npos)
      refuse_recording(fmt::format("{}: expected a file for each call, call_00000{} and so on", path, safetensors));
    if (is_part) return;  // its call is not complete
    const auto [other, is_new] = files_.of_calls.try_emplace(std::stoi(std::string(digits)), path);
    if (!is_new)
      refuse_recording(
          fmt::format("{}: call {} has two files, the other is {}: remove one", path, other->first, other->second));
  }

  void check() const {
    if (!files_.arrays.empty() && !files_.of_calls.empty())
      refuse_recording(
          fmt::format("{}: has {} and {}, expected npy arrays or a safetensors file for each call, not both", folder_,
                      files_.arrays.front().name, fs::path(files_.of_calls.begin()->second).filename().string()));
    if (files_.arrays.empty() && files_.of_calls.empty())
      refuse_recording(fmt::format(
          "{}: the dump has no array, expected <stage>.npy and layer_07/<stage>.npy, or call_00000.safetensors",
          folder_));
  }

  const std::string& folder_;
  const ModelConfig& config_;
  DumpFiles files_;
  std::map<int, std::string> layers_;
  std::map<Site, std::string> arrays_;
};

}  // namespace

DumpFiles DumpFiles::find(const std::string& folder, const ModelConfig& config) {
  return Finder(folder, config).find();
}

DumpHead DumpHead::read(const std::string& path) {
  constexpr std::size_t largest = 1 << 20;
  std::string text;
  try {
    text = read_bounded(path, largest);
  } catch (const Error& e) {
    refuse_recording(fmt::format("{}: {}", path, e.what()));
  }
  const JsonFields json = JsonFields::parse(text, path);
  json.refuse_others({"format", "version", "engine", "numerics", "stored", "kv_cache", "model", "closed", "calls",
                      "bf16_as",
                      // for people, by moe_diag.record
                      "mode", "logits_changed_by", "not_recorded"});
  if (json.text("format") != "moe-diag dump")
    refuse_recording(fmt::format("{}: expected \"format\": \"moe-diag dump\", found {}", path,
                                 json.has("format") ? json_text(json.json()["format"]) : "none"));
  if (!json.has("version")) refuse_recording(fmt::format("{}: has no version, expected 1", path));
  (void)json.number("version", 1, 1);
  const auto bf16_as = json.text("bf16_as");
  if (bf16_as && *bf16_as != "u2")
    refuse_recording(fmt::format("{}: bf16_as: expected \"u2\", found \"{}\"", path, shown(*bf16_as)));
  return {json.text("engine").value_or(""),
          json.text("numerics").value_or(""),
          json.text("stored").value_or(""),
          json.text("kv_cache").value_or(""),
          json.text("model").value_or(""),
          json.flag("closed").value_or(false),
          bf16_as.has_value(),
          json.number("calls", 0, std::numeric_limits<int>::max())};
}

}  // namespace moe_diag
