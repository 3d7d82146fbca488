// SPDX-License-Identifier: MIT
#include "core/recording/npy_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <string_view>
#include <utility>

#include "core/file/npy_file.hpp"
#include "core/recording/site_name.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::string_view known_types = "f4, f8, f2, V2 (bf16), and for ids i1 to i8 or u1 to u4";

Element element_of(const std::string& path, const std::string& type, bool is_bf16_u2) {
  if (type.starts_with('>'))
    refuse_recording(
        fmt::format("{}: its type is '{}', big-endian; expected little-endian: {}", path, shown(type), known_types));
  const auto element = element_of_npy(type);
  if (!element)
    refuse_recording(fmt::format("{}: its type is '{}', expected one of {}", path, shown(type), known_types));
  return *element == Element::u16 && is_bf16_u2 ? Element::bf16 : *element;
}

// Bytes of one row; none when they do not fit a number.
std::optional<std::int64_t> row_bytes_of(const NpyHead& head, Element element) {
  auto bytes = static_cast<std::int64_t>(size_of(element));
  for (std::size_t i = 1; i < head.shape.size(); ++i)
    if (__builtin_mul_overflow(bytes, head.shape[i], &bytes)) return std::nullopt;
  return bytes;
}

}  // namespace

MappedNpy MappedNpy::open(const std::string& path, const std::string& name, bool is_cut, bool is_bf16_u2) {
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    refuse_recording(fmt::format("{}: there is no such file, expected the rows of {}", path, name));
  if (std::filesystem::is_regular_file(path, error) && std::filesystem::file_size(path, error) == 0)
    refuse_recording(fmt::format("{}: has 0 bytes, expected an array", path));
  MappedNpy npy{MappedFile::open(path), 0, {path, Element::f32, {}, {}}};
  const auto bytes = npy.file.bytes();
  NpyHead head;
  try {
    head = parse_npy_head({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  } catch (const Error& e) {
    refuse_recording(fmt::format("{}: {}", path, e.what()));
  }
  npy.facts.element = element_of(path, head.type, is_bf16_u2);
  if (head.shape.empty()) refuse_recording(fmt::format("{}: a single value, expected an array [rows, ...]", path));
  const auto row = row_bytes_of(head, npy.facts.element);
  const auto held = static_cast<std::int64_t>(bytes.size() - head.bytes);
  if (!row || *row == 0) refuse_recording(fmt::format("{}: rows of {} bytes", path, row ? "0" : "too many"));
  std::int64_t& rows = head.shape[0];
  std::int64_t expected = 0;
  if (is_cut) rows = held / *row;
  if (__builtin_mul_overflow(*row, rows, &expected) || (expected != held && !is_cut))
    refuse_recording(
        fmt::format("{}: its header announces {} rows of {} bytes, {} bytes follow: it was cut short, or "
                    "its header was not completed",
                    path, rows, *row, held));
  npy.head_bytes = head.bytes;
  npy.facts.shape = std::move(head.shape);
  npy.facts.data = bytes.subspan(head.bytes, static_cast<std::size_t>(expected));
  npy.file.name_ranges({{name, head.bytes, bytes.size()}});
  return npy;
}

namespace {

class NpyRows final : public RowSource {
 public:
  NpyRows(const DumpFiles& files, CallTable& table, const RowRules& rules, bool is_cut, bool is_bf16_u2)
      : table_(table) {
    for (const DumpFiles::Array& array : files.arrays) {
      // The ids of a dump whose bf16 is "<u2" may be "<u2" as well.
      const bool is_choice = payload_of(array.site.stage) == Payload::indices;
      add(array, MappedNpy::open(array.path, text_of(array.site), is_cut, is_bf16_u2 && !is_choice), rules);
    }
    if (is_cut) cut();
    for (std::size_t s = 0; s < sites_.size() && !is_cut; ++s) check_rows(s);
  }

  const std::vector<StoredSite>& sites() const override { return sites_; }

  StoredRows at(std::size_t site, int call, int row) const override {
    const Array& array = arrays_[site];
    const CallTable::Place& place = table_.place_of(call);
    const PartRows& kept = placed_[array.placed][static_cast<std::size_t>(place.part)];
    const int count = table_.calls()[static_cast<std::size_t>(call)].rows - row;
    const int index = place.row + row - (table_.part(place.part).rows - kept.count);
    if (index < 0) return {nullptr, std::min(count, -index), array.elements, static_cast<int>(site)};
    return {array.npy.facts.data.data() + (kept.start + index) * array.row_bytes, count, array.elements,
            static_cast<int>(site)};
  }

  RecordedPlace place(std::size_t site, const StoredRows& rows) const override {
    const MappedFile& file = arrays_[site].npy.file;
    return {file.path(), static_cast<std::uint64_t>(rows.data - file.bytes().data()), ""};
  }

 private:
  struct Array {
    MappedNpy npy;
    std::int64_t elements = 0, row_bytes = 0;
    std::size_t placed = 0;  // index into placed_

    std::int64_t rows() const { return npy.facts.shape[0]; }
  };

  void add(const DumpFiles::Array& array, MappedNpy npy, const RowRules& rules) {
    std::vector<PartRows> placed = table_.rows_of(array.site);
    const std::int64_t rows = placed.empty() ? 0 : placed.back().start + placed.back().count;
    const std::int64_t elements = checked_row(npy.facts, array.site, rules, rows);
    const auto bytes = elements * static_cast<std::int64_t>(size_of(npy.facts.element));
    const auto same = std::find(placed_.begin(), placed_.end(), placed);
    const auto index = static_cast<std::size_t>(same - placed_.begin());
    if (same == placed_.end()) placed_.push_back(std::move(placed));
    sites_.push_back({array.site, npy.facts.element, array.name});
    arrays_.push_back({std::move(npy), elements, bytes, index});
  }

  std::int64_t rows_up_to(const Array& array, int line) const {
    const std::vector<PartRows>& placed = placed_[array.placed];
    const int end = table_.first_part(line);
    if (end == 0) return 0;
    const PartRows& last = placed[static_cast<std::size_t>(end - 1)];
    return last.start + last.count;
  }

  // The complete calls are those whose rows every array has.
  void cut() {
    int lines = table_.lines();
    for (const Array& array : arrays_)
      while (lines > 0 && rows_up_to(array, lines) > array.rows()) --lines;
    table_.cut(lines);
  }

  void check_rows(std::size_t site) const {
    const Array& array = arrays_[site];
    const std::int64_t expected = rows_up_to(array, table_.lines());
    if (array.rows() == expected) return;
    refuse_recording(fmt::format("{}: has {} rows, expected {} of {} calls: {}", array.npy.facts.where, array.rows(),
                                 expected, table_.lines(), why(array, expected, sites_[site].site)));
  }

  std::string why(const Array& array, std::int64_t expected, Site site) const {
    const std::int64_t found = array.rows();
    const int lines = table_.lines();
    std::int64_t padding = 0, graphs = 0;
    for (int line = 0; line < lines; ++line) {
      padding += table_.padding_of_line(line);
      graphs += std::max<std::int64_t>(table_.graph_size_of_line(line), table_.rows_of_line(line));
    }
    if (found > expected) {
      if (found == expected + padding) return "rows of padding are counted in the rows of a call";
      if (found == graphs) return "rows of padding up to graph_size? Count them in rows, and say padding";
      return "rows of calls that calls.jsonl does not list, or of an earlier recording";
    }
    if (lines > 1 && found == expected - rows_up_to(array, lines - 1))
      return "overwritten calls: these are the rows of the last call only. Append the rows of each call";
    if (found == rows_up_to(array, 1)) return "the rows of the first call only: later calls were not recorded";
    if (found == lines)
      return fmt::format("one row for each call? Its line says then \"recorded\": {{\"{}\": 1}}", name_of(site.stage));
    int line = 0;
    while (rows_up_to(array, line + 1) <= found) ++line;
    return fmt::format("they end within call {}; a stage that has not all rows of a call is named in `recorded`", line);
  }

  CallTable& table_;
  std::vector<StoredSite> sites_;
  std::vector<Array> arrays_;                  // of each site
  std::vector<std::vector<PartRows>> placed_;  // where rows of parts lie; many arrays have the same
};

}  // namespace

std::unique_ptr<RowSource> open_npy_rows(const DumpFiles& files, CallTable& table, const RowRules& rules, bool is_cut,
                                         bool is_bf16_u2) {
  return std::make_unique<NpyRows>(files, table, rules, is_cut, is_bf16_u2);
}

}  // namespace moe_diag
