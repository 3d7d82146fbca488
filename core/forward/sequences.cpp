// SPDX-License-Identifier: MIT
#include "core/forward/sequences.hpp"

#include <fmt/format.h>

#include "core/ops/values.hpp"

namespace moe_diag {

Sequences::Sequences(const Contract& contract, int oracle) : contract_(contract), oracle_(oracle) {
  for (const PromptSpec& prompt : contract.prompts) {
    Sequence& sequence = sequences_.emplace_back();
    sequence.tokens = prompt.tokens;
    sequence.known = static_cast<int>(prompt.tokens.size());
    sequence.tokens.resize(static_cast<std::size_t>(prompt.length()), -1);
  }
}

bool Sequences::wants(int prompt, int lane, Site site) const {
  return lane == oracle_ && is(site.stage, Role::logits) &&
         contract_.prompts[static_cast<std::size_t>(prompt)].generate > 0;
}

void Sequences::show(Sighting& sighting) {
  Sequence& sequence = sequences_[static_cast<std::size_t>(sighting.prompt)];
  const int row = sighting.rows().count - 1;
  if (!sequence.goes_on() || sighting.position(row) != sequence.known - 1) return;
  const Tensor logits = sighting.tensor(oracle_);
  const std::string& oracle = contract_.oracle;
  if (!logits)
    return stop(sighting.prompt, fmt::format("the oracle '{}' has no {}", oracle, name_of(sighting.site.stage)));
  const std::int64_t size = logits.shape.row(), token = argmax(logits, row * size, size);
  if (token < 0)
    return stop(sighting.prompt,
                fmt::format("the logits of the oracle '{}' hold a NaN at position {}", oracle, sequence.known - 1));
  sequence.tokens[static_cast<std::size_t>(sequence.known++)] = static_cast<std::int32_t>(token);
}

std::vector<Stretch> Sequences::stretches(int prompt) const {
  const PromptSpec& spec = contract_.prompts[static_cast<std::size_t>(prompt)];
  if (!spec.calls.empty()) return spec.calls;
  return stretches_of(static_cast<int>(spec.tokens.size()), known(prompt), spec.chunk);
}

void Sequences::stop(int prompt, const std::string& why) {
  Sequence& sequence = sequences_[static_cast<std::size_t>(prompt)];
  if (sequence.goes_on())
    sequence.stopped = fmt::format("prompt '{}' ends before position {}: {}",
                                   contract_.prompts[static_cast<std::size_t>(prompt)].id, sequence.known, why);
}

}  // namespace moe_diag
