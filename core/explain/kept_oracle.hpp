// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/lane/kept_stages.hpp"
#include "core/plan/plan.hpp"

namespace moe_diag {

// Every stage that the oracle computes of a prompt, kept until it is known whether something fails there: explaining
// then reads it instead of computing it again. Of prompts that there is no more room for, nothing is kept.
class KeptOracle final : public Hook {
 public:
  // The contract has an oracle. Prompts are kept that one of these falsifiers looks at; all of it takes at most so many
  // bytes.
  KeptOracle(const Contract& contract, const Plan& plan, const Lanes& lanes, const std::vector<bool>& falsifiers,
             std::uint64_t most_bytes);

  // What it takes if something fails in every prompt.
  std::uint64_t bytes() const;

  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;

  // Once the prompt's last pass is done. What is not needed is given back.
  void end(int prompt, bool is_needed);

  // Null: it was not kept.
  const KeptStages* of(int prompt) const;

 private:
  std::uint64_t bytes_of(const PromptSpec& prompt, int head_first) const;

  const Program& program_;
  const ModelConfig& config_;
  const int oracle_;
  const Description& description_;
  const std::uint64_t most_bytes_;
  std::vector<std::uint64_t> bytes_;  // per prompt; 0: it is not kept
  std::uint64_t kept_bytes_ = 0;
  std::map<int, std::unique_ptr<KeptStages>> kept_;  // by prompt
  std::unique_ptr<KeptStages> now_;                  // of the prompt at hand
  bool is_whole_ = true;                             // all of it fitted so far
};

}  // namespace moe_diag
