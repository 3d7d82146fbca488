// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/moe_diag/commands.hpp"
#include "core/api/stage.hpp"
#include "core/arch/architecture.hpp"

namespace moe_diag {
namespace {

std::string shape_text(const StageInfo& s) {
  std::string text = "T";
  for (const Dim& dim : s.row)
    if (!dim.symbol.empty()) text += fmt::format(",{}", dim.symbol);
  return text;
}

std::string weights_text(const StageInfo& s) {
  std::string text;
  for (std::string_view w : s.weights)
    if (!w.empty()) text += fmt::format("{}{}", text.empty() ? "" : ", ", w);
  return text;
}

std::string_view text_of(Scope scope) { return scope == Scope::layer ? "layer" : "model"; }
std::string_view text_of(Payload payload) { return payload == Payload::values ? "values" : "indices"; }

void print_table(const Architecture& architecture, bool foreign_names) {
  fmt::print("{:<20} {:<17} {:<6} {:<8} {:<12} {}\n", "STAGE", "ALIAS", "SCOPE", "PAYLOAD", "SHAPE",
             foreign_names ? "LLAMA.CPP | HF TRANSFORMERS" : "WEIGHTS");
  for (const Stage stage : architecture.stages) {
    const StageInfo& s = info(stage);
    fmt::print("{:<20} {:<17} {:<6} {:<8} {:<12} {}\n", s.name, s.alias, text_of(s.scope), text_of(payload_of(stage)),
               shape_text(s), foreign_names ? fmt::format("{} | {}", s.llama_cpp, s.hf) : weights_text(s));
  }
}

nlohmann::ordered_json json_of(Stage stage) {
  const StageInfo& s = info(stage);
  return {{"name", s.name},
          {"alias", s.alias},
          {"scope", text_of(s.scope)},
          {"payload", text_of(payload_of(stage))},
          {"shape", shape_text(s)},
          {"weights", weights_text(s)},
          {"llama_cpp", s.llama_cpp},
          {"hf", s.hf}};
}

void print_json(const Architecture& architecture) {
  auto list = nlohmann::ordered_json::array();
  for (const Stage stage : architecture.stages) list.push_back(json_of(stage));
  const nlohmann::ordered_json document{{"schema_version", 1}, {"architecture", architecture.name}, {"stages", list}};
  fmt::print("{}\n", document.dump(2));
}

}  // namespace

void add_stages(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("stages", "List the stages of the forward pass, in its order");
  std::vector<std::string> names;
  for (const Architecture* a : architectures()) names.emplace_back(a->name);
  auto chosen = std::make_shared<std::string>("qwen3moe");
  auto json = std::make_shared<bool>(false);
  command->add_option("ARCHITECTURE", *chosen, "As a GGUF file names it")
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  command->add_flag("--json", *json, "Print JSON");
  command->add_flag_callback("-v,--verbose", context.be_verbose(),
                             "Say more: what llama.cpp and HF transformers call each");
  command->footer(
      "T positions, S sequence length, d hidden, Hq and Hk query and kv heads, h head dim, E experts, k used, f "
      "expert\n"
      "width, fs shared expert's width, V vocabulary. -v shows what llama.cpp and HF transformers call each stage.");
  command->callback([chosen, json, &context] {
    for (const Architecture* a : architectures()) {
      if (a->name != *chosen) continue;
      *json ? print_json(*a) : print_table(*a, context.verbose);
    }
  });
}

}  // namespace moe_diag
