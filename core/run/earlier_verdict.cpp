// SPDX-License-Identifier: MIT
#include "core/run/earlier_verdict.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/file/bounded_file.hpp"
#include "core/report/report.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::json;

constexpr std::size_t largest_file = std::size_t{256} << 20;
constexpr int deepest = 32;

class Reader {
 public:
  Reader(const std::string& path, const Json& root) : path_(path), root_(root) {}

  EarlierVerdict read() const {
    check_kind();
    EarlierVerdict verdict;
    verdict.path = path_;
    const Json& contract = member(root_, "contract");
    verdict.contract = text(contract, "absolute_path");
    verdict.contract_id = text(contract, "id");
    verdict.contract_digest = text(contract, "digest");
    for (const Json& change : list(contract, "set")) verdict.overrides.push_back(override_of(change));
    for (const Json& fault : list(root_, "injected")) verdict.injected.push_back(text_of(fault, "injected"));
    const Json& model = member(root_, "model");
    verdict.model = text_or_empty(model, "source");
    verdict.model_digest = text_or_empty(model, "digest");
    if (const Json& first = member(root_, "first_divergence"); !first.is_null())
      verdict.first_divergence = text(first, "falsifier");
    if (root_.contains("sink_outputs"))
      for (const Json& output : list(root_, "sink_outputs"))
        verdict.sink_outputs.push_back(text_of(output, "sink_outputs"));
    for (const Json& falsifier : list(root_, "falsifiers")) {
      EarlierFalsifier& one = verdict.falsifiers.emplace_back();
      one.id = text(falsifier, "id");
      one.outcome = text(falsifier, "outcome");
      if (const Json& sample = member(falsifier, "first_failing"); !sample.is_null())
        one.first_failing = sample_of(sample);
      if (falsifier.contains("sites"))
        for (const Json& site : list(falsifier, "sites")) one.sites.push_back(sample_of(site));
      if (const Json& explanation = member(falsifier, "explanation"); !explanation.is_null())
        read_explanation(explanation, one);
    }
    return verdict;
  }

 private:
  void check_kind() const {
    if (!root_.is_object() || !root_.contains("schema_version"))
      refuse("not a verdict: expected the verdict.json that `moe-diag run` writes");
    if (const Json& version = root_["schema_version"]; version != verdict_schema_version)
      refuse(fmt::format("\"schema_version\" is {}, expected {}: run the contract again with this version of moe-diag",
                         shown(version.dump(-1, ' ', true, Json::error_handler_t::replace)), verdict_schema_version));
    if (root_.contains("verdicts"))
      refuse("it holds the verdicts of several contracts: give the verdict.json in the output folder of one");
    if (!member(root_, "contract").contains("absolute_path"))
      refuse("it does not say where its contract is: run the contract again with this version of moe-diag");
  }

  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorKind::usage, fmt::format("{}: {}", path_, what));
  }
  const Json& member(const Json& object, const char* key) const {
    const auto at = object.is_object() ? object.find(key) : object.end();
    if (!object.is_object() || at == object.end()) refuse(fmt::format("\"{}\" is missing", key));
    return *at;
  }
  std::string text_of(const Json& value, const char* key) const {
    if (!value.is_string()) refuse(fmt::format("\"{}\": expected text", key));
    return value.get<std::string>();
  }
  std::string text(const Json& object, const char* key) const { return text_of(member(object, key), key); }
  std::string text_or_empty(const Json& object, const char* key) const {
    return member(object, key).is_null() ? "" : text(object, key);
  }
  const Json& list(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    if (!value.is_array()) refuse(fmt::format("\"{}\": expected a list", key));
    return value;
  }
  int whole_or(const Json& object, const char* key, int when_null) const {
    const Json& value = member(object, key);
    if (value.is_null()) return when_null;
    const bool fits = value.is_number_unsigned() &&
                      value.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int32_t>::max()};
    if (!fits) refuse(fmt::format("\"{}\": expected a whole number from 0 on", key));
    return value.get<int>();
  }
  double number(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    if (value.is_number()) return value.get<double>();
    const double infinity = std::numeric_limits<double>::infinity();
    for (const auto& [name, number] :
         {std::pair{"inf", infinity}, std::pair{"-inf", -infinity}, std::pair{"nan", std::nan("")}})
      if (value == name) return number;
    refuse(fmt::format("\"{}\": expected a number", key));
  }

  Override override_of(const Json& change) const {
    const std::string whole = text_of(change, "set");
    const std::size_t at = whole.find('=');
    if (at == std::string::npos) refuse(fmt::format("\"set\": expected KEY=VALUE, found '{}'", shown(whole)));
    return {whole.substr(0, at), whole.substr(at + 1)};
  }

  EarlierSample sample_of(const Json& json) const {
    EarlierSample sample;
    sample.prompt = text(json, "prompt");
    sample.position = whole_or(json, "position", -1);
    sample.value = number(json, "value");
    const Json& bound = member(json, "bound");
    const std::string kind = text(bound, "kind");
    sample.bound.value = number(bound, "value");
    for (const Bound::Kind k : {Bound::Kind::at_least, Bound::Kind::at_most, Bound::Kind::equals})
      if (name_of(k) == kind) sample.bound.kind = k;
    if (name_of(sample.bound.kind) != kind) refuse(fmt::format("\"kind\": there is no bound '{}'", shown(kind)));
    if (sample.position >= 0) sample.site = site_of(json);
    return sample;
  }

  void read_explanation(const Json& json, EarlierFalsifier& falsifier) const {
    falsifier.cause = text(json, "cause");
    falsifier.why = text_or_empty(json, "text");
    const int index = whole_or(json, "divergence", -1);
    if (index < 0) return;
    const Json& all = list(root_, "divergences");
    if (static_cast<std::size_t>(index) >= all.size())
      refuse(fmt::format("\"divergence\" is {}, there are {}", index, all.size()));
    const Json& divergence = all[static_cast<std::size_t>(index)];
    falsifier.divergence =
        EarlierDivergence{text(divergence, "lane"), text(divergence, "prompt"), text(divergence, "cause"),
                          whole_or(divergence, "position", 0), site_of(divergence)};
  }

  EarlierSite site_of(const Json& json) const { return {text(json, "stage"), whole_or(json, "layer", -1)}; }

  const std::string& path_;
  const Json& root_;
};

}  // namespace

EarlierVerdict read_verdict(const std::string& path) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::usage, fmt::format("{}: {}", path, what));
  };
  std::string bytes;
  try {
    bytes = read_bounded(path, largest_file);
  } catch (const Error& e) {
    refuse(fmt::format("cannot read the verdict: {}", e.what()));
  }
  const auto shallow = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > deepest) refuse("not a verdict: it is nested too deeply");
    return true;
  };
  try {
    const Json root = Json::parse(bytes, shallow);
    return Reader(path, root).read();
  } catch (const nlohmann::json::parse_error& e) {
    refuse(fmt::format("not JSON: something is wrong at character {}", e.byte));
  } catch (const nlohmann::json::exception& e) {
    refuse(fmt::format("not a verdict: {}", e.what()));
  }
  return {};
}

}  // namespace moe_diag
