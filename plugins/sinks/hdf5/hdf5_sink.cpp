// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <string>

#include "core/api/output_file.hpp"
#include "core/api/sink.hpp"
#include "plugins/sinks/hdf5/hdf5_file.hpp"
#include "plugins/sinks/shared/capture_index.hpp"
#include "plugins/sinks/shared/xxh3.hpp"

namespace moe_diag {

namespace {

namespace fs = std::filesystem;

constexpr PathOption file_option{"file", Required{"capture.h5"}, "the capture; ends in .h5 or .hdf5"};
constexpr IntegerOption chunk_option{"chunk", "rows",  Computed{"contiguous"},
                                     1,       1 << 30, "stores each array in chunks of so many positions"};
constexpr IntegerOption compress_option{
    "compress", "gzip level", Computed{"not compressed"}, 1, 9, "compresses chunks, which takes long and saves little"};

// At most, of what an array takes beside its rows.
constexpr std::uint64_t array_bytes = 1024, position_bytes = 4;

// A file that HDF5 began, or that is empty still.
bool may_be_hdf5(const fs::path& path) {
  constexpr std::string_view signature = "\x89HDF\r\n\x1a\n";
  std::array<char, signature.size()> start{};
  std::ifstream file(path, std::ios::binary);
  file.read(start.data(), start.size());
  const std::string_view found(start.data(), static_cast<std::size_t>(file.gcount()));
  return found.empty() || found == signature;
}

}  // namespace

// Writes one file, /<prompt>/<lane>/layer_07/<stage> with the stages of the whole model beside the layers. It has its
// name from close() on, and the attribute `complete`; until then it is called <file>.partial.
class Hdf5Sink : public Sink {
 public:
  explicit Hdf5Sink(const Options& options) : name_(options.read(file_option)) {
    const fs::path path(name_);
    if (path.stem().empty() || (path.extension() != ".h5" && path.extension() != ".hdf5"))
      options.refuse(file_option, "expected a name that ends in .h5 or .hdf5");
    if (options.has(chunk_option)) how_.chunk = options.read(chunk_option);
    if (options.has(compress_option)) how_.compress = static_cast<unsigned>(options.read(compress_option));
    if (how_.compress > 0 && how_.chunk == 0)
      options.refuse(compress_option, "only chunks can be compressed: add 'chunk', the rows of each");
  }

  SinkOutput output(const Load& load) const override {
    const auto tensors = static_cast<std::uint64_t>(load.tensors), rows = static_cast<std::uint64_t>(load.rows);
    return {name_, load.bytes + tensors * array_bytes + rows * position_bytes + structure_block, true};
  }

  void open(const RunInfo& run) override {
    const Quiet quiet;
    index_ = CaptureIndex(run);
    if (how_.compress > 0 && H5Zfilter_avail(H5Z_FILTER_DEFLATE) <= 0)
      throw Error(ErrorKind::environment, "compress: this HDF5 was built without gzip; leave 'compress' out");
    const std::string named = (fs::path(run.out) / name_).lexically_normal().string();
    const OutputPlace place = find_output(named);
    if (place.kind == OutputPlace::Kind::stream)
      throw Error(
          ErrorKind::usage,
          named + ": is a FIFO or a device: HDF5 is written in many places at once, so it needs a regular file");
    path_ = place.target;
    partial_ = path_.string() + ".partial";
    claim(run.overwrite);
    file_.emplace(partial_);
    set_root_attributes(heading_of(run));
  }

  void consume(const Event& event) override {
    const Quiet quiet;
    const auto [array, fresh] = index_.at(event);
    try {
      write(array, fresh, event);
    } catch (const Error& e) {
      throw with_what_is_kept(e, array);
    }
  }

  void close() override {
    const Quiet quiet;
    try {
      for (auto& [key, array] : index_.arrays())
        if (!array.digest) cut(key, array);
      set_root_attributes(outcome_of(index_.run()));
      file_->flush();
      file_->set_attribute(file_->root(), "complete", 1);
      file_->close();
      file_.reset();
    } catch (const Error& e) {
      file_.reset();
      throw Error(e.kind(), fmt::format("{}. {} is not complete", e.what(), partial_));
    }
    if (std::rename(partial_.c_str(), path_.c_str()) != 0)
      throw output_error(path_.string(), "cannot put in place", errno);
  }

 private:
  // What an earlier run left is refused, or with `overwrite` removed; what no capture is, never.
  void claim(bool overwrite) const {
    if (fs::is_directory(path_))
      throw Error(ErrorKind::usage, fmt::format("{}: is a folder, wanted a file; choose another name", path_.string()));
    for (const fs::path& path : {path_, fs::path(partial_)}) {
      if (!fs::exists(fs::symlink_status(path))) continue;
      const bool complete = path == path_;
      const bool ours = !fs::is_regular_file(fs::symlink_status(path)) ? false
                        : complete ? has_root_attribute(path, "format", capture_format)
                                   : may_be_hdf5(path);
      if (!ours)
        throw Error(ErrorKind::usage, fmt::format("{}: not a capture of moe-diag, so it is not replaced; move it away "
                                                  "or choose another file (file, --out)",
                                                  path.string()));
      if (!overwrite)
        throw Error(ErrorKind::usage,
                    fmt::format("{}: {} capture of an earlier run is there; replace it with --overwrite or choose "
                                "another file (file, --out)",
                                path.string(), complete ? "a complete" : "an incomplete"));
    }
    std::error_code error;
    fs::create_directories(path_.parent_path(), error);
    if (error) throw output_error(path_.parent_path().string(), "cannot make the folder", error.value());
    if (!fs::remove(path_, error) && error) throw output_error(path_.string(), "cannot remove", error.value());
  }

  void set_root_attributes(const CaptureJson& values) {
    for (const auto& [key, value] : values.items()) set_root_attribute(key, value);
  }

  // Text as it is, all else as JSON.
  void set_root_attribute(const std::string& key, const CaptureJson& value) {
    if (value.is_number_integer())
      file_->set_attribute(file_->root(), key.c_str(), value.get<std::int64_t>());
    else
      file_->set_attribute(file_->root(), key.c_str(), value.is_string() ? value.get<std::string>() : dump(value));
  }

  void write(CapturedArray& array, bool fresh, const Event& event) {
    Shape all = event.tensor.shape;
    all.dims[0] = array.total;
    const Handle there =
        fresh ? file_->create_array(array.path, array.dtype, all, how_) : file_->open_array(array.path);
    Xxh3& hash = hashes_[array.path];
    file_->write_rows(there, array.shape[0], event.tensor, how_,
                      [&](const void* data, std::size_t bytes) { hash.update(data, bytes); });
    CaptureIndex::add_rows(array, event);
    if (array.whole()) describe(there, {event.prompt, event.lane, event.site}, array);
  }

  // All rows are there.
  void describe(hid_t there, const CaptureIndex::Key& key, CapturedArray& array) {
    const RunInfo& run = index_.run();
    array.digest = hashes_[array.path].digest();
    hashes_.erase(array.path);
    file_->set_attribute(there, "prompt", run.prompts[static_cast<std::size_t>(key.prompt)].id);
    file_->set_attribute(there, "lane", run.lanes[static_cast<std::size_t>(key.lane)].name);
    file_->set_attribute(there, "stage", name_of(key.site.stage));
    if (info(key.site.stage).scope == Scope::layer) file_->set_attribute(there, "layer", key.site.layer);
    file_->set_attribute(there, "positions", array.positions);
    file_->set_attribute(there, "xxh3", digest_text(*array.digest));
  }

  // The sequence ended before all rows that were announced had come.
  void cut(const CaptureIndex::Key& key, CapturedArray& array) {
    file_->keep_rows(array.path, array.dtype, array.shape, how_);
    describe(file_->open_array(array.path), key, array);
  }

  // Without the array that failed there is room for what HDF5 still has to write, so that the rest can be read.
  Error with_what_is_kept(const Error& e, const CapturedArray& failed) {
    const std::int64_t whole = index_.whole() - (failed.whole() ? 1 : 0);
    const bool readable = file_->close_without(failed.path);
    file_.reset();
    return Error(e.kind(), readable
                               ? fmt::format("{}. {} arrays are whole and kept in {}, which is not a complete capture",
                                             e.what(), whole, partial_)
                               : fmt::format("{}. Nothing in {} can be read", e.what(), partial_));
  }

  std::string name_;
  ArrayStorage how_;
  CaptureIndex index_;
  fs::path path_;
  std::string partial_;
  std::optional<Hdf5File> file_;
  std::map<std::string, Xxh3> hashes_;  // of arrays whose rows are still coming, by path
};

}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::Hdf5Sink, "hdf5", "one HDF5 file with an array per prompt, lane, layer and stage",
              moe_diag::file_option, moe_diag::chunk_option, moe_diag::compress_option)
