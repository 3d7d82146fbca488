// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <list>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/report/report.hpp"
#include "core/repro/repro.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {

inline const std::string claims = R"(
  - {id: ERROR, claim: steps are right, lane: step, stage: all, metric: rel_l2, at_most: 1e-5}
  - {id: ROUTING, claim: routing is right, lane: step, stage: moe_router_indices, metric: routing_flips, equals: 0}
  - {id: FREE, claim: the logits are right, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-4}
)";

// Passes of 3 and 2 positions, then of one each: what attention reads comes from several.
inline std::string text_of_contract(const std::string& falsifiers = claims,
                                    const std::string& model = "{synthetic: tiny, seed: 7}",
                                    const std::string& tokens = "[3, 14, 59, 26, 5], chunk: 3, generate: 2") {
  return contract_text(falsifiers, model, tokens);
}

// A contract in a folder, its verdict, and the case that is made of it.
class Round {
 public:
  explicit Round(const std::string& text = text_of_contract()) { write_text(path(), text); }

  std::string path() const { return folder_ / "c.yaml"; }
  std::string verdict() const { return folder_ / "verdict.json"; }
  std::string place() const { return folder_ / "case"; }
  std::string file(std::string_view name) const { return place() + "/" + std::string(name); }

  Verdict run(const std::vector<std::string>& faults, const std::vector<Override>& overrides = {}) {
    contract_ = read_contract(path(), overrides);
    RunOptions options;
    options.models = &models();
    for (const std::string& fault : faults) options.inject.push_back(parse_fault(fault, contract_));
    Verdict verdict = run_contract(contract_, host(), options);
    write_text(this->verdict(), json_report(verdict, "test"));
    return verdict;
  }

  Repro repro(const std::string& falsifier = "", bool overwrite = false) const {
    ReproOptions options;
    options.falsifier = falsifier;
    options.out = place();
    options.overwrite = overwrite;
    options.run.models = &models();
    return reproduce(read_verdict(verdict()), host(), options);
  }
  // What it says when it refuses.
  std::string refusal(const std::string& falsifier = "", ErrorKind kind = ErrorKind::usage) const {
    try {
      repro(falsifier);
    } catch (const Error& e) {
      CHECK(e.kind() == kind);
      CHECK(left_over().empty());
      return e.what();
    }
    return "";
  }

  // The case's own verdict; the last contract run lives with this.
  Verdict run_case(const std::vector<Override>& overrides = {}, bool with_fault = true) {
    std::string text = read_text(file("contract.yaml"));
    const std::size_t planted = text.find("planted:\n"), end = text.find("falsifiers:\n");
    if (!with_fault && planted != std::string::npos) text.erase(planted, end - planted);
    cases_.push_back(parse_contract(text, file("contract.yaml"), overrides));
    return run_contract(cases_.back(), host(), {});
  }

  // Whatever lies about beside the case.
  std::vector<std::string> left_over() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.str()))
      if (entry.path().filename().string().find(".partial") != std::string::npos)
        names.push_back(entry.path().filename().string());
    return names;
  }

 private:
  static PluginHost& host() {
    static PluginHost host({MOE_DIAG_PLUGINS});
    return host;
  }
  static ModelCache& models() {
    static ModelCache models;
    return models;
  }

  TemporaryFolder folder_;
  Contract contract_;
  std::list<Contract> cases_;
};

inline std::string fault_text(FaultSpec::Kind kind, Site site, const std::string& lane, const std::string& more = "") {
  const std::string layer = site.layer < 0 ? "" : fmt::format(", layer: {}", site.layer);
  std::string needed;
  if (kind == FaultSpec::Kind::wrong_type && name_of(site.stage) == "moe_router_logits") needed = ", type: BF16";
  if (kind == FaultSpec::Kind::f16_overflow) needed = ", limit: 1e-6";
  return fmt::format("{{inject: {}, stage: {}{}{}{}, lane: {}}}", name_of(kind), name_of(site.stage), layer, needed,
                     more, lane);
}

inline Site site_at(Stage stage, int layer) { return {stage, info(stage).scope != Scope::layer ? -1 : layer}; }

inline const Judgement& judgement(const Verdict& verdict, const std::string& id) {
  for (const Judgement& j : verdict.judgements)
    if (j.spec->id == id) return j;
  FAIL("there is no falsifier " << id);
  throw std::logic_error(id);
}

}  // namespace moe_diag
