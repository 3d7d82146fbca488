// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "core/contract/contract.hpp"
#include "core/model/model.hpp"
#include "core/model/synthetic.hpp"
#include "core/run/run.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// The contract's model; out of the cache, which may be null, when it was the last one opened. Throws Error, absent when
// it is not there.
std::shared_ptr<const Model> open_model(const Contract& contract, ModelCache* cache);

// Puts the requests of recordings in the place of the prompts that name one: tokens, positions and calls; and the
// numerics that fit a recording in the place of `numerics: auto`. Nothing where the contract has neither, or its model
// is absent. Throws Error for a recording that cannot be taken, or does not tell its numerics.
void resolve_recordings(Contract& contract, ModelCache* cache);

// The synthetic model that a contract names.
SyntheticSpec spec_of(const ModelSource& source);

// What the verdict says of it.
ModelReport report_of(const Model& model, const Contract& contract);

}  // namespace moe_diag
