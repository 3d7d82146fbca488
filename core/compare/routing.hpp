// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
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

// A fault of an expert's id that shows without another lane.
enum class IdFault : std::uint8_t {
  none,
  named_twice,     // a slot before it in the row has the same id
  does_not_exist,  // negative, or not below the number of the model's experts
};
std::string_view name_of(IdFault fault);  // "named_twice"

// An expert that a chose in another's place: a's best that b does not share for b's best that a does not share, and so
// on down. A faulty id is shared with nobody.
struct Flip {
  int expert = -1, instead_of = -1;
  std::optional<double> margin;  // by how much b's logits prefer the expert that was dropped
  std::optional<double> error;   // how far a's logits of the two are from b's, both added up
  FlipKind kind = FlipKind::real;
  IdFault fault = IdFault::none, fault_of_other = IdFault::none;  // of `expert` and `instead_of`
  int times = 1, times_of_other = 1;                              // that the rows of a and of b name them
  int experts = 0;                                                // of the model

  bool is_misnamed() const { return fault != IdFault::none || fault_of_other != IdFault::none; }
};

// Two lanes' moe_router_indices and moe_router_logits of the same rows, as each lane chose by.
struct Routing {
  Tensor ids_a, ids_b;        // [T, k]
  Tensor logits_a, logits_b;  // [T, E]; may be null: then nothing explains a flip
  int experts = 0;            // E
};

// The flips of one row, as many as routing_flips() counts. Each lane chooses by the softmax of its logits, computed in
// the type that these have. So logits count as equal when they are within 8 units in the last place of the coarser
// lane's type, at the size of the row's largest logit and at least 1: so much the logits' rounding and a softmax's may
// move them. A logit whose probability underflows counts as the lowest whose does not. Nothing explains a flip with a
// faulty id or with logits that are not finite: it has no margin, or no error.
std::vector<Flip> flips_of_row(const Routing& routing, int row);

// Only those with a faulty id: they need no logits.
std::vector<Flip> misnamed_of_row(const Tensor& ids_a, const Tensor& ids_b, int row, int experts);

// "expert 12 instead of 20"; "expert 7 is named twice, expert 10 is missing"; "expert 64 does not exist (the model has
// experts 0 to 63), expert 10 is missing".
std::string choice_text(const Flip& flip);
// The same with the numbers: "expert 12 instead of 20, margin 0.00031, logit error 0.0008: drift".
std::string text_of(const Flip& flip);

}  // namespace moe_diag
