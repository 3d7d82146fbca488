// SPDX-License-Identifier: MIT
#include "core/recording/known_maps.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>

#include "core/recording/strict_json.hpp"
#include "core/text/nearest.hpp"

namespace moe_diag {
namespace {

// vLLM's hidden-state extraction writes the inputs of layers: what it calls 0 is the embedding, and the last one the
// output of the last layer, before the norm. It knows nothing of routing; a second run of the same prompt with routed
// experts returned gives the ids, which may lie beside it. Source: vllm, docs/features, "Extracting hidden states".
constexpr std::string_view vllm = R"(# vLLM: extracted hidden states, and routed experts beside them
map: 1
engine: vLLM, extracted hidden states
tokens: "{request}.safetensors#token_ids"
stages:
  # Number i of the axis is the input of layer i. When only some layers were extracted, say which: layers: [1, 24, 48]
  post_ffn_residual: {from: "{request}.safetensors#hidden_states", axes: token layer hidden, layer_offset: 1}
  moe_router_indices: {from: "{request}.routed_experts.npy", axes: token layer slot, optional: true}
)";

// llama.cpp's name of a stage's tensor, as a pattern. Of the embedding there are an older and a newer one.
std::string llama_cpp_pattern(std::string_view name, Scope scope) {
  return fmt::format("\"call_{{call}}/{}{}.{{n}}.npy\"", name == "inp_embd" ? "*embd" : name,
                     scope == Scope::layer ? "-{layer}" : "");
}

// Names of a graph's nodes may come several times in a call: {n} counts them. Scores and probabilities of attention are
// left out: scores are neither scaled nor masked there, and both operands of its products are rounded as the cache is.
std::string llama_cpp_text(Stages stages) {
  std::string text =
      "# llama.cpp: an array for each tensor that its eval callback shows, under the names of its graph\n"
      "#   call_0/ffn_moe_out-7.0.npy   of call 0, layer 7, the first tensor of this name\n"
      "# beside tokens.npy and positions.npy of each call\n"
      "map: 1\n"
      "engine: llama.cpp\n"
      "kv_cache: f16  # as it is when nothing is said\n"
      "tokens: \"call_{call}/tokens.npy\"\n"
      "positions: \"call_{call}/positions.npy\"\n"
      "stages:\n";
  std::vector<std::string> names;  // so far
  for (const Stage stage : stages) {
    const StageInfo& row = info(stage);
    std::vector<std::string> patterns;
    std::string_view rest = row.llama_cpp;
    bool is_again = false;
    while (!rest.empty()) {
      const std::size_t comma = std::min(rest.find(", "), rest.size());
      const std::string name(rest.substr(0, comma));
      rest.remove_prefix(std::min(comma + 2, rest.size()));
      is_again |= std::find(names.begin(), names.end(), name) != names.end();
      names.push_back(name);
      patterns.push_back(llama_cpp_pattern(name, row.scope));
    }
    if (patterns.empty() || is(stage, Role::key_values)) continue;
    // Queries, keys and values with their biases come last but one: before RoPE, or before they are shown as heads.
    text += fmt::format("  {}: {{from: {}, n: {}, rows: last, optional: true}}\n", row.name,
                        patterns.size() == 1 ? patterns.front() : fmt::format("[{}]", fmt::join(patterns, ", ")),
                        is_again              ? -1
                        : patterns.size() > 1 ? -2
                                              : 0);
  }
  return text;
}

}  // namespace

std::vector<KnownMap> known_maps() {
  return {{"llama.cpp", "npy files of the tensors that an eval callback of llama.cpp shows"},
          {"vllm", "hidden states that vLLM extracted, and the experts it routed to"}};
}

std::string known_map_text(const std::string& name, Stages stages) {
  if (name == "vllm") return std::string(vllm);
  if (name == "llama.cpp") return llama_cpp_text(stages);
  std::vector<std::string> names;
  for (const KnownMap& known : known_maps()) names.push_back(known.name);
  refuse_recording(unknown("map", name, names) + "; the map of a file ends in .yaml or .yml");
}

DumpMap dump_map(const std::string& name_or_path, Stages stages) {
  if (is_map_file(name_or_path)) return DumpMap::read(name_or_path);
  return DumpMap::parse(known_map_text(name_or_path, stages), "map " + name_or_path);
}

}  // namespace moe_diag
