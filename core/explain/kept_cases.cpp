// SPDX-License-Identifier: MIT
#include "core/explain/kept_cases.hpp"

#include <algorithm>
#include <numeric>

namespace moe_diag {
namespace {

// All tensors of a case; some may be null.
template <class Case>
auto tensors_of(Case& c) {
  std::vector tensors{&c.a, &c.b, &c.routing_a, &c.routing_b};
  for (auto& tensor : c.in) tensors.push_back(&tensor);
  return tensors;
}

std::uint64_t bytes_of(const StepCase& c) {
  const auto tensors = tensors_of(c);
  return std::accumulate(tensors.begin(), tensors.end(), std::uint64_t{0},
                         [](std::uint64_t sum, const Tensor* t) { return sum + (*t ? t->bytes() : 0); });
}

void copy(const StepCase& c, KeptCase& kept) {
  kept.step_case = c;
  for (Tensor* t : tensors_of(kept.step_case)) {
    if (!*t) continue;
    const auto* first = static_cast<const std::byte*>(t->data);
    t->data = kept.values.emplace_back(first, first + t->bytes()).data();
  }
  kept.tokens.assign(c.tokens.begin(), c.tokens.end());
  kept.step_case.tokens = kept.tokens;
}

}  // namespace

bool KeptCases::fits(const StepCase& c) const { return bytes_of(c) <= most_bytes_; }

void KeptCases::keep(Place place, int prompt, const StepCase& c, double excess) {
  const auto at = steps_.find(place);
  if (at != steps_.end()) {
    at->second.excess = std::max(at->second.excess, excess);
    if (at->second.prompt != prompt) return keep_other(at->second, prompt, c);
  }
  const std::uint64_t bytes = bytes_of(c);
  if (!make_room(bytes, place, excess)) return;
  KeptStep& step = steps_[place];
  step.prompt = prompt;
  step.excess = std::max(step.excess, excess);
  step.bytes += bytes;
  bytes_ += bytes;
  const auto behind = std::find_if(step.passes.begin(), step.passes.end(), [&](const KeptCase& pass) {
    return pass.step_case.first_position > c.first_position;
  });
  copy(c, *step.passes.emplace(behind));
}

// Only where there is memory that nothing else needs.
void KeptCases::keep_other(KeptStep& step, int prompt, const StepCase& c) {
  if (step.other && step.other->step_case.a.shape[0] >= c.a.shape[0]) return;
  const std::uint64_t before = step.other ? bytes_of(step.other->step_case) : 0, bytes = bytes_of(c);
  if (bytes_ - before + bytes > most_bytes_) return;
  step.bytes += bytes - before;
  bytes_ += bytes - before;
  step.other_prompt = prompt;
  copy(c, step.other.emplace());
}

// Gives up other steps of less excess, the least first; none when all of these together are too small.
bool KeptCases::make_room(std::uint64_t bytes, Place place, double excess) {
  std::vector<std::map<Place, KeptStep>::iterator> less;
  std::uint64_t free = most_bytes_ - bytes_;
  for (auto at = steps_.begin(); at != steps_.end(); ++at)
    if (at->second.excess < excess && at->first != place) less.push_back(at);
  std::stable_sort(less.begin(), less.end(), [](auto x, auto y) { return x->second.excess < y->second.excess; });
  std::size_t count = 0;
  for (; free < bytes && count < less.size(); ++count) free += less[count]->second.bytes;
  if (free < bytes) return false;
  for (std::size_t i = 0; i < count; ++i) {
    bytes_ -= less[i]->second.bytes;
    steps_.erase(less[i]);
  }
  return true;
}

void KeptCases::clear() {
  steps_.clear();
  bytes_ = 0;
}

}  // namespace moe_diag
