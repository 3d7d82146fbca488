// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/api/tensor.hpp"

namespace moe_diag {

// The experts that one lane chose for one row, best first. An id is good when it is one of the model's experts and no
// slot before it has it: each expert of the model has at most one slot, and a bad id belongs to none.
class ChosenRow {
 public:
  // `ids`: moe_router_indices, [T, k] of int32.
  ChosenRow(const Tensor& ids, int row, int experts)
      : ids_(ids.as<std::int32_t>() + row * ids.shape.row(), static_cast<std::size_t>(ids.shape.row())),
        experts_(experts) {}

  std::span<const std::int32_t> ids() const { return ids_; }
  int experts() const { return experts_; }
  bool exists(std::int32_t id) const { return id >= 0 && id < experts_; }
  bool is_good(std::size_t slot) const { return exists(ids_[slot]) && slot_of(ids_[slot]) == static_cast<int>(slot); }
  // The slot that belongs to an expert of the model, or -1.
  int slot_of(std::int32_t id) const {
    const auto at = exists(id) ? std::find(ids_.begin(), ids_.end(), id) : ids_.end();
    return at == ids_.end() ? -1 : static_cast<int>(at - ids_.begin());
  }
  int times(std::int32_t id) const { return static_cast<int>(std::count(ids_.begin(), ids_.end(), id)); }
  // Whether the slot holds a good id that the other lane has as well.
  bool shares(std::size_t slot, const ChosenRow& other) const {
    return is_good(slot) && other.slot_of(ids_[slot]) >= 0;
  }

 private:
  std::span<const std::int32_t> ids_;
  int experts_;
};

}  // namespace moe_diag
