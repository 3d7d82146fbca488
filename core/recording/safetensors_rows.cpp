// SPDX-License-Identifier: MIT
#include "core/recording/safetensors_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "core/file/safetensors_file.hpp"
#include "core/recording/site_name.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

// Rows of a call that a tensor has.
struct Piece {
  const std::byte* data = nullptr;
  std::int64_t elements = 0;  // of a row
  int rows = 0;
};

class SafetensorsRows final : public RowSource {
 public:
  SafetensorsRows(const std::string& folder, const DumpFiles& files, CallTable& table, const RowRules& rules,
                  bool is_cut)
      : table_(table), rules_(rules) {
    check_numbers(folder, files, is_cut);
    for (const auto& [number, path] : files.of_calls) {
      if (number >= table_.lines()) break;  // of a call whose line is not written yet
      if (!open(number, path, is_cut)) break;
    }
    if (is_cut) table_.cut(std::min(table_.lines(), static_cast<int>(files_.size())));
    put_in_order();
  }

  const std::vector<StoredSite>& sites() const override { return sites_; }

  StoredRows at(std::size_t site, int call, int row) const override {
    const int line = table_.calls()[static_cast<std::size_t>(call)].number;
    const Piece& piece = pieces_[site][static_cast<std::size_t>(line)];
    const CallTable::Place& place = table_.place_of(call);
    const int count = table_.calls()[static_cast<std::size_t>(call)].rows - row;
    const auto [start, kept] = kept_of(site, line, place.part, piece.rows);
    const int index = place.row + row - (table_.part(place.part).rows - kept);
    if (index < 0) return {nullptr, std::min(count, -index), piece.elements, line};
    const auto bytes = piece.elements * static_cast<std::int64_t>(size_of(sites_[site].element));
    return {piece.data + (start + index) * bytes, count, piece.elements, line};
  }

  RecordedPlace place(std::size_t site, const StoredRows& rows) const override {
    const MappedFile& file = files_[static_cast<std::size_t>(rows.file)];
    return {file.path(), static_cast<std::uint64_t>(rows.data - file.bytes().data()), sites_[site].name};
  }

 private:
  void check_numbers(const std::string& folder, const DumpFiles& files, bool is_cut) const {
    int next = 0;
    for (const auto& [number, path] : files.of_calls) {
      if (is_cut && number != next) return;
      if (number >= table_.lines() && !is_cut)
        refuse_recording(fmt::format("{}: is of call {}, expected calls 0 to {}, as calls.jsonl has lines", path,
                                     number, table_.lines() - 1));
      if (number != next) refuse_missing(folder, next);
      ++next;
    }
    if (next < table_.lines() && !is_cut) refuse_missing(folder, next);
  }
  [[noreturn]] void refuse_missing(const std::string& folder, int number) const {
    refuse_recording(fmt::format("{}/call_{:05}.safetensors: there is no such file, expected one for each of {} calls",
                                 folder, number, table_.lines()));
  }

  // False when the file is not whole, or an earlier one is not there, and the dump was cut.
  bool open(int number, const std::string& path, bool is_cut) {
    if (number != static_cast<int>(files_.size())) return false;
    SafetensorsFile parsed;
    try {
      MappedFile file = MappedFile::open(path);
      parsed = parse_safetensors({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
      files_.push_back(std::move(file));
    } catch (const Error& e) {
      if (is_cut) return false;
      const std::string what = e.what();
      if (what.starts_with(path)) throw;
      refuse_recording(fmt::format("{}: {}", path, what));
    }
    std::vector<NamedRange> ranges;
    const auto* base = files_.back().bytes().data();
    for (const SafeTensor& tensor : parsed.tensors) {
      const auto first = static_cast<std::size_t>(reinterpret_cast<const std::byte*>(tensor.data.data()) - base);
      ranges.push_back({tensor.name, first, first + tensor.data.size()});
      add(number, path, tensor);
    }
    files_.back().name_ranges(std::move(ranges));
    return true;
  }

  void add(int number, const std::string& path, const SafeTensor& tensor) {
    const std::string where = fmt::format("{}: tensor {}", path, quoted_bytes(tensor.name));
    const Site site = site_named(tensor.name, rules_.config, where);
    const auto element = element_of_safetensors(tensor.dtype);
    if (!element)
      refuse_recording(
          fmt::format("{}: its type is {}, expected F64, F32, F16, BF16, and for ids I8 to I64 or U8 to "
                      "U32",
                      where, shown(tensor.dtype)));
    const std::int64_t rows = table_.rows_of_line(number);
    const std::int64_t elements =
        checked_row({where, *element, tensor.shape, std::as_bytes(std::span(tensor.data.data(), tensor.data.size()))},
                    site, rules_, rows);
    const auto [entry, is_new] = index_.try_emplace(site, sites_.size());
    const std::size_t index = entry->second;
    if (is_new) {
      sites_.push_back({site, *element, tensor.name});
      pieces_.emplace_back(static_cast<std::size_t>(table_.lines()));
    }
    if (sites_[index].element != *element)
      refuse_recording(fmt::format("{}: has {}, earlier calls have {} of this stage: expected one type", where,
                                   name_of(*element), name_of(sites_[index].element)));
    Piece& piece = pieces_[index][static_cast<std::size_t>(number)];
    if (piece.data) refuse_recording(fmt::format("{}: {} comes twice, under two names", where, text_of(site)));
    check_rows(number, where, site, tensor.shape[0]);
    piece = {reinterpret_cast<const std::byte*>(tensor.data.data()), elements, static_cast<int>(tensor.shape[0])};
  }

  void check_rows(int number, const std::string& where, Site site, std::int64_t rows) const {
    const std::int64_t all = table_.rows_of_line(number);
    if (rows > all)
      refuse_recording(fmt::format("{}: has {} rows, the call has {}{}", where, rows, all,
                                   rows == all + table_.padding_of_line(number)
                                       ? ": rows of padding are counted in the rows of a call"
                                       : ": rows of padding? Count them in rows, and say padding"));
    if (const auto said = table_.rows_said_of_line(number, site)) {
      if (*said != rows)
        refuse_recording(fmt::format("{}: has {} rows, `recorded` of its call says {}", where, rows, *said));
    } else if (rows < all && table_.first_part(number + 1) - table_.first_part(number) > 1) {
      refuse_recording(
          fmt::format("{}: has {} of {} rows of a call of several requests, expected `recorded` in its "
                      "line, or in each part, to say which",
                      where, rows, all));
    }
  }

  // First row of a part in a tensor, and the number of the part's last rows that it has.
  std::pair<std::int64_t, int> kept_of(std::size_t site, int line, int part, int rows) const {
    const int first = table_.first_part(line), end = table_.first_part(line + 1);
    if (end - first == 1) return {0, rows};
    std::int64_t start = 0;
    for (int p = first; p < part; ++p) start += kept_rows(site, p, rows);
    return {start, kept_rows(site, part, rows)};
  }
  int kept_rows(std::size_t site, int part, int rows) const {
    return rows == 0 ? 0 : table_.rows_said(part, sites_[site].site).value_or(table_.part(part).rows);
  }

  void put_in_order() {
    std::vector<StoredSite> sites;
    std::vector<std::vector<Piece>> pieces;
    for (const auto& [site, index] : index_) {
      sites.push_back(std::move(sites_[index]));
      pieces.push_back(std::move(pieces_[index]));
    }
    sites_ = std::move(sites);
    pieces_ = std::move(pieces);
  }

  CallTable& table_;
  const RowRules rules_;
  std::vector<MappedFile> files_;  // of each call
  std::map<Site, std::size_t> index_;
  std::vector<StoredSite> sites_;
  std::vector<std::vector<Piece>> pieces_;  // of each site, by call
};

}  // namespace

std::unique_ptr<RowSource> open_safetensors_rows(const std::string& folder, const DumpFiles& files, CallTable& table,
                                                 const RowRules& rules, bool is_cut) {
  return std::make_unique<SafetensorsRows>(folder, files, table, rules, is_cut);
}

}  // namespace moe_diag
