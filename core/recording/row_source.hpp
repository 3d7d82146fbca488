// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/api/model.hpp"
#include "core/gguf/mapped_file.hpp"
#include "core/recording/call_table.hpp"
#include "core/recording/element.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// A stage of one layer that a recording has.
struct StoredSite {
  Site site;
  Element element = Element::f32;
  std::string name;  // file or tensor

  friend bool operator<(const StoredSite& a, const StoredSite& b) { return a.site < b.site; }
};

// Rows that lie one behind the other in a file, or rows that are not recorded.
struct StoredRows {
  const std::byte* data = nullptr;  // null: not recorded
  int count = 1;
  std::int64_t elements = 0;  // of a row
  int file = 0;               // or another number by which place() knows them
};

// The arrays of a recording, by site, call and row of the call.
class RowSource {
 public:
  virtual ~RowSource() = default;

  // In forward order. The index of a site is its place here.
  virtual const std::vector<StoredSite>& sites() const = 0;
  // Rows of a call from `row` on, at most to its end. Consecutive calls may lie one behind the other.
  virtual StoredRows at(std::size_t site, int call, int row) const = 0;
  // Row `data` of one of its files.
  virtual RecordedPlace place(std::size_t site, const StoredRows& rows) const = 0;

  // The file of rows, and the tensor in it, for the beginning of a message.
  std::string name(std::size_t site, const StoredRows& rows) const;
};

// Sizes that rows are checked against.
struct RowRules {
  const ModelConfig& config;
  bool fused_shared_expert = false;
};

// An array as its file describes it.
struct ArrayFacts {
  std::string where;  // file, and tensor in it
  Element element = Element::f32;
  std::vector<std::int64_t> shape;  // rows first
  std::span<const std::byte> data;  // of its rows
};
// The elements of one of its rows. Throws Error(usage) unless they are those of the stage, with the likely mistake:
// shards, rows of slots, a flat or transposed array, values of another size. `rows`: how many the calls have.
std::int64_t checked_row(const ArrayFacts& array, Site site, const RowRules& rules, std::int64_t rows);
// Refuses a type that a stage cannot have: ids are whole numbers, values are not.
void check_element(const std::string& where, Site site, Element element);

}  // namespace moe_diag
