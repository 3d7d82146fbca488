// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/compare/measure.hpp"
#include "core/compare/routing.hpp"
#include "core/compare/samples.hpp"
#include "core/model/program.hpp"
#include "core/ops/predicted.hpp"

namespace moe_diag {

// What one sighting shows of pairs of lanes, measured once however many falsifiers ask. Lanes are indices; tensors are
// null where a lane does not have the stage.
class Comparisons {
 public:
  // All outlive it.
  Comparisons(Sighting& sighting, const Program& program, const Lanes& lanes)
      : sighting_(sighting), program_(program), lanes_(lanes) {}

  struct Measured {
    SampleSegments segments;
    Measure measure;
  };
  struct Row {
    std::vector<Measured> samples;
    std::vector<SampleSegments> alone;
  };

  int prompt() const { return sighting_.prompt; }
  Site site() const { return sighting_.site; }
  int position(int row) const { return sighting_.position(row); }
  Tensor tensor(int lane) { return sighting_.tensor(lane); }

  const Pair& pair(int lane, int against);
  const Row& row(int lane, int against, int row);

  // The samples of one lane: one for each expert that it chose, or one for all of a row.
  std::vector<SampleSegments> alone(int lane, int row);

  // What the lanes chose experts by, and what they chose.
  const Routing& routing(int lane, int against);

  // Whether the lane's choice of experts follows from finite numbers: its weights are NaN where its logits are.
  bool chose_by_numbers(int lane, int row);

  // Whether the margin of the experts that `against` chose is within the error of `lane`, by their own logits.
  bool may_choose_otherwise(int lane, int against, int row);

  // The error that a sample is counted in, by that of another lane.
  struct Floor {
    // That of the row, at least the rms over the rows of the pass, or over experts in them: a single row may err by
    // nothing, by luck. At least one rounding of the type that the lane judged keeps the stage in. NaN: the floor's
    // lane is not finite in this row.
    double error = 0;
    bool is_of_others = false;  // the floor's lane went through other experts in this row
  };
  // None where nothing of the pass compares.
  std::optional<Floor> floor(int floor, int against, int judged, const SampleSegments& sample);

  // The relative error that the step at hand is expected to make in the lane's numerics in a sample, where the right
  // values are those of `against`; none when it is not known.
  std::optional<double> expected_error(int lane, int against, const Measured& sample);

 private:
  struct Entry {
    Pair pair;
    std::vector<std::optional<Row>> rows;
  };

  Entry& entry(int lane, int against);
  bool went_otherwise(int lane, int against, int row);
  std::optional<double> error_of_pass(int floor, int against);
  const Step& step();
  double cancellation(int lane, int row);
  double outliers(int lane, const SampleSegments& sample);
  std::optional<double> moved_by_inputs(int against, const LaneNumerics& lane, const LaneNumerics& oracle,
                                        const SampleSegments& sample);
  // A row computed from the inputs of `against`, and from the same as the lane keeps them; empty: not known.
  struct Computed {
    int row = -1;
    host::Values exact, moved;
  };
  const Computed& computed(int against, const LaneNumerics& lane, const LaneNumerics& oracle, int row);

  Sighting& sighting_;
  const Program& program_;
  const Lanes& lanes_;
  const Step* step_ = nullptr;
  std::map<std::pair<int, int>, Entry> entries_;
  std::map<std::pair<int, int>, Routing> routings_;
  std::map<std::pair<int, int>, std::optional<double>> floors_;
  std::map<int, Tensor> weights_;  // of the router, by lane
  // The pair of lanes whose errors were asked for last, and a row of it.
  int numerics_lane_ = -1, numerics_against_ = -1;
  LaneNumerics numerics_ = "", oracle_ = "";
  Computed computed_;
};

// True when all values of the row are finite.
bool is_row_finite(const Tensor& values, int row);

// Values of the first lane's segments that are not finite.
double count_nonfinite(const Tensor& a, const std::vector<Segment>& segments);

}  // namespace moe_diag
