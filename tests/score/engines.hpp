// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <string>

namespace moe_diag::score {

// Mistakes of engines, each planted in every step it fits of models of so many seeds, on the oracle's inputs: those
// that have a name, and those that no cause is known for.
class EngineFaults {
 public:
  // `list`: name each that was given another cause than it has.
  void score(int seeds, int every, bool list);

  // Two tables in Markdown.
  void print() const;

  // No cause is wrong, and nearly all that have a name are given it.
  bool good() const;

 private:
  struct Score {
    int planted = 0, counted = 0, right = 0, plain = 0, wrong = 0;
    Score& operator+=(const Score& other);
  };
  using Rows = std::map<std::string, Score>;  // by mistake

  static Score sum_of(const Rows& rows);

  Rows named_, unknown_;
};

}  // namespace moe_diag::score
