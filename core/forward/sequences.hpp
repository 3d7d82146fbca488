// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/contract/contract.hpp"
#include "core/forward/sequence.hpp"

namespace moe_diag {

// The tokens of every prompt and of what follows it. As a hook it sees the oracle's logits and chooses each next token:
// the most likely one, the lower id of equals.
class Sequences final : public Hook {
 public:
  // `oracle` is the index of the oracle's lane; -1: there is none, and no prompt goes on.
  Sequences(const Contract& contract, int oracle);

  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;

  // Of the whole sequence; -1 where a token is not known. The memory stays where it is.
  std::span<const std::int32_t> tokens(int prompt) const { return at(prompt).tokens; }
  TokenSequence sequence(int prompt) const { return {prompt, tokens(prompt)}; }
  // How many tokens are known, from the first on.
  int known(int prompt) const { return at(prompt).known; }
  // The passes of a prompt as the contract cuts them, as far as its tokens are known.
  std::vector<Stretch> stretches(int prompt) const;
  // The prompt goes no further than what is known of it, and why; the first reason stands.
  void stop(int prompt, const std::string& why);
  const std::string& stopped(int prompt) const { return at(prompt).stopped; }  // empty: it goes on

 private:
  struct Sequence {
    std::vector<std::int32_t> tokens;
    int known = 0;
    std::string stopped;

    bool goes_on() const { return stopped.empty() && known < static_cast<int>(tokens.size()); }
  };
  const Sequence& at(int prompt) const { return sequences_[static_cast<std::size_t>(prompt)]; }

  const Contract& contract_;
  const int oracle_;
  std::vector<Sequence> sequences_;  // per prompt
};

}  // namespace moe_diag
