// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <string>

namespace moe_diag::score {

// Mistakes that no cause is known for, each planted in every step it fits of models of so many seeds, on the oracle's
// inputs.
class UnknownFaults {
 public:
  // `list`: name each that was given a cause.
  void score(int seeds, int every, bool list);

  // A table in Markdown.
  void print() const;

  // None was given a cause.
  bool good() const;

 private:
  struct Score {
    int planted = 0, counted = 0, plain = 0, wrong = 0;
  };

  std::map<std::string, Score> rows_;  // by mistake
};

}  // namespace moe_diag::score
