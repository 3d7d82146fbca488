// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/bus/fault.hpp"
#include "core/explain/examiner.hpp"
#include "core/explain/kept_caches.hpp"
#include "core/explain/kept_oracle.hpp"
#include "core/explain/oracle_watch.hpp"
#include "core/forward/forward.hpp"
#include "core/forward/given_inputs.hpp"
#include "core/forward/sequences.hpp"
#include "core/lane/lanes.hpp"
#include "core/model/model.hpp"
#include "core/plan/plan.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Why nothing can be explained beside this oracle (a lane's index, or -1); empty: it can.
std::string obstacle_to_explaining(const Lanes& lanes, int oracle);

// Runs what failed once more, on the oracle's inputs, and names the causes.
class Explanations {
 public:
  struct Parts {
    const Contract& contract;
    const Plan& plan;
    const Model& model;
    Lanes& lanes;
    const Sequences& sequences;
    KeptCaches& kept;
    const KeptOracle* record;  // null: nothing is
    OracleWatch* watch;        // told of what the oracle computes again; null: there is no oracle
    std::vector<PlantedFault> planted;
  };
  Explanations(const Parts& parts, Verdict& verdict);

  // Why there is nothing to rerun; empty: there is.
  const std::string& why_not() const { return why_not_; }

  // Bytes on the host that the copies of lanes take, and the oracle where it has not run.
  std::uint64_t host_bytes() const;

  // Told each layer that is begun, of so many in all.
  using AtLayer = std::function<void(std::int64_t, std::int64_t)>;
  // Fills in the verdict's diagnosis.
  void make(const AtLayer& at_layer);

 private:
  // What of one prompt is run again.
  struct Again {
    int prompt = 0;
    int first = 0, end = 0;  // the positions that are looked at
    Site last;               // where a falsifier fails last
  };

  // Layers of passes.
  struct Progress {
    const AtLayer& tell;
    std::int64_t done = 0, total = 0;
  };

  const KeptStages* oracle_stages(int prompt) const;
  bool recomputes(int lane) const;
  void select(std::size_t falsifier);
  void widen(Again& again) const;
  void add_lane(int lane);
  int twin_of(int lane) const;
  bool has_same_faults(int lane, int other) const;
  bool open_oracle();  // false: it turns out to be absent
  std::vector<Subject> open_subjects();
  std::vector<PlantedFault> planted(const std::vector<Subject>& subjects) const;
  std::vector<bool> active(const std::vector<Subject>& subjects) const;
  std::vector<Stage> curves() const;
  std::unique_ptr<Examiner> run(const std::vector<Subject>& subjects, Progress& progress);
  std::optional<Stretch> reachable_last_rows(const Again& again, const std::vector<Subject>& subjects,
                                             const std::vector<bool>& active);
  std::vector<int> without_caches(int prompt, const Pass& pass, const std::vector<bool>& active);
  void lead_up(const Again& again, const std::vector<bool>& active, Progress& progress);
  void walk(Forward& forward, int prompt, Stretch positions, Progress& progress);
  std::vector<Stretch> passes(int prompt, Stretch positions) const;
  bool show_caches(const std::vector<Subject>& subjects, const std::vector<bool>& active) const;
  std::optional<Site> last_read_of_cache(const Again& again) const;
  void look_before(const Again& again, Forward& forward, const Examiner& examiner, Progress& progress);
  std::set<int> positions_out_of_line(const Again& again, const Examiner& examiner) const;
  bool needs_more_rows(const Examiner& examiner) const;
  bool make_whole();

  const Parts parts_;
  Verdict& verdict_;
  std::optional<GivenInputs> feed_;  // of a step alone
  const int oracle_;
  std::string why_not_;
  bool beside_nonfinite_ = false;  // something fails where the oracle is not finite
  std::vector<int> judged_;        // lanes to be explained
  std::vector<SideBySide> compared_;
  std::map<int, Again> again_;  // by prompt
};

}  // namespace moe_diag
