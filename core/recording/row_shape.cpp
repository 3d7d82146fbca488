// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>

#include "core/file/safetensors_file.hpp"
#include "core/recording/row_source.hpp"
#include "core/recording/strict_json.hpp"
#include "core/recording/value_type.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

bool has_slots(Stage stage) { return is_per_expert(stage) || is(stage, Role::choice); }

struct RowSize {
  std::int64_t found = 1;     // elements of a row as the shape says
  std::int64_t expected = 0;  // of the stage
  std::int64_t slots = 1;     // of a row of a stage with slots
};

// Elements of the first row read as other types than the array's.
std::string by_size(const ArrayFacts& array, const RowSize& size) {
  const auto row_bytes = static_cast<std::size_t>(size.found) * size_of(array.element);
  const auto row = array.data.first(std::min(array.data.size(), row_bytes));
  for (const int ranks : {2, 4, 8, 16}) {
    if (size.found * ranks != size.expected) continue;
    if (ranks == 2 && array.element == Element::f32 && looks_like_16_bits(row))
      return "half of a row: 16-bit values that are declared as f32? Write them as f2 or V2 (bf16)";
    return fmt::format(
        "a {} of a row: the shard of one of {} tensor-parallel ranks, read as whole? Join the ranks' shards first",
        ranks == 2 ? "half" : fmt::format("{}th", ranks), ranks);
  }
  if (size.found == 2 * size.expected) {
    if (is_of_16_bits(array.element) && looks_like_f32(row))
      return "twice a row: f32 values that are declared with 16 bits? Write them as f4";
    return "twice a row: two tensors side by side (gate and up)? Write each under its own stage";
  }
  return "rows come first, and each has the shape that `moe-diag stages` says";
}

std::string likely_mistake(const ArrayFacts& array, Site site, const RowSize& size, std::int64_t rows) {
  const std::vector<std::int64_t>& shape = array.shape;
  if (has_slots(site.stage) && size.found == size.expected / size.slots * (size.slots + 1))
    return "one slot more than the model uses: a fused shared expert? It is taken where fused_shared_expert is said";
  if (shape.size() > 1 && shape[0] == 1 && size.found > size.expected && size.found % size.expected == 0)
    return "a batch dimension in front: leave it out";
  if (shape.size() == 1 && shape[0] % size.expected == 0)
    return fmt::format("a flat array: give it the shape [{}, {}]", shape[0] / size.expected, size.expected);
  if (shape.size() == 2 && shape[0] == size.expected && (rows == 0 || shape[1] == rows))
    return "transposed: rows come first";
  if (has_slots(site.stage) && size.slots > 1 && size.found * size.slots == size.expected && shape[0] % size.slots == 0)
    return fmt::format("a row for each slot: give it the shape [{}, {}, {}]", shape[0] / size.slots, size.slots,
                       size.found);
  return by_size(array, size);
}

std::string expected_text(Site site, const RowRules& rules) {
  std::string text = "[rows";
  for (const Dim& dim : info(site.stage).row)
    if (!dim.symbol.empty()) text += dim.size ? fmt::format(", {}", dim.size(rules.config, site.layer)) : ", keys";
  return text + "]";
}

}  // namespace

std::string RowSource::name(std::size_t site, const StoredRows& rows) const {
  const RecordedPlace at = place(site, rows);
  return at.tensor.empty() ? at.file : fmt::format("{}: tensor {}", at.file, quoted_bytes(at.tensor));
}

void check_element(const std::string& where, Site site, Element element) {
  const bool is_choice = payload_of(site.stage) == Payload::indices;
  if (is_choice == is_whole(element)) return;
  if (is_choice)
    refuse_recording(fmt::format("{}: has values of {}, expected ids of experts as whole numbers: write them as int32",
                                 where, name_of(element)));
  refuse_recording(
      fmt::format("{}: has whole numbers of type {}, expected f64, f32, f16 or bf16{}", where, name_of(element),
                  element == Element::u16 ? "; for bits of bf16, dump.json says \"bf16_as\": \"u2\"" : ""));
}

std::int64_t checked_row(const ArrayFacts& array, Site site, const RowRules& rules, std::int64_t rows) {
  check_element(array.where, site, array.element);
  const std::string found =
      fmt::format("{}: found shape {}, expected {}", array.where, shape_text(array.shape), expected_text(site, rules));
  if (array.shape.empty()) refuse_recording(found + ": it is a single value");
  RowSize size;
  for (std::size_t i = 1; i < array.shape.size(); ++i)
    if (__builtin_mul_overflow(size.found, array.shape[i], &size.found)) refuse_recording(found + ": too many values");
  size.expected = rules.config.shape_of(site, 1, 1).count();
  if (has_slots(site.stage)) size.slots = rules.config.used;
  if (size.found == size.expected) return size.found;
  if (is(site.stage, Role::key_values)) {
    // As many keys as the engine had.
    if (size.found > 0 && size.found % size.expected == 0) return size.found;
  } else if (has_slots(site.stage) && rules.fused_shared_expert &&
             size.found == size.expected / size.slots * (size.slots + 1)) {
    return size.found;
  }
  refuse_recording(fmt::format("{}: {}", found, likely_mistake(array, site, size, rows)));
}

}  // namespace moe_diag
