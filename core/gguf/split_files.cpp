// SPDX-License-Identifier: MIT
#include "core/gguf/split_files.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/gguf/metadata_reader.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::int64_t most_parts = 1000;

// A part's path, taken apart: part `part` of `parts` (from 1 on) of the model at `model`. 0 parts: it is no such path.
struct PartName {
  std::string_view model;
  int part = 0, parts = 0;
};

PartName part_name(std::string_view path) {
  constexpr std::string_view ending = ".gguf";
  constexpr std::size_t digits = 5;
  const std::string_view of = "-of-";
  if (!path.ends_with(ending)) return {};
  path.remove_suffix(ending.size());
  const std::size_t length = 1 + digits + of.size() + digits;    // of "-00002-of-00003"
  if (path.size() - (path.rfind('/') + 1) <= length) return {};  // npos + 1 is 0
  const std::string_view tail = path.substr(path.size() - length);
  if (tail[0] != '-' || tail.substr(1 + digits, of.size()) != of) return {};
  PartName name{path.substr(0, path.size() - length)};
  for (const auto& [text, number] :
       {std::pair{tail.substr(1, digits), &name.part}, std::pair{tail.substr(1 + digits + of.size()), &name.parts}}) {
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
    if (error != std::errc() || stop != text.data() + text.size()) return {};
  }
  return name.part >= 1 && name.part <= name.parts && name.parts <= most_parts ? name : PartName{};
}

std::string name_of_part(std::string_view model, std::int64_t part, std::int64_t parts) {
  return fmt::format("{}-{:05}-of-{:05}.gguf", model, part, parts);
}

// How many parts the model has that the file is of; 1: it is whole.
std::int64_t count_of(const GgufFile& file) {
  const std::int64_t count = file.integer("split.count").value_or(1);  // 0 where parts were merged
  if (count < 0 || count > most_parts)
    refuse_file(file, "metadata key 'split.count' is {}, expected 0 to {}", count, most_parts);
  if (count > 1) return count;
  const PartName name = part_name(file.source());
  if (name.parts > 1 && !file.find("general.architecture"))
    refuse_file(
        file, "part {} of {} of a split model, by its name; its metadata does not say so: key 'split.count' is missing",
        name.part, name.parts);
  return 1;
}

// Which part the file is, from 0 on, as its metadata says.
std::int64_t number_of(const GgufFile& file, std::int64_t parts) {
  const auto number = file.integer("split.no");
  if (!number) refuse_file(file, "one of {} parts of a split model, but metadata key 'split.no' is missing", parts);
  if (*number < 0 || *number >= parts)
    refuse_file(file, "metadata key 'split.no' is {}, expected 0 to {}: the model has {} parts", *number, parts - 1,
                parts);
  return *number;
}

// Refuses a part of another model, or one that has another part's name.
void check_part(const GgufFile& file, const GgufFile& first, std::int64_t part, std::int64_t parts) {
  const auto refuse = [&](std::string_view key, const std::string& found, const std::string& expected) {
    refuse_file(file,
                "part {} of {} of a split model, by its name; its metadata key '{}' is {}, expected {}: give each part "
                "its own name again",
                part, parts, key, found, expected);
  };
  const auto shown_number = [](const std::optional<std::int64_t>& n) {
    return n ? fmt::format("{}", *n) : std::string("missing");
  };
  if (const auto count = file.integer("split.count"); count != parts)
    refuse("split.count", shown_number(count), fmt::format("{}", parts));
  if (const auto number = file.integer("split.no"); number != part - 1)
    refuse("split.no", shown_number(number), fmt::format("{}", part - 1));
  for (const std::string_view key : {"general.architecture", "general.name"}) {
    const auto own = file.text(key), expected = first.text(key);
    if (own && own != expected)
      refuse(key, quoted_bytes(*own), expected ? quoted_bytes(*expected) : std::string("none, as in the first part"));
  }
}

MappedFile open_part(const std::string& path, std::int64_t part, std::int64_t parts) {
  try {
    return MappedFile::open(path);
  } catch (const Error& e) {
    throw Error(e.kind(), fmt::format("{} (part {} of {} of a split model)", e.what(), part, parts));
  }
}

}  // namespace

std::vector<std::string> split_parts(const std::string& path) {
  const PartName name = part_name(path);
  std::vector<std::string> parts;
  for (int part = 1; part <= name.parts; ++part) parts.push_back(name_of_part(name.model, part, name.parts));
  return parts;
}

ModelFiles open_model_files(const std::string& path) {
  MappedFile named = MappedFile::open(path);
  GgufFile file = GgufFile::parse(named.bytes(), path);
  ModelFiles files{{}, std::move(file)};
  const std::int64_t parts = count_of(files.file);
  if (parts == 1) {
    files.mapped.push_back(std::move(named));
    return files;
  }
  const std::vector<std::string> paths = split_parts(path);
  if (static_cast<std::int64_t>(paths.size()) != parts)
    refuse_file(files.file, "one of {} parts of a split model, whose others are found by name: call it {}, and so on",
                parts, name_of_part("NAME", number_of(files.file, parts) + 1, parts));
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const auto part = static_cast<std::int64_t>(i) + 1;
    files.mapped.push_back(open_part(paths[i], part, parts));
    GgufFile of_part = GgufFile::parse(files.mapped.back().bytes(), paths[i]);
    check_part(of_part, i == 0 ? of_part : files.file, part, parts);
    if (i == 0)
      files.file = std::move(of_part);
    else
      files.file.add_part(std::move(of_part));
  }
  const auto tensors = static_cast<std::int64_t>(files.file.tensors().size());
  if (const auto stated = files.file.integer("split.tensors.count"); stated && *stated != tensors)
    refuse_file(files.file, "metadata key 'split.tensors.count' is {}, but the {} parts have {} tensors", *stated,
                parts, tensors);
  return files;
}

}  // namespace moe_diag
