// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "core/api/npy.hpp"
#include "core/api/output_file.hpp"
#include "core/api/sink.hpp"
#include "plugins/sinks/npy/capture_folder.hpp"

namespace moe_diag {

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr PathOption dir_option{"dir", Required{"dump"}, "folder of the capture"};

// Orders the tensors of the manifest: prompt after prompt, lane after lane, then as the forward pass goes.
struct Key {
  int prompt = 0, lane = 0;
  Site site;

  friend bool operator<(const Key& a, const Key& b) {
    return std::tie(a.prompt, a.lane, a.site) < std::tie(b.prompt, b.lane, b.site);
  }
};

// One file of the capture so far.
struct Array {
  std::string file;  // relative to the capture's folder
  DType dtype = DType::f32;
  Shape shape;  // dims[0] grows as rows are appended
  std::vector<std::int32_t> positions;
  std::optional<std::uint64_t> digest;  // of the whole file; unknown once rows were appended
};

class Xxh3 {
 public:
  Xxh3() : state_(XXH3_createState()) { XXH3_64bits_reset(state_.get()); }
  void update(const void* data, std::size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  std::uint64_t digest() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

std::uint64_t digest_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> buffer(1 << 20);
  Xxh3 hash;
  while (file.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || file.gcount() > 0)
    hash.update(buffer.data(), static_cast<std::size_t>(file.gcount()));
  if (!file.eof()) throw output_error(path, "cannot read back", errno);
  return hash.digest();
}

// Prompts and lanes become folders, so their names must be names of folders and nothing more.
void check_folder_name(std::string_view what, std::string_view name) {
  const bool control = std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 32; });
  if (!name.empty() && name[0] != '.' && name.find('/') == std::string_view::npos && name.size() <= 200 && !control)
    return;
  throw Error(ErrorKind::usage,
              fmt::format("{} '{}' cannot be the name of a folder of the capture; use letters, digits, "
                          "'-', '_' and '.', and do not start with '.'",
                          what, name));
}

// All tokens that there are: a sequence may have ended before it had all that were to be generated.
Json prompt_json(const PromptInfo& p) {
  const std::vector<std::int32_t> tokens(p.tokens.begin(), std::find(p.tokens.begin(), p.tokens.end(), -1));
  const std::size_t own = p.tokens.size() - static_cast<std::size_t>(p.generated);
  return {{"id", p.id}, {"tokens", tokens}, {"generated", tokens.size() - std::min(own, tokens.size())}};
}

Json config_json(const ModelConfig& c) {
  return {{"layers", c.layers},
          {"hidden", c.hidden},
          {"heads", c.heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"experts", c.experts},
          {"used", c.used},
          {"expert_width", c.expert_width},
          {"vocab", c.vocab},
          {"context", c.context},
          {"rms_eps", c.rms_eps},
          {"rope_theta", c.rope_theta},
          {"tied_output", c.tied_output}};
}

// Paths may hold bytes that are not UTF-8.
std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// A list with one element a line: a capture has thousands, and people look into it.
std::string dump_lines(const std::vector<Json>& items) {
  std::string text = "[";
  for (std::size_t i = 0; i < items.size(); ++i) text += (i ? ",\n  " : "\n  ") + dump(items[i]);
  return text + "\n]";
}

}  // namespace

// Writes <dir>/<prompt>/<lane>/layer_07/<stage>.npy, stages of the whole model beside the layer folders, and last
// <dir>/manifest.json. No file stays open between calls: a run has as many as prompts x lanes x layers x stages.
class NpySink : public Sink {
 public:
  explicit NpySink(const Options& options) : dir_(options.read(dir_option)) {}

  void open(const RunInfo& run) override {
    run_ = run;
    for (const PromptInfo& prompt : run.prompts) {
      check_folder_name("prompt", prompt.id);
      if (prompt.id == "manifest.json" || prompt.id == "manifest.json.partial" || prompt.id == "incomplete")
        throw Error(ErrorKind::usage,
                    fmt::format("prompt '{}': the capture has a file of this name; rename the prompt", prompt.id));
    }
    for (const LaneInfo& lane : run.lanes) check_folder_name("lane", lane.name);
    layer_digits_ = std::max<std::size_t>(2, std::to_string(run.model.config.layers).size());
    folder_.emplace((fs::path(run.out) / dir_).lexically_normal().string());
    folder_->claim(run.overwrite);
  }

  void consume(const Event& event) override {
    check(event);
    const auto [at, fresh] = arrays_.try_emplace({event.prompt, event.lane, event.site});
    if (fresh)
      create(at->second, event);
    else
      append(at->second, event);
    at->second.positions.insert(at->second.positions.end(), event.positions.begin(), event.positions.end());
  }

  void close() override {
    for (auto& [key, array] : arrays_)
      if (!array.digest) array.digest = digest_of_file(path_of(array));
    folder_->complete(manifest());
  }

 private:
  std::string path_of(const Array& array) const { return folder_->path() + "/" + array.file; }

  void check(const Event& e) const {
    const auto refuse = [](const std::string& what) { throw Error(ErrorKind::environment, "event: " + what); };
    if (e.prompt < 0 || static_cast<std::size_t>(e.prompt) >= run_.prompts.size())
      refuse(fmt::format("prompt {} of {}", e.prompt, run_.prompts.size()));
    if (e.lane < 0 || static_cast<std::size_t>(e.lane) >= run_.lanes.size())
      refuse(fmt::format("lane {} of {}", e.lane, run_.lanes.size()));
    if (info(e.site.stage).scope == Scope::layer && (e.site.layer < 0 || e.site.layer >= run_.model.config.layers))
      refuse(fmt::format("{} of layer {}, the model has {}", name_of(e.site.stage), e.site.layer,
                         run_.model.config.layers));
    if (e.tensor.shape.rank < 1 || e.tensor.shape[0] != static_cast<std::int64_t>(e.positions.size()))
      refuse(fmt::format("{}: {} positions, {} rows", name_of(e.site.stage), e.positions.size(), e.tensor.shape[0]));
    if (!e.tensor.data && e.tensor.bytes() > 0) refuse(fmt::format("{}: no data", name_of(e.site.stage)));
  }

  // Where an event's tensor goes: <prompt>/<lane>/[layer_07/]<stage>.npy
  std::string file_of(const Event& e) {
    std::string folder = fmt::format("{}/{}", run_.prompts[static_cast<std::size_t>(e.prompt)].id,
                                     run_.lanes[static_cast<std::size_t>(e.lane)].name);
    if (info(e.site.stage).scope == Scope::layer) folder += fmt::format("/layer_{:0{}}", e.site.layer, layer_digits_);
    if (made_folders_.insert(folder).second) {
      std::error_code error;
      fs::create_directories(folder_->path() + "/" + folder, error);
      if (error) throw output_error(folder_->path() + "/" + folder, "cannot make the folder", error.value());
    }
    return fmt::format("{}/{}.npy", folder, name_of(e.site.stage));
  }

  void create(Array& array, const Event& event) {
    array.file = file_of(event);
    array.dtype = event.tensor.dtype;
    array.shape = event.tensor.shape;
    const std::string header = npy_header(npy_type(array.dtype), array.shape);
    OutputFile file(path_of(array), OutputFile::Mode::create);
    file.write(header.data(), header.size());
    file.write(event.tensor.data, event.tensor.bytes());
    file.close();
    Xxh3 hash;
    hash.update(header.data(), header.size());
    hash.update(event.tensor.data, event.tensor.bytes());
    array.digest = hash.digest();
  }

  // Later rows of a site that has a file: another pass of the same prompt.
  void append(Array& array, const Event& event) {
    Shape grown = event.tensor.shape;
    grown.dims[0] = array.shape[0];
    if (grown != array.shape || event.tensor.dtype != array.dtype)
      throw Error(ErrorKind::environment,
                  fmt::format("{}: holds rows of {} {}, more came as {} {}; one file has one shape", path_of(array),
                              name_of(array.dtype), text_of(array.shape), name_of(event.tensor.dtype),
                              text_of(event.tensor.shape)));
    if (!array.positions.empty() && !event.positions.empty() && event.positions.front() <= array.positions.back())
      throw Error(ErrorKind::environment, fmt::format("{}: position {} came after position {}; positions must ascend",
                                                      path_of(array), event.positions.front(), array.positions.back()));
    array.shape.dims[0] += event.tensor.shape[0];
    array.digest.reset();
    const std::string header = npy_header(npy_type(array.dtype), array.shape);
    OutputFile file(path_of(array), OutputFile::Mode::modify);
    file.write(event.tensor.data, event.tensor.bytes());
    file.write_at(0, header.data(), header.size());
    file.close();
  }

  static std::string text_of(const Shape& shape) {
    std::string text;
    for (int i = 0; i < shape.rank; ++i) text += fmt::format("{}{}", i ? "x" : "", shape[i]);
    return text;
  }

  Json tensor_json(const Key& key, const Array& array) const {
    const bool layered = info(key.site.stage).scope == Scope::layer;
    auto shape = Json::array();
    for (int i = 0; i < array.shape.rank; ++i) shape.push_back(array.shape[i]);
    return {{"prompt", run_.prompts[static_cast<std::size_t>(key.prompt)].id},
            {"lane", run_.lanes[static_cast<std::size_t>(key.lane)].name},
            {"stage", name_of(key.site.stage)},
            {"layer", layered ? Json(key.site.layer) : Json()},
            {"dtype", name_of(array.dtype)},
            {"shape", shape},
            {"positions", array.positions},
            {"file", array.file},
            {"xxh3", fmt::format("{:016x}", array.digest.value())}};
  }

  std::string manifest() const {
    std::vector<Json> prompts, lanes, tensors;
    for (const PromptInfo& p : run_.prompts) prompts.push_back(prompt_json(p));
    for (const LaneInfo& l : run_.lanes)
      if (l.runs)
        lanes.push_back({{"name", l.name},
                         {"backend", l.backend},
                         {"numerics", l.numerics},
                         {"device", l.device},
                         {"instruction_set", l.instruction_set},
                         {"values", name_of(l.values)}});
    for (const auto& [key, array] : arrays_) tensors.push_back(tensor_json(key, array));
    const Json contract{{"id", run_.contract}, {"version", run_.contract_version}};
    const Json model{{"source", run_.model.source},
                     {"bytes", run_.model.bytes},
                     {"digest", run_.model.digest},
                     {"config", config_json(run_.model.config)}};
    return fmt::format(
        "{{\n\"format\": \"{}\",\n\"format_version\": {},\n\"tool_version\": {},\n\"contract\": {},\n\"model\": {},\n"
        "\"prompts\": {},\n\"lanes\": {},\n\"planted\": {},\n\"tensors\": {}\n}}\n",
        capture_format, capture_format_version, dump(Json(run_.tool_version)), dump(contract), dump(model),
        dump_lines(prompts), dump_lines(lanes),
        dump(Json(std::vector<std::string_view>(run_.planted.begin(), run_.planted.end()))), dump_lines(tensors));
  }

  std::string dir_;
  RunInfo run_;
  std::optional<CaptureFolder> folder_;
  std::size_t layer_digits_ = 2;
  std::map<Key, Array> arrays_;
  std::set<std::string> made_folders_;  // relative to the capture's folder
};

}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::NpySink, "npy", "one .npy file per prompt, lane, layer and stage, with a manifest.json",
              moe_diag::dir_option)
