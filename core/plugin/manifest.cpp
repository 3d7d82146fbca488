// SPDX-License-Identifier: MIT
#include "core/plugin/manifest.hpp"

#include <elf.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
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

}  // namespace

std::string_view name_of(PluginKind kind) {
  switch (kind) {
    case PluginKind::backend: return "backend";
    case PluginKind::sink: return "sink";
  }
  return "";
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
  const std::string_view stamp = MOE_DIAG_BUILD_STAMP;
  if (m.build_stamp != stamp)
    return fmt::format(
        "its build stamp is '{}', wanted '{}' ({}): rebuild both with one compiler, standard and set of sanitizers",
        m.build_stamp, stamp, difference(m.build_stamp, stamp));
  if (m.kind != wanted.kind)
    return fmt::format("it is {}, its file name says {}: rename the file or export it with the right macro",
                       kind_text(m.kind), kind_text(wanted.kind));
  if (m.name != wanted.name)
    return fmt::format("it calls itself '{}', its file name says '{}': name the file moe_diag_{}_{}.so", m.name,
                       wanted.name, name_of(wanted.kind), printable(m.name, std::strlen(m.name)));
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

}  // namespace moe_diag
