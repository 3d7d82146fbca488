// SPDX-License-Identifier: MIT
#include "core/bus/fault.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace moe_diag {
namespace {

// Row by row, a copy of what a lane holds, to be changed and written back.
template <class T>
class Rewrite {
 public:
  Rewrite(const Tensor& held, const PlantedFault& fault)
      : values_(held.as<T>(), held.as<T>() + held.shape.count()),
        dtype_(held.dtype),
        shape_(held.shape),
        fault_(fault) {}

  T* row(int r) { return values_.data() + r * shape_.row(); }
  void apply(int r, const ModelConfig& config);
  Tensor tensor() const { return {values_.data(), dtype_, shape_}; }

 private:
  std::vector<T> values_;
  DType dtype_;
  Shape shape_;
  const PlantedFault& fault_;
};

template <class T>
void Rewrite<T>::apply(int r, const ModelConfig& config) {
  const FaultSpec& spec = fault_.spec;
  switch (spec.kind) {
    case FaultSpec::Kind::nan: row(r)[spec.index] = std::numeric_limits<T>::quiet_NaN(); break;
    case FaultSpec::Kind::scale:
      std::transform(row(r), row(r) + shape_.row(), row(r), [&](T v) { return static_cast<T>(v * spec.factor); });
      break;
    case FaultSpec::Kind::wrong_expert: {
      // The best expert makes room for the first one that was not chosen.
      T* ids = row(r);
      const T* end = ids + shape_.row();
      for (T e = 0; e < static_cast<T>(config.experts); ++e)
        if (std::find(static_cast<const T*>(ids), end, e) == end) {
          ids[0] = e;
          break;
        }
      break;
    }
  }
}

template <class T>
void rewrite(const PlantedFault& fault, const Tensor& held, Sighting& sighting, Lanes& lanes,
             const ModelConfig& config) {
  Rewrite<T> copy(held, fault);
  for (int position : fault.spec.positions.resolve(sighting.pass.total)) {
    const int r = position - sighting.position(0);
    if (r >= 0 && r < sighting.rows().count) copy.apply(r, config);
  }
  lanes[static_cast<std::size_t>(fault.lane)].write(sighting.site.stage, sighting.rows(), copy.tensor());
}

}  // namespace

bool edits_values(const PlantedFault& fault) {
  return fault.spec.kind != FaultSpec::Kind::wrong_expert || fault.spec.stage == Stage::moe_router_indices;
}

void edit_step(const PlantedFault& fault, Step& step) {
  if (!edits_values(fault)) step.params.expert_shift = 1;
}

void edit_values(const PlantedFault& fault, Sighting& sighting, Lanes& lanes, const ModelConfig& config) {
  const Tensor held = lanes[static_cast<std::size_t>(fault.lane)].read(sighting.site.stage, sighting.rows());
  switch (held.dtype) {
    case DType::f32: return rewrite<float>(fault, held, sighting, lanes, config);
    case DType::f64: return rewrite<double>(fault, held, sighting, lanes, config);
    case DType::i32: return rewrite<std::int32_t>(fault, held, sighting, lanes, config);
  }
}

}  // namespace moe_diag
