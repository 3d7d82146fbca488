// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/plan/plan.hpp"

namespace moe_diag {

// Where a row stands.
struct RowKey {
  int prompt = 0;
  Site site;
  int position = 0;

  friend bool operator<(const RowKey& a, const RowKey& b) {
    return std::tie(a.prompt, a.site, a.position) < std::tie(b.prompt, b.site, b.position);
  }
};

struct SeenRow {
  std::uint64_t digest = 0;      // xxh3; kept as digests
  DType dtype = DType::f32;      // kept whole
  std::vector<std::byte> bytes;  // kept whole

  Tensor tensor() const {
    const auto count = static_cast<std::int64_t>(bytes.size() / size_of(dtype));
    return {bytes.data(), dtype, {1, count}};
  }
};

// The rows of one lane that a falsifier looks at, kept as they pass by: as digests, or whole.
class SeenRows final : public Hook {
 public:
  enum class Keep { digests, bytes };

  // `lane` is the lane's index where it runs, which may be alone.
  SeenRows(const WatchedFalsifier& watched, int lane, Keep keep) : watched_(watched), lane_(lane), keep_(keep) {}

  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;

  const std::map<RowKey, SeenRow>& rows() const { return rows_; }
  const SeenRow* find(const RowKey& key) const;  // null: it did not pass by

 private:
  const WatchedFalsifier& watched_;
  const int lane_;
  const Keep keep_;
  std::map<RowKey, SeenRow> rows_;
};

}  // namespace moe_diag
