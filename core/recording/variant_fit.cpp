// SPDX-License-Identifier: MIT
#include "core/recording/variant_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/ops/numerics.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

constexpr int rows_looked_at = 8;
constexpr double clearly = 2;  // times less

// What a step read and gave at the last positions of a request.
struct RecordedStep {
  StepInputs inputs;
  host::Values out;
  DType type = DType::f32;  // of the recorded output
  std::size_t output = 0;
};

class Reader {
 public:
  Reader(const Recording& recording, const ModelConfig& config) : recording_(recording), config_(config) {}

  // None where not all of it is recorded.
  std::optional<RecordedStep> read(const Step& step) {
    const std::size_t output = step.out.size() - 1;  // of topk the weights
    const Site out{step.out[output], step.layer};
    for (int r = 0; r < static_cast<int>(recording_.requests().size()); ++r) {
      const Stretch rows = last_rows(r, out);
      auto given = values_of(r, out, rows);
      if (!given) continue;
      RecordedStep recorded{{}, std::move(*given), type_, output};
      recorded.inputs.total = rows.end();
      for (int p = rows.first; p < rows.end(); ++p) recorded.inputs.positions.push_back(p);
      bool is_whole = true;
      for (std::size_t i = 0; i < step.in.size() && is_whole; ++i) {
        auto values = values_of(r, {step.in[i], step.layer}, rows);
        is_whole = values.has_value();
        if (is_whole) recorded.inputs.in[i] = std::move(*values);
      }
      if (is_whole) return recorded;
    }
    return std::nullopt;
  }

  double error_of(const Step& step, const RecordedStep& recorded) const {
    const host::Values own = rounded_to(
        operator_of(step).compute({step, config_, recorded.inputs, nullptr, recorded.output}), recorded.type);
    double off = 0, all = 0;
    for (std::size_t i = 0; i < own.size(); ++i) {
      off += (own[i] - recorded.out[i]) * (own[i] - recorded.out[i]);
      all += own[i] * own[i];
    }
    return all > 0 ? std::sqrt(off / all) : 0;
  }

 private:
  Stretch last_rows(int request, Site site) const {
    const RecordedRequest& of = recording_.requests()[static_cast<std::size_t>(request)];
    int first = of.end;
    while (first > of.first && of.end - first < rows_looked_at && recording_.has(request, site, {first - 1, 1}))
      --first;
    return {first, of.end - first};
  }

  std::optional<host::Values> values_of(int request, Site site, Stretch rows) {
    if (rows.count == 0) return std::nullopt;
    const Tensor tensor = recording_.rows(request, site, rows, memory_);
    if (!tensor) return std::nullopt;
    type_ = tensor.dtype;
    host::Values values = host::values_of(tensor);
    return std::all_of(values.begin(), values.end(), is_finite) ? std::optional(std::move(values)) : std::nullopt;
  }

  const Recording& recording_;
  const ModelConfig& config_;
  std::vector<std::byte> memory_;
  DType type_ = DType::f32;  // of what was read last
};

// The first step that has the form, recorded with what it reads; none: there is none.
std::optional<FittedVariant> fit(const Variant& variant, const Program& program, Reader& reader) {
  for (const Step& step : program) {
    Step other = step;
    if (reads_cache(step) || !variant.apply(other.params) || other.params == step.params) continue;
    const auto recorded = reader.read(step);
    if (recorded) return FittedVariant{&variant, reader.error_of(other, *recorded), reader.error_of(step, *recorded)};
  }
  return std::nullopt;
}

}  // namespace

std::vector<FittedVariant> fit_variants(const Recording& recording, const ModelConfig& config, const Program& program) {
  Reader reader(recording, config);
  std::vector<FittedVariant> best;  // of each key
  for (const Variant& variant : all_variants()) {
    const auto fitted = fit(variant, program, reader);
    if (!fitted || !(fitted->error * clearly < fitted->plain)) continue;
    const auto other =
        std::find_if(best.begin(), best.end(), [&](const FittedVariant& f) { return f.variant->key == variant.key; });
    if (other == best.end())
      best.push_back(*fitted);
    else if (fitted->error < other->error)
      *other = *fitted;
  }
  return best;
}

std::string text_of(const FittedVariant& fit) {
  return fmt::format("{} {} fits: {:.2g} off, {:.2g} as the model defines it", fit.variant->key, fit.variant->name,
                     fit.error, fit.plain);
}

}  // namespace moe_diag
