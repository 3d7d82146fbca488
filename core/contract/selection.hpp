// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/api/stage.hpp"

namespace moe_diag {

// Stages picked by name, alias, glob or `all`, in any case; kept in forward order without repeats.
struct StageSelection {
  std::string text;  // as written
  std::vector<Stage> stages;
};

// The stages that one word picks out of an architecture's, in forward order. `named`: the word is a name or an alias,
// not a glob or `all`.
struct StagePick {
  std::vector<Stage> stages;
  bool named = false;
};
// In a glob, `*` stands for any text and `?` for one character. Throws std::invalid_argument naming what there is.
StagePick pick_stages(std::string_view word, Stages stages);
// Sorts them as the forward pass goes, each once.
void put_in_forward_order(std::vector<Stage>& stages);

// Layers or positions: all | last | 7 | -1 | 0..48 (end excluded) | 0..=47 | 3.. (to the end) | lists of these.
// Negative counts from the end.
class IndexSelection {
 public:
  struct Part {
    int first = 0, end = 0;  // half open unless `single`; negative: from the end
    bool single = false, inclusive = false, open_end = false;
  };

  static IndexSelection all() { return IndexSelection("all", {Part{.open_end = true}}); }
  // Throws std::invalid_argument with what is wrong and the forms that are right. `allow_last`: `last` means -1.
  static IndexSelection parse(std::string_view text, bool allow_last);

  IndexSelection() : IndexSelection(all()) {}
  IndexSelection(std::string text, std::vector<Part> parts) : text_(std::move(text)), parts_(std::move(parts)) {}

  // Adds another selection's parts: lists.
  void append(const IndexSelection& other);

  // The indices picked out of `count`, ascending, without repeats.
  // Throws std::out_of_range naming the part that reaches outside and what there is.
  std::vector<int> resolve(int count) const;

  // Whether `index` is picked; none when that depends on the count.
  std::optional<bool> contains(int index) const;
  // The highest index picked; none when that depends on the count.
  std::optional<int> highest() const;

  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::vector<Part> parts_;
};

}  // namespace moe_diag
