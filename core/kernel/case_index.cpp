// SPDX-License-Identifier: MIT
#include "core/kernel/case_index.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/api/error.hpp"
#include "core/file/bounded_file.hpp"
#include "core/file/safetensors_file.hpp"
#include "core/kernel/allowed_error.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view format_name = "moe-diag cases";
constexpr int format_version = 1;
constexpr std::size_t longest_index = std::size_t{256} << 20;

constexpr std::array routings{CaseRouting::model, CaseRouting::one, CaseRouting::none, CaseRouting::rank};

Json json_of(const IndexedLayer& layer) {
  Json weights = Json::array();
  for (const IndexedWeight& w : layer.weights)
    weights.push_back({{"name", w.name}, {"type", w.type}, {"shape", w.shape}, {"f32", w.f32}});
  return {{"layer", layer.layer}, {"file", layer.file}, {"weights", weights}};
}

Json json_of(const KernelCase& c, const CaseIndex& index) {
  Json inputs = Json::array(), allowed = Json::object();
  for (const IndexedTensor& t : c.inputs) inputs.push_back({{"name", t.name}, {"dtype", t.dtype}, {"shape", t.shape}});
  for (const auto& [type, errors] : c.allowed) allowed[std::string(safetensors_type(type))] = errors;
  Json json{
      {"name", c.name},
      {"layer", c.layer},
      {"rows", c.rows},
      {"routing", name_of(c.routing)},
      {"in", {{"file", fmt::format("{}/{}", c.name, inputs_file)}, {"tensors", inputs}}},
      {"expected", fmt::format("{}/{}", c.name, expected_file_name)},
      {"out", {{"file", fmt::format("{}/{}", c.name, kernel_file)}, {"tensor", index.output}, {"shape", c.shape}}},
      {"allowed", allowed}};
  if (c.first > 0) json["first_position"] = c.first;
  if (!c.changed.empty()) json["changed"] = c.changed;
  return json;
}

Json model_json(const CaseIndex& index) {
  Json model{{"source", index.model_source}, {"digest", index.model_digest}};
  if (index.synthetic)
    model["synthetic"] = {{"preset", index.spec.preset},
                          {"layers", index.spec.layers},
                          {"quant", index.spec.quant},
                          {"seed", index.spec.seed},
                          {"router_scale", index.spec.router_scale}};
  model["architecture"] = index.architecture;
  model["experts"] = index.experts;
  model["used"] = index.used;
  model["rms_eps"] = index.rms_eps;
  model["rope_theta"] = index.rope_theta;
  return model;
}

// Reads values by key; a mistake names the file, the place and what was expected.
class Reader {
 public:
  Reader(const Json& json, std::string path, std::string at)
      : json_(json), path_(std::move(path)), at_(std::move(at)) {}

  Reader in(const char* key) const { return {value(key), path_, key_at(key)}; }
  std::vector<Reader> list(const char* key) const {
    const Json& array = value(key);
    if (!array.is_array()) refuse(key, "a list");
    std::vector<Reader> items;
    for (const Json& one : array) items.emplace_back(one, path_, fmt::format("{}[{}]", key_at(key), items.size()));
    return items;
  }
  bool has(const char* key) const { return json_.is_object() && json_.contains(key); }
  std::string text(const char* key) const {
    const Json& v = value(key);
    if (!v.is_string()) refuse(key, "text");
    return v.get<std::string>();
  }
  // A name that a path is made of.
  std::string file_name(const char* key) const {
    const std::string name = text(key);
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos)
      refuse(key, "the name of a file or folder within this one");
    return name;
  }
  std::int64_t integer(const char* key, std::int64_t least, std::int64_t most) const {
    const Json& v = value(key);
    if (!v.is_number_integer() || v.get<std::int64_t>() < least || v.get<std::int64_t>() > most)
      refuse(key, fmt::format("an integer from {} to {}", least, most));
    return v.get<std::int64_t>();
  }
  std::uint64_t natural(const char* key) const {
    const Json& v = value(key);
    if (!v.is_number_unsigned()) refuse(key, "an integer of at least 0");
    return v.get<std::uint64_t>();
  }
  double number(const char* key) const {
    const Json& v = value(key);
    if (!v.is_number()) refuse(key, "a number");
    return v.get<double>();
  }
  bool flag(const char* key) const {
    const Json& v = value(key);
    if (!v.is_boolean()) refuse(key, "true or false");
    return v.get<bool>();
  }
  std::vector<std::int64_t> sizes(const char* key) const {
    constexpr std::int64_t largest = std::int64_t{1} << 40;
    std::vector<std::int64_t> sizes;
    const Json& v = value(key);
    const auto is_size = [](const Json& one) {
      return one.is_number_unsigned() && one.get<std::uint64_t>() <= largest;
    };
    if (!v.is_array() || !std::all_of(v.begin(), v.end(), is_size)) refuse(key, "a list of sizes");
    for (const Json& one : v) sizes.push_back(one.get<std::int64_t>());
    return sizes;
  }
  // Errors of rows: more than 0.
  std::vector<double> errors(const char* key, int count) const {
    std::vector<double> errors;
    const Json& v = value(key);
    const auto is_error = [](const Json& one) {
      return one.is_number() && one.get<double>() > 0 && std::isfinite(one.get<double>());
    };
    if (!v.is_array() || v.size() != static_cast<std::size_t>(count) || !std::all_of(v.begin(), v.end(), is_error))
      refuse(key, fmt::format("a list of {} numbers above 0, one a row", count));
    for (const Json& one : v) errors.push_back(one.get<double>());
    return errors;
  }
  std::vector<std::string> texts(const char* key) const {
    std::vector<std::string> texts;
    const Json& v = value(key);
    if (!v.is_array() || !std::all_of(v.begin(), v.end(), [](const Json& one) { return one.is_string(); }))
      refuse(key, "a list of texts");
    for (const Json& one : v) texts.push_back(one.get<std::string>());
    return texts;
  }
  [[noreturn]] void refuse(const char* key, const std::string& expected) const {
    const bool there = has(key);
    throw Error(
        ErrorKind::usage,
        fmt::format("{}: {}: expected {}, found {}; write the cases anew with `moe-diag cases`", path_, key_at(key),
                    expected,
                    there ? shown(json_[key].dump(-1, ' ', false, Json::error_handler_t::replace)) : "nothing"));
  }

 private:
  std::string key_at(const char* key) const { return at_.empty() ? key : fmt::format("{}.{}", at_, key); }
  const Json& value(const char* key) const {
    if (!has(key)) refuse(key, "a value");
    return json_[key];
  }

  const Json& json_;
  std::string path_, at_;
};

void read_model(const Reader& model, CaseIndex& index) {
  constexpr int most_experts = 1 << 20;
  index.model_source = model.text("source");
  index.model_digest = model.text("digest");
  index.architecture = model.text("architecture");
  index.experts = static_cast<int>(model.integer("experts", 1, most_experts));
  index.used = static_cast<int>(model.integer("used", 1, index.experts));
  index.rms_eps = model.number("rms_eps");
  index.rope_theta = model.number("rope_theta");
  index.synthetic = model.has("synthetic");
  if (!index.synthetic) return;
  const Reader spec = model.in("synthetic");
  index.spec.preset = spec.text("preset");
  index.spec.layers = static_cast<int>(spec.integer("layers", 0, most_synthetic_layers));
  index.spec.quant = spec.text("quant");
  index.spec.seed = spec.natural("seed");
  if (spec.has("router_scale")) index.spec.router_scale = spec.number("router_scale");
}

KernelCase read_case(const Reader& reader) {
  constexpr int most_layers = 1 << 20, most_rows = 1 << 24;
  KernelCase c;
  c.name = reader.file_name("name");
  c.layer = static_cast<int>(reader.integer("layer", -1, most_layers));
  c.rows = static_cast<int>(reader.integer("rows", 1, most_rows));
  const std::string routing = reader.text("routing");
  const auto found =
      std::find_if(routings.begin(), routings.end(), [&](CaseRouting r) { return name_of(r) == routing; });
  if (found == routings.end()) reader.refuse("routing", "model, one or none");
  c.routing = *found;
  if (reader.has("first_position")) c.first = static_cast<int>(reader.integer("first_position", 0, most_rows));
  if (reader.has("changed")) c.changed = reader.text("changed");
  for (const Reader& t : reader.in("in").list("tensors"))
    c.inputs.push_back({t.text("name"), t.text("dtype"), t.sizes("shape")});
  const Reader out = reader.in("out");
  c.shape = out.sizes("shape");
  const bool fits = !c.shape.empty() && c.shape.size() <= 4 && c.shape[0] == c.rows &&
                    std::find(c.shape.begin(), c.shape.end(), 0) == c.shape.end();
  if (!fits) out.refuse("shape", fmt::format("1 to 4 sizes, the first of them {}, the rows", c.rows));
  const Reader allowed = reader.in("allowed");
  for (const DType type : output_types)
    c.allowed[type] = allowed.errors(std::string(safetensors_type(type)).c_str(), c.rows);
  return c;
}

IndexedLayer read_layer(const Reader& reader) {
  IndexedLayer layer;
  layer.layer = static_cast<int>(reader.integer("layer", -1, 1 << 20));
  layer.file = reader.text("file");
  for (const Reader& w : reader.list("weights"))
    layer.weights.push_back({w.text("name"), w.text("type"), w.text("f32"), w.sizes("shape")});
  return layer;
}

}  // namespace

std::string_view name_of(CaseRouting routing) {
  switch (routing) {
    case CaseRouting::model: return "model";
    case CaseRouting::one: return "one";
    case CaseRouting::none: return "none";
    case CaseRouting::rank: return "rank";
  }
  return "unknown";
}

std::string index_text(const CaseIndex& index) {
  Json layers = Json::array(), cases = Json::array();
  for (const IndexedLayer& layer : index.layers) layers.push_back(json_of(layer));
  for (const KernelCase& c : index.cases) cases.push_back(json_of(c, index));
  std::vector<std::string_view> types;
  for (const DType type : output_types) types.push_back(safetensors_type(type));
  const Json document{{"format", format_name},
                      {"version", format_version},
                      {"tool", index.tool_version},
                      {"model", model_json(index)},
                      {"span", {{"name", index.span}, {"steps", index.steps}}},
                      {"numerics", index.numerics},
                      {"reads", index.reads},
                      {"stored", index.stored},
                      {"seed", index.seed},
                      {"output", {{"tensor", index.output}, {"types", types}, {"of_slots", index.of_slots}}},
                      {"choice", {{"tensor", index.choice}, {"written", index.writes_choice}}},
                      {"layers", layers},
                      {"cases", cases}};
  return document.dump(1, ' ', false, Json::error_handler_t::replace) + '\n';
}

CaseIndex read_index(const std::string& folder) {
  const std::string path = fmt::format("{}/{}", folder, index_file);
  std::string text;
  try {
    text = read_bounded(path, longest_index);
  } catch (const Error& e) {
    throw Error(ErrorKind::usage,
                fmt::format("{}: {}; write cases with `moe-diag cases MODEL --span ... --out DIR`", path, e.what()));
  }
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const Reader top(json, path, "");
  if (!json.is_object() || !top.has("format") || json["format"] != format_name)
    throw Error(ErrorKind::usage,
                fmt::format("{}: is not what `moe-diag cases` writes: expected JSON with \"format\": \"{}\"", path,
                            format_name));
  if (top.integer("version", 1, 1 << 30) != format_version)
    top.refuse("version", fmt::format("{}, as this moe-diag writes it", format_version));
  CaseIndex index;
  index.tool_version = top.text("tool");
  read_model(top.in("model"), index);
  index.span = top.in("span").text("name");
  index.steps = top.in("span").texts("steps");
  index.numerics = top.text("numerics");
  if (top.has("reads")) index.reads = top.text("reads");
  if (top.has("stored")) index.stored = top.text("stored");
  index.seed = static_cast<unsigned>(top.integer("seed", 0, std::int64_t{1} << 32));
  index.output = top.in("output").text("tensor");
  index.of_slots = top.in("output").flag("of_slots");
  index.choice = top.in("choice").text("tensor");
  index.writes_choice = top.in("choice").flag("written");
  for (const Reader& layer : top.list("layers")) index.layers.push_back(read_layer(layer));
  for (const Reader& c : top.list("cases")) index.cases.push_back(read_case(c));
  if (index.cases.empty()) top.refuse("cases", "at least one case");
  return index;
}

}  // namespace moe_diag
