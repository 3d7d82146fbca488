// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/api/step.hpp"
#include "core/ops/step_case.hpp"
#include "core/text/numbers.hpp"

namespace moe_diag {

// Which elements of a step's output are wrong: those farther from the oracle's than their error explains. Columns are
// of a row, or of an expert's slot. A range holds columns that are right by chance, as their neighbours' errors let
// expect; a column that is right for another reason ends it.
struct Footprint {
  struct Part {
    int expert = -1;
    std::int64_t rows = 0, all_rows = 0;
  };
  struct OfTensor {
    std::string name, type;  // "blk.2.attn_q.weight", "Q4_K"
    Range all;               // the columns that it writes
    std::vector<Range> columns;
  };

  std::int64_t wrong = 0, compared = 0;
  std::vector<int> positions, compared_positions;  // that hold wrong elements; that were looked at; ascending
  std::vector<Range> columns;
  std::vector<OfTensor> tensors;  // whose columns are wrong
  std::vector<Part> experts;      // whose slots are wrong, by id; empty for stages of no expert
  std::vector<int> ran;           // experts that were looked at; empty for stages of no expert
  std::string text;               // "columns 128 to 255 of all 7 positions compared, 0 to 6"
};

// Makes the footprint of a step from the passes that it was looked at in.
class FootprintMaker {
 public:
  // Units as units_of() gives them.
  void add(const StepCase& step_case, const std::vector<StepUnit>& units);
  // A row of chosen experts, of which so many are others.
  void add_choice(int position, int flips, int used);
  Footprint made() const;
  // A row of these positions is wrong.
  bool is_wrong_in(int first, int count) const {
    const auto at = wrong_positions_.lower_bound(first);
    return at != wrong_positions_.end() && *at < first + count;
  }

 private:
  enum class Column : std::uint8_t { right, unclear, wrong };  // unclear: off, but by little beside the worst

  void add_wrong(const StepCase& step_case, const StepUnit& unit);
  std::vector<std::int64_t> wrong_columns() const;
  bool is_by_chance(std::int64_t first, std::int64_t end) const;
  std::int64_t seen(Range columns) const;
  std::vector<Range> ranges() const;
  std::vector<Footprint::OfTensor> tensors(const std::vector<Range>& columns) const;
  std::string keys_text(const std::vector<std::int64_t>& columns) const;
  std::string columns_text(const Footprint& print) const;

  const Step* step_ = nullptr;
  std::int64_t wrong_ = 0, compared_ = 0;
  std::set<int> positions_, wrong_positions_;
  std::map<int, Footprint::Part> experts_;
  std::set<std::size_t> wrong_parts_;  // weights of a product with several
  bool is_choice_ = false;
  std::int64_t keys_ = 0;  // columns of a head of attention stages; else 0

  std::vector<Column> columns_;
  std::vector<std::int32_t> failing_;      // by column: failing units that hold it
  std::int64_t off_ = 0, barely_off_ = 0;  // elements of failing units beyond their tolerance; by less than 10 times
};

}  // namespace moe_diag
