// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/moe_diag/commands.hpp"
#include "core/api/stage.hpp"

namespace moe_diag {
namespace {

std::string_view letter_of(Dim dim) {
  switch (dim) {
    case Dim::none: return "";
    case Dim::hidden: return "d";
    case Dim::qkv_width: return "(Hq+2Hk)h";
    case Dim::heads: return "Hq";
    case Dim::kv_heads: return "Hk";
    case Dim::head_dim: return "h";
    case Dim::heads_width: return "Hq*h";
    case Dim::sequence: return "S";
    case Dim::experts: return "E";
    case Dim::used: return "k";
    case Dim::expert_width: return "f";
    case Dim::vocab: return "V";
  }
  return "";
}

std::string shape_text(const StageInfo& s) {
  std::string text = "T";
  for (Dim dim : s.row)
    if (dim != Dim::none) text += fmt::format(",{}", letter_of(dim));
  return text;
}

std::string weights_text(const StageInfo& s) {
  std::string text;
  for (std::string_view w : s.weights)
    if (!w.empty()) text += fmt::format("{}{}", text.empty() ? "" : ", ", w);
  return text;
}

std::string_view text_of(Scope scope) { return scope == Scope::model ? "model" : "layer"; }
std::string_view text_of(Payload payload) { return payload == Payload::values ? "values" : "indices"; }

void print_table(bool foreign_names) {
  fmt::print("{:<20} {:<17} {:<6} {:<8} {:<12} {}\n", "STAGE", "ALIAS", "SCOPE", "PAYLOAD", "SHAPE",
             foreign_names ? "LLAMA.CPP | HF TRANSFORMERS" : "WEIGHTS");
  for (const StageInfo& s : stage_table)
    fmt::print("{:<20} {:<17} {:<6} {:<8} {:<12} {}\n", s.name, s.alias, text_of(s.scope), text_of(s.payload),
               shape_text(s), foreign_names ? fmt::format("{} | {}", s.llama_cpp, s.hf) : weights_text(s));
}

void print_json() {
  auto list = nlohmann::ordered_json::array();
  for (const StageInfo& s : stage_table)
    list.push_back({{"name", s.name},
                    {"alias", s.alias},
                    {"scope", text_of(s.scope)},
                    {"payload", text_of(s.payload)},
                    {"shape", shape_text(s)},
                    {"weights", weights_text(s)},
                    {"llama_cpp", s.llama_cpp},
                    {"hf", s.hf}});
  const nlohmann::ordered_json document{{"schema_version", 1}, {"stages", list}};
  fmt::print("{}\n", document.dump(2));
}

}  // namespace

void add_stages(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("stages", "List the stages of the forward pass, in its order");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print JSON");
  command->add_flag_callback("-v,--verbose", context.be_verbose(),
                             "Say more: what llama.cpp and HF transformers call each");
  command->footer(
      "T positions, S sequence length, d hidden, Hq and Hk query and kv heads, h head dim, E experts, k used, f "
      "expert\n"
      "width, V vocabulary. -v shows what llama.cpp and HF transformers call each stage.");
  command->callback([json, &context] {
    if (*json)
      print_json();
    else
      print_table(context.verbose);
  });
}

}  // namespace moe_diag
