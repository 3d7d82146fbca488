// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/tensor.hpp"

namespace moe_diag {

// Why lane a chose another expert than lane b.
enum class FlipKind : std::uint8_t {
  tie,    // the two experts are equal in b's logits, to within rounding
  drift,  // the choice follows from a's logits, and so does b's from b's: the error was there before
  real,   // it does not: whoever chose, chose wrongly
};
std::string_view name_of(FlipKind kind);

// An expert that a chose in another's place: a's best that b did not choose for b's best that a did not, and so on
// down.
struct Flip {
  int expert = -1, instead_of = -1;
  double margin = 0;  // by how much b's logits prefer the expert that was dropped
  double error = 0;   // how far a's logits of the two are from b's, both added up
  FlipKind kind = FlipKind::real;
};

// Two lanes' moe_router_indices and moe_router_logits of the same rows, as each lane chose by.
struct Routing {
  Tensor ids_a, ids_b;        // [T, k]
  Tensor logits_a, logits_b;  // [T, E]
};

// The flips of one row. Each lane chooses by the softmax of its logits, computed in the type that these have. So logits
// count as equal when they are within 8 units in the last place of the coarser lane's type, at the size of the row's
// largest logit and at least 1: so much the logits' rounding and a softmax's may move them. A logit whose probability
// underflows counts as the lowest whose does not. What is not finite explains nothing.
std::vector<Flip> flips_of_row(const Routing& routing, int row);

// "expert 12 instead of 20, margin 0.00031, logit error 0.0008: drift"
std::string text_of(const Flip& flip);

}  // namespace moe_diag
