// SPDX-License-Identifier: MIT
#include "core/model/digest_memory.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

#include "core/api/output_file.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t largest_entry = 64 << 10;  // bytes
constexpr std::int64_t second = 1'000'000'000;   // nanoseconds
constexpr std::int64_t tick = second / 20;       // the clock of file systems, with room to spare
constexpr std::int64_t coarse_tick = 2 * second;

std::string hex_of(std::string_view text) { return fmt::format("{:016x}", XXH3_64bits(text.data(), text.size())); }

// An absolute path without symbolic links; empty when there is none.
std::string absolute(const std::string& path) {
  std::error_code error;
  const fs::path found = fs::canonical(path, error);
  return error ? "" : found.string();
}

// All that is known of a digest, and the digest of that: a file that was cut or changed is told from a whole one.
std::string entry_of(const std::string& path, const FileState& s, const std::string& sampled,
                     const std::string& digest) {
  const std::string text = fmt::format(
      "moe-diag digest of a model, format 1\npath {}\ndevice {} inode {} bytes {} modified {} changed {}\n{}\n"
      "digest {}\n",
      path, s.device, s.inode, s.bytes, s.modified, s.changed, sampled, digest);
  return text + "check " + hex_of(text) + "\n";
}

}  // namespace

// Some file systems keep whole seconds.
bool is_settled(const FileState& state) {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const bool is_coarse = state.modified % second == 0 && state.changed % second == 0;
  const std::int64_t age = std::int64_t{now.tv_sec} * second + now.tv_nsec - std::max(state.modified, state.changed);
  return age > (is_coarse ? coarse_tick : tick);
}

DigestMemory::DigestMemory() {
  const auto absolute_of = [](const char* name) {
    const char* value = std::getenv(name);
    return value && value[0] == '/' ? std::string(value) : std::string();
  };
  if (const std::string cache = absolute_of("XDG_CACHE_HOME"); !cache.empty())
    folder_ = cache + "/moe-diag/digests";
  else if (const std::string home = absolute_of("HOME"); !home.empty())
    folder_ = home + "/.cache/moe-diag/digests";
}

std::string DigestMemory::place_of(const std::string& path) const {
  return folder_.empty() || path.empty() ? "" : folder_ + "/" + hex_of(path);
}

std::optional<std::string> DigestMemory::recall(const std::string& path, const FileState& state,
                                                const std::string& sampled) const {
  const std::string file = absolute(path), place = place_of(file);
  std::error_code error;
  if (place.empty() || !fs::is_regular_file(place, error) || fs::file_size(place, error) > largest_entry)
    return std::nullopt;
  std::string text(largest_entry, '\0');
  std::ifstream in(place, std::ios::binary);
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  const std::string_view key = "\ndigest ";
  const std::size_t at = text.rfind(key);
  if (at == std::string::npos) return std::nullopt;
  const std::string digest = text.substr(at + key.size(), 16);
  if (digest.find_first_not_of("0123456789abcdef") != std::string::npos) return std::nullopt;
  return text == entry_of(file, state, sampled, digest) ? std::optional(digest) : std::nullopt;
}

void DigestMemory::remember(const std::string& path, const FileState& state, const std::string& sampled,
                            const std::string& digest) const {
  const std::string file = absolute(path), place = place_of(file);
  if (place.empty()) return;
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) return;
  try {
    write_whole_file(place, entry_of(file, state, sampled, digest));
  } catch (const std::exception&) {  // a full or unwritable disk: it is computed again next time
  }
}

}  // namespace moe_diag
