// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "core/api/tensor.hpp"

namespace moe_diag {

// Of rows that are distributions, or logits of one: n elements from `at_a` of a and from `at_b` of b.

// KL divergence of a from b in nats, KL(b || a) = sum of pb ln(pb / pa), of the softmax of two rows of logits. Never
// negative, and right to a few parts in 10^8 even where the two are so near that it is 1e-20. NaN when a logit is not
// finite.
double kl_of_logits(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n);

// The same of two rows of probabilities: sum of pb ln(pb / pa) - pb + pa. The last two terms cancel where both rows sum
// to 1; where one does not, they keep the sum from being negative, so that a factor is seen, too. Infinite when a value
// of a is 0 where b's is not; NaN when one is negative or not finite.
double kl_of_probs(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n);

// The share of b's k largest that are among a's k largest, the lower index first of equals; k is at most n. NaN when
// there is a NaN.
double topk_overlap(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n, int k);

}  // namespace moe_diag
