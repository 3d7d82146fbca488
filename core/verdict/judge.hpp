// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/compare/part_gains.hpp"
#include "core/plan/plan.hpp"
#include "core/verdict/sampling.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Looks at what falsifiers watch and judges each sample as it passes by; keeps numbers, never tensors.
class Judge final : public Hook {
 public:
  // Judges the falsifiers whose lanes run; `only` (an index, or -1 for all) is for controls.
  Judge(const Plan& plan, const Lanes& lanes, int only = -1);

  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;

  // The sequence of the prompt ends before position `end`: whoever watches what lies behind cannot be shown to hold.
  void note_end(int prompt, int end, const std::string& why);

  // True when a sample of the prompt failed so far, whatever that will mean for its falsifier, which is one of these.
  bool saw_failing(int prompt, const std::vector<bool>& falsifiers) const;

  // One per falsifier of the plan, in the contract's order.
  std::vector<Judgement> judgements() const;

 private:
  bool watches(const WatchedFalsifier& falsifier, int prompt, Site site) const {
    return falsifier.sites.contains(site) && !falsifier.positions[static_cast<std::size_t>(prompt)].empty();
  }
  bool watches_parts(const WatchedFalsifier& falsifier, int prompt, int lane, Site site) const;
  void judge_parts(std::size_t falsifier, Judgement& judgement) const;
  void look_at_parts(std::size_t falsifier, Sighting& sighting, Comparisons& compared);
  bool watches_logits(const WatchedFalsifier& falsifier, int prompt, Site site) const;
  bool is_recorded(const WatchedFalsifier& watched, const Sighting& sighting, Comparisons& compared) const;
  bool is_computed(std::size_t falsifier, const Sighting& sighting, Comparisons& compared);
  bool has_open_choice(const WatchedFalsifier& watched, const Sighting& sighting) const;
  bool is_beyond_prediction(const WatchedFalsifier& watched, const Sighting& sighting) const;
  void judge(std::size_t f, Sighting& sighting, Comparisons& compared);
  void take(std::size_t f, const Sampled& row, int layer);

  const Plan& plan_;
  const Lanes& lanes_;
  std::vector<bool> judged_;          // per falsifier
  std::vector<std::string> missing_;  // per falsifier: what could not be looked at, a stage that a lane lacks
  std::vector<std::set<std::pair<int, int>>> ran_;  // per falsifier: layer and expert that were compared
  std::vector<std::optional<PartGains>> parts_;     // per falsifier: of spans
  std::vector<std::map<Site, FloorPool>> floors_;   // per falsifier: of spans
  std::vector<Judgement> judgements_;
};

// Adds a sample to those of its site, whose results stand prompt after prompt in forward order.
void add_sample(Judgement& judgement, const Sample& sample);

// Decides the outcome once all samples are there. `missing` says what could not be looked at; empty: nothing.
void settle(Judgement& judgement, const std::string& missing);

}  // namespace moe_diag
