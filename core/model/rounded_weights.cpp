// SPDX-License-Identifier: MIT
#include "core/model/rounded_weights.hpp"

#include <tbb/parallel_for.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/ops/operator.hpp"

namespace moe_diag {

namespace {

using List = Few<const Weight*, most_weights>;

List replaced(const List& list, const std::map<const Weight*, const Weight*>& by) {
  List few;
  for (const Weight* weight : list) {
    const auto found = by.find(weight);  // a part of a model lacks some
    few.push_back(found == by.end() ? weight : found->second);
  }
  return few;
}

}  // namespace

RoundedWeights::RoundedWeights(const ModelView& model, const Program& program, const WeightType& type)
    : rounding_(*type.rounding), weights_(model.weights.begin(), model.weights.end()), program_(program) {
  std::set<const Weight*> rounded, exact;
  for (const Step& step : program)
    for (const Weight* weight : step.weights) (type.of(step) ? rounded : exact).insert(weight);
  for (std::size_t i = 0; i < model.weights.size(); ++i) {
    const Weight& weight = model.weights[i];
    if (rounded.count(&weight) == 0 || weight.type == host::type_of(rounding_))
      continue;  // such values stay as they are
    copies_.push_back({&weight, i, nullptr});
    if (exact.count(&weight) > 0) {  // the table of a tied head, which tokens read as it is
      copies_.back().to = weights_.size();
      weights_.push_back(weight);
    }
    weights_[copies_.back().to].type = host::type_of(rounding_);
    weights_[copies_.back().to].data = nullptr;
  }
  view_ = {model.config, weights_};
  std::map<const Weight*, const Weight*> as_they_are, as_products_read;  // from here on weights_ stay where they are
  for (std::size_t i = 0; i < model.weights.size(); ++i) as_they_are[&model.weights[i]] = &weights_[i];
  as_products_read = as_they_are;
  for (const Copy& copy : copies_) as_products_read[copy.from] = &weights_[copy.to];
  for (Step& step : program_) {
    step.weights = replaced(step.weights, type.of(step) ? as_products_read : as_they_are);
    step.biases = replaced(step.biases, as_they_are);
  }
}

std::uint64_t RoundedWeights::bytes() const {
  std::uint64_t bytes = 0;
  for (const Copy& copy : copies_) bytes += weights_[copy.to].bytes();
  return bytes;
}

void RoundedWeights::make() {
  if (is_made_) return;
  for (Copy& copy : copies_) {
    copy.memory.reset(new std::byte[weights_[copy.to].bytes()]);
    weights_[copy.to].data = copy.memory.get();
    round(copy);
  }
  is_made_ = true;
}

void RoundedWeights::round(const Copy& copy) const {
  const Weight& to = weights_[copy.to];
  const std::int64_t strips = (to.rows + host::weight_block - 1) / host::weight_block;
  tbb::parallel_for(std::int64_t{0}, to.experts * strips, [&](std::int64_t i) {
    const std::int64_t expert = i / strips, first = i % strips * host::weight_block;
    std::byte* const out = copy.memory.get() + (to.row(expert, first) - to.data);
    host::round_rows(host::Matrix(*copy.from, expert), first, rounding_, out);
  });
}

}  // namespace moe_diag
