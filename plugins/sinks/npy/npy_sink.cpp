// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/api/npy.hpp"
#include "core/api/output_file.hpp"
#include "core/api/sink.hpp"
#include "plugins/sinks/npy/capture_folder.hpp"
#include "plugins/sinks/shared/capture_index.hpp"
#include "plugins/sinks/shared/xxh3.hpp"

namespace moe_diag {

namespace {

namespace fs = std::filesystem;

constexpr PathOption dir_option{"dir", Required{"dump"}, "folder of the capture"};

// At most, of an array's line in the manifest.
constexpr std::uint64_t manifest_line_bytes = 1024, manifest_position_bytes = 11;

std::uint64_t digest_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> buffer(1 << 20);
  Xxh3 hash;
  while (file.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || file.gcount() > 0)
    hash.update(buffer.data(), static_cast<std::size_t>(file.gcount()));
  if (!file.eof()) throw output_error(path, "cannot read back", errno);
  return hash.digest();
}

// One element a line: a capture has thousands of tensors, and people look into it.
std::string dump_lines(const CaptureJson& items) {
  std::string text = "[";
  for (std::size_t i = 0; i < items.size(); ++i) text += (i ? ",\n  " : "\n  ") + dump(items[i]);
  return text + "\n]";
}

CaptureJson tensor_json(const RunInfo& run, const CaptureIndex::Key& key, const CapturedArray& array) {
  const bool layered = info(key.site.stage).scope == Scope::layer;
  const auto& dims = array.shape.dims;
  return {{"prompt", run.prompts[static_cast<std::size_t>(key.prompt)].id},
          {"lane", run.lanes[static_cast<std::size_t>(key.lane)].name},
          {"stage", name_of(key.site.stage)},
          {"layer", layered ? CaptureJson(key.site.layer) : CaptureJson()},
          {"dtype", name_of(array.dtype)},
          {"shape", std::vector<std::int64_t>(dims.begin(), dims.begin() + array.shape.rank)},
          {"positions", array.positions},
          {"file", array.path + ".npy"},
          {"xxh3", digest_text(array.digest.value())}};
}

}  // namespace

// Writes <dir>/<prompt>/<lane>/layer_07/<stage>.npy, stages of the whole model beside the layer folders, and last
// <dir>/manifest.json. No file stays open between calls: a run has as many as prompts x lanes x layers x stages.
class NpySink : public Sink {
 public:
  explicit NpySink(const Options& options) : dir_(options.read(dir_option)) {}

  SinkOutput output(const Load& load) const override {
    const auto tensors = static_cast<std::uint64_t>(load.tensors), rows = static_cast<std::uint64_t>(load.rows);
    const std::uint64_t around = tensors * (npy_header_bytes + manifest_line_bytes) + rows * manifest_position_bytes;
    return {dir_, load.bytes + around, true};
  }

  void open(const RunInfo& run) override {
    index_ = CaptureIndex(run);
    for (const PromptInfo& prompt : run.prompts)
      if (prompt.id == "manifest.json" || prompt.id == "incomplete")
        throw Error(ErrorKind::usage,
                    fmt::format("prompt '{}': the capture has a file of this name; rename the prompt", prompt.id));
    folder_.emplace((fs::path(run.out) / dir_).lexically_normal().string());
    folder_->claim(run.overwrite, run.model.config.stages);
  }

  void consume(const Event& event) override {
    const auto [array, fresh] = index_.at(event);
    try {
      fresh ? create(array, event) : append(array, event);
    } catch (const Error& e) {
      throw with_what_is_kept(e);
    }
    CaptureIndex::add_rows(array, event);
  }

  void close() override {
    try {
      for (auto& [key, array] : index_.arrays())
        if (!array.digest) array.digest = digest_of_file(path_of(array));
      folder_->complete(manifest());
    } catch (const Error& e) {
      throw with_what_is_kept(e);
    }
  }

 private:
  std::string path_of(const CapturedArray& array) const { return folder_->path() + "/" + array.path + ".npy"; }

  Error with_what_is_kept(const Error& e) const {
    return Error(e.kind(), fmt::format("{}. {} of {} arrays are whole and kept in {}, which has no manifest.json: it "
                                       "is not a complete capture",
                                       e.what(), index_.whole(), index_.arrays().size(), folder_->path()));
  }

  void make_folder_of(const CapturedArray& array) {
    const std::string folder = folder_->path() + "/" + array.path.substr(0, array.path.rfind('/'));
    if (!made_folders_.insert(folder).second) return;
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) throw output_error(folder, "cannot make the folder", error.value());
  }

  // A file that cannot be written whole does not stay.
  void create(CapturedArray& array, const Event& event) {
    make_folder_of(array);
    const std::string header = npy_header(npy_type(array.dtype), event.tensor.shape);
    OutputFile file(path_of(array), OutputFile::Mode::create);
    Xxh3 hash;
    try {
      if (event.tensor.bytes() > piece_bytes) file.expect(header.size() + event.tensor.bytes());
      hash.update(header.data(), header.size());
      in_pieces(header.size(), event.tensor.data, event.tensor.bytes(),
                [&](std::uint64_t at, const std::byte* from, std::size_t bytes) {
                  hash.update(from, bytes);
                  file.write_at(at, from, bytes);
                });
      file.write_at(0, header.data(), header.size());
      file.close();
    } catch (...) {
      ::unlink(path_of(array).c_str());
      throw;
    }
    array.digest = hash.digest();
  }

  // Rows that cannot be written whole do not stay, those before them do.
  void append(CapturedArray& array, const Event& event) {
    Shape shape = array.shape;
    shape.dims[0] += event.tensor.shape[0];
    const std::string header = npy_header(npy_type(array.dtype), shape);
    array.digest.reset();
    OutputFile file(path_of(array), OutputFile::Mode::modify);
    try {
      file.write(event.tensor.data, event.tensor.bytes());
      file.write_at(0, header.data(), header.size());
      file.close();
    } catch (...) {
      (void)!::truncate(path_of(array).c_str(), static_cast<off_t>(npy_header_bytes + array.bytes()));
      throw;
    }
  }

  std::string manifest() const {
    const RunInfo& run = index_.run();
    std::string text = "{\n";
    const CaptureJson head = manifest_of(run);
    for (const auto& [key, value] : head.items()) {
      const bool list = value.is_array() && key != "planted";
      text += fmt::format("{}: {},\n", dump(CaptureJson(key)), list ? dump_lines(value) : dump(value));
    }
    CaptureJson tensors = CaptureJson::array();
    for (const auto& [key, array] : index_.arrays()) tensors.push_back(tensor_json(run, key, array));
    return text + fmt::format("\"tensors\": {}\n}}\n", dump_lines(tensors));
  }

  std::string dir_;
  CaptureIndex index_;
  std::optional<CaptureFolder> folder_;
  std::set<std::string> made_folders_;
};

}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::NpySink, "npy", "one .npy file per prompt, lane, layer and stage, with a manifest.json",
              moe_diag::dir_option)
