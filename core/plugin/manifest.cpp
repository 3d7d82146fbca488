// SPDX-License-Identifier: MIT
#include "core/plugin/manifest.hpp"

#include <elf.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <vector>

namespace moe_diag {

namespace {

// Magic as it would stand in source text, for messages: bytes of a foreign struct may be anything.
std::string printable(const char* bytes, std::size_t count) {
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    const auto c = static_cast<unsigned char>(bytes[i]);
    text += c >= 0x20 && c < 0x7F ? std::string(1, bytes[i]) : fmt::format("\\x{:02x}", c);
  }
  return text;
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(' '), text.size());
    if (end > 0) words.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

// "cxx11_abi=0 instead of cxx11_abi=1" for every word of the stamps that differs.
std::string difference(std::string_view found, std::string_view wanted) {
  const std::vector<std::string_view> a = words_of(found), b = words_of(wanted);
  std::string text;
  for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const std::string_view f = i < a.size() ? a[i] : "nothing", w = i < b.size() ? b[i] : "nothing";
    if (f != w) text += fmt::format("{}{} instead of {}", text.empty() ? "" : ", ", f, w);
  }
  return text;
}

std::string kind_text(PluginKind kind) {
  const std::string_view name = name_of(kind);
  return name.empty() ? fmt::format("kind {}", static_cast<std::uint32_t>(kind)) : "a " + std::string(name);
}

std::string stamp_refusal(std::string_view found) {
  const std::string_view wanted = MOE_DIAG_BUILD_STAMP;
  if (found == wanted) return "";
  return fmt::format(
      "its build stamp is '{}', wanted '{}' ({}): rebuild both with one compiler, standard and set of sanitizers",
      found, wanted, difference(found, wanted));
}

// What is wrong with the table of options; empty: nothing.
std::string option_defect(const PluginManifest& m) {
  if (m.option_count > 0 && !m.options) return "a number of options and no options";
  std::vector<std::string_view> seen;
  for (const OptionInfo& o : std::span(m.options, m.option_count)) {
    if (!o.name || !*o.name) return "an option without a name";
    if (!o.unit || !o.value || !o.choices || !o.text || !*o.text)
      return fmt::format("an option '{}' without unit, value, choices or text", o.name);
    if (o.type > OptionType::choice || o.absent > OptionAbsent::required)
      return fmt::format("an option '{}' of no known type", o.name);
    if (std::find(seen.begin(), seen.end(), o.name) != seen.end()) return fmt::format("two options '{}'", o.name);
    seen.emplace_back(o.name);
  }
  return "";
}

}  // namespace

std::string_view name_of(PluginKind kind) {
  switch (kind) {
    case PluginKind::backend: return "backend";
    case PluginKind::sink: return "sink";
  }
  return "";
}

std::optional<PluginName> announced(std::string_view file_name, std::string_view suffix) {
  for (const PluginKind kind : {PluginKind::backend, PluginKind::sink}) {
    const std::string prefix = fmt::format("moe_diag_{}_", name_of(kind));
    if (file_name.size() <= prefix.size() + suffix.size()) continue;
    if (!file_name.starts_with(prefix) || !file_name.ends_with(suffix)) continue;
    return PluginName{kind,
                      std::string(file_name.substr(prefix.size(), file_name.size() - prefix.size() - suffix.size()))};
  }
  return std::nullopt;
}

std::string refusal_of(const PluginManifest& m, const PluginName& wanted) {
  if (std::memcmp(m.magic, plugin_magic, sizeof plugin_magic) != 0)
    return fmt::format("its manifest starts with '{}', wanted '{}': build it with the macros of core/api/abi.hpp",
                       printable(m.magic, sizeof m.magic), printable(plugin_magic, sizeof plugin_magic));
  if (m.abi_version != abi_version)
    return fmt::format("it has ABI {}, this moe-diag has ABI {}: {}", m.abi_version, abi_version,
                       m.abi_version < abi_version ? "rebuild the plugin with this moe-diag's headers"
                                                   : "use the moe-diag it was built for, or rebuild it");
  if (m.bytes < sizeof(PluginManifest))
    return fmt::format("its manifest has {} bytes, wanted at least {}: build it with the macros of core/api/abi.hpp",
                       m.bytes, sizeof(PluginManifest));
  if (!m.build_stamp || !m.name || !m.summary)
    return fmt::format("its manifest has no {}, wanted a text: build it with the macros of core/api/abi.hpp",
                       !m.build_stamp ? "build stamp"
                       : !m.name      ? "name"
                                      : "summary");
  if (const std::string why = stamp_refusal(m.build_stamp); !why.empty()) return why;
  if (m.kind != wanted.kind)
    return fmt::format("it is {}, its file name says {}: rename the file or export it with the right macro",
                       kind_text(m.kind), kind_text(wanted.kind));
  if (m.name != wanted.name)
    return fmt::format("it calls itself '{}', its file name says '{}': name the file moe_diag_{}_{}.so", m.name,
                       wanted.name, name_of(wanted.kind), printable(m.name, std::strlen(m.name)));
  if (const std::string defect = option_defect(m); !defect.empty())
    return fmt::format("its manifest has {}: build it with the macros of core/api/abi.hpp", defect);
  return "";
}

std::string library_defect(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    return error ? fmt::format("it cannot be read ({})", error.message()) : "it is not a file";
  std::ifstream file(path, std::ios::binary);
  if (!file) return fmt::format("it cannot be read ({})", std::strerror(errno));
  file.seekg(0, std::ios::end);
  const auto size = static_cast<std::uint64_t>(file.tellg());
  const auto read_at = [&](std::uint64_t offset, void* to, std::size_t bytes) {
    return offset <= size && bytes <= size - offset && file.seekg(static_cast<std::streamoff>(offset)) &&
           file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
  };

  Elf64_Ehdr header{};
  if (!read_at(0, header.e_ident, EI_NIDENT) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0)
    return fmt::format("it is not a shared library ({} bytes, no ELF header)", size);
  if (header.e_ident[EI_CLASS] != (sizeof(void*) == 8 ? ELFCLASS64 : ELFCLASS32))
    return "it is a library for another word size";
  if (!read_at(0, &header, sizeof header)) return fmt::format("it is cut off after {} bytes", size);
  if (header.e_type != ET_DYN) return fmt::format("it is not a shared library (ELF type {})", header.e_type);
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    Elf64_Phdr segment{};
    if (!read_at(header.e_phoff + std::uint64_t{i} * sizeof segment, &segment, sizeof segment) ||
        segment.p_offset > size || segment.p_filesz > size - segment.p_offset)
      return fmt::format("it is cut off after {} bytes", size);
  }
  return "";
}

std::string foreign_stamp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(file), {});
  const std::string_view begin = "pointer=", middle = " sanitizer=";
  for (std::size_t at = 0; (at = bytes.find(begin, at)) != std::string::npos; at += begin.size()) {
    const std::string_view text = bytes.c_str() + at;  // up to the next zero
    if (text.find(middle) != std::string_view::npos) return stamp_refusal(text);
  }
  return "";
}

}  // namespace moe_diag
