// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <chrono>
#include <memory>
#include <string>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/interrupt.hpp"
#include "apps/moe_diag/progress_line.hpp"
#include "core/api/error.hpp"
#include "core/api/output_file.hpp"
#include "core/model/synthetic.hpp"

namespace moe_diag {
namespace {

constexpr auto footer =
    R"(Weights are random, but of sizes that keep activations, attention, routing and logits like a trained model's; the
same seed gives the same bytes on every machine. No download, no quantiser. q4_k_m mixes Q4_K and Q6_K by layer as
llama.cpp does. Presets: tiny (4 layers, hidden 256, 12 experts of which 3 are used; 6 MB as q4_k_m), qwen3-30b-a3b
(the shapes of Qwen3-30B-A3B; 17.28 GiB as q4_k_m, 48 layers), tiny-qwen2moe and qwen1.5-moe-a2.7b (the same of
Qwen2-MoE: 7 MB, and the shapes of Qwen1.5-MoE-A2.7B with 24 layers).

Examples:
  moe-diag synth tiny.gguf                                           something to try contracts on
  moe-diag synth mixed.gguf --layers 48                              48 tiny layers, types mixed as in a real file
  moe-diag synth wide.gguf --preset qwen3-30b-a3b --layers 4         full width, 1.9 GB
  moe-diag synth other.gguf --preset tiny-qwen2moe                   of another architecture
  moe-diag synth exact.gguf --quant f32 --seed 7                     no quantisation at all)";

struct Arguments {
  std::string path;
  SyntheticSpec spec;
  SyntheticWriting writing;
};

std::string joined(const std::vector<std::string_view>& names) {
  std::string text;
  for (const std::string_view name : names) text += fmt::format("{}{}", text.empty() ? "" : " | ", name);
  return text;
}

void synth(Arguments& arguments) {
  note_interrupts();
  const auto start = std::chrono::steady_clock::now();
  const auto seconds = [start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  constexpr std::uint64_t mib = 1 << 20;
  const std::uint64_t bytes = synthetic_bytes(arguments.spec);
  {
    ProgressLine line;
    line.show({"writing", 0, static_cast<std::int64_t>(bytes / mib), "MiB"});
    arguments.writing.progress = [&](std::uint64_t done, std::uint64_t total) {
      if (is_interrupted())
        throw Error(ErrorKind::environment, fmt::format("{}: interrupted; nothing was written", arguments.path));
      line.show({fmt::format("writing, {:.0f} MiB a second", static_cast<double>(done) / mib / seconds()),
                 static_cast<std::int64_t>(done / mib), static_cast<std::int64_t>(total / mib), "MiB"});
    };
    write_synthetic(arguments.spec, arguments.path, arguments.writing);
  }
  const auto written = static_cast<double>(bytes);
  const bool is_stream = find_output(arguments.path).kind == OutputPlace::Kind::stream;  // standard output, perhaps
  fmt::print(is_stream ? stderr : stdout, "{}: {:.2f} GiB in {:.1f} s ({:.2f} GB/s), {}\n", arguments.path,
             written / (1 << 30), seconds(), written / 1e9 / seconds(), to_string(arguments.spec));
}

}  // namespace

void add_synth(CLI::App& app, Context&) {
  CLI::App* command = app.add_subcommand("synth", "Write a synthetic Mixture-of-Experts model as GGUF");
  auto arguments = std::make_shared<Arguments>();
  SyntheticSpec& spec = arguments->spec;
  command->add_option("OUT", arguments->path, "File to write; appears complete or not at all")->required();
  command->add_option("--preset", spec.preset, joined(synthetic_presets()))->capture_default_str();
  command->add_option("--layers", spec.layers, "How many layers; the preset's own unless given")
      ->check(CLI::PositiveNumber);
  command->add_option("--quant", spec.quant, joined(synthetic_quants()))->capture_default_str();
  command->add_option("--seed", spec.seed, "Another seed, other weights")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);  // without it -1 is read as the largest number
  command
      ->add_option("--router-scale", spec.router_scale,
                   "Factor of the router's weights: large for logits far apart, 0 for equal ones")
      ->capture_default_str();
  command->add_option("--threads", arguments->writing.threads, "One a core unless given; changes no byte")
      ->check(CLI::Range(1, 256));
  command->add_flag("--overwrite,--force", arguments->writing.overwrite, "Replace OUT when it is there");
  command->footer(footer);
  command->callback([arguments] { synth(*arguments); });
}

}  // namespace moe_diag
