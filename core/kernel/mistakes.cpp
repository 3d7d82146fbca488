// SPDX-License-Identifier: MIT
#include "core/kernel/mistakes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <numeric>
#include <set>
#include <utility>

#include "core/compare/step_units.hpp"
#include "core/ops/hypotheses.hpp"

namespace moe_diag {
namespace {

const Fault& transposed() {
  static const Fault fault = [] {
    Fault f;
    f.kind = Fault::Kind::transpose;
    return f;
  }();
  return fault;
}

bool reads_experts(const Step& step) { return operator_of(step).weights == WeightRows::of_experts; }

// Which of a step's inputs is the stage of that role; -1: none.
int input_of_role(const Step& step, Role role) {
  for (std::size_t i = 0; i < step.in.size(); ++i)
    if (is(step.in[i], role)) return static_cast<int>(i);
  return -1;
}

class MistakeList {
 public:
  MistakeList(const Span& span, const ModelConfig& config, const Program& program, const SpanValues& right)
      : span_(span), config_(config), program_(program), right_(right) {}

  std::vector<SpanMistake> take() {
    add_wrong_experts();
    add_dropped_experts();
    add_weights_applied_twice();
    add_wrong_caches();
    for (std::size_t i = 0; i < span_.steps.size(); ++i) add_own_of(i);
    for (std::size_t i = 0; i < span_.steps.size(); ++i) add_transposed(i);
    return std::move(list_);
  }

 private:
  using NewId = std::function<double(double id, std::size_t slot)>;

  // The first step that reads experts; all where there is none.
  std::size_t first_of_experts() const {
    std::size_t i = 0;
    while (i < span_.steps.size() && !reads_experts(span_.steps[i])) ++i;
    return i;
  }

  // Ids changed in one step, or in all that read experts (-1).
  void add_ids(const std::string& text, int only, const NewId& new_id) {
    SpanMistake m{text, only < 0 ? first_of_experts() : static_cast<std::size_t>(only)};
    const std::size_t used = static_cast<std::size_t>(config_.used);
    m.inputs = [&span = span_, only, new_id, used](std::size_t i, StepInputs& inputs) {
      if (!reads_experts(span.steps[i]) || (only >= 0 && static_cast<std::size_t>(only) != i)) return;
      host::Values& ids = inputs.in[static_cast<std::size_t>(input_of_role(span.steps[i], Role::choice))];
      for (std::size_t k = 0; k < ids.size(); ++k) ids[k] = new_id(ids[k], k % used);
    };
    list_.push_back(std::move(m));
  }

  void add_wrong_experts() {
    std::vector<int> steps;
    for (std::size_t i = 0; i < span_.steps.size(); ++i)
      if (reads_experts(span_.steps[i])) steps.push_back(static_cast<int>(i));
    if (steps.empty()) return;
    std::vector<int> places = steps;
    if (steps.size() > 1) places.insert(places.begin(), -1);
    const double experts = config_.experts;
    for (const int only : places) {
      const std::string where =
          only < 0 ? "" : fmt::format("in {}, ", name_of(span_.steps[static_cast<std::size_t>(only)].out[0]));
      for (const int shift : {1, -1})
        add_ids(fmt::format("{}expert e is computed with the weights of expert (e {} 1) mod {}", where,
                            shift > 0 ? '+' : '-', config_.experts),
                only, [=](double id, std::size_t) {
                  return id + shift < 0 ? experts - 1 : id + shift >= experts ? 0 : id + shift;
                });
      add_ids(fmt::format("{}slot j is computed with the weights of expert j, whichever was chosen", where), only,
              [](double, std::size_t slot) { return static_cast<double>(slot); });
    }
  }

  // Weights of the choice changed, in the step that applies them.
  void add_choice_weights(const std::string& text, const std::function<double(double weight, double id)>& new_weight) {
    for (std::size_t i = 0; i < span_.steps.size(); ++i) {
      const int input = input_of_role(span_.steps[i], Role::choice_weights);
      if (input < 0 || !span_.choice) continue;
      SpanMistake m{text, i};
      m.inputs = [&ids = right_.at(span_.choice), i, input, new_weight](std::size_t step, StepInputs& inputs) {
        if (step != i) return;
        host::Values& weights = inputs.in[static_cast<std::size_t>(input)];
        for (std::size_t k = 0; k < weights.size(); ++k) weights[k] = new_weight(weights[k], ids[k]);
      };
      list_.push_back(std::move(m));
    }
  }

  void add_dropped_experts() {
    if (!span_.choice) return;
    const host::Values& ids = right_.at(span_.choice);
    for (const double dropped : std::set<double>(ids.begin(), ids.end()))
      add_choice_weights(fmt::format("expert {} is not added", dropped),
                         [dropped](double weight, double id) { return id == dropped ? 0 : weight; });
  }

  void add_weights_applied_twice() {
    add_choice_weights("the router's weights are applied twice", [](double weight, double) { return weight * weight; });
  }

  // The positions before the rows: not attended to, or read as zeros.
  void add_wrong_caches() {
    const int first = right_.first();
    std::size_t from = 0;
    while (from < span_.steps.size() && !reads_cache(span_.steps[from])) ++from;
    if (first == 0 || from == span_.steps.size()) return;
    SpanMistake unseen{fmt::format("the {} positions in the cache are not attended to", first), from};
    unseen.inputs = [&span = span_, first](std::size_t i, StepInputs& inputs) {
      const Step& step = span.steps[i];
      if (!reads_cache(step) && !is(step.out[0], Role::key_values)) return;
      for (int& position : inputs.positions) position -= first;
      inputs.total -= first;
      drop_earlier(step, first, inputs, false);
    };
    list_.push_back(std::move(unseen));
    for (const SpanCache& cache : span_.caches) {
      SpanMistake zero{fmt::format("the {} in the cache are read as zeros", name_of(cache.cache)), from};
      zero.inputs = [&span = span_, first, cache](std::size_t i, StepInputs& inputs) {
        if (span.steps[i].caches.size() > 0 && span.steps[i].caches[0].cache == cache.cache)
          drop_earlier(span.steps[i], first, inputs, true);
      };
      list_.push_back(std::move(zero));
    }
  }

  // Of what a step reads of all positions, the first ones: gone, or zeros.
  static void drop_earlier(const Step& step, int first, StepInputs& inputs, bool zeros) {
    for (std::size_t i = 0; i < step.in.size(); ++i) {
      if (!step.cached(i)) continue;
      host::Values& all = inputs.in[i];
      const auto row = std::ssize(all) / (first + std::ssize(inputs.positions));
      if (zeros)
        std::fill_n(all.begin(), first * row, 0.0);
      else
        all.erase(all.begin(), all.begin() + first * row);
    }
  }

  void add_transposed(std::size_t i) {
    const Step& step = span_.steps[i];
    if (!is_product(operator_of(step)) || step.weights.size() != 1) return;
    SpanMistake m{fmt::format("{} is read column by column", step.weights[0]->name), i};
    m.fault = &transposed();
    list_.push_back(std::move(m));
  }

  // Mistakes that the operator of a step knows of itself.
  void add_own_of(std::size_t i);

  const Span& span_;
  const ModelConfig& config_;
  const Program& program_;
  const SpanValues& right_;
  std::vector<SpanMistake> list_;
};

// A step on the right values, as a case that an operator makes its hypotheses of. Nothing of it moves.
struct RightStep {
  RightStep(const Span& span, const Step& own, const ModelConfig& config, std::span<const Step> program,
            const SpanValues& right)
      : step(own), known{c, config, program} {
    c.step = &step;
    c.stage = step.out[step.out.size() - 1];
    for (std::size_t i = 0; i < step.in.size(); ++i)
      c.in[i] = keep(step.cached(i) ? of_all_positions(i, *step.cached(i), config, right)
                                    : stored(right, {step.in[i], step.layer}, config, DType::f64));
    c.first_position = right.first();
    c.a = c.b = keep(stored(right, {c.stage, step.layer}, config, DType::f64));
    if (is_per_expert(c.stage))
      c.routing_a = c.routing_b = keep(stored(right, {span.choice, step.layer}, config, DType::i32));
    c.numerics = "f32";
    units = units_of(c, config);
    for (const StepUnit& unit : units) all.push_back(&unit);
  }
  RightStep(const RightStep&) = delete;
  RightStep& operator=(const RightStep&) = delete;

  Tensor keep(StoredTensor tensor) {
    kept.push_back(std::make_unique<StoredTensor>(std::move(tensor)));
    return kept.back()->tensor();
  }

  // An input that is cached, with zeros where nothing of it is.
  StoredTensor of_all_positions(std::size_t input, const CacheUse& use, const ModelConfig& config,
                                const SpanValues& right) const {
    const Site site{step.in[input], step.layer};
    const host::Values& rows = right.at(site.stage);
    const host::Values& earlier = right.earlier.at(use.cache.index());
    const std::ptrdiff_t row = std::ssize(rows) / right.rows(), width = config.cache_width(use.cache, step.layer);
    SpanValues whole;
    whole.positions.resize(static_cast<std::size_t>(right.total()));
    std::iota(whole.positions.begin(), whole.positions.end(), 0);
    host::Values& values = whole.of[site.stage];
    values.resize(static_cast<std::size_t>(right.first() * row));
    for (std::ptrdiff_t p = 0; p < right.first(); ++p)
      std::copy_n(earlier.begin() + p * width, width, values.begin() + p * row + use.column);
    values.insert(values.end(), rows.begin(), rows.end());
    return stored(whole, site, config, DType::f64);
  }

  // All values of the step under the hypothesis; empty where it is not possible.
  host::Values values(const Hypothesis& h) const {
    host::Values out = host::values_of(c.a);
    for (const StepUnit* unit : all) {
      host::Values own;
      if (h.row) {
        own = h.row(*unit);
      } else {
        std::vector<std::int64_t> elements(static_cast<std::size_t>(unit->size));
        std::iota(elements.begin(), elements.end(), std::int64_t{0});
        own = h.elements({unit}, elements);
      }
      if (static_cast<std::int64_t>(own.size()) != unit->size) return {};
      for (std::int64_t k = 0; k < unit->size; ++k)
        out[static_cast<std::size_t>(unit->in_a(k))] = own[static_cast<std::size_t>(k)];
    }
    return out;
  }

  const Step& step;
  std::vector<std::unique_ptr<StoredTensor>> kept;
  StepCase c;
  StepKnowledge known;
  std::vector<StepUnit> units;
  FailingUnits all;
};

void MistakeList::add_own_of(std::size_t i) {
  const Step& step = span_.steps[i];
  if (!operator_of(step).add_hypotheses || step.weights.size() > 1) return;
  const auto own = std::make_shared<RightStep>(span_, step, config_, program_, right_);
  if (own->all.empty()) return;
  for (Hypothesis& h : operator_hypotheses(own->known, own->all)) {
    SpanMistake m{fmt::format("in {}, {}", name_of(own->c.stage), h.text), i};
    if (h.text.empty()) m.text = fmt::format("in {}: {}", name_of(own->c.stage), name_of(h.cause));
    m.output = [own, h = std::move(h)](const SpanValues&) { return own->values(h); };
    list_.push_back(std::move(m));
  }
}

}  // namespace

std::vector<SpanMistake> span_mistakes(const Span& span, const ModelConfig& config, const Program& program,
                                       const SpanValues& right) {
  return MistakeList(span, config, program, right).take();
}

host::Values output_with(const SpanMistake& mistake, const Span& span, const ModelConfig& config,
                         const SpanValues& right) {
  SpanValues values = right;
  for (std::size_t i = mistake.from; i < span.steps.size(); ++i) {
    const Step& step = span.steps[i];
    StepInputs inputs = inputs_of(step, config, values);
    if (mistake.inputs) mistake.inputs(i, inputs);
    const bool here = i == mistake.from;
    for (std::size_t output = 0; output < step.out.size(); ++output)
      values.of[step.out[output]] = computed(span, step, config, inputs, here ? mistake.fault : nullptr, output);
    if (!here || !mistake.output) continue;
    host::Values written = mistake.output(right);
    if (written.empty()) return {};
    values.of[step.out[step.out.size() - 1]] = std::move(written);
  }
  return values.at(span.output);
}

}  // namespace moe_diag
