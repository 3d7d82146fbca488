// SPDX-License-Identifier: MIT
#include "core/recording/numerics_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "core/ops/numerics.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/weight_rounding.hpp"

namespace moe_diag {
namespace {

constexpr int layers_looked_at = 2;
constexpr int rows_looked_at = 4;
constexpr std::int64_t columns_looked_at = host::weight_block;  // outputs, which share blocks of weights

// Some outputs of a product for one row of its input, as they were recorded.
struct Seen {
  const Step* step;
  const Weight* weight;
  const Weight* bias = nullptr;  // null: none
  std::int64_t expert = 0;
  host::Values x, out;
  DType type = DType::f32;
};

class Products {
 public:
  Products(const Recording& recording, const Program& program) : recording_(recording) {
    std::map<std::size_t, int> layer;  // of each stage: that which was written last
    std::set<int> layers;
    for (const Step& step : program) {
      const Site out{step.out[0], step.layer};
      const bool is_of_layer = step.layer >= 0 && (layers.count(step.layer) > 0 || layers.size() < layers_looked_at);
      if (is_of_layer && is_product(operator_of(step)) && recording.has(out)) {
        layers.insert(step.layer);
        look_at(step, {step.in[0], layer[step.in[0].index()]}, out);
      }
      for (const Stage stage : step.out) layer[stage.index()] = step.layer;
    }
  }
  const std::vector<Seen>& seen() const { return seen_; }

 private:
  std::optional<host::Values> row(Site site, int request, int position) {
    const Tensor values = recording_.rows(request, site, {position, 1}, memory_);
    if (!values) return std::nullopt;
    type_ = values.dtype;
    return host::values_of(values);
  }

  void look_at(const Step& step, Site in, Site out) {
    int rows = 0;
    for (int r = 0; r < static_cast<int>(recording_.requests().size()); ++r) {
      const RecordedRequest& request = recording_.requests()[static_cast<std::size_t>(r)];
      for (int p = request.first; p < request.end && rows < rows_looked_at; ++p) {
        const auto y = row(out, r, p);
        const DType type = type_;
        const auto x = y ? row(in, r, p) : std::nullopt;
        if (!x || !std::all_of(y->begin(), y->end(), is_finite) || !std::all_of(x->begin(), x->end(), is_finite))
          continue;
        ++rows;
        operator_of(step).weights == WeightRows::of_experts ? add_experts(step, out, r, p, *x, *y, type)
                                                            : add_weights(step, *x, *y, type);
      }
    }
  }

  void add_weights(const Step& step, const host::Values& x, const host::Values& y, DType type) {
    std::int64_t column = 0;
    for (std::size_t i = 0; i < step.weights.size(); ++i) {
      add(step, i, 0, column, x, y, type);
      column += step.weights[i]->rows;
    }
  }

  // One of the experts of the row.
  void add_experts(const Step& step, Site out, int request, int position, const host::Values& x, const host::Values& y,
                   DType type) {
    const auto ids = row(out.sibling(Role::choice), request, position);
    const Weight& weight = *step.weights[0];
    if (!ids || (*ids)[0] < 0 || (*ids)[0] >= static_cast<double>(weight.experts)) return;
    const auto cols = static_cast<std::size_t>(weight.cols);
    add(step, 0, static_cast<std::int64_t>((*ids)[0]), 0, {x.begin(), x.begin() + static_cast<std::ptrdiff_t>(cols)}, y,
        type);
  }

  void add(const Step& step, std::size_t part, std::int64_t expert, std::int64_t column, const host::Values& x,
           const host::Values& y, DType type) {
    const Weight& weight = *step.weights[part];
    const auto count = std::min(columns_looked_at, weight.rows);
    const auto from = y.begin() + column;
    seen_.push_back({&step, &weight, step.bias(part), expert, x, {from, from + count}, type});
  }

  const Recording& recording_;
  std::vector<std::byte> memory_;
  DType type_ = DType::f32;
  std::vector<Seen> seen_;
};

// The rows of a weight that are looked at, [outputs, cols], rounded as the engine rounds them.
host::Values weights_of(const Seen& seen, std::optional<host::WeightRounding> rounding) {
  host::Values all;
  const host::Matrix matrix(*seen.weight, seen.expert);
  if (!rounding) {
    for (std::size_t r = 0; r < seen.out.size(); ++r) {
      const host::Values row = host::decode_row(matrix, static_cast<std::int64_t>(r));
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }
  Weight rounded = *seen.weight;
  rounded.type = host::type_of(*rounding);
  std::vector<std::byte> bytes(static_cast<std::size_t>(host::weight_block) *
                               static_cast<std::size_t>(rounded.row(0, 1) - rounded.row(0, 0)));
  host::round_rows(matrix, 0, *rounding, bytes.data());
  rounded.data = bytes.data();
  for (std::size_t r = 0; r < seen.out.size(); ++r) {
    const host::Values row = host::decode_row(host::Matrix(rounded), static_cast<std::int64_t>(r));
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

// Square of the relative error of the recorded outputs.
double squared_error(const Seen& seen, const host::Values& weights, const host::Values& x) {
  host::Values predicted;
  for (std::size_t r = 0; r < seen.out.size(); ++r)
    predicted.push_back(host::dot(std::span(weights).subspan(r * x.size(), x.size()), x));
  if (seen.bias) {
    const host::Values added = host::decode_row(host::Matrix(*seen.bias), 0);
    for (std::size_t r = 0; r < predicted.size(); ++r) predicted[r] += added[r];
  }
  predicted = rounded_to(std::move(predicted), seen.type);
  double off = 0, all = 0;
  for (std::size_t r = 0; r < predicted.size(); ++r) {
    off += (predicted[r] - seen.out[r]) * (predicted[r] - seen.out[r]);
    all += predicted[r] * predicted[r];
  }
  return all > 0 ? off / all : 0;
}

std::string name_of(const Reads& reads, const WeightType& weights) {
  for (const NamedNumerics& row : all_named_numerics())
    if (row.values == DType::f32 && row.reads == reads.name && row.weights == weights.name)
      return std::string(row.name);
  return "";
}

// Whether rows of all the products are whole blocks of what the way rounds in.
bool is_possible(const Reads& reads, const std::vector<Seen>& seen) {
  return reads.scale != Reads::Scale::must && std::all_of(seen.begin(), seen.end(), [&](const Seen& s) {
           const auto rounding = reads.rounding(*s.step, s.weight->type);
           return !rounding || s.weight->cols % host::block_of(*rounding) == 0;
         });
}

}  // namespace

NumericsFit fit_numerics(const Recording& recording, const Program& program) {
  const Products products(recording, program);
  const std::vector<Seen>& seen = products.seen();
  NumericsFit fit;
  std::set<const Step*> steps;
  for (const Seen& s : seen) steps.insert(s.step);
  fit.products = static_cast<int>(steps.size());
  if (seen.empty()) return fit;
  for (const WeightType& weights : all_weight_types()) {
    std::vector<host::Values> rounded;
    for (const Seen& s : seen) rounded.push_back(weights_of(s, weights.of(*s.step)));
    for (const Reads& reads : all_reads()) {
      if (!is_possible(reads, seen)) continue;
      double squares = 0;
      for (std::size_t i = 0; i < seen.size(); ++i) {
        const auto rounding = reads.rounding(*seen[i].step, seen[i].weight->type);
        squares += squared_error(seen[i], rounded[i], rounding ? host::rounded(seen[i].x, *rounding) : seen[i].x);
      }
      fit.tried.push_back({name_of(reads, weights), std::string(reads.name), std::string(weights.name),
                           std::sqrt(squares / static_cast<double>(seen.size()))});
    }
  }
  // Ways that are as good differ in nothing that was seen: those with a name come first, and what reads as it is.
  constexpr double as_good = 1.25;
  double least = fit.tried.front().error;
  for (const FittedNumerics& one : fit.tried) least = std::min(least, one.error);
  const auto rank = [&](const FittedNumerics& one) {
    return std::pair(one.error <= as_good * least ? 0.0 : one.error, one.numerics.empty());
  };
  std::stable_sort(fit.tried.begin(), fit.tried.end(),
                   [&](const FittedNumerics& a, const FittedNumerics& b) { return rank(a) < rank(b); });
  return fit;
}

std::string text_of(const NumericsFit& fit) {
  if (!fit.is_known()) return "";
  const auto named = [](const FittedNumerics& one) {
    return one.numerics.empty() ? fmt::format("reads {}, weights {}", one.reads, one.weights) : one.numerics;
  };
  const FittedNumerics& best = fit.best();
  const auto plain =
      std::find_if(fit.tried.begin(), fit.tried.end(), [](const auto& one) { return one.numerics == "f32"; });
  constexpr double no_fit = 0.05;
  if (best.error > no_fit) return fmt::format("nothing fits; the nearest is {}, {:.2g} off", named(best), best.error);
  std::string text = fmt::format("{} fits: {} matmuls differ by {:.2g}", named(best), fit.products, best.error);
  if (plain != fit.tried.end() && best.numerics != "f32") text += fmt::format(", by {:.2g} with f32", plain->error);
  return text;
}

DType type_of_values(const Recording& recording, Stage stage) {
  constexpr int rows = 8;
  bool is_bf16 = true, is_f16 = true;
  int seen = 0;
  std::vector<std::byte> memory;
  for (const Site& site : recording.sites())
    for (int r = 0; site.stage == stage && r < static_cast<int>(recording.requests().size()); ++r) {
      const RecordedRequest& request = recording.requests()[static_cast<std::size_t>(r)];
      for (int p = request.first; p < request.end && seen < rows; ++p) {
        const Tensor row = recording.rows(r, site, {p, 1}, memory);
        if (!row) continue;
        if (has_16_bits(row.dtype)) return row.dtype;
        ++seen;
        for (std::int64_t i = 0; i < row.shape.count(); ++i) {
          const double x = value_at(row, i);
          is_bf16 = is_bf16 && (!is_finite(x) || rounded_to({x}, DType::bf16)[0] == x);
          is_f16 = is_f16 && (!is_finite(x) || rounded_to({x}, DType::f16)[0] == x);
        }
      }
    }
  return seen == 0 ? DType::f32 : is_bf16 ? DType::bf16 : is_f16 ? DType::f16 : DType::f32;
}

}  // namespace moe_diag
