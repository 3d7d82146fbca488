// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/api/stage.hpp"

namespace moe_diag {

// Several steps of a layer at one position, of which only the end was recorded.
struct PartRow {
  int prompt = 0, position = 0;
  int call_rows = 0;                      // of the pass that computed it
  std::span<const double> values;         // the recorded ones, [d]
  std::span<const double> error;          // less those of the oracle
  std::span<const double> floor;          // the peer's less the oracle's
  std::span<const std::int32_t> experts;  // chosen, each once
  std::span<const double> parts;          // what each adds, as the oracle has it: [experts, d]
  double chosen = 0;                      // sum of their probabilities before they are divided by it; 0: not known
};

// A part of a layer's update that is off by more than rounding explains.
struct PartGain {
  Site site;
  int prompt = 0, position = 0;  // the first row that it was seen in
  int expert = -1;               // -1: of all experts
  double times = 0;              // in units of what is allowed: above 1 it is too much
  std::string text;
  std::set<std::pair<int, int>> rows;  // that it was seen in: prompt and position
};

// Looks for mistakes that lie below the rounding of a whole layer: the error of each row alone is no larger than that
// of a sound engine, but rounding averages out over rows and columns, and a mistake does not. The errors are regressed
// on what each expert adds, whole and by blocks of columns, on the sum of the chosen probabilities, and on the size of
// calls. docs/localisation.md has the formulas, the limits and what was measured.
class PartGains {
 public:
  // `unit`: largest relative error of rounding to the type that the values are stored in.
  explicit PartGains(double unit) : unit_(unit) {}

  void add(Site site, const PartRow& row);
  // One part a site at most: the strongest of those that are beyond what is allowed.
  std::vector<PartGain> found() const;

  static constexpr std::size_t blocks = 14;  // of columns: halves, quarters, eighths
  // Sums over the columns of a part, in units of the expected variance: the whole, then each block.
  struct Projection {
    std::array<float, blocks + 1> of_error{}, squares{};
  };
  struct Contribution {
    std::size_t row = 0;
    int expert = 0;
    Projection sums;
    float of_floor = 0;  // the whole of the floor's error on the part
  };
  struct Row {
    int prompt = 0, position = 0, call_rows = 0;
    double scatter = 1;                              // mean square of the error in units of its expected variance
    double of_error = 0, of_floor = 0, squares = 0;  // on the sum of all parts
    double chosen = 0;
  };
  struct Layer {
    std::int64_t columns = 0;
    std::vector<double> floor_squares;  // by column: of the floor in units of its row's
    std::vector<Row> rows;
    std::vector<Contribution> contributions;
  };

 private:
  std::vector<double> weights_of(Layer& layer, const PartRow& row) const;

  double unit_;
  std::map<Site, Layer> layers_;
};

}  // namespace moe_diag
