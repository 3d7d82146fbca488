// SPDX-License-Identifier: MIT
#include "core/recording/content_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>
#include <vector>

#include "core/ops/operator.hpp"
#include "core/recording/id_checks.hpp"
#include "core/recording/site_name.hpp"
#include "core/recording/strict_json.hpp"
#include "core/recording/value_type.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t most_rows = 65536;    // looked at for zeros
constexpr std::size_t most_typed = 8;       // calls of a site whose values are looked at for their type
constexpr std::int64_t most_values = 1024;  // of a row, for its type

class ContentChecks {
 public:
  ContentChecks(const RowSource& source, const CallTable& table, const RowRules& rules, bool zeros_ok)
      : source_(source), calls_(table.calls()), rules_(rules), zeros_ok_(zeros_ok) {
    const std::size_t pairs = source.sites().size() * calls_.size();
    step_ = std::max<std::size_t>(1, (pairs + most_rows - 1) / most_rows);
  }

  std::string run() {
    for (std::size_t s = 0; s < source_.sites().size(); ++s) {
      if (payload_of(site(s).stage) == Payload::indices) {
        check_ids(source_, s, calls_, rules_);
        continue;
      }
      if (is(site(s).stage, Role::key_values)) check_keys(s);
      if (!zeros_ok_) check_zeros(s);
      if (is_of_16_bits(source_.sites()[s].element)) check_type(s);
      if (is(site(s).stage, Role::choice_weights) && rules_.fused_shared_expert) check_shared_weight(s);
    }
    return fmt::format("looked at the ids of all rows, and at the first and the last row of {} for zeros",
                       step_ == 1 ? "every call" : fmt::format("every {}th call of a stage", step_));
  }

 private:
  Site site(std::size_t s) const { return source_.sites()[s].site; }

  // The first and the last row of a call that are recorded; the same where there is but one.
  struct Ends {
    StoredRows first, last;
    int first_row = 0, last_row = 0;
  };
  Ends ends_of(std::size_t s, std::size_t call) const {
    Ends ends;
    const int rows = calls_[call].rows;
    for (int row = 0; row < rows;) {
      const StoredRows found = source_.at(s, static_cast<int>(call), row);
      if (found.data && !ends.first.data) {
        ends.first = found;
        ends.first_row = row;
      }
      if (found.data) ends.last_row = row + found.count - 1;
      row += std::max(found.count, 1);
    }
    if (ends.first.data) ends.last = source_.at(s, static_cast<int>(call), ends.last_row);
    return ends;
  }

  bool is_zero(std::size_t s, const StoredRows& row) const {
    const Element element = source_.sites()[s].element;
    for (std::int64_t i = 0; i < row.elements; ++i)
      if (value_at(element, row.data, i) != 0) return false;
    return true;
  }

  // A position sees the keys of all positions up to its own.
  void check_keys(std::size_t s) const {
    const std::int64_t heads = rules_.config.shape_of(site(s), 1, 1).count();
    for (std::size_t c = 0; c < calls_.size(); ++c) {
      const Ends ends = ends_of(s, c);
      const std::int64_t position = calls_[c].first + ends.last_row;
      if (ends.last.data && ends.last.elements / heads <= position)
        refuse_recording(
            fmt::format("{}: row {} of call {} has {} keys, expected {} or more at position {}: later ones "
                        "are 0",
                        source_.name(s, ends.last), ends.last_row, calls_[c].number, ends.last.elements / heads,
                        position + 1, position));
    }
  }

  // A model may have tokens whose embedding is 0: there, only a stage without any other row is refused.
  void check_zeros(std::size_t s) const {
    std::size_t seen = 0, zero = 0;
    std::string found, where;
    for (std::size_t c = 0; c < calls_.size(); ++c) {
      if ((c + s) % step_ != 0) continue;
      const Ends ends = ends_of(s, c);
      if (!ends.first.data) continue;
      const bool is_first = is_zero(s, ends.first), is_last = is_zero(s, ends.last);
      seen += 1;
      zero += is_first && is_last ? 1 : 0;
      if (found.empty() && (is_first || is_last)) {
        found = zeros_of(calls_[c], ends, is_first, is_last);
        where = source_.name(s, ends.first);
      }
    }
    if (seen > 0 && zero == seen)
      refuse_recording(
          fmt::format("{}: every row that was looked at is 0, in {}: was it copied before it was written? "
                      "{}",
                      where, seen == 1 ? "the one call" : fmt::format("all of {} calls", seen), remedy_));
    if (!found.empty() && !may_be_zero_by_mistake(site(s).stage))
      refuse_recording(fmt::format("{}: {}. {}", where, found, remedy_));
  }

  // An engine that drops experts, or loses the sum of a rank, has such rows: that is judged, and no recording's fault.
  // An embedding may be 0 by right.
  static bool may_be_zero_by_mistake(Stage stage) {
    return info(stage).scope == Scope::before_layers || holds_experts(stage) ||
           operator_of(info(stage).op).adds_experts;
  }

  static std::string zeros_of(const RecordedCall& call, const Ends& ends, bool is_first, bool is_last) {
    if (is_first && is_last)
      return fmt::format("the rows of call {} are 0, those of other calls are not: was it copied in that call?",
                         call.number);
    if (is_last)
      return fmt::format(
          "row {} of call {}, its last, is 0 and the first is not: padding? Its line says then how many "
          "rows of padding it has",
          ends.last_row, call.number);
    return fmt::format("row {} of call {}, its first, is 0 and the last is not", ends.first_row, call.number);
  }

  // Calls that a type is judged by, spread over all.
  std::vector<std::size_t> typed_calls() const {
    std::vector<std::size_t> picked;
    const std::size_t count = std::min(calls_.size(), most_typed);
    for (std::size_t i = 0; i < count; ++i)
      picked.push_back(i * (calls_.size() - 1) / std::max<std::size_t>(count - 1, 1));
    return picked;
  }

  void check_type(std::size_t s) const {
    if (is(site(s).stage, Role::key_values)) return;  // a row is of many magnitudes, and mostly 0 behind a softmax
    const bool is_weight = is(site(s).stage, Role::choice_weights);
    ValueSample sample;
    RowSums sums;
    std::string where;
    for (const std::size_t c : typed_calls()) {
      const Ends ends = ends_of(s, c);
      if (!ends.first.data) continue;
      if (where.empty()) where = source_.name(s, ends.first);
      for (const StoredRows* row : {&ends.first, &ends.last}) {
        for (std::int64_t i = 0; i < std::min(row->elements, most_values); ++i)
          sample.add(static_cast<std::uint16_t>(whole_at(Element::u16, row->data, i)));
        sums.add(row->data, is_weight ? std::min<std::int64_t>(row->elements, rules_.config.used) : row->elements);
      }
    }
    const Element declared = source_.sites()[s].element;
    const auto why = info(site(s).stage).sums_to_one ? sums.why_not(declared) : sample.why_not(declared);
    if (why) refuse_recording(fmt::format("{}: {}", where, *why));
  }

  // A fused shared expert counts fully.
  void check_shared_weight(std::size_t s) const {
    const int used = rules_.config.used;
    for (std::size_t c = 0; c < calls_.size(); ++c) {
      const Ends ends = ends_of(s, c);
      if (!ends.first.data || ends.first.elements == used) continue;
      const double weight = value_at(source_.sites()[s].element, ends.first.data, used);
      if (std::fabs(weight - 1) > 0.01)
        refuse_recording(
            fmt::format("{}: row {} of call {} has weight {:.4g} in slot {}, expected 1, that of a fused "
                        "shared expert",
                        source_.name(s, ends.first), ends.first_row, calls_[c].number, weight, used));
    }
  }

  static constexpr std::string_view remedy_ =
      "If the engine did compute 0, say so: --zeros-ok, or zeros_ok in a contract";

  const RowSource& source_;
  const std::vector<RecordedCall>& calls_;
  const RowRules& rules_;
  const bool zeros_ok_;
  std::size_t step_ = 1;
};

}  // namespace

std::string check_content(const RowSource& source, const CallTable& table, const RowRules& rules, bool zeros_ok) {
  return ContentChecks(source, table, rules, zeros_ok).run();
}

}  // namespace moe_diag
