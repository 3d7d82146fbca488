// SPDX-License-Identifier: MIT
#include "core/report/junit.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "core/report/diagnosis_text.hpp"
#include "core/report/host.hpp"
#include "core/report/text.hpp"
#include "core/text/utf8.hpp"

namespace moe_diag {
namespace {

// Fit for an element's text and for an attribute in double quotes. Line feeds in attributes would be read as spaces.
std::string escaped(std::string_view text, bool attribute = false) {
  std::string out;
  for (const char c : clean_text(text)) switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\n': out += attribute ? "&#10;" : "\n"; break;
      case '\t': out += attribute ? "&#9;" : "\t"; break;
      default: out += c;
    }
  return out;
}

std::string attribute(std::string_view name, std::string_view value) {
  return fmt::format(" {}=\"{}\"", name, escaped(value, true));
}

// What is wrong with a run and belongs to no falsifier, by a name that none can have. As test cases, so that no reader
// takes a run for whole because the claims that it came to hold.
std::vector<std::pair<std::string, std::string>> beside_falsifiers(const Verdict& v) {
  std::vector<std::pair<std::string, std::string>> errors;
  if (!v.failure.empty()) errors.emplace_back("(run)", v.failure);
  for (const NotCaptured& missing : v.captured_nothing)
    if (!missing.allowed) errors.emplace_back("(capture)", missing.what);
  return errors;
}

struct Counts {
  std::int64_t tests = 0, failures = 0, errors = 0, skipped = 0;
  double seconds = 0;

  static Counts of(const Verdict& v) {
    Counts c;
    c.tests = static_cast<std::int64_t>(v.judgements.size());
    c.failures = v.count(Outcome::falsified) + v.count(Outcome::vacuous);
    c.skipped = v.count_allowed();
    c.errors = v.count(Outcome::untested) - c.skipped;
    const auto beside = static_cast<std::int64_t>(beside_falsifiers(v).size());
    c.tests += beside;
    c.errors += beside;
    c.seconds = v.timing.total;
    return c;
  }
  // Of the suites the schema has no place for `skipped`.
  std::string attributes(bool suite) const {
    std::string text =
        fmt::format(" tests=\"{}\" failures=\"{}\" errors=\"{}\" time=\"{:.3f}\"", tests, failures, errors, seconds);
    return suite ? text + fmt::format(" skipped=\"{}\"", skipped) : text;
  }
};

class Suite {
 public:
  Suite(const Verdict& verdict, const HostInfo& host, std::string_view tool_version)
      : verdict_(verdict), contract_(*verdict.contract), host_(host), tool_version_(tool_version) {}

  std::string text() {
    text_ = "  <testsuite" + attribute("name", contract_.metadata.id) + Counts::of(verdict_).attributes(true) +
            attribute("timestamp", fmt::format("{:%Y-%m-%dT%H:%M:%S}", fmt::gmtime(verdict_.started))) +
            attribute("hostname", host_.name) + attribute("file", contract_.path) + ">\n";
    properties();
    for (const Judgement& j : verdict_.judgements) test_case(j);
    for (const auto& [name, what] : beside_falsifiers(verdict_)) {
      text_ += "    <testcase" + attribute("classname", contract_.metadata.id) + attribute("name", name) + ">\n";
      element("      ", "error", what, attribute("type", "environment") + attribute("message", what));
      text_ += "    </testcase>\n";
    }
    element("    ", "system-out",
            contract_.metadata.description + '\n' + headline(verdict_) + '\n' + changed_text(verdict_));
    text_ += "  </testsuite>\n";
    return std::move(text_);
  }

 private:
  void element(std::string_view indent, std::string_view name, std::string_view content,
               const std::string& attributes = "") {
    text_ += fmt::format("{}<{}{}>{}</{}>\n", indent, name, attributes, escaped(content), name);
  }

  void properties() {
    text_ += "    <properties>\n";
    const auto property = [&](std::string_view name, std::string_view value) {
      text_ += "      <property" + attribute("name", name) + attribute("value", value) + "/>\n";
    };
    property("moe_diag_version", tool_version_);
    property("contract_version", contract_.metadata.version);
    const ModelReport& m = verdict_.model;
    property("model", m.absent.empty() ? m.source : "absent: " + m.absent);
    property("model_digest", m.digest);
    property("host_system", host_.system);
    property("host_cpu", host_.cpu);
    property("host_cores", std::to_string(host_.cores));
    if (const std::string text = oracle_text(verdict_); !text.empty()) property("oracle_not_finite", text);
    for (const LaneReport& l : verdict_.lanes)
      property("lane_" + l.name, l.absent.empty() ? lane_text(l) : "absent: " + l.absent);
    for (const std::string& fault : verdict_.planted) property("planted", fault);
    for (const auto& [key, value] : contract_.overrides) property("set", key + '=' + value);
    text_ += "    </properties>\n";
  }

  void test_case(const Judgement& j) {
    text_ += "    <testcase" + attribute("classname", contract_.metadata.id) + attribute("name", j.spec->id) +
             fmt::format(" time=\"{:.3f}\">\n", j.seconds);
    const std::string message = attribute("message", reason_text(verdict_, j));
    const auto result = [&](std::string_view name, std::string_view type, const std::string& content) {
      // A place of its own the schema has for suites only.
      element("      ", name, content + fmt::format("\nstated at {}", contract_.at(j.spec->where)),
              attribute("type", type) + message);
    };
    const std::string claim = j.spec->id + ": " + j.spec->claim;
    switch (j.outcome) {
      case Outcome::held: break;
      case Outcome::falsified: result("failure", "falsified", divergence_text(verdict_, j)); break;
      case Outcome::vacuous: result("failure", "vacuous", claim + '\n' + j.reason); break;
      case Outcome::untested: result(j.allowed ? "skipped" : "error", "untested", claim + '\n' + j.reason); break;
    }
    std::string controls;
    for (const ControlResult& c : j.controls)
      controls += fmt::format("control {}: {}: {}\n", c.fault, c.tripped ? "tripped" : "NOT TRIPPED", c.message);
    if (!controls.empty()) element("      ", "system-out", controls);
    text_ += "    </testcase>\n";
  }

  const Verdict& verdict_;
  const Contract& contract_;
  const HostInfo& host_;
  const std::string_view tool_version_;
  std::string text_;
};

}  // namespace

std::string junit_report(std::string_view mistakes, std::string_view tool_version) {
  const std::string message(mistakes);
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites" + attribute("name", "moe-diag") +
         " tests=\"1\" failures=\"0\" errors=\"1\" time=\"0.000\">\n  <testsuite" + attribute("name", "moe-diag") +
         " tests=\"1\" failures=\"0\" errors=\"1\" time=\"0.000\" skipped=\"0\">\n    <properties>\n      <property" +
         attribute("name", "moe_diag_version") + attribute("value", tool_version) +
         "/>\n    </properties>\n    <testcase" + attribute("classname", "moe-diag") + attribute("name", "(call)") +
         ">\n      <error" + attribute("type", "usage") + attribute("message", message.substr(0, message.find('\n'))) +
         ">" + escaped(message) + "</error>\n    </testcase>\n  </testsuite>\n</testsuites>\n";
}

std::string junit_report(std::span<const Verdict> verdicts, std::string_view tool_version) {
  const HostInfo host = host_info();
  Counts all;
  std::string suites;
  for (const Verdict& v : verdicts) {
    const Counts c = Counts::of(v);
    all = {all.tests + c.tests, all.failures + c.failures, all.errors + c.errors, all.skipped + c.skipped,
           all.seconds + c.seconds};
    suites += Suite(v, host, tool_version).text();
  }
  return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites" + attribute("name", "moe-diag") +
         all.attributes(false) + ">\n" + suites + "</testsuites>\n";
}

}  // namespace moe_diag
