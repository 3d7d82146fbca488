// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/api/backend.hpp"
#include "core/model/program.hpp"
#include "core/recording/recordings.hpp"

namespace moe_diag {

// The steps between what a recording has and a site: a lane that is fed by it computes them one after the other, on its
// own values.
struct RecordedSpan {
  std::vector<Site> from;   // recorded sites that they read, in forward order; none: the tokens alone
  std::vector<Site> inner;  // what they write on the way, which is not recorded, in forward order
  Site to;

  // Only such a step can be judged by its own rounding, and explained.
  bool is_one_step() const { return inner.empty(); }
};

// "ffn_norm to moe_ffn_out"
std::string text_of(const RecordedSpan& span);

// The spans of one recording.
class SpanFinder {
 public:
  // Both outlive it.
  SpanFinder(const Program& program, const Recording& recording);

  // Of a site, at rows of a request. What goes into a cache has to be recorded of all positions so far.
  RecordedSpan of(int request, Site site, Stretch positions) const;

 private:
  struct Input {
    Site site;
    Cache cache;  // none: it is read of the same positions only
  };

  int cached_positions(int request, const Input& input) const;

  const Recording& recording_;
  std::map<Site, std::vector<Input>> inputs_;  // of the step that writes a site
};

// Those of a contract's recordings, asked by prompt and lane: the recording itself, or one that is fed by it.
class RecordedSpans {
 public:
  RecordedSpans(const Contract& contract, const Program& program, const Recordings& recordings);

  // None for a lane that has nothing to do with a recording, or whose recording has not got the prompt.
  std::optional<RecordedSpan> of(int prompt, int lane, Site site, Stretch positions) const;
  // The step is seen together with others.
  bool has_several(int prompt, int lane, Site site, Stretch positions) const {
    const std::optional<RecordedSpan> span = of(prompt, lane, site, positions);
    return span && !span->is_one_step();
  }

 private:
  struct OfLane {
    std::shared_ptr<const SpanFinder> spans;  // null: none
    std::vector<int> requests;                // by prompt; -1: none
  };
  std::vector<OfLane> lanes_;
};

}  // namespace moe_diag
