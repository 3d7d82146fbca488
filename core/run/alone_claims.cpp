// SPDX-License-Identifier: MIT
#include "core/run/alone_claims.hpp"

#include <fmt/format.h>

#include "core/alone/timing.hpp"

namespace moe_diag {

DigestFiles read_digest_files(const Contract& contract) {
  DigestFiles files;
  for (const FalsifierSpec& spec : contract.falsifiers) {
    if (spec.digest.empty() || files.count(spec.digest) > 0) continue;
    DigestFile& file = files[spec.digest];
    try {
      file.digests = read_digests(spec.digest, contract.stages);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::absent) throw;
      file.absent = e.what();
    }
  }
  return files;
}

AloneParts AloneClaims::parts() {
  return {runner_.contract(), runner_.planned(),   runner_.model(), runner_.host(),
          runner_.lanes(),    runner_.sequences(), digest_files_};
}

std::vector<Hook*> AloneClaims::call_witnesses() {
  const AloneParts alone = parts();
  std::vector<Hook*> hooks;
  for (std::size_t f = 0; f < alone.plan.falsifiers.size(); ++f) {
    const WatchedFalsifier& watched = alone.plan.falsifiers[f];
    const bool needed = runner_.lane(watched.lane).runs() && watched.spec->metric == Metric::identical;
    witnesses_.push_back(needed ? Identity(alone, f).witness() : nullptr);
    if (witnesses_.back()) hooks.push_back(witnesses_.back().get());
  }
  return hooks;
}

void AloneClaims::judge(Verdict& verdict) {
  const double before = runner_.seconds();
  const RunOptions& options = runner_.options();
  const AloneParts alone = parts();
  const std::vector<WatchedFalsifier>& falsifiers = alone.plan.falsifiers;
  const auto is_mine = [&](const WatchedFalsifier& f) {
    return is_alone(f.spec->metric) && runner_.lane(f.lane).runs();
  };
  for (std::size_t f = 0; f < falsifiers.size(); ++f)
    if (is_mine(falsifiers[f])) verdict.judgements[f].reason = "the run ended before it was judged";
  for (std::size_t f = 0; f < falsifiers.size(); ++f) {
    const FalsifierSpec& spec = *falsifiers[f].spec;
    if (!is_mine(falsifiers[f])) continue;
    // The digest would be in the timing's way.
    if (spec.metric != Metric::identical) verdict.timing.digest += runner_.finish_digest();
    if (options.interrupted && options.interrupted())
      throw Error(ErrorKind::environment, fmt::format("interrupted: {} was not judged", spec.id));
    if (options.progress)
      options.progress({fmt::format("{} alone", spec.id), static_cast<std::int64_t>(f),
                        static_cast<std::int64_t>(falsifiers.size()), "claims"});
    const double start = runner_.seconds();
    verdict.judgements[f] = judgement(f, alone);
    alone.lanes[static_cast<std::size_t>(falsifiers[f].lane)].forget_caches();
    verdict.judgements[f].seconds = runner_.seconds() - start;
  }
  verdict.timing.solo = runner_.seconds() - before;
}

Judgement AloneClaims::judgement(std::size_t f, const AloneParts& alone) {
  return alone.plan.falsifiers[f].spec->metric == Metric::identical
             ? Identity(alone, f).judge(witnesses_[f].get()).judgement
             : judge_timing(alone, f);
}

// The fault is in the lockstep run where that is compared, else in every pass of the lane alone but the first.
AloneJudgement AloneClaims::judge_control(std::size_t falsifier, const FaultSpec& fault) {
  const AloneParts alone = parts();
  const Identity identity(alone, falsifier);
  const std::unique_ptr<SeenRows> witness = identity.witness();
  if (!witness) return identity.judge(nullptr, &fault);
  const WatchedFalsifier& watched = alone.plan.falsifiers[falsifier];
  const std::vector<std::int64_t> changed = runner_.walk({{witness.get()},
                                                          {{watched.lane, fault}},
                                                          lanes_needed_by(watched, alone.lanes),
                                                          fmt::format("control of {}", watched.spec->id),
                                                          {}});
  AloneJudgement judged = identity.judge(witness.get());
  judged.changed = changed.front();
  return judged;
}

Digests AloneClaims::digests() {
  Digests digests;
  digests.tool_version = runner_.options().tool_version;
  digests.model_source = runner_.model().source();
  digests.model_digest = runner_.model_digest();
  for (std::size_t f = 0; f < witnesses_.size(); ++f)
    if (witnesses_[f]) add_digests(parts(), f, *witnesses_[f], digests);
  return digests;
}

}  // namespace moe_diag
