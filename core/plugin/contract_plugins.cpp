// SPDX-License-Identifier: MIT
#include "core/plugin/contract_plugins.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

std::vector<std::string> words_of(const char* list) {
  std::istringstream words(list);
  std::vector<std::string> all;
  for (std::string word; words >> word;) all.push_back(word);
  return all;
}

class Check {
 public:
  explicit Check(PluginHost& host) : host_(host) {}

  std::vector<OtherMistake> of(const Contract& contract) {
    for (const LaneSpec& lane : contract.lanes)
      if (!lane.recorded && !lane.replay)
        look({PluginKind::backend, lane.backend, lane.backend_at, lane.options, lane.where});
    for (const SinkSpec& sink : contract.sinks)
      look({PluginKind::sink, sink.sink, sink.sink_at, sink.options, sink.where});
    return std::move(mistakes_);
  }

 private:
  struct Use {
    PluginKind kind;
    const std::string& plugin;
    const std::string& at;
    const Options& options;
    Where where;
  };

  // A name that could not be read is a mistake that is told already.
  void look(const Use& use) {
    if (use.plugin.empty()) return;
    try {
      const PluginRecord plugin = host_.find(use.kind, use.plugin);
      if (plugin.refusal.empty()) look_at_options(use, plugin);
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::usage)
        mistakes_.push_back({use.where, fmt::format("{}: {}: {}", use.at, use.options.owner(), e.what())});
    }
  }

  void look_at_options(const Use& use, const PluginRecord& plugin) {
    std::vector<std::string> known;
    for (const OptionInfo& option : plugin.options) {
      known.emplace_back(option.name);
      const Options::Entry* entry = use.options.entry(option.name);
      if (entry && !accepts(option, entry->value))
        refuse(use, *entry, fmt::format("{}: {}", option.name, wrong_value(option, entry->value)));
      // That a lane states its numerics, the contract's own reader asks for.
      if (!entry && option.absent == OptionAbsent::required && std::string_view(option.name) != "numerics")
        mistakes_.push_back({use.where, fmt::format("{}: {}: {}: missing, this key is required", use.options.where(),
                                                    use.options.owner(), option.name)});
    }
    for (const Options::Entry& entry : use.options.entries())
      if (std::find(known.begin(), known.end(), entry.key) == known.end())
        refuse(use, entry, fmt::format("plugin '{}': {}", use.plugin, unknown("key", entry.key, known)));
  }

  static std::string wrong_value(const OptionInfo& option, const std::string& value) {
    std::string text = fmt::format("found '{}', expected {}", shown(value), accepted_by(option));
    if (option.type != OptionType::choice) return text;
    const auto close = nearest(value, words_of(option.choices));
    return close ? fmt::format("{}: did you mean '{}'?", text, *close) : text;
  }

  void refuse(const Use& use, const Options::Entry& entry, const std::string& what) {
    mistakes_.push_back({use.where, fmt::format("{}: {}: {}", entry.where, use.options.owner(), what)});
  }

  PluginHost& host_;
  std::vector<OtherMistake> mistakes_;
};

}  // namespace

OtherCheck plugin_check(PluginHost& host) {
  return [&host](const Contract& contract) { return Check(host).of(contract); };
}

}  // namespace moe_diag
