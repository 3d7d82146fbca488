// SPDX-License-Identifier: MIT
#include "core/plan/workload.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

namespace moe_diag {
namespace {

class Counter {
 public:
  Counter(const Contract& contract, const Plan& plan, const Program& program, const Lanes& lanes)
      : contract_(contract), plan_(plan), program_(program), lanes_(lanes), needed_(needed_lanes(plan, lanes)) {}

  Workload count() {
    Workload work;
    for (std::size_t p = 0; p < contract_.prompts.size(); ++p) work.prompts.push_back(prompt(static_cast<int>(p)));
    for (const WatchedFalsifier& f : plan_.falsifiers) {
      work.falsifiers.push_back(falsifier(f));
      work.samples += work.falsifiers.back().samples;
    }
    for (const auto& [pair, values] : compared_) work.values += values;
    for (const WatchedCapture& c : plan_.captures) work.captures.push_back(load_of({&c}, contract_, lanes_));
    for (const WatchedCapture& c : plan_.evidence) work.evidence.push_back(load_of({&c}, contract_, lanes_));
    for (std::size_t s = 0; s < contract_.sinks.size(); ++s) work.sinks.push_back(sink(static_cast<int>(s)));
    return work;
  }

 private:
  int length(int prompt) const { return contract_.prompts[static_cast<std::size_t>(prompt)].length(); }
  bool is_there(int lane) const { return lane >= 0 && lanes_[static_cast<std::size_t>(lane)].absent.empty(); }
  static int looked_at(const Positions& positions, int prompt) {
    return static_cast<int>(positions[static_cast<std::size_t>(prompt)].size());
  }

  // The name of a lane that the falsifier needs and that is absent.
  std::string missing(const WatchedFalsifier& f) const {
    for (int lane : {f.lane, f.against, f.floor})
      if (lane >= 0 && !is_there(lane)) return lanes_[static_cast<std::size_t>(lane)].name;
    return "";
  }

  Workload::Prompt prompt(int p) const {
    const PromptSpec& spec = contract_.prompts[static_cast<std::size_t>(p)];
    Workload::Prompt counted{&spec, length(p), static_cast<int>(stretches_of(spec).size())};
    const auto watched = [&](const SiteSet& sites, const Positions& positions, Site site) {
      return looked_at(positions, p) > 0 && sites.contains(site);
    };
    std::int64_t watched_steps = 0;
    for (const Step& step : program_) {
      bool stop = false, is_watched = false;
      for (Stage stage : step.out) {
        const Site site = site_of(step, stage);
        for (const WatchedFalsifier& f : plan_.falsifiers)
          is_watched =
              is_watched || (in_lockstep(*f.spec) && missing(f).empty() && watched(f.sites, f.positions, site));
        for (const WatchedCapture& c : plan_.captures)
          is_watched = is_watched || (std::any_of(c.lanes.begin(), c.lanes.end(), [&](int l) { return is_there(l); }) &&
                                      watched(c.sites, c.positions, site));
        is_watched = is_watched || (spec.generate > 0 && plan_.chooser >= 0 && is(stage, Role::logits));
        stop = stop || is_watched || is_fed(stage);
      }
      counted.stops += stop;
      watched_steps += is_watched;
    }
    counted.stops *= counted.passes;
    counted.looked_at = watched_steps > 0;
    if (!counted.looked_at) counted.passes = 0, counted.stops = 0;
    return counted;
  }

  // Some lane takes this stage's values over from another.
  bool is_fed(Stage stage) const {
    for (std::size_t i = 0; i < lanes_.size(); ++i) {
      if (!needed_[i] || !lanes_[i].absent.empty()) continue;
      const bool routing = is_routing(stage);
      if (lanes_[i].inputs >= 0 || (routing && lanes_[i].routing >= 0)) return true;
    }
    return false;
  }

  Workload::Falsifier falsifier(const WatchedFalsifier& f) {
    Workload::Falsifier counted;
    counted.spec = f.spec;
    counted.untested = missing(f);
    const auto sites = f.sites.in_forward_order();
    counted.sites = static_cast<std::int64_t>(sites.size());
    for (int p = 0; p < static_cast<int>(contract_.prompts.size()); ++p) {
      const std::int64_t rows = looked_at(f.positions, p);
      if (rows > 0) counted.prompts.push_back(p);
      if (!has_stage(f.spec->metric)) counted.samples += rows > 0;
      for (Site site : sites) {
        const bool experts = holds_experts(site.stage) && f.against >= 0;
        counted.samples += rows * (experts ? lanes_.config().used : 1);
        const std::int64_t values = rows * lanes_.config().shape_of(site, 1, length(p)).count();
        counted.values += values;
        if (!counted.untested.empty()) continue;
        std::int64_t& known = compared_[{p, f.lane, f.against, site}];
        known = std::max(known, values);
      }
    }
    return counted;
  }

  Load sink(int s) const {
    std::vector<const WatchedCapture*> feeding;
    for (const auto* list : {&plan_.captures, &plan_.evidence})
      for (const WatchedCapture& c : *list)
        if (std::count(c.sinks.begin(), c.sinks.end(), s) > 0) feeding.push_back(&c);
    return load_of(feeding, contract_, lanes_);
  }

  const Contract& contract_;
  const Plan& plan_;
  const Program& program_;
  const Lanes& lanes_;
  const std::vector<bool> needed_;
  std::map<std::tuple<int, int, int, Site>, std::int64_t> compared_;  // by prompt, pair of lanes and site
};

}  // namespace

Load load_of(const std::vector<const WatchedCapture*>& captures, const Contract& contract, const Lanes& lanes) {
  std::map<std::tuple<int, int, Site>, std::set<int>> rows;  // by prompt, lane and site
  for (const WatchedCapture* c : captures)
    for (int lane : c->lanes) {
      if (!lanes[static_cast<std::size_t>(lane)].absent.empty()) continue;
      for (std::size_t p = 0; p < contract.prompts.size(); ++p)
        for (Site site : c->sites.in_forward_order())
          if (const auto& positions = c->positions[p]; !positions.empty())
            rows[{static_cast<int>(p), lane, site}].insert(positions.begin(), positions.end());
    }
  Load load;
  for (const auto& [key, positions] : rows) {
    const auto& [p, lane, site] = key;
    const auto count = static_cast<std::int64_t>(positions.size());
    const DType values = lanes[static_cast<std::size_t>(lane)].description.stored(site.stage);
    const bool indices = payload_of(site.stage) == Payload::indices;
    const int length = contract.prompts[static_cast<std::size_t>(p)].length();
    const Shape shape = lanes.config().shape_of(site, count, length);
    ++load.tensors;
    load.rows += count;
    load.bytes += static_cast<std::uint64_t>(shape.count()) * size_of(indices ? DType::i32 : values);
  }
  return load;
}

Load load_of(int sink, const std::vector<WatchedCapture>& captures, const Contract& contract, const Lanes& lanes) {
  std::vector<const WatchedCapture*> feeding;
  for (const WatchedCapture& c : captures)
    if (std::count(c.sinks.begin(), c.sinks.end(), sink) > 0) feeding.push_back(&c);
  return load_of(feeding, contract, lanes);
}

Workload workload_of(const Contract& contract, const Plan& plan, const Program& program, const Lanes& lanes) {
  return Counter(contract, plan, program, lanes).count();
}

Cost cost_of(const Step& step, const ModelConfig& config, int rows, int total, int head_rows) {
  return operator_of(step).cost(step, config, is_of_head(step.out[0]) ? head_rows : rows, total);
}

}  // namespace moe_diag
