// SPDX-License-Identifier: MIT
#include "core/contract/contract_writer.hpp"

#include <fmt/format.h>
#include <yaml-cpp/emitter.h>
#include <yaml-cpp/emittermanip.h>
#include <yaml-cpp/stlemitter.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/contract/metric.hpp"

namespace moe_diag {
namespace {

class Writer {
 public:
  std::string write(const Contract& c, std::string_view comment) {
    out_ << YAML::Comment(std::string(comment)) << YAML::BeginMap;
    block("metadata");
    text("id", c.metadata.id);
    text("version", c.metadata.version);
    text("description", c.metadata.description);
    out_ << YAML::EndMap;
    key("model") << YAML::Flow << YAML::BeginMap;
    plain("gguf", c.model.gguf);  // in quotes where YAML wants them
    out_ << YAML::EndMap;
    list("prompts", c.prompts, [&](const PromptSpec& p) { prompt(p); });
    text("oracle", c.oracle);
    block("lanes");
    for (const LaneSpec& l : c.lanes) lane(l);
    out_ << YAML::EndMap;
    if (c.step) step(*c.step);
    if (!c.planted.empty()) list("planted", c.planted, [&](const FaultSpec& f) { fault(f); });
    list("falsifiers", c.falsifiers, [&](const FalsifierSpec& f) { falsifier(f); });
    out_ << YAML::EndMap << YAML::Newline;
    return out_.c_str();
  }
  std::string write(const FaultSpec& f) {
    fault(f);
    return out_.c_str();
  }

 private:
  YAML::Emitter& key(std::string_view name) { return out_ << YAML::Key << std::string(name) << YAML::Value; }
  void block(std::string_view name) { key(name) << YAML::BeginMap; }
  // A user's text is always quoted.
  void text(std::string_view name, const std::string& value) { key(name) << YAML::DoubleQuoted << value; }
  // A word of the contract's own, or a number in as many digits as it takes.
  template <class T>
  void plain(std::string_view name, const T& value) {
    key(name) << fmt::format("{}", value);
  }
  template <class Items, class Write>
  void list(std::string_view name, const Items& items, Write write) {
    key(name) << YAML::BeginSeq;
    for (const auto& item : items) write(item);
    out_ << YAML::EndSeq;
  }
  void selection(std::string_view name, const IndexSelection& selection) {
    if (selection.text() == "all") return;
    key(name);
    const bool several = selection.text().find(',') != std::string::npos;
    if (several) out_ << YAML::Flow << YAML::BeginSeq;
    for (std::string_view rest = selection.text(); !rest.empty();) {
      const std::string_view one = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(one.size() + 1, rest.size()));
      out_ << std::string(one.substr(std::min(one.find_first_not_of(' '), one.size())));
    }
    if (several) out_ << YAML::EndSeq;
  }

  void prompt(const PromptSpec& p) {
    out_ << YAML::Flow << YAML::BeginMap;
    text("id", p.id);
    key("tokens") << YAML::Flow << p.tokens;
    out_ << YAML::EndMap;
  }

  void lane(const LaneSpec& l) {
    out_ << YAML::Key << YAML::DoubleQuoted << l.name << YAML::Value << YAML::Flow << YAML::BeginMap;
    text("backend", l.backend);
    for (const Options::Entry& entry : l.options.entries())
      out_ << YAML::Key << YAML::DoubleQuoted << entry.key << YAML::Value << YAML::DoubleQuoted << entry.value;
    if (!l.inputs.empty()) text("inputs", l.inputs);
    if (!l.base.empty()) text("base", l.base);
    engine(l.engine);
    out_ << YAML::EndMap;
  }

  void reads(const EngineNumerics& e) {
    if (e.scales.empty() && !e.reads.empty()) plain("reads", e.reads);
    if (e.scales.empty()) return;
    key("reads") << YAML::Flow << YAML::BeginMap;
    if (const auto scale = common_scale(e)) {
      plain(e.reads, *scale);
    } else {
      key(e.reads) << YAML::Flow << YAML::BeginMap;
      for (const auto& [stage, own] : e.scales) plain(name_of(stage), own);
      out_ << YAML::EndMap;
    }
    out_ << YAML::EndMap;
  }

  void engine(const EngineNumerics& e) {
    reads(e);
    if (!e.weights.empty()) plain("weights", e.weights);
    if (!e.accumulator.empty()) plain("accumulator", e.accumulator);
    if (!e.stored.empty()) plain("stored", e.stored);
    if (!e.stages.empty()) {
      key("stored") << YAML::Flow << YAML::BeginMap;
      for (const auto& [stage, type] : e.stages) plain(name_of(stage), std::string(name_of(type)));
      out_ << YAML::EndMap;
    }
    if (!e.kv_cache.empty()) plain("kv_cache", e.kv_cache);
    if (!e.kv_rotate.empty()) plain("kv_rotate", e.kv_rotate);
    if (e.variants.empty()) return;
    key("variant") << YAML::Flow << YAML::BeginMap;
    for (const auto& [kind, name] : e.variants) plain(kind, name);
    out_ << YAML::EndMap;
  }

  void files(std::string_view name, const std::vector<GivenValues>& values) {
    if (values.empty()) return;
    key(name) << YAML::Flow << YAML::BeginMap;
    for (const GivenValues& v : values) plain(name_of(v.stage), v.file);
    out_ << YAML::EndMap;
  }

  void step(const StepSpec& s) {
    block("step");
    plain("positions", s.count > 1 ? fmt::format("{}..={}", s.first, s.end() - 1) : fmt::format("{}", s.first));
    files("inputs", s.inputs);
    files("expected", s.expected);
    out_ << YAML::EndMap;
  }

  void fault(const FaultSpec& f) {
    const FaultSpec standard;
    out_ << YAML::Flow << YAML::BeginMap;
    plain("inject", name_of(f.kind));
    plain("stage", name_of(f.stage));
    if (f.layer >= 0) plain("layer", f.layer);
    selection("positions", f.positions);
    if (f.index != standard.index) plain("index", f.index);
    if (f.bit != standard.bit) plain("bit", f.bit);
    if (f.kind == Fault::Kind::scale || f.kind == Fault::Kind::rope_scaled) plain("factor", f.factor);
    if (f.expert >= 0) plain("expert", f.expert);
    if (f.type) plain("type", name_of(*f.type));
    if (f.kind == Fault::Kind::rope_theta) plain("theta", f.theta);
    if (f.kind == Fault::Kind::quantise_activations) plain("block", f.block);
    if (f.kind == Fault::Kind::eps) plain("eps", f.eps);
    if (f.form != standard.form) plain("form", name_of(f.form));
    if (f.columns != standard.columns) plain("columns", f.columns);
    if (f.every != standard.every) plain("every", f.every);
    if (f.keys != standard.keys) plain("keys", f.keys);
    if (f.times != standard.times) plain("times", f.times);
    if (f.part) selection("part", *f.part);
    if (f.limit != standard.limit) plain("limit", f.limit);
    text("lane", f.lane);
    out_ << YAML::EndMap;
  }

  void falsifier(const FalsifierSpec& f) {
    out_ << YAML::BeginMap;
    text("id", f.id);
    text("claim", f.claim);
    text("lane", f.lane);
    if (!f.against.empty()) text("against", f.against);
    plain("stage", f.stages.text);
    selection("layers", f.layers);
    selection("positions", f.positions);
    plain("metric", name_of(f.metric));
    if (f.metric == Metric::mismatch_fraction) {
      plain("rtol", f.rtol);
      plain("atol", f.atol);
    }
    if (f.metric == Metric::topk_overlap) plain("k", f.k);
    if (f.metric == Metric::noise_ratio && f.floor.empty()) plain("floor", "expected");
    if (f.metric == Metric::noise_ratio && !f.floor.empty()) text("floor", f.floor);
    plain(name_of(f.bound.kind), f.bound.value);
    out_ << YAML::EndMap;
  }

  YAML::Emitter out_;
};

}  // namespace

std::string written(const Contract& contract, std::string_view comment) { return Writer().write(contract, comment); }
std::string flow_text(const FaultSpec& fault) { return Writer().write(fault); }

}  // namespace moe_diag
