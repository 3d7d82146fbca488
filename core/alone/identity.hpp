// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/alone/digests.hpp"
#include "core/alone/seen_rows.hpp"
#include "core/forward/sequences.hpp"
#include "core/model/model.hpp"
#include "core/plan/plan.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// A file of digests that a falsifier names.
struct DigestFile {
  Digests digests;
  std::string absent;  // why there is none; empty: it was read
};

// The parts of a run that passes of one lane alone are made with. All outlive what uses them.
struct AloneParts {
  const Contract& contract;
  const Plan& plan;
  const Model& model;
  PluginHost& host;
  Lanes& lanes;
  const Sequences& sequences;
  const std::map<std::string, DigestFile>& digests;  // by path
};

// A judgement, and how much the fault of a control changed in the passes it was made of.
struct AloneJudgement {
  Judgement judgement;
  std::int64_t changed = 0;
};

// Judges `identical`: rows of one lane, byte by byte, against the same rows computed under other circumstances.
class Identity {
 public:
  Identity(const AloneParts& parts, std::size_t falsifier);

  // What has to look on in the lockstep run; null when only passes of the lane alone are compared.
  std::unique_ptr<SeenRows> witness() const;

  // `seen` is the witness after the run, or null. A fault is planted in all passes but the first; with a witness it has
  // to be in the lockstep run already.
  AloneJudgement judge(const SeenRows* seen, const FaultSpec* fault = nullptr) const;

 private:
  // One way to compute the lane alone.
  struct Circumstances {
    std::string name;
    int threads = 0;  // 0: as the contract says
    int chunk = 0;    // of the whole sequence; 0: as the contract cuts it
  };
  struct RowResult {
    enum class Kind { same, other, missing };
    Kind kind = Kind::same;
    std::string text;  // how it differs, or why it is missing
    Measure measure;
  };

  std::vector<Circumstances> all_circumstances() const;
  std::vector<Stretch> stretches(int prompt, const Circumstances& how) const;
  SeenRows record(const Circumstances& how, const FaultSpec* fault, std::int64_t& changed) const;
  void record_on(Lanes& lanes, int lane, const Circumstances& how, SeenRows& record, const FaultSpec* fault,
                 std::int64_t& changed) const;
  std::string why_not() const;
  std::string why_no_digests(const Digests& file) const;
  Judgement judge_digests(const SeenRows& seen) const;
  template <class Compare>
  Judgement judge_rows(const Compare& compare) const;
  RowResult compare(const RowKey& key, const SeenRow* a, const std::string& a_name, const SeenRow* b,
                    const std::string& b_name) const;
  std::string place(const RowKey& key) const;

  const AloneParts& parts_;
  const WatchedFalsifier& watched_;
  const FalsifierSpec& spec_;
};

// Digests of the rows that the falsifier's witness saw, under the contract's names.
void add_digests(const AloneParts& parts, std::size_t falsifier, const SeenRows& seen, Digests& digests);

}  // namespace moe_diag
