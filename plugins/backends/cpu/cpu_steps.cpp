// SPDX-License-Identifier: MIT
// The operators of the cpu lanes, each over all rows of a pass.
#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>

#include "plugins/backends/cpu/cpu_lane.hpp"

namespace moe_diag::cpu {
namespace {

constexpr int vector_block = 32;  // vectors multiplied by 16 rows at a time: both stay in L2

}  // namespace

template <class T>
void CpuLane<T>::run_step(const Step& step) {
  for (const Stage stage : step.out) layer_[stage.index()] = step.layer;
  switch (step.op) {
    case Op::embed: return embed(step);
    case Op::rms_norm: return rms_norm(step);
    case Op::linear: return linear(step);
    case Op::rope: return rope(step);
    case Op::scores: return scores(step);
    case Op::softmax: return softmax(step);
    case Op::mix: return mix(step);
    case Op::add: return add(step);
    case Op::topk: return topk(step);
    case Op::expert_linear: return expert_linear(step);
    case Op::swiglu: return swiglu(step);
    case Op::weigh: return weigh(step);
    case Op::combine: return combine(step);
    case Op::sigmoid_gate: return sigmoid_gate(step);
  }
}

template <class T>
template <class Body>
void CpuLane<T>::parallel(std::int64_t count, std::int64_t grain, const Body& body) {
  if (count <= grain) return body(std::int64_t{0}, count);
  tbb::parallel_for(tbb::blocked_range<std::int64_t>(0, count, static_cast<std::size_t>(grain)),
                    [&](const tbb::blocked_range<std::int64_t>& r) { body(r.begin(), r.end()); });
}

template <class T>
void CpuLane<T>::embed(const Step& step) {
  const Weight& table = *step.weights[0];
  if (static_cast<int>(tokens_.size()) != rows_) fail("cpu lane: the tokens of this pass are not known");
  T* decoded = scratch_[0].get();
  for (int r = 0; r < rows_; ++r) {
    kernels_.decode_row(table.type, table.row(0, tokens_[static_cast<std::size_t>(r)]), table.cols, decoded);
    std::copy_n(decoded, table.cols, row(step.out[0], r));
  }
}

template <class T>
void CpuLane<T>::rms_norm(const Step& step) {
  const Stage in = step.in[0], out = step.out[0];
  const RmsNormParams& params = step.as<RmsNormParams>();
  const std::int64_t width = params.width, groups = row_size(out) / width;
  std::vector<T>& weight = norm_weight_;
  kernels_.decode_row(step.weights[0]->type, step.weights[0]->data, width, weight.data());
  const int first = first_row(out);
  parallel((rows_ - first) * groups, std::max<std::int64_t>(1, 4096 / width), [&](std::int64_t at, std::int64_t end) {
    for (; at < end; ++at) {
      const std::int64_t r = first + at / groups, g = at % groups;
      kernels_.rms_norm(row(in, r) + params.offset + g * width, weight.data(), static_cast<T>(params.eps), width,
                        row(out, r) + g * width);
    }
  });
}

template <class T>
auto CpuLane<T>::operands(const T* x, std::int64_t count, std::int64_t width, BlockType weight) -> Operands {
  const Reading reading = reading_of(numerics_, weight);
  if constexpr (std::is_same_v<T, float>) {
    if (reading != Reading::as_they_are) {
      auto* out = reinterpret_cast<std::byte*>(operands_.data());
      const std::size_t stride =
          is_quantised(reading) ? quantised_bytes(reading, width) : static_cast<std::size_t>(width) * sizeof(float);
      parallel(count, std::max<std::int64_t>(1, 4096 / width), [&](std::int64_t i, std::int64_t end) {
        for (; i < end; ++i) {
          std::byte* at = out + static_cast<std::size_t>(i) * stride;
          if (is_quantised(reading))
            operand_kernels_.quantise(reading, x + i * width, width, at);
          else
            operand_kernels_.round(reading, x + i * width, width, reinterpret_cast<float*>(at));
        }
      });
      return {out, stride};
    }
  }
  return {reinterpret_cast<const std::byte*>(x), static_cast<std::size_t>(width) * sizeof(T)};
}

template <class T>
void CpuLane<T>::load_rows(const Weight& weight, std::int64_t expert, std::int64_t first, int rows, T* out) {
  const std::int64_t stride = padded(weight.cols);
  const Reading reading = reading_of(numerics_, weight.type);
  if (is_quantised(reading))
    return operand_kernels_.unpack(weight.type, weight.row(expert, first), weight.row_bytes(), rows,
                                   reinterpret_cast<std::byte*>(out));
  for (int i = 0; i < rows; ++i)
    kernels_.decode_row(weight.type, weight.row(expert, first + i), weight.cols, out + i * stride);
  if constexpr (std::is_same_v<T, float>)
    if (reading == Reading::bf16) operand_kernels_.round(reading, out, rows * stride, out);
}

template <class T>
void CpuLane<T>::multiply(const Weight& weight, const T* w, int rows, int first, int count, std::int64_t at) {
  if constexpr (std::is_same_v<T, float>)
    if (is_quantised(reading_of(numerics_, weight.type)))
      return operand_kernels_.products(weight.type, reinterpret_cast<const std::byte*>(w), rows, x_.data() + first,
                                       y_.data() + first, count, weight.cols, at);
  std::array<const T*, vector_block> x;
  for (int i = 0; i < count; ++i)
    x[static_cast<std::size_t>(i)] = reinterpret_cast<const T*>(x_[static_cast<std::size_t>(first + i)]);
  kernels_.products(w, rows, x.data(), y_.data() + first, count, weight.cols, at);
}

template <class T>
void CpuLane<T>::products(const Weight& weight, std::int64_t y_offset) {
  tiles_.clear();
  for (int e = 0; e < weight.experts; ++e)
    if (groups_[static_cast<std::size_t>(e)].count > 0)
      for (std::int64_t r = 0; r < weight.rows; r += tile_rows) tiles_.push_back({e, r});
  parallel(static_cast<std::int64_t>(tiles_.size()), 1, [&](std::int64_t at, std::int64_t end) {
    T* w = scratch_[static_cast<std::size_t>(tbb::this_task_arena::current_thread_index())].get();
    for (; at < end; ++at) {
      const Tile& tile = tiles_[static_cast<std::size_t>(at)];
      const Group& group = groups_[static_cast<std::size_t>(tile.expert)];
      const std::int64_t last = std::min(tile.row + tile_rows, weight.rows);
      for (std::int64_t r = tile.row; r < last; r += rows_at_once) {
        const int rows = static_cast<int>(std::min<std::int64_t>(rows_at_once, last - r));
        load_rows(weight, tile.expert, r, rows, w);
        for (int v = group.first; v < group.first + group.count; v += vector_block)
          multiply(weight, w, rows, v, std::min(vector_block, group.first + group.count - v), y_offset + r);
      }
    }
  });
}

template <class T>
void CpuLane<T>::linear(const Step& step) {
  const int first = first_row(step.out[0]);
  groups_[0] = {0, rows_ - first};
  std::int64_t offset = 0;
  for (const Weight* weight : step.weights) {
    const Operands in = operands(row(step.in[0], first), rows_ - first, weight->cols, weight->type);
    for (int r = first; r < rows_; ++r) {
      x_[static_cast<std::size_t>(r - first)] = in.at(r - first);
      y_[static_cast<std::size_t>(r - first)] = row(step.out[0], r);
    }
    products(*weight, offset);
    offset += weight->rows;
  }
  if (step.biases.size() > 0) add_biases(step);
}

template <class T>
void CpuLane<T>::add_biases(const Step& step) {
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < step.weights.size(); offset += step.weights[i++]->rows) {
    const Weight* bias = step.biases[i];
    if (!bias) continue;
    kernels_.decode_row(bias->type, bias->data, bias->cols, bias_.data());
    parallel(rows_ - first_row(step.out[0]), 8, [&](std::int64_t r, std::int64_t end) {
      for (r += first_row(step.out[0]), end += first_row(step.out[0]); r < end; ++r) {
        T* y = row(step.out[0], r) + offset;
        kernels_.add(y, bias_.data(), bias->cols, y);
      }
    });
  }
}

template <class T>
const typename CpuLane<T>::Angles& CpuLane<T>::angles_of(const RopeParams& params) {
  for (const Angles& angles : angles_)
    if (angles.head_dim == params.head_dim && angles.theta == params.theta) return angles;
  const std::int64_t half = params.head_dim / 2;
  std::vector<T> cosines(static_cast<std::size_t>(pass_total_ * half)), sines(cosines.size());
  for (std::int64_t i = 0; i < half; ++i) {
    const double turn = std::pow(params.theta, -2.0 * static_cast<double>(i) / params.head_dim);
    for (std::int64_t p = 0; p < pass_total_; ++p) {
      cosines[static_cast<std::size_t>(p * half + i)] = static_cast<T>(std::cos(static_cast<double>(p) * turn));
      sines[static_cast<std::size_t>(p * half + i)] = static_cast<T>(std::sin(static_cast<double>(p) * turn));
    }
  }
  angles_.push_back({params.head_dim, params.theta, std::move(cosines), std::move(sines)});
  return angles_.back();
}

template <class T>
void CpuLane<T>::rope(const Step& step) {
  const RopeParams& params = step.as<RopeParams>();
  const Angles& angles = angles_of(params);
  const int heads = static_cast<int>(row_size(step.out[0]) / params.head_dim);
  parallel(rows_, 4, [&](std::int64_t r, std::int64_t end) {
    for (; r < end; ++r) {
      const std::int64_t at = position(static_cast<int>(r)) * (params.head_dim / 2);
      kernels_.rope(row(step.in[0], r) + params.offset, angles.cosines.data() + at, angles.sines.data() + at, heads,
                    params.head_dim, row(step.out[0], r));
    }
  });
}

template <class T>
void CpuLane<T>::scores(const Step& step) {
  const auto [heads, kv_heads, h] = step.as<ScoresParams>().sizes;
  const std::int64_t width = cache_width(step), per_key = heads / kv_heads;
  const T* keys = appended(step);
  const T factor = static_cast<T>(step.as<ScoresParams>().scale);
  parallel(std::int64_t{rows_} * heads, 4, [&, heads = heads, h = h](std::int64_t at, std::int64_t end) {
    for (; at < end; ++at) {
      const std::int64_t r = at / heads, head = at % heads, seen = pass_first_ + r + 1;
      const T* q = row(step.in[0], r) + head * h;
      const T* k = keys + head / per_key * h;
      T* out = row(step.out[0], r) + head * pass_total_;
      for (std::int64_t s = 0; s < seen; ++s) out[s] = kernels_.dot(q, k + s * width, h) * factor;
      std::fill(out + seen, out + pass_total_, T{0});
    }
  });
}

template <class T>
void CpuLane<T>::softmax(const Step& step) {
  const Stage in = step.in[0], out = step.out[0];
  const bool causal = step.as<SoftmaxParams>().causal;
  const std::int64_t width = causal ? pass_total_ : row_size(out), groups = row_size(out) / width;
  parallel(rows_ * groups, 16, [&](std::int64_t at, std::int64_t end) {
    for (; at < end; ++at) {
      const std::int64_t r = at / groups, offset = at % groups * width;
      const std::int64_t seen = causal ? pass_first_ + r + 1 : width;
      T* y = row(out, r) + offset;
      kernels_.softmax(row(in, r) + offset, seen, y);
      std::fill(y + seen, y + width, T{0});
    }
  });
}

template <class T>
void CpuLane<T>::mix(const Step& step) {
  const auto [heads, kv_heads, h] = step.as<MixParams>().sizes;
  const std::int64_t width = cache_width(step), per_key = heads / kv_heads;
  const T* values = appended(step);
  parallel(std::int64_t{rows_} * heads, 4, [&, heads = heads, h = h](std::int64_t at, std::int64_t end) {
    for (; at < end; ++at) {
      const std::int64_t r = at / heads, head = at % heads;
      kernels_.mix(row(step.in[0], r) + head * pass_total_, values + head / per_key * h, width, pass_first_ + r + 1, h,
                   row(step.out[0], r) + head * h);
    }
  });
}

template <class T>
void CpuLane<T>::add(const Step& step) {
  const std::int64_t width = row_size(step.out[0]);
  parallel(rows_, 8, [&](std::int64_t r, std::int64_t end) {
    kernels_.add(row(step.in[0], r), row(step.in[1], r), (end - r) * width, row(step.out[0], r));
  });
}

template <class T>
void CpuLane<T>::topk(const Step& step) {
  const int experts = config_.experts, used = config_.used;
  for (int r = 0; r < rows_; ++r) {
    const T* probs = row(step.in[0], r);
    std::int32_t* ids = indices_.data() + static_cast<std::size_t>(r) * static_cast<std::size_t>(used);
    T* weights = row(step.out[1], r);
    T total = 0;
    for (int slot = 0; slot < used; ++slot) {
      int best = -1;  // the first free expert wins all comparisons with NaN: the ids stay valid and distinct
      for (int e = 0; e < experts; ++e)
        if (std::find(ids, ids + slot, e) == ids + slot && (best < 0 || probs[e] > probs[best])) best = e;
      ids[slot] = best;
      weights[slot] = probs[best];
      total += probs[best];
    }
    for (int slot = 0; step.as<TopkParams>().renormalised && slot < used; ++slot) weights[slot] /= total;
  }
}

template <class T>
void CpuLane<T>::group_by_expert(const Step& step) {
  const int experts = config_.experts, used = config_.used;
  const auto expert_of = [&](std::size_t i) {
    const std::int32_t id = indices_[i];
    if (id < 0 || id >= experts)
      fail("layer " + std::to_string(step.layer) + ": " + std::string(name_of(step.in[1])) + " holds expert " +
           std::to_string(id) + ", the model has experts 0 to " + std::to_string(experts - 1));
    return static_cast<std::size_t>(id);
  };
  const std::size_t count = static_cast<std::size_t>(rows_) * static_cast<std::size_t>(used);
  std::fill(groups_.begin(), groups_.end(), Group{});
  for (std::size_t i = 0; i < count; ++i) ++groups_[expert_of(i)].count;
  int first = 0;
  for (Group& group : groups_) {
    group.first = first;
    first += group.count;
    group.count = 0;
  }
  const int slots = holds_experts(step.in[0]) ? used : 1;  // with vectors of their own, or one for all
  const Weight& weight = *step.weights[0];
  const Operands in =
      operands(slot(step.in[0]).data(), static_cast<std::int64_t>(rows_) * slots, weight.cols, weight.type);
  const std::int64_t out = row_size(step.out[0]) / used;
  for (std::size_t i = 0; i < count; ++i) {
    Group& group = groups_[expert_of(i)];
    const auto at = static_cast<std::size_t>(group.first + group.count++);
    x_[at] = in.at(static_cast<std::int64_t>(i) * slots / used);
    y_[at] = slot(step.out[0]).data() + static_cast<std::int64_t>(i) * out;
  }
}

template <class T>
void CpuLane<T>::expert_linear(const Step& step) {
  group_by_expert(step);
  products(*step.weights[0], 0);
}

template <class T>
void CpuLane<T>::swiglu(const Step& step) {
  const std::int64_t width = row_size(step.out[0]);
  parallel(rows_, 1, [&](std::int64_t r, std::int64_t end) {
    kernels_.swiglu(row(step.in[0], r), row(step.in[1], r), (end - r) * width, row(step.out[0], r));
  });
}

template <class T>
void CpuLane<T>::weigh(const Step& step) {
  const std::int64_t used = config_.used, width = row_size(step.out[0]) / used;
  parallel(rows_ * used, 16, [&](std::int64_t i, std::int64_t end) {
    for (; i < end; ++i)
      kernels_.scale(slot(step.in[0]).data() + i * width, slot(step.in[1])[static_cast<std::size_t>(i)], width,
                     slot(step.out[0]).data() + i * width);
  });
}

template <class T>
void CpuLane<T>::combine(const Step& step) {
  const std::int64_t width = row_size(step.out[0]);
  parallel(rows_, 4, [&](std::int64_t r, std::int64_t end) {
    for (; r < end; ++r) {
      const T* in = row(step.in[0], r);
      T* out = row(step.out[0], r);
      std::copy_n(in, width, out);
      for (int slot = 1; slot < config_.used; ++slot) kernels_.add(out, in + slot * width, width, out);
    }
  });
}

template <class T>
void CpuLane<T>::sigmoid_gate(const Step& step) {
  const std::int64_t width = row_size(step.out[0]);
  parallel(rows_, 8, [&](std::int64_t r, std::int64_t end) {
    for (; r < end; ++r) {
      const T pair[] = {row(step.in[1], r)[0], T{0}};  // whose softmax has the sigmoid first
      T shares[2];
      kernels_.softmax(pair, 2, shares);
      kernels_.scale(row(step.in[0], r), shares[0], width, row(step.out[0], r));
    }
  });
}

template void CpuLane<float>::run_step(const Step& step);
template void CpuLane<double>::run_step(const Step& step);

}  // namespace moe_diag::cpu
