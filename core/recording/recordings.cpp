// SPDX-License-Identifier: MIT
#include "core/recording/recordings.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/api/error.hpp"

namespace moe_diag {
namespace {

RecordingOptions options_of(const ReplaySpec& replay) {
  RecordingOptions options;
  options.cut_ok = replay.cut_ok;
  options.take = replay.take_first ? RecordingOptions::Take::first : RecordingOptions::Take::last;
  options.lane = replay.lane;
  options.map = replay.map;
  options.fused_shared_expert = replay.fused_shared_expert;
  options.zeros_ok = replay.zeros_ok;
  return options;
}

void check_required(const LaneSpec& lane, const Recording& recording) {
  std::set<Stage, bool (*)(Stage, Stage)> recorded(comes_before);
  for (const Site& site : recording.sites()) recorded.insert(site.stage);
  std::vector<std::string_view> missing, there;
  for (const Stage stage : lane.replay->require)
    if (recorded.count(stage) == 0) missing.push_back(name_of(stage));
  for (const Stage stage : recorded) there.push_back(name_of(stage));
  if (!missing.empty())
    throw Error(ErrorKind::usage, fmt::format("require: {} has no {}; it has {}", lane.replay->path,
                                              fmt::join(missing, ", "), fmt::join(there, ", ")));
}

// Positions at which another call begins, or another set of stages is recorded.
std::set<int> cuts_of(const Recording& recording, int request) {
  const RecordedRequest& of = recording.requests()[static_cast<std::size_t>(request)];
  const std::vector<Site> sites = recording.sites();
  const auto recorded_at = [&](int position) {
    std::vector<bool> there;
    for (const Site& site : sites) there.push_back(recording.has(request, site, {position, 1}));
    return there;
  };
  std::set<int> cuts;
  int call = -2;
  std::vector<bool> before;
  for (int position = of.first; position < of.end; ++position) {
    const int own = recording.call_at(request, position);
    std::vector<bool> there = recorded_at(position);
    if (own != call || there != before) cuts.insert(position);
    call = own;
    before = std::move(there);
  }
  cuts.insert(of.end);
  return cuts;
}

std::vector<Stretch> calls_of(const Recording& recording, int request) {
  std::vector<Stretch> calls;
  const std::set<int> cuts = cuts_of(recording, request);
  for (auto at = cuts.begin(); at != cuts.end() && std::next(at) != cuts.end(); ++at)
    if (recording.call_at(request, *at) >= 0) calls.push_back({*at, *std::next(at) - *at});
  return calls;
}

// A request's id becomes a folder's name.
std::string prompt_id(const PromptSpec& entry, const RecordedRequest& request, std::size_t number, bool is_only) {
  if (is_only && !entry.id.empty()) return entry.id;
  std::string own = request.id;
  for (char& c : own)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') c = '_';
  if (own.empty() || own.front() == '.' || own == "all") own = std::to_string(number);
  return entry.id.empty() ? own : entry.id + '-' + own;
}

}  // namespace

std::vector<int> requests_of(const Contract& contract, const LaneSpec& lane, const Recording& recording) {
  const std::vector<RecordedRequest>& all = recording.requests();
  std::vector<int> requests;
  for (const PromptSpec& prompt : contract.prompts) {
    const auto same = std::find_if(all.begin(), all.end(), [&](const RecordedRequest& request) {
      return request.tokens.empty() || !prompt.has_tokens() ? request.id == prompt.id : request.tokens == prompt.tokens;
    });
    const int found = same == all.end() ? -1 : static_cast<int>(same - all.begin());
    requests.push_back(prompt.recording == lane.name ? prompt.request : found);
  }
  return requests;
}

Recordings::Recordings(const Contract& contract, const ModelConfig& config) : lanes_(contract.lanes.size()) {
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    const LaneSpec& lane = contract.lanes[i];
    if (!lane.replay) continue;
    try {
      lanes_[i].recording =
          std::make_shared<const Recording>(Recording::open(lane.replay->path, config, options_of(*lane.replay)));
      check_required(lane, *lanes_[i].recording);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::absent)
        throw Error(e.kind(), fmt::format("{}: lane '{}': {}", contract.at(lane.replay->where), lane.name, e.what()));
      lanes_[i].absent = e.what();
    }
  }
}

void take_recorded_prompts(Contract& contract, const Recordings& recordings) {
  std::vector<PromptSpec> prompts;
  for (const PromptSpec& entry : contract.prompts) {
    const auto lane = std::find_if(contract.lanes.begin(), contract.lanes.end(), [&](const LaneSpec& l) {
      return !entry.recording.empty() && l.name == entry.recording;
    });
    const Recording* recording =
        lane == contract.lanes.end() ? nullptr : recordings.of(static_cast<std::size_t>(lane - contract.lanes.begin()));
    if (!recording) {
      prompts.push_back(entry);
      continue;
    }
    const std::vector<RecordedRequest>& requests = recording->requests();
    for (std::size_t r = 0; r < requests.size(); ++r) {
      PromptSpec& prompt = prompts.emplace_back(entry);
      prompt.id = prompt_id(entry, requests[r], r, requests.size() == 1);
      prompt.entry = entry.id.empty() ? prompt.id : entry.id;
      prompt.request = static_cast<int>(r);
      prompt.calls = calls_of(*recording, prompt.request);
      prompt.tokens = requests[r].tokens;
      if (prompt.tokens.empty()) prompt.tokens.assign(static_cast<std::size_t>(requests[r].end), -1);
    }
  }
  contract.prompts = std::move(prompts);
}

}  // namespace moe_diag
