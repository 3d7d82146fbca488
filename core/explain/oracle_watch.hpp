// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/plan/plan.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Looks for NaN and Inf in the oracle, whatever is judged: nothing can be held against such values.
class OracleWatch final : public Hook {
 public:
  // `oracle` is a lane's index. Rows may be shown again; they are counted once.
  OracleWatch(const Lanes& lanes, int oracle) : lanes_(lanes), oracle_(oracle) {}

  // For the lockstep run of so many prompts: looks only at prompts that somebody else looks at; at an oracle on a
  // device, whose values have to be copied, only where somebody does.
  void look_beside(const Bus& others, int prompts);
  // The same at all that is run, as at first.
  void look_at_all() { sites_.clear(); }

  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;

  // Of what was shown.
  bool is_finite(int prompt, Site site, int position) const;

  // The first site of each prompt at which the oracle is not finite, in forward order.
  struct Place {
    int prompt = 0;
    Site site;
    Nonfinite counts;                            // of the rows that are not finite
    std::vector<std::pair<int, int>> positions;  // the rows: first and last of each run, ascending
  };
  std::vector<Place> first_places() const;

  int oracle() const { return oracle_; }

 private:
  void look_at_row(Sighting& sighting, const Tensor& values, int row);

  const Lanes& lanes_;
  const int oracle_;
  std::vector<SiteSet> sites_;  // by prompt; empty: all
  std::map<std::pair<int, Site>, Place> places_;
};

// Puts an oracle that is not finite before all else that was found: as a divergence for each prompt, and as the cause
// of each falsifier that first fails where the oracle is not finite.
void tell_of_oracle(Verdict& verdict, const Plan& plan, const OracleWatch& watch);

}  // namespace moe_diag
