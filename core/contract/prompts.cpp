// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <utility>

#include "core/contract/section.hpp"
#include "core/contract/tokens_file.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr int most_passes = 1'000'000;
constexpr std::size_t most_sequences = 10'000;  // of one file

std::vector<std::int32_t> read_tokens(const Value& value) {
  std::vector<std::int32_t> tokens;
  for (const Value& token : value.items())
    if (const auto t = token.whole(0, std::numeric_limits<std::int32_t>::max()))
      tokens.push_back(static_cast<std::int32_t>(*t));
  return tokens;
}

std::string path_of(const std::string& name, const Contract& contract) {
  return std::filesystem::path(name).is_relative() ? (std::filesystem::path(contract.folder) / name).string() : name;
}

// Nothing after a mistake.
std::vector<TokenSequence> read_file(const Value& value, const Contract& contract) {
  const auto name = value.text();
  if (!name) return {};
  try {
    auto sequences = read_tokens_file(path_of(*name, contract));
    if (sequences.size() <= most_sequences) return sequences;
    value.refuse(fmt::format("{}: {} sequences, at most {} are taken", shown(*name), sequences.size(), most_sequences));
  } catch (const Error& e) {
    value.refuse(fmt::format("{}: {}", shown(*name), e.what()));
  }
  return {};
}

// A prompt a sequence: of one it is the entry's own, of several each has the entry's id with its own, or its number,
// behind it.
std::vector<PromptSpec> prompts_of_file(const Value& value, const PromptSpec& entry, const Contract& contract) {
  const std::vector<TokenSequence> sequences = read_file(value, contract);
  if (sequences.empty()) return {entry};  // a mistake; what else speaks of the prompt is right
  std::vector<PromptSpec> prompts;
  for (const TokenSequence& sequence : sequences) {
    PromptSpec& prompt = prompts.emplace_back(entry);
    prompt.tokens = sequence.tokens;
    prompt.file = path_of(value.node().text, contract);
    if (sequences.size() == 1 || entry.id.empty()) continue;
    const std::string own = sequence.id.empty() ? std::to_string(prompts.size() - 1) : sequence.id;
    prompt.id = entry.id + '-' + own;
    if (!is_name(prompt.id))
      value.refuse(
          fmt::format("{}: sequence {}: '{}' cannot be a prompt's id, which becomes a folder's name: use "
                      "letters, digits, '.', '_' and '-', up to {} in all",
                      shown(value.node().text), prompts.size() - 1, shown(prompt.id), longest_name));
  }
  return prompts;
}

// Tokens, calls and positions come from the recording, once that is open: see core/run/recorded_prompts.
PromptSpec read_recording(Map& map, const Value& value, PromptSpec entry) {
  entry.recording = value.text().value_or("");
  for (const std::string_view key : {"tokens", "tokens_file", "generate", "chunk"})
    if (const auto other = map.find(key)) other->refuse("tokens and calls come from the recording: remove it");
  map.finish();
  return entry;
}

// What the tokens are is read last: the rest of the entry holds for every prompt of a file.
std::vector<PromptSpec> read_entry(const Value& value, const Contract& contract) {
  Map map(value);
  PromptSpec entry;
  entry.where = value.node().where;
  const bool is_recorded = map.is_map() && map.find("recording");
  if (const auto id = is_recorded ? map.find("id") : map.require("id"))
    if (const auto name = id->name()) {
      entry.id = entry.entry = *name;
      map.rename("prompts." + *name);
    }
  if (const auto recording = map.find("recording")) return {read_recording(map, *recording, entry)};
  const auto tokens = map.find("tokens");
  const auto file = map.find("tokens_file");
  if (const auto generate = map.find("generate"))
    entry.generate = static_cast<int>(generate->whole(1, most_passes).value_or(0));
  if (const auto chunk = map.find("chunk")) entry.chunk = static_cast<int>(chunk->whole(1, most_passes).value_or(0));
  map.finish();
  if (map.is_map() && tokens.has_value() == file.has_value())
    map.value().refuse(tokens ? "keep one of 'tokens' and 'tokens_file'"
                              : "one of 'tokens' and 'tokens_file' is missing");
  if (tokens) entry.tokens = read_tokens(*tokens);
  if (file && !tokens) return prompts_of_file(*file, entry, contract);
  return {entry};
}

}  // namespace

void read_prompts(const Value& value, Contract& contract) {
  std::map<std::string, std::string> places;
  for (const Value& item : value.items())
    for (PromptSpec& prompt : read_entry(item, contract)) {
      const auto [first, is_new] = places.emplace(prompt.id, item.place());
      if (!is_new && !prompt.id.empty())
        item.refuse(fmt::format("the id '{}' is taken by the prompt at {}", prompt.id, first->second));
      contract.prompts.push_back(std::move(prompt));
    }
}

std::vector<std::string> read_prompt_ids(const Value& value, const Contract& contract) {
  std::vector<std::string> known, chosen;
  for (const PromptSpec& p : contract.prompts) {
    if (std::find(known.begin(), known.end(), p.entry) == known.end()) known.push_back(p.entry);
    if (p.id != p.entry) known.push_back(p.id);
  }
  const std::vector<std::string> names = read_names(value, "prompt", known);
  for (const PromptSpec& p : contract.prompts)
    if (std::count(names.begin(), names.end(), p.id) + std::count(names.begin(), names.end(), p.entry) > 0)
      chosen.push_back(p.id);
  return chosen;
}

}  // namespace moe_diag
