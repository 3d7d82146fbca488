// SPDX-License-Identifier: MIT
#include "core/explain/kept_oracle.hpp"

#include <algorithm>
#include <new>
#include <numeric>

#include "core/ops/operator.hpp"

namespace moe_diag {

KeptOracle::KeptOracle(const Contract& contract, const Plan& plan, const Lanes& lanes,
                       const std::vector<bool>& falsifiers, std::uint64_t most_bytes)
    : program_(plan.program),
      config_(lanes.config()),
      oracle_(lanes.index_of(contract.oracle)),
      description_(lanes[static_cast<std::size_t>(oracle_)].description),
      most_bytes_(most_bytes) {
  const bool moves_states = std::any_of(program_.begin(), program_.end(), has_state);  // which are not kept
  const auto runs = [&](int lane) { return lane < 0 || lanes[static_cast<std::size_t>(lane)].absent.empty(); };
  for (std::size_t p = 0; p < contract.prompts.size(); ++p) {
    bool is_judged = false;
    for (std::size_t f = 0; f < plan.falsifiers.size(); ++f) {
      const WatchedFalsifier& watched = plan.falsifiers[f];
      is_judged = is_judged || (falsifiers[f] && !watched.positions[p].empty() && runs(watched.lane) &&
                                runs(watched.against) && runs(watched.floor));
    }
    bytes_.push_back(is_judged && !moves_states ? bytes_of(contract.prompts[p], plan.head_first[p]) : 0);
  }
}

std::uint64_t KeptOracle::bytes() const {
  const auto add = [&](std::uint64_t sum, std::uint64_t bytes) { return bytes <= most_bytes_ ? sum + bytes : sum; };
  return std::min(most_bytes_, std::accumulate(bytes_.begin(), bytes_.end(), std::uint64_t{0}, add));
}

std::uint64_t KeptOracle::bytes_of(const PromptSpec& prompt, int head_first) const {
  std::uint64_t bytes = 0;
  for (const Stretch& pass : stretches_of(prompt))
    for (const Step& step : program_)
      for (Stage stage : step.out) {
        const int head = std::min(std::max(head_first, pass.first), pass.end() - 1);
        const int rows = is_of_head(stage) ? pass.end() - head : pass.count;
        const DType dtype = payload_of(stage) == Payload::indices ? DType::i32 : description_.stored(stage);
        bytes += KeptStages::taken_by(
            static_cast<std::size_t>(config_.shape_of(site_of(step, stage), rows, prompt.length()).count()) *
            size_of(dtype));
      }
  return bytes;
}

bool KeptOracle::wants(int prompt, int lane, Site /*site*/) const {
  const std::uint64_t bytes = bytes_[static_cast<std::size_t>(prompt)];
  return lane == oracle_ && bytes > 0 && kept_bytes_ + bytes <= most_bytes_;
}

void KeptOracle::show(Sighting& sighting) {
  if (!is_whole_) return;
  const Tensor rows = sighting.tensor(oracle_);
  if (!rows) return;
  try {
    if (!now_) now_ = std::make_unique<KeptStages>(bytes_[static_cast<std::size_t>(sighting.prompt)]);
    is_whole_ = now_->keep(sighting.site, sighting.position(0), rows);
  } catch (const std::bad_alloc&) {
    is_whole_ = false;
  }
}

void KeptOracle::end(int prompt, bool is_needed) {
  if (now_ && is_needed && is_whole_) {
    kept_bytes_ += now_->bytes();
    kept_[prompt] = std::move(now_);
  }
  now_.reset();
  is_whole_ = true;
}

const KeptStages* KeptOracle::of(int prompt) const {
  const auto at = kept_.find(prompt);
  return at == kept_.end() ? nullptr : at->second.get();
}

}  // namespace moe_diag
