// SPDX-License-Identifier: MIT
#include "core/recording/map_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/recording/map_calls.hpp"
#include "core/recording/map_files.hpp"
#include "core/recording/map_sites.hpp"
#include "core/recording/map_view.hpp"
#include "core/recording/strict_json.hpp"

namespace moe_diag {
namespace {

// Where a row is, and where in the dump it was.
struct Row {
  const std::byte* data = nullptr;  // null: not recorded
  std::int64_t elements = 0;
  const MapArray* array = nullptr;
  std::uint64_t offset = 0;  // in the array's file
};

class MappedRows final : public RowSource {
 public:
  MappedRows(MapFiles files, const CallTable& table) : files_(std::move(files)), table_(table) {}

  const std::vector<StoredSite>& sites() const override { return sites_; }

  StoredRows at(std::size_t site, int call, int row) const override {
    const CallTable::Place& place = table_.place_of(call);
    const auto begin = static_cast<std::size_t>(part_rows_[static_cast<std::size_t>(place.part)] + place.row + row);
    const int most = table_.calls()[static_cast<std::size_t>(call)].rows - row;
    const Row& first = rows_[site][begin];
    const auto bytes = first.elements * static_cast<std::int64_t>(size_of(sites_[site].element));
    int count = 1;
    for (; count < most; ++count) {
      const Row& next = rows_[site][begin + static_cast<std::size_t>(count)];
      const bool follows = next.data == (first.data ? first.data + count * bytes : nullptr);
      if (!follows || next.elements != first.elements || next.array != first.array) break;
    }
    return {first.data, count, first.elements, static_cast<int>(begin)};
  }

  RecordedPlace place(std::size_t site, const StoredRows& rows) const override {
    const Row& row = rows_[site][static_cast<std::size_t>(rows.file)];
    return {row.array->path, row.offset, row.array->tensor};
  }

 private:
  friend class RowPlacer;

  MapFiles files_;
  const CallTable& table_;
  std::vector<StoredSite> sites_;
  std::vector<std::vector<Row>> rows_;          // of each site, by part
  std::vector<std::int64_t> part_rows_{0};      // before each part, and of all
  std::vector<std::vector<std::byte>> copies_;  // of rows that were put together
};

// Puts the rows of arrays where their positions are.
class RowPlacer {
 public:
  RowPlacer(MappedRows& rows, const DumpMap& map, const std::vector<MapKey>& keys, const RowRules& rules)
      : to_(rows), table_(rows.table_), map_(map), keys_(keys), rules_(rules) {
    for (const CallPart& part : table_.parts()) to_.part_rows_.push_back(to_.part_rows_.back() + part.rows);
  }

  void add(const MappedSite& site) {
    const JoinedRows joined(site.sources, *site.map,
                            {rules_.config.heads, rules_.config.kv_heads, rules_.config.kv_heads});
    if (to_.sites_.empty() || to_.sites_.back().site != site.site) {
      to_.sites_.push_back({site.site, joined.element(), joined.first().array->name});
      to_.rows_.emplace_back(static_cast<std::size_t>(to_.part_rows_.back()));
    }
    const std::string where = joined.first().array->where();
    if (to_.sites_.back().element != joined.element())
      refuse_recording(fmt::format("{}: has {}, others have {} of this stage: expected one type", where,
                                   name_of(joined.element()), name_of(to_.sites_.back().element)));
    const std::vector<Row> own = site.order ? in_order(site, joined) : as_they_lie(site, joined);
    auto next = own.begin();
    for (const PartOf& part : parts_of(site, std::ssize(own))) {
      const auto end = static_cast<std::size_t>(to_.part_rows_[part.part + 1]);
      for (std::size_t r = end - static_cast<std::size_t>(part.rows); r < end; ++r) {
        Row& row = to_.rows_.back()[r];
        if (row.data)
          refuse_recording(
              fmt::format("{}: has the same rows as {} ({})", where, row.array->name, place_of(map_, *site.map)));
        row = *next++;
      }
    }
  }

 private:
  struct PartOf {
    std::size_t part = 0;
    std::int64_t rows = 0;  // the last ones of the part
  };
  std::vector<PartOf> parts_of(const MappedSite& site, std::int64_t rows) const {
    std::vector<PartOf> parts;
    std::int64_t all = 0;
    for (std::size_t p = 0; p < keys_.size(); ++p) {
      if (!site.key.covers(keys_[p])) continue;
      parts.push_back({p, table_.rows_said(static_cast<int>(p), site.site).value_or(table_.parts()[p].rows)});
      all += parts.back().rows;
    }
    if (rows == all) return parts;
    const bool is_last = site.map->is_last_rows;
    if (is_last && (rows == std::ssize(parts) || (parts.size() == 1 && rows < all))) {
      for (PartOf& part : parts) part.rows = parts.size() == 1 ? rows : 1;
      return parts;
    }
    refuse_recording(fmt::format(
        "{}: has {} rows, expected {} of {} calls{} ({})", site.sources.front().front().array->where(), rows, all,
        parts.size(),
        rows < all && !is_last ? ": where it has only the last rows of a call, the map says 'rows: last'" : "",
        place_of(map_, *site.map)));
  }

  // Elements of a row of these dimensions, checked as those of our own layouts are.
  std::int64_t checked(const MappedSite& site, const JoinedRows& joined, std::vector<std::int64_t> values) const {
    const MapArray& array = *joined.first().array;
    values.insert(values.begin(), joined.rows());
    const bool is_whole_array = joined.in_place(0) == array.data.data();
    return checked_row({fmt::format("{} ({})", array.where(), place_of(map_, *site.map)), joined.element(), values,
                        is_whole_array ? array.data : std::span<const std::byte>()},
                       site.site, rules_, joined.rows());
  }

  static Row row_of(const JoinedRows& joined, std::int64_t row, const std::byte* data, std::int64_t elements) {
    const MapView& first = joined.first();
    return {data, elements, first.array,
            first.array->offset + static_cast<std::uint64_t>(first.row(row) - first.array->data.data())};
  }

  std::byte* memory_for(std::int64_t rows, std::size_t row_bytes) {
    to_.copies_.emplace_back(static_cast<std::size_t>(rows) * row_bytes);
    return to_.copies_.back().data();
  }

  std::vector<Row> as_they_lie(const MappedSite& site, const JoinedRows& joined) {
    const std::int64_t elements = checked(site, joined, joined.values());
    const bool is_copied = !joined.in_place(0);
    std::byte* copy = is_copied ? memory_for(joined.rows(), joined.row_bytes()) : nullptr;
    std::vector<Row> rows;
    for (std::int64_t r = 0; r < joined.rows(); ++r) {
      if (is_copied) joined.gather(r, copy);
      rows.push_back(
          row_of(joined, r, is_copied ? std::exchange(copy, copy + joined.row_bytes()) : joined.in_place(r), elements));
    }
    return rows;
  }

  std::int64_t tokens_of(const MapKey& key) const {
    std::int64_t tokens = 0;
    for (std::size_t p = 0; p < keys_.size(); ++p)
      if (key.covers(keys_[p])) tokens += table_.parts()[p].rows;
    return tokens;
  }

  // Rows of slots. The array `order` has the token k + slot of each, or another number for padding.
  std::vector<Row> in_order(const MappedSite& site, const JoinedRows& joined) {
    const MapArray& order = *site.order;
    const std::int64_t slots = rules_.config.used, tokens = tokens_of(site.key), all = tokens * slots;
    const auto entries = std::ssize(order.data) / static_cast<std::int64_t>(size_of(order.element));
    if (!is_whole(order.element) || entries != joined.rows())
      refuse_recording(
          fmt::format("{}: has {} values of {}, expected a whole number for each of {} rows: token k + slot",
                      order.where(), entries, name_of(order.element), joined.rows()));
    std::vector<std::int64_t> values = joined.values();
    values.insert(values.begin(), slots);
    const std::int64_t elements = checked(site, joined, std::move(values));
    std::byte* memory = memory_for(all, joined.row_bytes());
    std::vector<Row> rows(static_cast<std::size_t>(tokens));
    std::vector<bool> seen(static_cast<std::size_t>(all));
    for (std::int64_t entry = 0; entry < entries; ++entry) {
      const std::int64_t to = whole_at(order.element, order.data.data(), entry);
      if (to < 0 || to >= all) continue;  // padding
      if (seen[static_cast<std::size_t>(to)])
        refuse_recording(
            fmt::format("{}: token {}, slot {} comes twice, expected once", order.where(), to / slots, to % slots));
      seen[static_cast<std::size_t>(to)] = true;
      std::byte* place = memory + static_cast<std::size_t>(to) * joined.row_bytes();
      joined.gather(entry, place);
      if (to % slots == 0) rows[static_cast<std::size_t>(to / slots)] = row_of(joined, entry, place, elements);
    }
    const auto missing = std::find(seen.begin(), seen.end(), false) - seen.begin();
    if (missing < all)
      refuse_recording(fmt::format("{}: has no row of token {}, slot {}: {} rows of {} tokens and {} slots",
                                   order.where(), missing / slots, missing % slots, entries, tokens, slots));
    return rows;
  }

  MappedRows& to_;
  const CallTable& table_;
  const DumpMap& map_;
  const std::vector<MapKey>& keys_;
  const RowRules& rules_;
};

}  // namespace

std::unique_ptr<RowSource> open_mapped_rows(const std::string& folder, const DumpMap& map, CallTable& table,
                                            const RowRules& rules) {
  MapFiles files(folder);
  const std::vector<MappedSite> sites = find_sites(files, map, rules.config);
  std::vector<MapRowCount> counts;
  for (const MappedSite& site : sites)
    if (!site.map->is_last_rows && !site.order)
      counts.push_back({site.key, site.rows(), site.sources.front().front().array->where()});
  MappedCalls calls = MappedCalls::find(files, map, rules.config, counts);
  table = std::move(calls.table);
  auto rows = std::make_unique<MappedRows>(std::move(files), table);
  RowPlacer placer(*rows, map, calls.keys, rules);
  for (const MappedSite& site : sites) placer.add(site);
  return rows;
}

}  // namespace moe_diag
