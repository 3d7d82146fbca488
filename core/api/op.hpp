// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace moe_diag {

enum class Op : std::uint8_t {
  embed,          // out[t] = weight row of token t
  rms_norm,       // per group of `width` values from column `offset`: x / sqrt(mean(x^2) + eps) * w
  linear,         // out[t] = W x[t] + bias; several weights write side by side
  rope,           // rotate pairs (i, i + h/2) by position * theta^(-2i/h)
  scores,         // q . k * scale for the keys up to the own position, 0 after it; in[1] goes into the cache of keys
  softmax,        // over the whole row, or, when causal, over the keys up to the own position, 0 after it
  mix,            // sum over keys of probability times value; columns of in[1] go into the cache of values
  add,            // in[0] + in[1]
  topk,           // the k largest, ties to the lower id: their ids, and their values or shares of the sum
  expert_linear,  // out[t, slot] = W[indices[t, slot]] x; x is [T, d] or [T, k, f]
  swiglu,         // silu(in[0]) * in[1]
  weigh,          // in[0][t, slot] * in[1][t, slot]
  combine,        // sum over slots, in slot order
  sigmoid_gate,   // in[0][t] * sigmoid(in[1][t]), which is one value
};

}  // namespace moe_diag
