// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "core/lane/lanes.hpp"
#include "core/model/program.hpp"

namespace moe_diag {

// The contents of lanes' caches behind the prompts of a run, on the host: what failed late in a prompt can be run
// again without the positions before it, though other prompts came after. Lanes with inputs take theirs over, and are
// left out.
class KeptCaches {
 public:
  // `lanes` outlives it.
  KeptCaches(const Program& program, Lanes& lanes);

  // What so many positions of these lanes take.
  std::uint64_t bytes(std::int64_t positions, const std::vector<bool>& active) const;

  // Once the prompt's last pass is done.
  void keep(int prompt, int positions, const std::vector<bool>& active);

  // Begins the pass in the lane with what was kept of the positions before it. False: nothing was.
  bool restore(int prompt, int lane, const Pass& pass);

 private:
  struct Values {
    DType dtype = DType::f32;
    std::vector<std::byte> bytes;
  };
  struct Kept {
    int positions = 0;
    std::vector<Values> caches;  // as `sites_`: [positions, width]; of a state [1, width]
  };
  static Stretch kept_of(Cache cache, int positions);
  bool is_kept(std::size_t lane, const std::vector<bool>& active) const;

  Lanes& lanes_;
  std::vector<CacheSite> sites_;              // that the program reads
  std::map<std::pair<int, int>, Kept> kept_;  // by prompt and lane
};

}  // namespace moe_diag
