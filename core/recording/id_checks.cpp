// SPDX-License-Identifier: MIT
#include "core/recording/id_checks.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "core/recording/strict_json.hpp"

namespace moe_diag {
namespace {

class IdChecks {
 public:
  IdChecks(const RowSource& source, std::size_t site, const std::vector<RecordedCall>& calls, const RowRules& rules)
      : source_(source), site_(site), calls_(calls), rules_(rules), seen_(static_cast<std::size_t>(experts()) + 1, 0) {
    const Site scores = source.sites()[site].site.sibling(Role::router_scores);
    for (std::size_t s = 0; s < source.sites().size(); ++s)
      if (source.sites()[s].site == scores && scores.stage) scores_ = static_cast<int>(s);
  }

  void run() {
    check_zeros();
    for (std::size_t c = 0; c < calls_.size(); ++c) check_call(c);
    constexpr double one_in_a_million = -6;
    if (is_all_different_ && log_chance_ < one_in_a_million)
      refuse_recording(fmt::format(
          "{}: the ids of the first rows of each call are all different, over {} experts, which chance does once in "
          "10^{:.0f}: a strided view dumped flat? The {} best of each row are the first columns of a wider array: copy "
          "them row by row",
          name(), experts(), -log_chance_, used()));
  }

 private:
  int experts() const { return rules_.config.experts; }
  int used() const { return rules_.config.used; }
  // The array that has ids of a call; of any call, where `c` is -1.
  std::string name(int c = -1) const {
    for (int call = std::max(c, 0); call < static_cast<int>(calls_.size()); ++call)
      for (int row = 0; row < calls_[static_cast<std::size_t>(call)].rows;) {
        const StoredRows rows = source_.at(site_, call, row);
        if (rows.data) return source_.name(site_, rows);
        row += std::max(rows.count, 1);
      }
    return source_.sites()[site_].name;
  }

  Element element() const { return source_.sites()[site_].element; }

  // `look` takes the row of the call and its ids, with that of a fused shared expert behind them.
  template <class Look>
  void each_row(std::size_t c, const Look& look) {
    for (int row = 0; row < calls_[c].rows;) {
      const StoredRows rows = source_.at(site_, static_cast<int>(c), row);
      ids_.resize(static_cast<std::size_t>(rows.elements));
      for (int i = 0; rows.data && i < rows.count; ++i) {
        for (std::int64_t k = 0; k < rows.elements; ++k)
          ids_[static_cast<std::size_t>(k)] = whole_at(element(), rows.data, i * rows.elements + k);
        look(row + i, std::span<const std::int64_t>(ids_));
      }
      row += std::max(rows.count, 1);
    }
  }

  // All 0 comes before "twice", which it is as well.
  void check_zeros() {
    if (used() < 2) return;
    std::vector<int> zero;
    std::size_t seen = 0;
    for (std::size_t c = 0; c < calls_.size(); ++c) {
      bool is_zero = true, is_seen = false;
      each_row(c, [&](int, std::span<const std::int64_t> ids) {
        is_seen = true;
        is_zero &= std::all_of(ids.begin(), ids.end(), [](std::int64_t id) { return id == 0; });
      });
      if (is_seen && is_zero) zero.push_back(static_cast<int>(c));
      seen += is_seen ? 1 : 0;
    }
    if (zero.empty()) return;
    if (zero.size() == seen)
      refuse_recording(
          fmt::format("{}: every id is 0, in all of {} calls: was it copied before it was written?", name(), seen));
    refuse_recording(
        fmt::format("{}: every id of call {} is 0, those of other calls are not: was it copied in that "
                    "call?",
                    name(zero.front()), calls_[static_cast<std::size_t>(zero.front())].number));
  }

  void check_call(std::size_t c) {
    std::vector<bool> in_window(static_cast<std::size_t>(experts()), false);
    int different = 0;  // ids of the window before the row; -1: there is no other window
    each_row(c, [&](int row, std::span<const std::int64_t> ids) {
      if (static_cast<int>(ids.size()) > used()) ids = without_shared(c, row, ids);
      check_row(c, row, ids);
      if (different + used() > experts()) {
        different = experts() % used() == 0 ? 0 : -1;
        in_window.assign(in_window.size(), false);
      }
      if (different < 0 || !is_all_different_) return;
      if (row == 1 && is_best_of_scores(c, row, ids)) is_all_different_ = false;
      for (const std::int64_t id : ids) {
        if (in_window[static_cast<std::size_t>(id)]) is_all_different_ = false;
        in_window[static_cast<std::size_t>(id)] = true;
      }
      log_chance_ += log_chance_of_row(different);
      different += used();
    });
  }

  std::span<const std::int64_t> without_shared(std::size_t c, int row, std::span<const std::int64_t> ids) const {
    if (ids.back() != experts())
      refuse_recording(
          fmt::format("{}: row {} of call {} has id {} in slot {}, expected {}, that of a fused shared "
                      "expert",
                      name(static_cast<int>(c)), row, calls_[c].number, ids.back(), ids.size() - 1, experts()));
    return ids.first(ids.size() - 1);
  }

  void check_row(std::size_t c, int row, std::span<const std::int64_t> ids) {
    const auto where = [&] {
      return fmt::format("{}: row {} of call {} (position {}) has the ids {}", name(static_cast<int>(c)), row,
                         calls_[c].number, calls_[c].first + row, fmt::join(ids, ", "));
    };
    stamp_ += 1;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::int64_t id = ids[i];
      if (id < 0 || id >= experts())
        refuse_recording(fmt::format("{}, expected 0 to {}: {}", where(), experts() - 1, why_outside(id, i)));
      if (seen_[static_cast<std::size_t>(id)] == stamp_)
        refuse_recording(fmt::format("{}, expected each once: {}", where(), why_twice(c)));
      seen_[static_cast<std::size_t>(id)] = stamp_;
    }
  }

  std::string why_outside(std::int64_t id, std::size_t slot) const {
    if (id == experts() && slot + 1 == static_cast<std::size_t>(used()))
      return "a fused shared expert? It stands behind the experts chosen, in a slot more, where fused_shared_expert is "
             "said";
    if (id == -1) return "experts of other ranks, masked? Record ids before they are masked";
    return "physical ids of a load balancer, or another type of numbers? Record ids as the model numbers experts";
  }

  // Slots of one row may lie in the columns of a transposed array.
  std::string why_twice(std::size_t c) const {
    const StoredRows rows = source_.at(site_, static_cast<int>(c), 0);
    if (rows.data && rows.count == calls_[c].rows && rows.count > 1) {
      bool is_once = true;
      for (int row = 0; row < rows.count; ++row) {
        std::vector<std::int64_t> turned;
        for (int slot = 0; slot < used(); ++slot)
          turned.push_back(whole_at(element(), rows.data, slot * rows.count + row));
        std::sort(turned.begin(), turned.end());
        is_once &= std::adjacent_find(turned.begin(), turned.end()) == turned.end();
      }
      if (is_once) return "transposed? As [slots, rows] each row has an expert once";
    }
    return "slots that were not written, or rows of another size?";
  }

  // The decimal logarithm of the chance that a row's ids are none of so many others.
  double log_chance_of_row(int others) const {
    double log = 0;
    for (int i = 0; i < used(); ++i)
      log += std::log10(static_cast<double>(experts() - others - i) / static_cast<double>(experts() - i));
    return log;
  }

  // True where the scores of the row are recorded, and no other expert has a larger one.
  bool is_best_of_scores(std::size_t c, int row, std::span<const std::int64_t> ids) const {
    if (scores_ < 0) return false;
    const auto s = static_cast<std::size_t>(scores_);
    const StoredRows scores = source_.at(s, static_cast<int>(c), row);
    if (!scores.data) return false;
    double least = INFINITY;
    for (const std::int64_t id : ids) least = std::min(least, value_at(source_.sites()[s].element, scores.data, id));
    int larger = 0;
    for (std::int64_t e = 0; e < scores.elements; ++e)
      larger += value_at(source_.sites()[s].element, scores.data, e) > least ? 1 : 0;
    return larger < used();
  }

  const RowSource& source_;
  const std::size_t site_;
  const std::vector<RecordedCall>& calls_;
  const RowRules& rules_;
  int scores_ = -1;                 // index of the scores of the same layer; -1: not recorded
  std::vector<std::int64_t> ids_;   // of the row at hand
  std::vector<std::int64_t> seen_;  // by expert: the stamp of the last row that had it
  std::int64_t stamp_ = 0;
  bool is_all_different_ = true;
  double log_chance_ = 0;
};

}  // namespace

void check_ids(const RowSource& source, std::size_t site, const std::vector<RecordedCall>& calls,
               const RowRules& rules) {
  IdChecks(source, site, calls, rules).run();
}

}  // namespace moe_diag
