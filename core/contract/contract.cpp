// SPDX-License-Identifier: MIT
#include "core/contract/contract.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "core/api/error.hpp"
#include "core/arch/architecture.hpp"
#include "core/contract/contract_text.hpp"
#include "core/contract/section.hpp"
#include "core/gguf/split_files.hpp"
#include "core/model/synthetic.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr int most_queue_mb = 1 << 20;

void read_metadata(const Value& value, Contract& contract) {
  Map map(value);
  Metadata& metadata = contract.metadata;
  if (const auto id = map.require("id")) metadata.id = id->name().value_or("");
  if (const auto version = map.require("version")) metadata.version = version->text().value_or("");
  if (const auto description = map.require("description")) metadata.description = description->text().value_or("");
  if (const auto references = map.find("references")) {
    const YamlNode& list = references->node();
    if (list.kind != YamlNode::Kind::list || !list.items.empty())
      for (const Value& item : references->items()) metadata.references.push_back(item.text().value_or(""));
  }
  map.finish();
}

// Replaces each ${NAME} by the environment's value. An empty variable counts as unset, as an unset secret in CI is.
std::string expand(const Value& value, const std::string& text, std::string& unset) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '$') {
      out += text[i];
      continue;
    }
    const std::size_t end = text.find('}', i);
    const bool braced = i + 1 < text.size() && text[i + 1] == '{' && end != std::string::npos && end > i + 2;
    if (!braced) {
      value.refuse("a '$' starts a variable: write it ${NAME}");
      return text;
    }
    const std::string name = text.substr(i + 2, end - i - 2);
    const char* set = std::getenv(name.c_str());
    if (set && *set != '\0')
      out += set;
    else if (unset.empty())
      unset = name;
    i = end;
  }
  return unset.empty() ? out : text;
}

std::vector<std::string> names(const std::vector<std::string_view>& views) { return {views.begin(), views.end()}; }

double read_router_scale(const Value& value) {
  const double scale = value.number().value_or(1);
  if (scale >= 0 && scale <= largest_router_scale) return scale;
  value.refuse(fmt::format("expected a number from 0 to {}, found {}", largest_router_scale, found(value.node())));
  return 1;
}

void read_gguf(const Value& value, Contract& contract) {
  const auto text = value.text();
  if (!text) return;
  ModelSource& model = contract.model;
  model.gguf = expand(value, *text, model.unset_variable);
  const std::filesystem::path path(model.gguf);
  if (model.unset_variable.empty() && path.is_relative())
    model.gguf = (std::filesystem::path(contract.folder) / path).string();
}

// The keys of a synthetic model; where there is none (null), each is one too many.
void read_synthetic(Map& map, const std::optional<Value>& synthetic, ModelSource& model) {
  if (synthetic) model.synthetic = synthetic->choice("preset", names(synthetic_presets())).value_or("");
  for (const std::string_view key : {"seed", "layers", "quant", "router_scale"}) {
    const auto v = map.find(key);
    if (!v) continue;
    if (!synthetic) v->refuse("is for synthetic models: remove it");
    if (key == "seed") model.seed = v->whole_unsigned().value_or(0);
    if (key == "layers") model.layers = static_cast<int>(v->whole(1, most_synthetic_layers).value_or(0));
    if (key == "quant") model.quant = v->choice("quant", names(synthetic_quants())).value_or("");
    if (key == "router_scale") model.router_scale = read_router_scale(*v);
  }
}

// The synthetic model that is computed where the variable of `gguf` is not set.
void read_when_unset(const Value& value, ModelSource& model) {
  Map map(value);
  ModelSource other;
  other.where = model.where;
  read_synthetic(map, map.require("synthetic"), other);
  map.finish();
  if (model.unset_variable.empty()) return;
  other.stands_in_for = model.unset_variable;
  model = other;
}

// One of the two was added by --set: the other stays unless the whole model is replaced.
std::string whole_model(const Value& gguf, const Value& synthetic) {
  for (const auto& [key, added] : {std::pair{"gguf", &gguf}, std::pair{"synthetic", &synthetic}})
    if (!added->node().origin.empty())
      return fmt::format(": to replace the other, too, set the whole model: --set 'model={{{}: {}}}'", key,
                         shown(added->node().text));
  return "";
}

// The stages that the rest of the contract may name. Where the model cannot be read, running it will say why.
Stages stages_of(const ModelSource& model) {
  if (!model.synthetic.empty()) return synthetic_architecture(model.synthetic).stages;
  if (model.gguf.empty() || !model.unset_variable.empty()) return all_stages();
  try {
    return architecture_of(open_model_files(model.gguf).file).stages;
  } catch (const Error&) {
    return all_stages();
  }
}

void read_model(const Value& value, Contract& contract) {
  Map map(value);
  ModelSource& model = contract.model;
  model.where = value.node().where;
  const auto gguf = map.find("gguf");
  const auto synthetic = map.find("synthetic");
  if (gguf) read_gguf(*gguf, contract);
  if (map.is_map() && gguf.has_value() == synthetic.has_value())
    value.refuse(gguf ? "keep one of 'gguf' and 'synthetic'" + whole_model(*gguf, *synthetic)
                      : "one of 'gguf' and 'synthetic' is missing");
  read_synthetic(map, synthetic, model);
  if (const auto when_unset = map.find("when_unset")) {
    if (gguf && gguf->node().text.find("${") != std::string::npos)
      read_when_unset(*when_unset, model);
    else
      when_unset->refuse("is for a 'gguf' with a variable in it: remove it");
  }
  map.finish();
  contract.stages = stages_of(model);
}

void refuse_without_sinks(const Value& value, const Contract& contract) {
  if (contract.sinks.empty()) value.refuse("is for sinks, and the contract has none: remove it");
}

void read_queue_mb(const Value& value, Contract& contract) {
  contract.queue_mb = static_cast<int>(value.whole(1, most_queue_mb).value_or(contract.queue_mb));
  refuse_without_sinks(value, contract);
}

void read_max_bytes(const Value& value, Contract& contract) {
  contract.max_bytes = value.bytes();
  contract.max_bytes_at = value.place();
  refuse_without_sinks(value, contract);
}

// What is there must be of use to somebody; otherwise a misspelling goes unseen.
void check_use(Map& map, const Contract& contract, bool capture_right, bool falsifiers_right) {
  const auto capture = map.find("capture"), falsifiers = map.find("falsifiers");
  if (!capture && !falsifiers) {
    map.value().refuse("there is nothing to do: add 'falsifiers' or 'capture'");
    return;
  }
  if (const auto sinks = map.find("sinks"); sinks && capture_right)
    for (const YamlNode& key : sinks->node().keys) {
      const bool fed = std::any_of(contract.capture.begin(), contract.capture.end(), [&](const CaptureSpec& c) {
        return std::find(c.to.begin(), c.to.end(), key.text) != c.to.end();
      });
      if (!fed)
        Value(key, sinks->path(), map.value().mistakes())
            .refuse(fmt::format("no capture feeds the sink '{}': name it in a 'to', or remove it", shown(key.text)));
    }
  if (!falsifiers)
    for (const CaptureSpec& c : contract.capture)
      if (c.when == CaptureSpec::When::falsified)
        map.value().mistakes().add(c.where, "", "when: there is no falsifier, so nothing can be falsified: remove it");
  if (capture || !falsifiers_right) return;
  for (const PromptSpec& prompt : contract.prompts) {
    const bool judged =
        std::any_of(contract.falsifiers.begin(), contract.falsifiers.end(), [&](const FalsifierSpec& f) {
          return f.prompts.empty() || std::find(f.prompts.begin(), f.prompts.end(), prompt.id) != f.prompts.end();
        });
    if (!judged && !prompt.id.empty())
      map.value().mistakes().add(prompt.where, "",
                                 fmt::format("no falsifier looks at the prompt '{}': remove it", prompt.id));
  }
}

void check_generate(Map& map, const Contract& contract) {
  if (map.find("oracle")) return;
  for (const PromptSpec& prompt : contract.prompts)
    if (prompt.generate > 0)
      map.value().mistakes().add(
          prompt.where, "",
          fmt::format("prompts.{}: 'generate' goes on with the tokens that the oracle finds most likely: add 'oracle: "
                      "<lane>' to the contract",
                      shown(prompt.entry)));
}

// Prompts are read before the lanes that they name.
void check_recorded_prompts(const Contract& contract, Mistakes& mistakes) {
  for (const PromptSpec& prompt : contract.prompts) {
    if (prompt.recording.empty()) continue;
    const LaneSpec* lane = find_lane(contract, prompt.recording);
    if (!lane || !lane->replay)
      mistakes.add(prompt.where, "",
                   fmt::format("recording: {}", lane ? fmt::format("'{}' is no recording: name a lane with 'replay'",
                                                                   shown(prompt.recording))
                                                     : unknown("lane", prompt.recording, lane_names(contract))));
  }
}

void read_all(const YamlNode& root, Contract& contract, Mistakes& mistakes) {
  Map map(Value(root, "", mistakes));
  if (!map.is_map()) return;
  // True when the part added no mistake.
  const auto part = [&](std::string_view key, bool required, auto read) {
    const std::size_t before = mistakes.count();
    if (const auto value = required ? map.require(key) : map.find(key)) read(*value, contract);
    return mistakes.count() == before;
  };
  part("metadata", true, read_metadata);
  part("model", true, read_model);
  part("prompts", true, read_prompts);
  part("lanes", true, read_lanes);
  check_recorded_prompts(contract, mistakes);
  part("step", false, read_step);
  part("oracle", false, read_oracle);
  part("planted", false, read_planted);
  part("sinks", false, read_sinks);
  part("queue_mb", false, read_queue_mb);
  part("max_bytes", false, read_max_bytes);
  const bool capture_right = part("capture", false, read_capture);
  const bool falsifiers_right = part("falsifiers", false, read_falsifiers);
  check_generate(map, contract);
  check_use(map, contract, capture_right, falsifiers_right);
  map.finish();
}

// `folder` is that of relative inputs; empty: the working directory.
Contract parse(const std::string& text, const std::string& path, const std::string& folder,
               const std::vector<Override>& overrides, const OtherCheck& check) {
  Contract contract;
  contract.stages = all_stages();
  contract.path = path;
  contract.folder = folder.empty() ? std::string(".") : folder;
  contract.digest = fmt::format("{:016x}", XXH3_64bits(text.data(), text.size()));
  contract.overrides = overrides;
  Mistakes mistakes(path);
  auto root = parse_document(text, "", mistakes);
  if (!root && mistakes.count() == 0)
    mistakes.add(Where{1, 1}, "", "the file is empty: a contract starts with 'metadata:'");
  mistakes.raise();
  for (const Override& change : overrides) apply_override(*root, change, mistakes);
  read_all(*root, contract, mistakes);
  if (check)
    for (const OtherMistake& mistake : check(contract)) mistakes.add(mistake.where, mistake.text);
  mistakes.raise();
  return contract;
}

}  // namespace

Contract parse_contract(const std::string& text, const std::string& path, const std::vector<Override>& overrides,
                        const OtherCheck& check) {
  return parse(text, path, std::filesystem::path(path).parent_path().string(), overrides, check);
}

Contract read_contract(const std::string& path, const std::vector<Override>& overrides, const OtherCheck& check) {
  ContractText read = read_contract_text(path);
  return parse(read.text, path, read.folder, overrides, check);
}

}  // namespace moe_diag
