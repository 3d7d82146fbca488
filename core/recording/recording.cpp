// SPDX-License-Identifier: MIT
#include "core/recording/recording.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/api/error.hpp"
#include "core/recording/cached_rows.hpp"
#include "core/recording/call_table.hpp"
#include "core/recording/capture_rows.hpp"
#include "core/recording/content_checks.hpp"
#include "core/recording/dump_folder.hpp"
#include "core/recording/known_maps.hpp"
#include "core/recording/map_rows.hpp"
#include "core/recording/npy_rows.hpp"
#include "core/recording/row_source.hpp"
#include "core/recording/safetensors_rows.hpp"
#include "core/recording/sequences.hpp"
#include "core/recording/strict_json.hpp"

namespace moe_diag {

namespace fs = std::filesystem;

struct Recording::Impl {
  ModelConfig config;
  RecordingOptions options;
  std::string path, layout, cut_at, checked;
  DumpHead head;
  CallTable table;
  std::unique_ptr<RowSource> source;
  std::optional<Sequences> sequences;
  CachedRows cached;
  std::vector<bool> held;  // of each site of the source: it has a row

  RowRules rules() const { return {config, options.fused_shared_expert}; }
  void open();
  void open_dump();
  void open_capture();
  void open_mapped();
  void name_end();
  void find_held();

  std::optional<std::size_t> index_of(Site site) const;
  StoredRows at(int request, std::size_t site, int position) const;
};

namespace {

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

}  // namespace

void Recording::Impl::open() {
  std::error_code error;
  if (!exists(path)) throw Error(ErrorKind::absent, fmt::format("{}: there is no such recording", path));
  if (!fs::is_directory(path, error))
    refuse_recording(fmt::format("{}: expected the folder of a recording, found a file", path));
  const bool is_dump = exists(path + "/dump.json"), is_capture = exists(path + "/manifest.json");
  if (!options.map.empty())
    open_mapped();
  else if (is_dump && is_capture)
    refuse_recording(fmt::format("{}: has dump.json and manifest.json, expected a dump or a capture, not both", path));
  else if (is_dump)
    open_dump();
  else if (is_capture)
    open_capture();
  else if (exists(path + "/incomplete"))
    refuse_recording(fmt::format("{}: a capture that is not complete: its run is still going, or was stopped", path));
  else
    refuse_recording(fmt::format(
        "{}: no recording: it has neither dump.json, with which a dump in the native layout begins, nor the "
        "manifest.json of a capture of moe-diag; files of another tool are read with a map (`moe-diag maps`)",
        path));
  find_held();
  sequences.emplace(table.calls(), options.take, path);
  cached = CachedRows(path, config, sequences->requests(), options.zeros_ok);
  checked = check_content(*source, table, rules(), options.zeros_ok);
}

void Recording::Impl::open_dump() {
  head = DumpHead::read(path + "/dump.json");
  if (!head.is_closed && !options.cut_ok)
    refuse_recording(
        fmt::format("{}: the dump was cut: its dump.json has no \"closed\": true, which the engine writes last. With "
                    "--cut-ok its complete calls are judged",
                    path));
  const DumpFiles files = DumpFiles::find(path, config);
  if (head.is_closed && !files.leftover.empty())
    refuse_recording(
        fmt::format("{}: was still being written, while dump.json says that the dump is closed: remove it "
                    "when it is of an earlier recording",
                    files.leftover));
  const bool is_cut = !head.is_closed;
  table = CallTable::read(path + "/calls.jsonl", config, is_cut);
  if (head.is_closed && head.calls && *head.calls != table.lines())
    refuse_recording(
        fmt::format("{}/calls.jsonl: has {} lines, dump.json says {} calls", path, table.lines(), *head.calls));
  const bool is_npy = !files.arrays.empty();
  layout = is_npy ? "native, npy" : "native, safetensors";
  source = is_npy ? open_npy_rows(files, table, rules(), is_cut, head.is_bf16_u2)
                  : open_safetensors_rows(path, files, table, rules(), is_cut);
  if (is_cut) name_end();
}

void Recording::Impl::name_end() {
  if (table.lines() == 0)
    refuse_recording(
        fmt::format("{}: the dump was cut, and none of its calls is complete: nothing can be judged", path));
  const RecordedCall& last = table.calls().back();
  cut_at = fmt::format("call {} of request {}, behind position {}", last.number, last.request, last.end() - 1);
}

// An array may be there of which every call has 0 rows.
void Recording::Impl::find_held() {
  held.assign(source->sites().size(), false);
  for (std::size_t s = 0; s < held.size(); ++s)
    for (std::size_t c = 0; c < table.calls().size() && !held[s]; ++c)
      for (int row = 0; row < table.calls()[c].rows && !held[s];) {
        const StoredRows rows = source->at(s, static_cast<int>(c), row);
        held[s] = rows.data != nullptr;
        row += std::max(rows.count, 1);
      }
  if (std::find(held.begin(), held.end(), true) == held.end())
    refuse_recording(fmt::format("{}: no stage has a row of any call: were all of them left out by filters?", path));
}

void Recording::Impl::open_capture() {
  const CaptureManifest manifest(path, config, options.lane);
  layout = fmt::format("capture of moe-diag (lane {})", manifest.lane());
  head.engine = "moe-diag, lane " + manifest.lane();
  head.numerics = manifest.numerics();
  table = manifest.calls();
  source = manifest.open(table, rules());
}

void Recording::Impl::open_mapped() {
  if (options.cut_ok || !options.lane.empty())
    refuse_recording(fmt::format("{}: cut_ok and lane are of our own layouts: leave them out beside a map", path));
  const DumpMap map = dump_map(options.map, config.stages);
  layout = is_map_file(options.map) ? "map " + fs::path(options.map).filename().string() : "map " + options.map;
  head.engine = map.engine;
  head.numerics = map.numerics;
  head.stored = map.stored;
  head.kv_cache = map.kv_cache;
  options.fused_shared_expert |= map.fused_shared_expert;
  source = open_mapped_rows(path, map, table, rules());
}

std::optional<std::size_t> Recording::Impl::index_of(Site site) const {
  const std::vector<StoredSite>& sites = source->sites();
  const auto found = std::lower_bound(sites.begin(), sites.end(), StoredSite{site, {}, {}});
  if (found == sites.end() || found->site != site) return std::nullopt;
  const auto index = static_cast<std::size_t>(found - sites.begin());
  return held[index] ? std::optional(index) : std::nullopt;
}

// Rows from a position on, as far as they are of one call.
StoredRows Recording::Impl::at(int request, std::size_t site, int position) const {
  const Span* span = sequences->find(request, position);
  if (!span) return {};
  StoredRows rows = source->at(site, span->call, position - table.calls()[static_cast<std::size_t>(span->call)].first);
  rows.count = std::min(rows.count, span->end - position);
  return rows;
}

Recording::Recording(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Recording::Recording(Recording&&) noexcept = default;
Recording& Recording::operator=(Recording&&) noexcept = default;
Recording::~Recording() = default;

Recording Recording::open(const std::string& path, const ModelConfig& config, const RecordingOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  impl->options = options;
  impl->path = path;
  impl->open();
  return Recording(std::move(impl));
}

const std::string& Recording::path() const { return impl_->path; }
const std::string& Recording::layout() const { return impl_->layout; }
const std::string& Recording::engine() const { return impl_->head.engine; }
const std::string& Recording::numerics() const { return impl_->head.numerics; }
const std::string& Recording::stored() const { return impl_->head.stored; }
const std::string& Recording::kv_cache() const { return impl_->head.kv_cache; }
const std::string& Recording::model() const { return impl_->head.model; }
const std::string& Recording::cut_at() const { return impl_->cut_at; }
const std::string& Recording::checked() const { return impl_->checked; }
const std::vector<RecordedCall>& Recording::calls() const { return impl_->table.calls(); }
const std::vector<RecordedRequest>& Recording::requests() const { return impl_->sequences->requests(); }

std::vector<Site> Recording::sites() const {
  std::vector<Site> sites;
  for (const StoredSite& stored : impl_->source->sites())
    if (has(stored.site)) sites.push_back(stored.site);
  return sites;
}

bool Recording::has(Site site) const { return impl_->index_of(site).has_value(); }

bool Recording::has(int request, Site site, Stretch positions) const {
  const auto index = impl_->index_of(site);
  if (!index || positions.count <= 0) return false;
  for (int p = positions.first; p < positions.end();) {
    const StoredRows rows = impl_->at(request, *index, p);
    if (!rows.data) return false;
    p += rows.count;
  }
  return true;
}

namespace {

// Pieces of rows, one behind the other.
struct Gathered {
  std::vector<StoredRows> pieces;
  std::int64_t longest = 0;  // elements of a row
  bool is_one_piece = true;
};

void add_piece(Gathered& gathered, const StoredRows& rows, std::size_t element_bytes) {
  if (!gathered.pieces.empty()) {
    const StoredRows& last = gathered.pieces.back();
    const auto bytes = static_cast<std::size_t>(last.elements) * element_bytes * static_cast<std::size_t>(last.count);
    gathered.is_one_piece &= last.data + bytes == rows.data && last.elements == rows.elements && last.file == rows.file;
  }
  gathered.pieces.push_back(rows);
  gathered.longest = std::max(gathered.longest, rows.elements);
}

// A row as readers get it. The file may have more elements than `width`, of a shared expert behind, or fewer: keys of a
// head that had not been written yet.
struct RowCopy {
  Element element = Element::f32;
  std::int64_t width = 0, heads = 1;

  void copy(const std::byte* from, std::int64_t elements, std::byte* to) const {
    const std::int64_t count = std::min(elements, width) / heads;
    const std::size_t bytes = size_of(element), read_bytes = size_of(read_as(element));
    for (std::int64_t h = 0; h < heads; ++h)
      copy_values(from + static_cast<std::size_t>(h * (elements / heads)) * bytes,
                  to + static_cast<std::size_t>(h * (width / heads)) * read_bytes, count);
  }

 private:
  void copy_values(const std::byte* from, std::byte* to, std::int64_t count) const {
    if (is_read_in_place(element)) {
      std::memcpy(to, from, static_cast<std::size_t>(count) * size_of(element));
      return;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const auto id = static_cast<std::int32_t>(whole_at(element, from, i));
      std::memcpy(to + static_cast<std::size_t>(i) * sizeof id, &id, sizeof id);
    }
  }
};

}  // namespace

Tensor Recording::rows(int request, Site site, Stretch positions, std::vector<std::byte>& memory) const {
  const auto index = impl_->index_of(site);
  if (!index || positions.count <= 0) return {};
  const Element element = impl_->source->sites()[*index].element;
  Gathered gathered;
  for (int p = positions.first; p < positions.end();) {
    StoredRows rows = impl_->at(request, *index, p);
    if (!rows.data) return {};
    rows.count = std::min(rows.count, positions.end() - p);
    p += rows.count;
    add_piece(gathered, rows, size_of(element));
  }
  const std::int64_t keys = gathered.longest / impl_->config.shape_of(site, 1, 1).count();
  const Tensor tensor{gathered.pieces.front().data, read_as(element),
                      impl_->config.shape_of(site, positions.count, static_cast<int>(keys))};
  const std::int64_t width = tensor.shape.row();
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  if (gathered.is_one_piece && gathered.longest == width && is_read_in_place(element) &&
      address % size_of(element) == 0)
    return tensor;
  const std::size_t row_bytes = static_cast<std::size_t>(width) * size_of(tensor.dtype);
  memory.assign(static_cast<std::size_t>(positions.count) * row_bytes, std::byte{0});
  const bool is_by_key = is(site.stage, Role::key_values);
  const RowCopy row{element, width, is_by_key ? tensor.shape[1] : 1};
  std::byte* to = memory.data();
  for (const StoredRows& piece : gathered.pieces)
    for (int r = 0; r < piece.count; ++r, to += row_bytes)
      row.copy(piece.data + static_cast<std::size_t>(r * piece.elements) * size_of(element), piece.elements, to);
  return {memory.data(), tensor.dtype, tensor.shape};
}

Tensor Recording::cached(int request, Cache cache, int layer) const {
  return impl_->cached.rows(request, cache, layer);
}

std::optional<RecordedPlace> Recording::place(int request, Site site, int position) const {
  const auto index = impl_->index_of(site);
  if (!index) return std::nullopt;
  const StoredRows rows = impl_->at(request, *index, position);
  if (!rows.data) return std::nullopt;
  return impl_->source->place(*index, rows);
}

int Recording::call_at(int request, int position) const {
  const Span* span = impl_->sequences->find(request, position);
  return span ? span->call : -1;
}

std::vector<std::string> Recording::engine_name(Site site) const {
  const auto index = impl_->index_of(site);
  if (!index) return {};
  return {impl_->source->sites()[*index].name};
}

}  // namespace moe_diag
