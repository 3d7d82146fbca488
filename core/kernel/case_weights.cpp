// SPDX-License-Identifier: MIT
#include "core/kernel/case_weights.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/api/error.hpp"
#include "core/ops/matrix.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

// One weight, or two whose rows follow each other in every expert.
struct Stacked {
  std::string name;
  std::vector<const Weight*> parts;

  const Weight& first() const { return *parts.front(); }
  std::int64_t rows() const {
    std::int64_t rows = 0;
    for (const Weight* w : parts) rows += w->rows;
    return rows;
  }
  std::uint64_t bytes() const {
    std::uint64_t bytes = 0;
    for (const Weight* w : parts) bytes += w->bytes();
    return bytes;
  }
  std::vector<std::int64_t> shape(std::int64_t columns) const {
    std::vector<std::int64_t> shape;
    if (first().experts > 1) shape.push_back(first().experts);
    if (first().experts > 1 || rows() > 1) shape.push_back(rows());
    shape.push_back(columns);
    return shape;
  }
};

TensorSource bytes_of(const Stacked& w) {
  return {w.name, "U8", w.shape(static_cast<std::int64_t>(w.first().row_bytes())), w.bytes(),
          [w](const TensorSource::Put& put) {
            for (std::int64_t expert = 0; expert < w.first().experts; ++expert)
              for (const Weight* part : w.parts) put(part->row(expert, 0), part->expert_bytes());
          }};
}

TensorSource values_of(const Stacked& w, const std::string& name) {
  const auto count = static_cast<std::uint64_t>(w.first().cols * w.rows() * w.first().experts);
  return {name, "F32", w.shape(w.first().cols), count * sizeof(float), [w](const TensorSource::Put& put) {
            for (std::int64_t expert = 0; expert < w.first().experts; ++expert)
              for (const Weight* part : w.parts)
                for (std::int64_t r = 0; r < part->rows; ++r) {
                  const host::Values row = host::decode_row(host::Matrix(*part, expert), r);
                  const std::vector<float> single(row.begin(), row.end());
                  put(single.data(), single.size() * sizeof(float));
                }
          }};
}

// The step of the span whose experts' matrices an input of another step comes from; null: none.
const Step* product_of_experts(const Span& span, Stage stage) {
  for (const Step& step : span.steps)
    if (step.out[0] == stage && operator_of(step).weights == WeightRows::of_experts) return &step;
  return nullptr;
}

// Both of what one step reads of two products of experts: the gate, then the other.
Stacked gate_and_up(const Span& span) {
  for (const Step& step : span.steps) {
    if (step.in.size() < 2) continue;
    const Step *gate = product_of_experts(span, step.in[0]), *up = product_of_experts(span, step.in[1]);
    if (!gate || !up) continue;
    const Weight &a = *gate->weights[0], &b = *up->weights[0];
    if (a.cols != b.cols || a.rows != b.rows || a.experts != b.experts || a.type != b.type)
      throw Error(ErrorKind::usage,
                  fmt::format("--fused: {} ({}) and {} ({}) differ in shape or type: leave --fused out", a.name,
                              info(a.type).name, b.name, info(b.type).name));
    std::string name(a.name);
    const std::size_t at = name.find("gate");
    name.insert(at == std::string::npos ? name.size() : at + 4, at == std::string::npos ? "_fused" : "_up");
    return {std::move(name), {&a, &b}};
  }
  throw Error(ErrorKind::usage,
              "--fused: the span does not hold the products of gate and up and the step that reads both; take moe_ffn");
}

void add(const Stacked& w, bool decoded, CaseWeights& weights) {
  const std::string values = decoded ? w.name + ".f32" : "";
  const std::vector<std::int64_t> shape = w.shape(w.first().cols);
  weights.sources.push_back(bytes_of(w));
  if (decoded) weights.sources.push_back(values_of(w, values));
  const std::string type(info(w.first().type).name);
  weights.metadata[w.name + ".type"] = type;
  weights.metadata[w.name + ".shape"] = shape_text(shape);
  weights.listed.push_back({w.name, type, values, shape});
}

}  // namespace

CaseWeights weights_of(const Span& span, bool decoded, bool fused) {
  CaseWeights weights;
  for (const Weight* w : span.weights) add({std::string(w->name), {w}}, decoded, weights);
  if (fused) add(gate_and_up(span), decoded, weights);
  return weights;
}

}  // namespace moe_diag
