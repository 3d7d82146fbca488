// SPDX-License-Identifier: MIT
#include "core/conformance/plain_pass.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "core/conformance/made_inputs.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/step_case.hpp"

namespace moe_diag {
namespace {

struct Noise {
  const LaneNumerics& lane;
  double times;
  std::mt19937_64 random;
};

void add_noise(const TriedModel& model, const Step& step, const StepInputs& inputs, host::Values& values,
               const Shape& shape, Noise& noise) {
  const auto width = static_cast<std::size_t>(shape[shape.rank - 1]);
  const std::size_t rows = inputs.positions.size(), groups = values.size() / width / rows;
  for (std::size_t at = 0; at < values.size(); at += width) {
    const std::size_t row = at / width / groups;
    double error = *expected_error(noise.lane, step, model.config(), inputs.positions[row] + 1);
    if (width == 1 && step.in.size() > 0) {
      const std::size_t n = inputs.in[0].size() / rows;
      error *= cancellation(step, {inputs.in[0].data() + row * n, n}, values[at]);
    }
    double squares = 0;
    for (std::size_t i = 0; i < width; ++i) squares += values[at + i] * values[at + i];
    const double size = noise.times * error * std::sqrt(3 * squares / static_cast<double>(width));
    for (std::size_t i = 0; i < width; ++i)
      values[at + i] += size * (2 * (static_cast<double>(noise.random() >> 11) * 0x1p-53) - 1);
  }
}

void compute_steps(const TriedModel& model, std::span<const Step> steps, PlainPass& pass, Noise* noise) {
  StepInputs inputs;
  inputs.total = pass.rows;
  inputs.tokens = pass.tokens;
  inputs.positions.resize(static_cast<std::size_t>(pass.rows));
  std::iota(inputs.positions.begin(), inputs.positions.end(), 0);
  for (const Step& step : steps) {
    for (std::size_t i = 0; i < step.in.size(); ++i) {
      const host::Values& whole = pass.of[step.in[i].index()];
      inputs.in[i] =
          step.cached(i) ? cached_columns(model, step, i, whole, static_cast<std::size_t>(pass.rows)) : whole;
    }
    for (std::size_t o = 0; o < step.out.size(); ++o) {
      host::Values& out = pass.of[step.out[o].index()];
      out = compute(step, model.config(), inputs, nullptr, o);
      const bool is_choice = payload_of(step.out[o]) == Payload::indices;
      if (is_choice) pass.choices.push_back(out);
      if (!is_choice && noise)
        add_noise(model, step, inputs, out, model.config().shape_of({step.out[o], step.layer}, pass.rows, pass.rows),
                  *noise);
    }
  }
}

PlainPass with_noise(const TriedModel& model, std::span<const Step> steps, const PlainPass& before,
                     const LaneNumerics& lane, double times, std::uint64_t seed) {
  Noise noise{lane, times, std::mt19937_64(seed)};
  PlainPass pass = before;
  compute_steps(model, steps, pass, &noise);
  return pass;
}

bool same_choices(const PlainPass& a, const PlainPass& b, int row) {
  for (std::size_t i = 0; i < a.choices.size(); ++i) {
    const auto width = static_cast<std::ptrdiff_t>(a.choices[i].size()) / a.rows;
    const auto x = a.choices[i].begin() + row * width, y = b.choices[i].begin() + row * width;
    if (!std::equal(x, x + width, y)) return false;
  }
  return true;
}

double difference(std::span<const double> a, std::span<const double> b) {
  double off = 0, all = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    off += (a[i] - b[i]) * (a[i] - b[i]);
    all += b[i] * b[i];
  }
  return off == 0 ? 0 : std::sqrt(off / all);
}

}  // namespace

std::span<const double> PlainPass::row(Stage stage, int r) const {
  const std::span<const double> all = of[stage.index()];
  const std::size_t width = all.size() / static_cast<std::size_t>(rows);
  return all.subspan(static_cast<std::size_t>(r) * width, width);
}

PlainPass plain_pass(const TriedModel& model, std::span<const std::int32_t> tokens) {
  PlainPass pass;
  pass.rows = static_cast<int>(tokens.size());
  pass.tokens.assign(tokens.begin(), tokens.end());
  pass.of.resize(model.config().stages.size());
  return pass;
}

void compute_plainly(const TriedModel& model, std::span<const Step> steps, PlainPass& pass) {
  compute_steps(model, steps, pass, nullptr);
}

std::vector<double> allowed_errors(const TriedModel& model, std::span<const Step> steps, const PlainPass& before,
                                   const LaneNumerics& lane) {
  constexpr double near = 4;  // times the predicted noise: a choice that this changes is nobody's fault
  PlainPass exact = before;
  compute_plainly(model, steps, exact);
  const Stage last = steps.back().out[steps.back().out.size() - 1];
  std::vector<double> allowed(static_cast<std::size_t>(before.rows), 0);
  std::uint64_t seed = 0;
  for (const double times : {1.0, 1.0, 1.0, near, near}) {
    const PlainPass noisy = with_noise(model, steps, before, lane, times, ++seed);
    for (int r = 0; r < before.rows; ++r) {
      double& most = allowed[static_cast<std::size_t>(r)];
      if (!same_choices(exact, noisy, r)) most = std::numeric_limits<double>::infinity();
      if (times == 1) most = std::max(most, failing_error * difference(noisy.row(last, r), exact.row(last, r)));
    }
  }
  return allowed;
}

}  // namespace moe_diag
