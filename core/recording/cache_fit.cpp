// SPDX-License-Identifier: MIT
#include "core/recording/cache_fit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "core/ops/numerics.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

constexpr int rows_looked_at = 8;

// The rows of a layer's stages at positions 0 and up of a request, recorded or computed from those.
class LayerRows {
 public:
  LayerRows(const Recording& recording, const ModelConfig& config, int request, int layer, int rows)
      : recording_(recording), config_(config), request_(request), layer_(layer), rows_(rows) {}

  // Queries and probabilities are rounded as keys and values are: ggml multiplies two operands of the cache's type.
  void round_operands(bool yes) { rounds_operands_ = yes; }

  // Squares of the relative errors of the recorded outputs of all steps that read keys and values, or what follows.
  std::vector<double> errors(const Program& program, const CacheRounding& rounding) {
    std::vector<double> squares;
    std::map<std::size_t, host::Values> computed;  // by stage: not recorded
    for (const Step& step : program) {
      if (step.layer != layer_ || has_state(step) || step.out.size() != 1) continue;
      const bool follows =
          std::any_of(step.in.begin(), step.in.end(), [&](Stage stage) { return computed.count(stage.index()) > 0; });
      if (!reads_cache(step) && !follows) continue;
      const auto inputs = inputs_of(step, computed, rounding);
      if (!inputs) continue;
      host::Values out = operator_of(step).compute({step, config_, *inputs, nullptr, 0});
      if (const auto recorded = values_of(step.out[0]))
        squares.push_back(squared_error(out, *recorded));
      else
        computed[step.out[0].index()] = std::move(out);
    }
    return squares;
  }

 private:
  std::optional<host::Values> values_of(Stage stage) {
    const Site site{stage, info(stage).scope == Scope::layer ? layer_ : -1};
    const Tensor rows = recording_.rows(request_, site, {0, rows_}, memory_);
    if (!rows) return std::nullopt;
    const host::Values values = is(stage, Role::key_values) ? by_key(rows) : host::values_of(rows);
    return std::all_of(values.begin(), values.end(), is_finite) ? std::optional(values) : std::nullopt;
  }

  // [rows, heads, keys], of as many keys as there are rows: engines may have more, which are 0, or fewer.
  host::Values by_key(const Tensor& rows) const {
    const std::int64_t keys = rows.shape[2];
    host::Values values;
    for (std::int64_t i = 0; i < rows.shape[0] * rows.shape[1]; ++i)
      for (std::int64_t k = 0; k < rows_; ++k) values.push_back(k < keys ? value_at(rows, i * keys + k) : 0.0);
    return values;
  }

  std::optional<StepInputs> inputs_of(const Step& step, const std::map<std::size_t, host::Values>& computed,
                                      const CacheRounding& rounding) {
    StepInputs inputs;
    inputs.positions.resize(static_cast<std::size_t>(rows_));
    std::iota(inputs.positions.begin(), inputs.positions.end(), 0);
    inputs.total = rows_;
    for (std::size_t i = 0; i < step.in.size(); ++i) {
      const auto own = computed.find(step.in[i].index());
      auto values = own == computed.end() ? values_of(step.in[i]) : std::optional(own->second);
      if (!values) return std::nullopt;
      const CacheUse* use = step.cached(i);
      if (use)
        inputs.in[i] = kept(*values, step, *use, rounding);
      else
        inputs.in[i] = rounds_operands_ && reads_cache(step) ? rounding.kept(*values, step) : std::move(*values);
    }
    return inputs;
  }

  // The columns that go into the cache, as it keeps them.
  host::Values kept(const host::Values& rows, const Step& step, const CacheUse& use,
                    const CacheRounding& rounding) const {
    const auto width = static_cast<std::size_t>(config_.cache_width(use.cache, layer_));
    const std::size_t row = rows.size() / static_cast<std::size_t>(rows_);
    host::Values entries;
    for (std::size_t first = static_cast<std::size_t>(use.column); first < rows.size(); first += row) {
      const auto from = rows.begin() + static_cast<std::ptrdiff_t>(first);
      entries.insert(entries.end(), from, from + static_cast<std::ptrdiff_t>(width));
    }
    return rounding ? rounding.kept(entries, step) : entries;
  }

  static double squared_error(const host::Values& computed, const host::Values& recorded) {
    double off = 0, all = 0;
    for (std::size_t i = 0; i < std::min(computed.size(), recorded.size()); ++i) {
      off += (computed[i] - recorded[i]) * (computed[i] - recorded[i]);
      all += computed[i] * computed[i];
    }
    return all > 0 ? off / all : 0;
  }

  const Recording& recording_;
  const ModelConfig& config_;
  int request_, layer_, rows_;
  bool rounds_operands_ = false;
  std::vector<std::byte> memory_;
};

// Whether whole blocks of the type make a position's keys of every layer.
bool is_possible(const CacheType& type, const ModelConfig& config) {
  if (!type.rounding) return true;
  for (std::size_t c = 0; c < config.caches.size(); ++c)
    for (int layer = 0; layer < config.layers; ++layer)
      if (config.cache_width(config.caches[c], layer) % host::block_of(*type.rounding) != 0) return false;
  return true;
}

}  // namespace

const FittedCache* CacheFit::best() const {
  constexpr double clearly = 1.2;  // times less: flash attention may add its values up in 16 bits besides
  if (tried.empty()) return nullptr;
  const auto least = std::min_element(tried.begin(), tried.end(),
                                      [](const FittedCache& a, const FittedCache& b) { return a.error < b.error; });
  return least->error * clearly < tried.front().error ? &*least : nullptr;
}

CacheFit fit_kv_cache(const Recording& recording, const ModelConfig& config, const Program& program) {
  CacheFit fit;
  for (int r = 0; r < static_cast<int>(recording.requests().size()) && fit.tried.empty(); ++r)
    for (int layer = 0; layer < config.layers && fit.tried.empty(); ++layer) {
      const RecordedRequest& request = recording.requests()[static_cast<std::size_t>(r)];
      LayerRows rows(recording, config, r, layer, std::min(request.end, rows_looked_at));
      if (request.first > 0) continue;
      const auto try_type = [&](const std::string& name, const CacheRounding& rounding) {
        const std::vector<double> squares = rows.errors(program, rounding);
        if (!squares.empty())
          fit.tried.push_back({name, std::sqrt(std::accumulate(squares.begin(), squares.end(), 0.0) /
                                               static_cast<double>(squares.size()))});
      };
      try_type("", {});
      for (const CacheType& type : all_cache_types()) {
        if (fit.tried.empty() || !type.rounding || !is_possible(type, config)) continue;
        for (const bool operands : {false, true}) {
          if (operands && host::block_of(*type.rounding) > 1) continue;
          rows.round_operands(operands);
          try_type(std::string(type.name), CacheRounding(type.name, ""));
        }
      }
    }
  return fit;
}

std::string text_of(const CacheFit& fit) {
  const FittedCache* best = fit.best();
  if (!best) return "";
  return fmt::format("a KV cache in {} fits: attention differs by {:.2g}, by {:.2g} with keys and values as they are",
                     best->kv_cache, best->error, fit.tried.front().error);
}

}  // namespace moe_diag
