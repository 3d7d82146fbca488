// SPDX-License-Identifier: MIT
#include "core/run/output_places.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>

#include "core/plugin/guard.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

constexpr int most_links = 40;  // as many as the kernel follows

bool holds(const fs::path& folder, const fs::path& path) {
  const auto [end, other] = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return end == folder.end() && other != path.end();
}

std::string name_and_place(const WrittenPlace& place) {
  return place.at.empty() ? place.owner : fmt::format("{} ({})", place.owner, place.at);
}

std::string clash(const WrittenPlace& a, const WrittenPlace& b) {
  const bool same = a.path == b.path;
  if (!same && !holds(a.path, b.path) && !holds(b.path, a.path)) return "";
  const std::string relation = same                    ? "is where"
                               : holds(b.path, a.path) ? fmt::format("lies in '{}', where", b.path.string())
                                                       : fmt::format("holds '{}', where", b.path.string());
  return fmt::format("{}{}: '{}' {} {} is written: give each a place of its own", a.at.empty() ? "" : a.at + ": ",
                     a.owner, a.path.string(), relation, name_and_place(b));
}

// A sink that does not say what it writes names its files and folders in its options.
std::vector<std::pair<std::string, std::string>> paths_of(const SinkSpec& spec, PluginHost& host) {
  std::vector<std::pair<std::string, std::string>> paths;
  for (const OptionInfo& option : host.find(PluginKind::sink, spec.sink).options) {
    if (option.type != OptionType::path) continue;
    if (const Options::Entry* entry = spec.options.entry(option.name))
      paths.emplace_back(entry->where, entry->value);
    else if (option.absent == OptionAbsent::fallback)
      paths.emplace_back(spec.options.where(), option.value);
  }
  if (!paths.empty()) return paths;
  const auto sink = host.make_sink(spec.sink, spec.options);
  const SinkOutput output =
      guard({fmt::format("sink '{}' (plugin {})", spec.name, spec.sink), "output"}, [&] { return sink->output({}); });
  if (!output.path.empty()) paths.emplace_back(spec.options.where(), output.path);
  return paths;
}

}  // namespace

fs::path resolved(const fs::path& path) {
  std::error_code error;
  fs::path at = fs::absolute(path, error).lexically_normal();
  for (int links = 0; links < most_links; ++links) {
    at = fs::weakly_canonical(at, error);
    // A link to what is not there stays one, and all behind it is as it was written.
    fs::path before;
    bool is_link = false;
    for (auto part = at.begin(); part != at.end() && !is_link; ++part) {
      const fs::path here = before / *part;
      is_link = fs::is_symlink(fs::symlink_status(here, error));
      if (!is_link) {
        before = here;
        continue;
      }
      fs::path target = before / fs::read_symlink(here, error);
      for (++part; part != at.end(); ++part) target /= *part;
      at = target.lexically_normal();
      break;
    }
    if (!is_link) break;
  }
  return at.has_filename() ? at : at.parent_path();
}

std::vector<WrittenPlace> output_places(const Contract& contract, PluginHost& host, const std::string& out,
                                        bool with_verdict) {
  std::vector<WrittenPlace> places;
  if (with_verdict)
    places.push_back(
        {"", fmt::format("the verdict of {}", contract.metadata.id), resolved(fs::path(out) / "verdict.json")});
  for (const SinkSpec& sink : contract.sinks) {
    try {
      for (const auto& [at, path] : paths_of(sink, host))
        places.push_back({at, fmt::format("sink '{}'", sink.name), resolved(fs::path(out) / path)});
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::usage) throw;  // what is wrong with the machine is told by the run
    }
  }
  return places;
}

void check_apart(const std::vector<WrittenPlace>& places) {
  std::string mistakes;
  std::error_code error;
  for (std::size_t later = 0; later < places.size(); ++later) {
    if (fs::is_character_file(places[later].path, error)) continue;  // such as /dev/null, which takes all
    for (std::size_t earlier = 0; earlier < later; ++earlier) {
      // The one that stands in a contract is told where it stands.
      const bool turned = places[later].at.empty() && !places[earlier].at.empty();
      const std::string why = turned ? clash(places[earlier], places[later]) : clash(places[later], places[earlier]);
      if (!why.empty()) mistakes += (mistakes.empty() ? "" : "\n") + why;
    }
  }
  if (!mistakes.empty()) throw OutputClash(mistakes);
}

}  // namespace moe_diag
