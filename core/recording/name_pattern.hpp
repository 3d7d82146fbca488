// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moe_diag {

// A name with variables, as "L{layer}.q.npy". {request} stands for any characters but '/', the others for digits; '*'
// for any characters but '/', too.
class NamePattern {
 public:
  using Variables = std::map<std::string, std::string>;

  // Throws Error(usage), which begins with `where`, for an unknown variable or an open brace.
  NamePattern(std::string_view text, const std::string& where);

  bool has(std::string_view variable) const;
  // What the variables stand for; none: it is another name. A variable that comes twice stands for the same.
  std::optional<Variables> match(std::string_view name, Variables known = {}) const;

 private:
  struct Piece {
    std::string literal, variable;  // one of the two; "*" is a variable that is forgotten
  };
  // `failed`: places of the pattern and lengths of what is left of the name that do not match, whatever came before.
  using Failed = std::set<std::pair<std::size_t, std::size_t>>;
  bool match_from(std::size_t piece, std::string_view name, Variables& variables, Failed& failed) const;

  std::vector<Piece> pieces_;
  bool has_repeats_ = false;  // of a variable: then it matters what came before
};

}  // namespace moe_diag
