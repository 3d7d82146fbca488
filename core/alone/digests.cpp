// SPDX-License-Identifier: MIT
#include "core/alone/digests.hpp"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "core/api/error.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view format = "moe-diag digests";
constexpr int format_version = 2;  // 2: the model's digest is of all its bytes
constexpr std::uintmax_t largest_file = std::uintmax_t{256} << 20;
constexpr int most_layers = 1'000'000;

std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// One item a line, as the difference of two such files is read by people.
std::string dump_lines(const std::vector<Json>& items) {
  std::string text = "[";
  for (std::size_t i = 0; i < items.size(); ++i) text += (i ? ",\n  " : "\n  ") + dump(items[i]);
  return text + "\n]";
}

// The rows of one site, which stand one after the other.
std::vector<Json> sites_json(const Digests& digests) {
  std::vector<Json> sites;
  const Digests::Key* last = nullptr;
  for (const auto& [key, digest] : digests.rows) {
    if (!last || last->prompt != key.prompt || last->lane != key.lane || !(last->site == key.site))
      sites.push_back({{"prompt", key.prompt},
                       {"lane", key.lane},
                       {"stage", name_of(key.site.stage)},
                       {"layer", key.site.layer < 0 ? Json(nullptr) : Json(key.site.layer)},
                       {"positions", Json::array()},
                       {"xxh3", Json::array()}});
    last = &key;
    sites.back()["positions"].push_back(key.position);
    sites.back()["xxh3"].push_back(fmt::format("{:016x}", digest));
  }
  return sites;
}

// Reads a document of which every part may be missing or of another type.
class Reader {
 public:
  Reader(std::string path, const Json& root, Stages stages) : path_(std::move(path)), root_(root), stages_(stages) {}

  Digests read() {
    if (!root_.is_object() || root_.value("format", Json()) != format)
      refuse(fmt::format("not a file of digests: expected \"format\": \"{}\"", format));
    if (root_.value("format_version", Json()) != format_version)
      refuse(fmt::format("expected \"format_version\": {}: write it anew with `moe-diag digest`", format_version));
    Digests digests;
    digests.tool_version = text(root_, "tool_version");
    const Json& model = member(root_, "model");
    digests.model_source = text(model, "source");
    digests.model_digest = text(model, "digest");
    for (const Json& prompt : list(root_, "prompts"))
      for (const Json& token : list(prompt, "tokens"))
        digests.prompts[text(prompt, "id")].push_back(whole(token, "a token"));
    for (const Json& lane : list(root_, "lanes"))
      digests.lanes[text(lane, "name")] = {text(lane, "backend"), text(lane, "numerics"), text(lane, "device"),
                                           text(lane, "instruction_set")};
    for (const Json& site : list(root_, "sites")) read_site(site, digests);
    return digests;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorKind::environment, fmt::format("{}: {}", path_, what));
  }
  const Json& member(const Json& object, const char* key) const {
    const auto at = object.is_object() ? object.find(key) : object.end();
    if (at == object.end()) refuse(fmt::format("\"{}\" is missing", key));
    return *at;
  }
  std::string text(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    if (!value.is_string()) refuse(fmt::format("\"{}\": expected text", key));
    return value.get<std::string>();
  }
  const Json& list(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    if (!value.is_array()) refuse(fmt::format("\"{}\": expected a list", key));
    return value;
  }
  int whole(const Json& value, const char* what) const {
    const bool fits = value.is_number_unsigned() &&
                      value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int32_t>::max()};
    if (!fits) refuse(fmt::format("{} is no whole number from 0 on", what));
    return value.get<int>();
  }
  std::uint64_t digest(const Json& value) const {
    std::uint64_t digest = 0;
    const std::string text = value.is_string() ? value.get<std::string>() : "";
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), digest, 16);
    if (text.size() != 16 || error != std::errc() || stop != text.data() + text.size())
      refuse("\"xxh3\": expected 16 hexadecimal digits");
    return digest;
  }

  void read_site(const Json& json, Digests& digests) const {
    Digests::Key key{text(json, "prompt"), text(json, "lane"), {}, 0};
    const std::string stage = text(json, "stage");
    key.site.stage = stages_.find(stage);
    if (!key.site.stage)
      throw Error(
          ErrorKind::absent,
          fmt::format("{}: holds digests of the stage '{}', which this model does not have: they are of another "
                      "model, write them anew with `moe-diag digest`",
                      path_, shown(stage)));
    const Json& layer = member(json, "layer");
    key.site.layer = layer.is_null() ? -1 : whole(layer, "a layer");
    if (key.site.layer > most_layers) refuse("a layer is too large");
    const Json &positions = list(json, "positions"), &values = list(json, "xxh3");
    if (positions.size() != values.size())
      refuse(fmt::format("{}: {} positions and {} digests", stage, positions.size(), values.size()));
    for (std::size_t i = 0; i < positions.size(); ++i) {
      key.position = whole(positions[i], "a position");
      if (!digests.rows.emplace(key, digest(values[i])).second)
        refuse(fmt::format("{}, position {}: two digests of one row", stage, key.position));
    }
  }

  const std::string path_;
  const Json& root_;
  const Stages stages_;
};

}  // namespace

std::string digests_json(const Digests& digests) {
  std::vector<Json> prompts, lanes;
  for (const auto& [id, tokens] : digests.prompts) prompts.push_back({{"id", id}, {"tokens", tokens}});
  for (const auto& [name, lane] : digests.lanes)
    lanes.push_back({{"name", name},
                     {"backend", lane.backend},
                     {"numerics", lane.numerics},
                     {"device", lane.device},
                     {"instruction_set", lane.instruction_set}});
  return fmt::format(
      "{{\n\"format\": \"{}\",\n\"format_version\": {},\n\"tool_version\": {},\n\"model\": {},\n\"prompts\": {},\n"
      "\"lanes\": {},\n\"sites\": {}\n}}\n",
      format, format_version, dump(digests.tool_version),
      dump({{"source", digests.model_source}, {"digest", digests.model_digest}}), dump_lines(prompts),
      dump_lines(lanes), dump_lines(sites_json(digests)));
}

Digests read_digests(const std::string& path, Stages stages) {
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    throw Error(
        ErrorKind::absent,
        fmt::format("{}: there is no such file: write it with `moe-diag digest CONTRACT --out {}`", path, path));
  const std::uintmax_t size =
      std::filesystem::is_regular_file(path, error) ? std::filesystem::file_size(path, error) : 0;
  if (size == 0 || error || size > largest_file)
    throw Error(ErrorKind::environment, fmt::format("{}: not a file of digests: expected a file of 1 byte to {} MiB",
                                                    path, largest_file >> 20));
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(ErrorKind::environment, fmt::format("{}: cannot be read: no permission", path));
  const auto shallow = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > 8) throw Error(ErrorKind::environment, fmt::format("{}: not a file of digests", path));
    return true;
  };
  try {
    return Reader(path, Json::parse(in, shallow), stages).read();
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::environment, fmt::format("{}: not JSON: {}", path, e.what()));
  }
}

}  // namespace moe_diag
