// SPDX-License-Identifier: MIT
#include "core/repro/seen_step.hpp"

#include <algorithm>
#include <utility>

#include "core/forward/given_inputs.hpp"

namespace moe_diag {
namespace {

// A copy of rows of a tensor, behind those that are there.
void append(GivenValues& values, Stage stage, const Tensor& tensor, int first, int count) {
  const std::size_t row = static_cast<std::size_t>(tensor.shape.row()) * size_of(tensor.dtype);
  const std::byte* data = tensor.as<std::byte>() + static_cast<std::size_t>(first) * row;
  const std::int64_t before = values.bytes.empty() ? 0 : values.shape[0];
  values.stage = stage;
  values.dtype = tensor.dtype;
  values.shape = tensor.shape;
  values.shape.dims[0] = before + count;
  values.bytes.insert(values.bytes.end(), data, data + static_cast<std::size_t>(count) * row);
}

}  // namespace

GivenValues rows_of(const GivenValues& values, int first, int count) {
  GivenValues rows;
  append(rows, values.stage, values.tensor(), first, count);
  return rows;
}

StepWatcher::StepWatcher(const Program& program, const Where& where)
    : where_(where), step_(*find_step(program, where.site)), read_(inputs_of(program, where.site)) {
  for (Stage stage : stages_given(step_))
    if (std::find(step_.in.begin(), step_.in.end(), stage) == step_.in.end()) read_.push_back({stage, step_.layer});
}

bool StepWatcher::wants(int prompt, int lane, Site site) const {
  if (prompt != where_.prompt) return false;
  if (site == where_.site) return lane == where_.lane || lane == where_.other;
  return lane == where_.lane && std::find(read_.begin(), read_.end(), site) != read_.end();
}

void StepWatcher::show(Sighting& sighting) {
  if (sighting.prompt != where_.prompt || !(sighting.site == where_.site) || seen_.count > 0) return;
  read_inputs(sighting);
  const int first = sighting.position(0), count = sighting.rows().count;
  if (where_.position < first || where_.position >= first + count) return;
  const Tensor output = sighting.tensor(where_.lane);
  if (!output) return;
  append(seen_.output, where_.site.stage, output, 0, count);
  if (const Tensor other = where_.other < 0 ? Tensor{} : sighting.tensor(where_.other))
    append(seen_.other, where_.site.stage, other, 0, count);
  seen_.first = first;
  seen_.count = count;
}

// Of earlier passes only keys and values stay.
void StepWatcher::read_inputs(Sighting& sighting) {
  std::vector<GivenValues> earlier = std::exchange(seen_.inputs, {});
  for (Stage stage : stages_given(step_)) {
    GivenValues values;
    const auto kept =
        std::find_if(earlier.begin(), earlier.end(), [&](const GivenValues& v) { return v.stage == stage; });
    if (kept != earlier.end() && is_of_all_positions(step_, stage) && sighting.pass.first > 0)
      values = std::move(*kept);
    const Tensor held = sighting.now(where_.lane, stage);
    if (held) append(values, stage, held, sighting.rows().first - sighting.rows_of(stage).first, sighting.rows().count);
    seen_.inputs.push_back(std::move(values));
  }
}

}  // namespace moe_diag
