// SPDX-License-Identifier: MIT
#include "core/plan/plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <stdexcept>
#include <utility>

namespace moe_diag {
namespace {

// Resolves selections and keeps every mistake until all are found.
class Planner {
 public:
  Planner(const Contract& contract, const Model& model, bool controls, const Recordings* recordings)
      : contract_(contract),
        recordings_(recordings),
        model_(model),
        config_(model.config()),
        program_(build_program(model)),
        controls_(controls) {}

  Plan make() {
    check_prompts();
    if (const std::string mistakes = step_mistakes(contract_, model_, program_); !mistakes.empty())
      throw Error(ErrorKind::usage, mistakes);
    Plan plan;
    plan.contract = &contract_;
    for (const FalsifierSpec& spec : contract_.falsifiers) {
      plan.falsifiers.push_back({&spec,
                                 lane(spec.lane),
                                 lane(spec.against),
                                 sites(spec.stages, spec.layers, spec.where, recording_of(spec)),
                                 positions(spec.positions, spec.prompts, spec.where),
                                 lane(spec.floor),
                                 {},
                                 experts(spec)});
      set_bounds(plan.falsifiers.back());
      check_k(spec);
      if (controls_)
        for (const FaultSpec& fault : spec.controls) check_fault(fault);
    }
    for (const FaultSpec& fault : contract_.planted) check_fault(fault);
    for (const CaptureSpec& spec : contract_.capture)
      (spec.when == CaptureSpec::When::always ? plan.captures : plan.evidence).push_back(capture(spec));
    if (!mistakes_.empty()) throw Error(ErrorKind::usage, mistakes_);
    find_head_rows(plan);
    plan.program = std::move(program_);
    if (recordings_) plan.spans = std::make_shared<const RecordedSpans>(contract_, plan.program, *recordings_);
    plan.chooser = chooser();
    return plan;
  }

 private:
  void mistake(const Where& where, const std::string& what) {
    if (!mistakes_.empty()) mistakes_ += '\n';
    mistakes_ += fmt::format("{}: {}", contract_.at(where), what);
  }

  void check_prompts() {
    for (const PromptSpec& prompt : contract_.prompts) {
      for (std::size_t i = 0; prompt.has_tokens() && i < prompt.tokens.size(); ++i)
        if (prompt.tokens[i] < 0 || prompt.tokens[i] >= config_.vocab)
          mistake(prompt.where, fmt::format("prompt '{}': token {} at position {} is outside the vocabulary, 0 to {}",
                                            prompt.id, prompt.tokens[i], i, config_.vocab - 1));
      if (config_.context > 0 && prompt.length() > config_.context)
        mistake(
            prompt.where,
            fmt::format("prompt '{}' has {} tokens{}, the model's context is {}", prompt.id, prompt.tokens.size(),
                        prompt.generate > 0 ? fmt::format(" and generates {}", prompt.generate) : "", config_.context));
    }
  }

  int lane(const std::string& name) const {
    for (std::size_t i = 0; i < contract_.lanes.size(); ++i)
      if (contract_.lanes[i].name == name) return static_cast<int>(i);
    return -1;
  }

  // Whose sites a falsifier with `stage: recorded` looks at; null: it looks at all.
  const Recording* recording_of(const FalsifierSpec& spec) {
    if (spec.recorded == FalsifierSpec::Recorded::no || !recordings_) return nullptr;
    for (const std::string& name : {spec.lane, spec.against})
      if (const int i = lane(name); i >= 0 && contract_.lanes[static_cast<std::size_t>(i)].replay)
        return recordings_->of(static_cast<std::size_t>(i));
    mistake(spec.where,
            fmt::format("falsifier '{}': stage: {}: neither of its lanes is a recording", spec.id, spec.stages.text));
    return nullptr;
  }

  SiteSet sites(const StageSelection& stages, const IndexSelection& layers, const Where& where,
                const Recording* recording = nullptr) {
    SiteSet set(config_);
    std::vector<int> chosen;
    try {
      chosen = layers.resolve(config_.layers);
    } catch (const std::exception& e) {
      mistake(where, fmt::format("layers: {}", e.what()));
    }
    const auto insert = [&](Site site) {
      if (find_step(program_, site) && (!recording || recording->has(site))) set.insert(site);
    };
    for (Stage stage : stages.stages) {
      if (info(stage).scope != Scope::layer) {
        insert({stage, -1});
        continue;
      }
      for (int l : chosen) insert({stage, l});
    }
    if (model_.part() && set.in_forward_order().empty())
      mistake(where, fmt::format("nothing of this is computed: the model is a part, which has {} alone",
                                 text_of(program_.front())));
    return set;
  }

  Positions positions(const IndexSelection& selection, const std::vector<std::string>& prompts, const Where& where) {
    Positions all;
    for (const PromptSpec& prompt : contract_.prompts) {
      all.emplace_back();
      if (prompt.length() == 0) continue;  // of a recording that is absent
      if (!prompts.empty() && std::find(prompts.begin(), prompts.end(), prompt.id) == prompts.end()) continue;
      try {
        all.back() = selection.resolve(prompt.length());
      } catch (const std::exception& e) {
        mistake(where, fmt::format("positions: prompt '{}': {}", prompt.id, e.what()));
      }
    }
    return all;
  }

  std::vector<int> experts(const FalsifierSpec& spec) {
    if (!spec.experts) return {};
    try {
      return spec.experts->resolve(config_.experts);
    } catch (const std::exception& e) {
      mistake(spec.where, fmt::format("falsifier '{}': experts: {}", spec.id, e.what()));
      return {};
    }
  }

  WatchedCapture capture(const CaptureSpec& spec) {
    WatchedCapture watched{
        &spec, {}, {}, sites(spec.stages, spec.layers, spec.where), positions(spec.positions, {}, spec.where)};
    for (const std::string& name : spec.lanes) watched.lanes.push_back(lane(name));
    for (const std::string& name : spec.to)
      for (std::size_t i = 0; i < contract_.sinks.size(); ++i)
        if (contract_.sinks[i].name == name) watched.sinks.push_back(static_cast<int>(i));
    return watched;
  }

  // Which override is in force where.
  void set_bounds(WatchedFalsifier& watched) {
    const FalsifierSpec& spec = *watched.spec;
    if (spec.per_stage.empty() && spec.per_type.empty()) return;
    std::set<BlockType> types;                        // of the weights behind the sites
    std::vector<int> sites_of(spec.per_type.size());  // how many sites each is in force at
    for (Site site : watched.sites.in_forward_order()) {
      const auto stage = std::find_if(spec.per_stage.begin(), spec.per_stage.end(), [&](const StageBound& entry) {
        return std::find(entry.stages.begin(), entry.stages.end(), site.stage) != entry.stages.end();
      });
      const std::set<BlockType> read = types_at(site);
      types.insert(read.begin(), read.end());
      const auto type = std::find_if(spec.per_type.begin(), spec.per_type.end(), [&](const TypeBound& entry) {
        return std::any_of(entry.types.begin(), entry.types.end(), [&](BlockType t) { return read.count(t) > 0; });
      });
      if (stage != spec.per_stage.end()) {
        watched.bounds[site] = stage->bound;
      } else if (type != spec.per_type.end()) {
        watched.bounds[site] = type->bound;
        ++sites_of[static_cast<std::size_t>(type - spec.per_type.begin())];
      }
    }
    for (std::size_t i = 0; i < sites_of.size(); ++i)
      if (sites_of[i] == 0) refuse_type(spec.per_type[i], types);
  }

  std::set<BlockType> types_at(Site site) const {
    std::set<BlockType> types;
    if (const Step* step = find_step(program_, site))
      for (const Weight* weight : step->weights) types.insert(weight->type);
    return types;
  }

  void refuse_type(const TypeBound& entry, const std::set<BlockType>& types) {
    std::vector<std::string_view> there, asked;
    for (BlockType type : types) there.push_back(name_of(type));
    for (BlockType type : entry.types) asked.push_back(name_of(type));
    const bool any =
        std::any_of(entry.types.begin(), entry.types.end(), [&](BlockType t) { return types.count(t) > 0; });
    mistake(entry.where,
            any ? fmt::format("{}: {} is never in force: overrides before it match the same sites", entry.path,
                              fmt::join(asked, ", "))
                : fmt::format("{}: no site of the falsifier reads a weight of type {}: there {}", entry.path,
                              fmt::join(asked, ", "),
                              there.empty() ? "are none with a weight" : fmt::format("is {}", fmt::join(there, ", "))));
  }

  void check_k(const FalsifierSpec& spec) {
    if (spec.metric != Metric::topk_overlap) return;
    for (Stage stage : spec.stages.stages)
      if (const std::int64_t row = config_.shape_of({stage, 0}, 1, 1).count(); spec.k > row)
        mistake(spec.where, fmt::format("falsifier '{}': k is {}, a row of {} has {} values", spec.id, spec.k,
                                        name_of(stage), row));
  }

  void check_fault(const FaultSpec& fault) {
    const std::string what = mistake_of(fault, contract_, config_, program_);
    if (!what.empty()) mistake(fault.where, what);
  }

  int chooser() const {
    const bool generates = std::any_of(contract_.prompts.begin(), contract_.prompts.end(),
                                       [](const PromptSpec& prompt) { return prompt.generate > 0; });
    return generates ? lane(contract_.oracle) : -1;
  }

  // final_norm and lm_head are computed from the first position on that anybody looks at, and always at the last.
  void find_head_rows(Plan& plan) const {
    const bool recut = std::any_of(plan.falsifiers.begin(), plan.falsifiers.end(), [](const WatchedFalsifier& f) {
      return f.spec->metric == Metric::identical && f.spec->to == Twin::chunks;
    });
    for (std::size_t p = 0; p < contract_.prompts.size(); ++p) {
      const PromptSpec& prompt = contract_.prompts[p];
      const int length = prompt.length();
      if (length == 0) {  // of a recording that is absent
        plan.head_first.push_back(0);
        continue;
      }
      int longest = recut ? length : 0, first = length - 1;
      for (const Stretch& stretch : stretches_of(prompt)) longest = std::max(longest, stretch.count);
      const auto look = [&](const SiteSet& set, const Positions& at) {
        const bool head = std::any_of(config_.stages.begin(), config_.stages.end(), [&](Stage stage) {
          return is_of_head(stage) && set.contains({stage, -1});
        });
        if (head && !at[p].empty()) first = std::min(first, at[p].front());
      };
      for (const WatchedFalsifier& f : plan.falsifiers) look(f.sites, f.positions);
      for (const WatchedCapture& c : plan.captures) look(c.sites, c.positions);
      for (const WatchedCapture& c : plan.evidence) look(c.sites, c.positions);
      if (contract_.step) first = contract_.step->first;
      plan.head_first.push_back(first);
      const int rows = contract_.step ? std::max(contract_.step->first, contract_.step->count) : longest;
      plan.request.rows = std::max(plan.request.rows, rows);
      plan.request.total = std::max(plan.request.total, length);
    }
  }

  const Contract& contract_;
  const Recordings* const recordings_;
  const Model& model_;
  const ModelConfig& config_;
  Program program_;
  const bool controls_;
  std::string mistakes_;
};

}  // namespace

std::vector<Site> SiteSet::in_forward_order() const {
  std::vector<Site> list;
  for (std::size_t i = 0; i < marks_.size(); ++i)
    if (marks_[i]) list.push_back({stages_[i % stages_.size()], static_cast<int>(i / stages_.size()) - 1});
  std::sort(list.begin(), list.end());
  return list;
}

std::vector<Stretch> stretches_of(const PromptSpec& prompt) {
  if (!prompt.calls.empty()) return prompt.calls;
  return stretches_of(static_cast<int>(prompt.tokens.size()), prompt.length(), prompt.chunk);
}

Plan make_plan(const Contract& contract, const Model& model, bool controls, const Recordings* recordings) {
  if (contract.stages.begin() != model.config().stages.begin())
    throw Error(ErrorKind::environment,
                fmt::format("{}: the file has changed since the contract was read", model.source()));
  return Planner(contract, model, controls, recordings).make();
}

bool in_lockstep(const FalsifierSpec& falsifier) {
  if (!is_alone(falsifier.metric)) return true;
  return falsifier.metric == Metric::identical && (falsifier.to == Twin::untraced || falsifier.to == Twin::digest);
}

std::vector<bool> with_feeders(const std::vector<int>& chosen, const Lanes& lanes) {
  std::vector<bool> needed(lanes.size(), false);
  const auto need = [&](int lane) {
    if (lane >= 0) needed[static_cast<std::size_t>(lane)] = true;
  };
  for (int lane : chosen) need(lane);
  for (std::size_t round = 0; round < lanes.size(); ++round)  // feeders may be fed themselves
    for (std::size_t i = 0; i < lanes.size(); ++i)
      if (needed[i]) {
        need(lanes[i].inputs);
        need(lanes[i].routing);
      }
  return needed;
}

std::vector<bool> lockstep_lanes(const Plan& plan, const Lanes& lanes) {
  std::vector<int> looked_at = {plan.chooser};
  for (const WatchedFalsifier& f : plan.falsifiers)
    if (in_lockstep(*f.spec)) looked_at.insert(looked_at.end(), {f.lane, f.against, f.floor});
  for (const WatchedCapture& c : plan.captures) looked_at.insert(looked_at.end(), c.lanes.begin(), c.lanes.end());
  return with_feeders(looked_at, lanes);
}

std::vector<bool> needed_lanes(const Plan& plan, const Lanes& lanes) {
  std::vector<int> looked_at = {plan.chooser};
  for (const WatchedFalsifier& f : plan.falsifiers) looked_at.insert(looked_at.end(), {f.lane, f.against, f.floor});
  for (const WatchedCapture& c : plan.captures) looked_at.insert(looked_at.end(), c.lanes.begin(), c.lanes.end());
  return with_feeders(looked_at, lanes);
}

std::vector<bool> lanes_needed_by(const std::vector<WatchedCapture>& captures, const Lanes& lanes) {
  std::vector<int> looked_at;
  for (const WatchedCapture& c : captures) looked_at.insert(looked_at.end(), c.lanes.begin(), c.lanes.end());
  return with_feeders(looked_at, lanes);
}

std::vector<bool> lanes_needed_by(const WatchedFalsifier& falsifier, const Lanes& lanes) {
  return with_feeders({falsifier.lane, falsifier.against, falsifier.floor}, lanes);
}

}  // namespace moe_diag
