// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/interrupt.hpp"
#include "apps/moe_diag/progress_line.hpp"
#include "apps/moe_diag/run_outputs.hpp"
#include "core/contract/selection.hpp"
#include "core/kernel/allowed_error.hpp"
#include "core/kernel/write_cases.hpp"
#include "core/model/synthetic.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

struct CasesArguments {
  std::string model, layers = "0";
  std::vector<std::string> routings;
  bool without_values = false;
  CasesRequest request;
};

// The model of that name: a file, or else a preset of synthetic models.
Model opened(const std::string& name, CaseIndex& source) {
  const std::vector<std::string_view> presets = synthetic_presets();
  std::error_code error;
  if (!fs::exists(name, error) && std::find(presets.begin(), presets.end(), name) != presets.end()) {
    source.synthetic = true;
    source.spec.preset = name;
    Model model = Model::synthetic(source.spec);
    source.model_source = model.source();
    return model;
  }
  if (!fs::exists(name, error) && name.find_first_of("./") == std::string::npos)
    throw Error(ErrorKind::usage,
                fmt::format("{}: there is no such file; {}", name,
                            unknown("preset of synthetic models", shown(name), {presets.begin(), presets.end()})));
  Model model = Model::open(name);
  source.model_source = fs::canonical(name, error).string();
  return model;
}

std::vector<int> layers_of(const std::string& text, int count) {
  try {
    IndexSelection selection;
    bool first = true;
    for (std::size_t at = 0; at <= text.size();) {
      const std::size_t end = std::min(text.find(',', at), text.size());
      const IndexSelection part = IndexSelection::parse(text.substr(at, end - at), false);
      if (first) selection = part;
      if (!first) selection.append(part);
      first = false;
      at = end + 1;
    }
    return selection.resolve(count);
  } catch (const std::exception& e) {
    throw Error(ErrorKind::usage, fmt::format("--layers {}: {}", text, e.what()));
  }
}

CaseRouting routing_called(const std::string& name) {
  for (const CaseRouting routing : {CaseRouting::model, CaseRouting::one, CaseRouting::none, CaseRouting::rank})
    if (name == name_of(routing)) return routing;
  throw Error(ErrorKind::usage, fmt::format("--routing: expected model, one, none or rank, found '{}'", name));
}

ExitCode write(CasesArguments& arguments, const Context& context) {
  CasesRequest& request = arguments.request;
  PluginHost host(context.plugin_dirs);
  CaseIndex source;
  const Model model = opened(arguments.model, source);
  request.layers = layers_of(arguments.layers, model.config().layers);
  for (std::vector<int>* numbers : {&request.rows, &request.cached}) {
    std::sort(numbers->begin(), numbers->end());
    numbers->erase(std::unique(numbers->begin(), numbers->end()), numbers->end());
  }
  for (const std::string& name : arguments.routings) request.routings.push_back(routing_called(name));
  request.decoded = !arguments.without_values;
  request.tool_version = MOE_DIAG_VERSION;
  note_interrupts();
  request.interrupted = is_interrupted;
  std::string text;
  {
    ProgressLine line;
    if (line.is_visible()) request.progress = [&](const std::string& what) { line.show({what, 0, 0, ""}); };
    text = write_cases(model, source, host, request);
  }
  print(text);
  return exit_held;
}

constexpr auto footer =
    R"(A kernel of your own is judged where it lives: its test reads each case, runs the kernel, and writes what came out;
`moe-diag judge` compares. Activations are those of the model, computed in f64 for a prompt of random tokens; row r is
position r. MODEL is a GGUF file, or a preset of `moe-diag synth`. SPAN is a stage (its one step), STAGE..STAGE (all
steps from the one to the other), or moe_ffn (from the experts' first product to their sum). Where it reads a choice of
experts there are cases in which all rows choose the same ones (one), and in which one is never chosen (none); with
--routing rank, all rows choose among the first quarter of the experts, as of one device of several.

Examples:
  moe-diag cases model.gguf --span moe_ffn --layers 3 --rows 1,7,16,64 --out cases
  moe-diag cases tiny --span moe_ffn --numerics bf16 --out cases
Exit codes: 0 the cases are written; 2 the model, the span or --out is wrong; 4 the environment failed.)";

}  // namespace

void add_cases(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("cases", "Write what a kernel of your own reads, and what it should give");
  auto arguments = std::make_shared<CasesArguments>();
  CasesRequest& request = arguments->request;
  request.rows = {1, 7, 16, 64};
  command->add_option("MODEL", arguments->model, "GGUF file of a model, or a preset of synth")->required();
  command->add_option("--span", request.span, "Steps that the kernel computes: STAGE, STAGE..STAGE or moe_ffn")
      ->required()
      ->type_name("SPAN");
  command->add_option("--layers", arguments->layers, "Layers, as contracts take them: 3; 0..4; 0,-1")
      ->type_name("LAYERS")
      ->capture_default_str();
  command->add_option("--rows", request.rows, "Rows of each case")
      ->delimiter(',')
      ->type_name("N,...")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str()
      ->allow_extra_args(false);
  command
      ->add_option("--routing", arguments->routings,
                   "model, one, none, rank [the first three, where the span reads a choice of experts]")
      ->delimiter(',')
      ->type_name("NAME,...")
      ->allow_extra_args(false);
  command->add_option("--numerics", request.numerics, "In which the kernel computes: f32, bf16, q8_k or q8_1")
      ->check(CLI::IsMember(known_numerics()))
      ->capture_default_str();
  command
      ->add_option("--reads", request.reads,
                   "How the engine's products read activations, which is computed and not tolerated: a row of "
                   "docs/numerics.md")
      ->type_name("NAME");
  command->add_option("--stored", request.stored, "How the engine stores its stages, the same")->type_name("NAME");
  command
      ->add_option("--cached", request.cached, "Positions in the caches before the rows, where the span reads caches")
      ->delimiter(',')
      ->type_name("N,...")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str()
      ->allow_extra_args(false);
  command->add_option("--seed", request.seed, "Other tokens")
      ->capture_default_str()
      ->check(CLI::Range(0u, 4294967295u));
  command->add_flag("--no-values", arguments->without_values,
                    "Leave out the weights' values in f32, which are large; their bytes stay");
  command->add_flag("--fused", request.fused,
                    "Write gate and up of the experts as one tensor, too: [experts, 2 * width, columns], gate first");
  command->add_option("--out", request.out, "The folder of the cases")->required()->type_name("DIR");
  command->add_flag("--overwrite", request.overwrite,
                    "Replace the cases that are there, and what kernels wrote to them");
  command->footer(footer);
  command->callback([arguments, &context] { context.exit_code = write(*arguments, context); });
}

}  // namespace moe_diag
