// SPDX-License-Identifier: MIT
#include "core/report/plan_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/report/text.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::ordered_json;

// No more digits than an estimate has.
std::string seconds_text(double seconds) {
  if (seconds >= 120) return fmt::format("{:.0f} min", seconds / 60);
  return seconds >= 10 ? fmt::format("{:.0f} s", seconds) : fmt::format("{:.2g} s", seconds);
}

std::string captured_text(const Load& c) {
  return fmt::format("{}, {}", counted(static_cast<std::size_t>(c.tensors), "tensor"), bytes_text(c.bytes));
}

class Text {
 public:
  explicit Text(const PlanReport& plan) : plan_(plan), contract_(*plan.contract) {}

  std::string text() {
    line("PLAN: {} {}: {}{}, {}, {}{}", contract_.metadata.id, contract_.metadata.version,
         counted(contract_.falsifiers.size(), "falsifier"),
         contract_.stated > contract_.falsifiers.size() ? fmt::format(" of {}", contract_.stated) : "",
         counted(contract_.prompts.size(), "prompt"), counted(contract_.lanes.size(), "lane"), headline_time());
    if (!plan_.model.absent.empty()) {
      line("\nmodel      absent: {}; everything would be untested", plan_.model.absent);
      return std::move(text_);
    }
    falsifiers();
    line("\nmodel      {}: {}, mapped, {}", plan_.model.source, bytes_text(plan_.model.bytes),
         counted(static_cast<std::size_t>(plan_.model.layers), "layer"));
    for (const PlanReport::Lane& l : plan_.lanes) lane(l);
    for (const FaultSpec& fault : contract_.planted) line("planted    {}, lane {}", fault.text, fault.lane);
    for (const Workload::Prompt& p : plan_.work.prompts)
      if (p.looked_at)
        line("prompt     {}: {} in {} {}, {}", p.spec->id, counted(static_cast<std::size_t>(p.tokens), "token"),
             p.passes, p.passes == 1 ? "pass" : "passes", counted(static_cast<std::size_t>(p.stops), "stop"));
      else
        line("prompt     {}: nobody looks at it, it is not computed", p.spec->id);
    captures();
    memory();
    time();
    return std::move(text_);
  }

 private:
  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format(format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  std::string headline_time() const {
    const bool known = plan_.seconds.unknown.empty() && plan_.model.absent.empty();
    return known ? ": about " + seconds_text(plan_.seconds.total()) : "";
  }

  void falsifiers() {
    if (plan_.work.falsifiers.empty()) return;
    std::size_t width = std::string_view("falsifier").size();
    for (const auto& f : plan_.work.falsifiers) width = std::max(width, f.spec->id.size());
    line("\n{:<{}}  {:>7}  {:>9}  {:>8}  {}", "falsifier", width, "sites", "samples", "controls", "claimed");
    for (const auto& f : plan_.work.falsifiers) {
      line("{:<{}}  {:>7}  {:>9}  {:>8}  {} {}, lane {}{}", f.spec->id, width, f.sites, f.samples,
           f.spec->controls.size(), name_of(f.spec->metric), bound_text(f.spec->bound), f.spec->lane,
           f.spec->against.empty() ? "" : " against " + f.spec->against);
      if (!f.untested.empty()) line("{:{}}  would be untested: lane '{}' is absent", "", width, f.untested);
    }
  }

  void lane(const PlanReport::Lane& l) {
    const LaneReport& is = l.is;
    if (!is.absent.empty()) {
      line("lane       {}: absent: {}", is.name, is.absent);
      return;
    }
    std::string more;
    if (!is.inputs.empty()) more = ", inputs from " + is.inputs;
    if (!is.routing.empty()) more += ", routing from " + is.routing;
    if (!l.kernels.empty()) more += ", kernels " + l.kernels;
    line("lane       {}{}: {}{}: buffers {}, weights {}{}", is.name, is.name == contract_.oracle ? " (oracle)" : "",
         lane_text(is), more, bytes_text(l.lane_bytes), l.weight_bytes > 0 ? bytes_text(l.weight_bytes) : "as mapped",
         l.needed ? "" : "; nobody looks at it, it does not run");
  }

  void captures() {
    std::size_t always = 0, evidence = 0;
    for (const CaptureSpec& c : contract_.capture) {
      const bool now = c.when == CaptureSpec::When::always;
      const Load& counted = now ? plan_.work.captures[always++] : plan_.work.evidence[evidence++];
      line("capture    {}: {}{}", contract_.at(c.where), captured_text(counted),
           now ? "" : " at most, and only when something is falsified");
    }
    for (std::size_t s = 0; s < contract_.sinks.size(); ++s) {
      const PlannedOutput& output = plan_.outputs[s];
      line("sink       {} ({}): {}; {}{}", contract_.sinks[s].name, contract_.sinks[s].sink,
           captured_text(plan_.work.sinks[s]),
           output.known ? fmt::format("writes at most {}", bytes_text(output.bytes)) : "does not say what it writes",
           is_evidence(contract_.sinks[s].name) ? ", and only when something is falsified" : "");
    }
    writing();
  }

  bool is_evidence(const std::string& sink) const {
    return std::any_of(contract_.capture.begin(), contract_.capture.end(), [&](const CaptureSpec& c) {
      return c.when == CaptureSpec::When::falsified && std::count(c.to.begin(), c.to.end(), sink) > 0;
    });
  }

  void writing() {
    if (plan_.outputs.empty()) return;
    line("writing    at most {} in all{}", bytes_text(planned_bytes(plan_.outputs)),
         contract_.max_bytes ? fmt::format(", {} may be written (max_bytes)", bytes_text(*contract_.max_bytes)) : "");
    if (!plan_.over_budget.empty()) line("           the run would be refused: {}", plan_.over_budget);
  }

  void memory() {
    const std::string kept =
        plan_.kept_bytes > 0 ? fmt::format(", up to {} kept for explaining", bytes_text(plan_.kept_bytes)) : "";
    const bool rounds = std::any_of(plan_.lanes.begin(), plan_.lanes.end(),
                                    [](const PlanReport::Lane& l) { return !l.on_device && l.weight_bytes > 0; });
    line("memory     {} for the lanes' buffers{}{}, {} available{}", bytes_text(plan_.host_bytes),
         rounds ? " and rounded weights" : "", kept, bytes_text(plan_.host_available),
         plan_.fits() ? "" : ": it does not fit, the run would end with exit code 4");
    std::vector<std::string> told;
    for (const PlanReport::Lane& l : plan_.lanes) {
      if (!l.on_device || !l.needed || std::count(told.begin(), told.end(), l.is.device) > 0) continue;
      told.push_back(l.is.device);
      std::uint64_t buffers = 0, weights = 0;
      for (const PlanReport::Lane& other : plan_.lanes)
        if (other.on_device && other.needed && other.is.device == l.is.device) {
          buffers += other.lane_bytes;
          weights = std::max(weights, other.weight_bytes);
        }
      line("memory     {} for buffers and {} for weights on {}{}", bytes_text(buffers), bytes_text(weights),
           l.is.device, l.device_bytes > 0 ? fmt::format(", which has {}", bytes_text(l.device_bytes)) : "");
    }
  }

  void time() {
    const PlanReport::Seconds& s = plan_.seconds;
    if (!s.unknown.empty()) {
      line("time       not estimated: {}", s.unknown);
      return;
    }
    line("time       about {}: open {}, forward {}, judging {}, lanes alone {}; writing captures is not counted",
         seconds_text(s.total()), seconds_text(s.open), seconds_text(s.forward), seconds_text(s.judging),
         seconds_text(s.solo));
    if (plan_.controls > 0)
      line("           with --controls about {} more, for {} of them", seconds_text(s.controls), plan_.controls);
  }

  const PlanReport& plan_;
  const Contract& contract_;
  std::string text_;
};

Json captured_json(const Load& c) { return {{"tensors", c.tensors}, {"bytes", c.bytes}}; }

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

Json lanes_json(const PlanReport& plan) {
  Json list = Json::array();
  for (const PlanReport::Lane& l : plan.lanes)
    list.push_back({{"name", l.is.name},
                    {"backend", l.is.backend},
                    {"numerics", l.is.numerics},
                    {"device", l.is.device},
                    {"instruction_set", l.is.instruction_set},
                    {"kernels", l.kernels},
                    {"needed", l.needed},
                    {"lane_bytes", l.lane_bytes},
                    {"weight_bytes", l.weight_bytes},
                    {"on_device", l.on_device},
                    {"device_bytes", l.device_bytes},
                    {"seconds", l.seconds},
                    {"absent", text_or_null(l.is.absent)}});
  return list;
}

Json falsifiers_json(const PlanReport& plan) {
  Json list = Json::array();
  for (const Workload::Falsifier& f : plan.work.falsifiers)
    list.push_back({{"id", f.spec->id},
                    {"sites", f.sites},
                    {"samples", f.samples},
                    {"controls", f.spec->controls.size()},
                    {"absent_lane", text_or_null(f.untested)}});
  return list;
}

}  // namespace

std::string plan_report(const PlanReport& plan) { return Text(plan).text(); }

std::string plan_json(const PlanReport& plan, std::string_view tool_version) {
  const Contract& contract = *plan.contract;
  Json j;
  j["schema_version"] = 1;
  j["tool"] = {{"name", "moe-diag"}, {"version", tool_version}};
  j["contract"] = {{"path", contract.path}, {"id", contract.metadata.id}, {"version", contract.metadata.version}};
  j["model"] = {{"source", text_or_null(plan.model.source)},
                {"bytes", plan.model.bytes},
                {"absent", text_or_null(plan.model.absent)}};
  j["lanes"] = lanes_json(plan);
  j["planted"] = Json::array();
  for (const FaultSpec& fault : contract.planted)
    j["planted"].push_back(fmt::format("{}, lane {}", fault.text, fault.lane));
  j["prompts"] = Json::array();
  for (const Workload::Prompt& p : plan.work.prompts)
    j["prompts"].push_back({{"id", p.spec->id}, {"tokens", p.tokens}, {"passes", p.passes}, {"stops", p.stops}});
  j["falsifiers"] = falsifiers_json(plan);
  j["captures"] = Json::array();
  for (const Load& c : plan.work.captures) j["captures"].push_back(captured_json(c));
  j["evidence"] = Json::array();
  for (const Load& c : plan.work.evidence) j["evidence"].push_back(captured_json(c));
  j["sinks"] = Json::array();
  for (std::size_t s = 0; s < plan.work.sinks.size(); ++s) {
    j["sinks"].push_back(captured_json(plan.work.sinks[s]));
    const PlannedOutput& output = plan.outputs[s];
    j["sinks"].back().update(
        {{"name", output.sink}, {"path", output.path}, {"writes", output.known ? Json(output.bytes) : Json()}});
  }
  j["writing"] = {{"bytes", planned_bytes(plan.outputs)},
                  {"max_bytes", contract.max_bytes ? Json(*contract.max_bytes) : Json()},
                  {"refused", text_or_null(plan.over_budget)}};
  j["memory"] = {{"host_bytes", plan.host_bytes},
                 {"kept_bytes", plan.kept_bytes},
                 {"host_available", plan.host_available},
                 {"fits", plan.fits()}};
  const PlanReport::Seconds& s = plan.seconds;
  const bool known = s.unknown.empty() && plan.model.absent.empty();
  const auto estimate = [&](double v) { return known ? Json(v) : Json(nullptr); };
  j["seconds"] = {{"open", s.open},
                  {"forward", estimate(s.forward)},
                  {"judging", estimate(s.judging)},
                  {"solo", estimate(s.solo)},
                  {"controls", estimate(s.controls)},
                  {"total", estimate(s.total())},
                  {"unknown", text_or_null(s.unknown)}};
  return j.dump(2, ' ', false, Json::error_handler_t::replace) + '\n';
}

}  // namespace moe_diag
