// SPDX-License-Identifier: MIT
#include "core/conformance/made_inputs.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <span>
#include <tuple>

namespace moe_diag {
namespace {

std::mt19937_64 generator_of(Stage stage) { return std::mt19937_64(0x6d6f65 + stage.index()); }

double in_f32(double x) { return static_cast<double>(static_cast<float>(x)); }

host::Values bell_curve(std::size_t count, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  host::Values values(count);
  for (double& v : values) v = normal(random);
  return values;
}

// A product of equal values with weights whose sum is near zero cancels: there, they differ in sign.
host::Values made_values(Stage stage, std::size_t count, const InputSpec& spec, bool is_multiplied) {
  constexpr double denormal = 1e-40, constant = 0.7;
  std::mt19937_64 random = generator_of(stage);
  host::Values values = bell_curve(count, random);
  for (double& v : values) {
    switch (spec.values) {
      case Making::random: break;
      case Making::large: v *= spec.scale; break;
      case Making::tiny: v /= spec.scale; break;
      case Making::denormal: v *= denormal; break;
      case Making::constant: v = is_multiplied && v < 0 ? -constant : constant; break;
      case Making::zeros: v = 0; break;
    }
    v = in_f32(v);
  }
  return values;
}

// Shares that sum to one, some of them equal: at first logits, in groups of which the first `seen` count.
void make_shares(std::span<double> group, std::size_t seen, const InputSpec& spec) {
  constexpr double far_apart = 40, steps = 4;
  double sum = 0;
  for (std::size_t i = 0; i < group.size(); ++i) {
    double logit = std::round(group[i] * steps) / steps;
    if (spec.values == Making::constant || spec.values == Making::zeros) logit = 0;
    if (spec.values == Making::large) logit *= far_apart;
    group[i] = i < seen ? std::exp(logit) : 0;
    sum += group[i];
  }
  for (double& v : group) v = in_f32(v / sum);
}

host::Values made_shares(Stage stage, std::size_t rows, const Shape& shape, const InputSpec& spec) {
  std::mt19937_64 random = generator_of(stage);
  host::Values values = bell_curve(static_cast<std::size_t>(shape.count()), random);
  const auto width = static_cast<std::size_t>(shape[shape.rank - 1]);
  const std::size_t groups = values.size() / width / rows;
  for (std::size_t at = 0; at < values.size(); at += width) {
    const std::size_t row = at / width / groups;
    make_shares({values.data() + at, width}, is(stage, Role::key_values) ? row + 1 : width, spec);
  }
  return values;
}

host::Values made_choice(Stage stage, const ModelConfig& config, std::size_t rows, bool one_choice) {
  std::mt19937_64 random = generator_of(stage);
  std::vector<int> all(static_cast<std::size_t>(config.experts));
  std::iota(all.begin(), all.end(), 0);
  host::Values ids;
  for (std::size_t row = 0; row < rows; ++row) {
    if (row == 0 || !one_choice)
      for (std::size_t i = all.size() - 1; i > 0; --i) std::swap(all[i], all[random() % (i + 1)]);
    ids.insert(ids.end(), all.begin(), all.begin() + config.used);
  }
  return ids;
}

bool is_of_shares(const Step& step, Stage stage) {
  return is(stage, Role::router_probs) || is(stage, Role::choice_weights) ||
         (is(stage, Role::key_values) && reads_cache(step));
}

PlainStep computed(const TriedModel& model, const Step& step, int rows, const InputSpec& spec) {
  PlainStep plain{made_inputs(model, step, rows, spec), {}};
  StepInputs inputs = plain.inputs;
  for (std::size_t i = 0; i < step.in.size(); ++i)
    if (step.cached(i))
      inputs.in[i] = cached_columns(model, step, i, plain.inputs.in[i], static_cast<std::size_t>(rows));
  for (std::size_t output = 0; output < step.out.size(); ++output)
    plain.out.push_back(compute(step, model.config(), inputs, nullptr, output));
  return plain;
}

}  // namespace

std::string InputSpec::text() const {
  constexpr std::string_view names[] = {"random", "large", "tiny", "denormal", "constant", "zero"};
  return std::string(names[static_cast<std::size_t>(values)]) + " inputs" +
         (one_choice ? ", all rows of the same experts" : "");
}

std::vector<std::int32_t> made_tokens(const ModelConfig& config, int rows) {
  std::mt19937_64 random(11);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(rows));
  for (std::int32_t& token : tokens)
    token = static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(config.vocab));
  return tokens;
}

StepInputs made_inputs(const TriedModel& model, const Step& step, int rows, const InputSpec& spec) {
  StepInputs inputs;
  inputs.total = rows;
  inputs.positions.resize(static_cast<std::size_t>(rows));
  std::iota(inputs.positions.begin(), inputs.positions.end(), 0);
  inputs.tokens = made_tokens(model.config(), rows);
  const std::vector<Site> sites = inputs_of(model.program, {step.out[0], step.layer});
  for (std::size_t i = 0; i < sites.size(); ++i) {
    const Shape shape = model.config().shape_of(sites[i], rows, rows);
    const auto count = static_cast<std::size_t>(rows);
    if (payload_of(sites[i].stage) == Payload::indices)
      inputs.in[i] = made_choice(sites[i].stage, model.config(), count, spec.one_choice);
    else if (is_of_shares(step, sites[i].stage))
      inputs.in[i] = made_shares(sites[i].stage, count, shape, spec);
    else
      inputs.in[i] =
          made_values(sites[i].stage, static_cast<std::size_t>(shape.count()), spec, is_product(operator_of(step)));
  }
  return inputs;
}

const PlainStep& plain_step(const TriedModel& model, std::size_t step, int rows, const InputSpec& spec) {
  using Key = std::tuple<const TriedModel*, std::size_t, int, Making, bool, double>;
  static std::map<Key, PlainStep> kept;
  const Step& of = model.program[step];
  const Key key{&model, step, has_keys(of) ? rows : 0, spec.values, spec.one_choice, spec.scale};
  const auto found = kept.find(key);
  if (found != kept.end() && static_cast<int>(found->second.inputs.positions.size()) >= rows) return found->second;
  return kept[key] = computed(model, of, rows, spec);
}

host::Values cached_columns(const TriedModel& model, const Step& step, std::size_t input, const host::Values& whole,
                            std::size_t rows) {
  const CacheUse& use = *step.cached(input);
  const auto width = static_cast<std::size_t>(model.config().cache_width(use.cache, step.layer));
  const std::size_t row = whole.size() / rows;
  host::Values columns;
  for (std::size_t at = static_cast<std::size_t>(use.column); at < whole.size(); at += row)
    columns.insert(columns.end(), whole.begin() + static_cast<std::ptrdiff_t>(at),
                   whole.begin() + static_cast<std::ptrdiff_t>(at + width));
  return columns;
}

bool has_choice(const Step& step) {
  return std::any_of(step.in.begin(), step.in.end(), [](Stage s) { return payload_of(s) == Payload::indices; });
}

bool has_keys(const Step& step) {
  const auto is_keys = [](Stage stage) { return is(stage, Role::key_values); };
  return std::any_of(step.in.begin(), step.in.end(), is_keys) || std::any_of(step.out.begin(), step.out.end(), is_keys);
}

}  // namespace moe_diag
