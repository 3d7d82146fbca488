// SPDX-License-Identifier: MIT
#pragma once

// The plain computation of every operator, in double on host data. They say what is computed, not how to compute it
// fast, and they can be told to compute it wrongly: with another expert's rows, another block type, other pairs. Arrays
// are row-major; a size that does not fit throws Error.

#include "core/ops/add.hpp"
#include "core/ops/combine.hpp"
#include "core/ops/embed.hpp"
#include "core/ops/expert_linear.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/matrix.hpp"
#include "core/ops/mix.hpp"
#include "core/ops/rms_norm.hpp"
#include "core/ops/rope.hpp"
#include "core/ops/rounding.hpp"
#include "core/ops/scores.hpp"
#include "core/ops/sigmoid_gate.hpp"
#include "core/ops/softmax.hpp"
#include "core/ops/swiglu.hpp"
#include "core/ops/topk.hpp"
#include "core/ops/values.hpp"
#include "core/ops/weigh.hpp"
