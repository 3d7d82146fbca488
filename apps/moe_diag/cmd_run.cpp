// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/interrupt.hpp"
#include "apps/moe_diag/run_contracts.hpp"
#include "core/contract/pick.hpp"
#include "core/report/github.hpp"
#include "core/report/text.hpp"
#include "core/run/baseline.hpp"
#include "core/run/output_places.hpp"
#include "core/run/run.hpp"
#include "core/verdict/allow.hpp"

namespace moe_diag {
namespace {

// All that one call runs; verdicts point into the contracts.
class Runs {
 public:
  // Adds to `inputs` what the contracts read, as soon as that is known.
  Runs(const RunArguments& arguments, const Context& context, CallFiles& inputs)
      : arguments_(arguments), host_(context.plugin_dirs), contracts_(read(arguments.contracts, host_)) {
    for (const Contract& contract : contracts_) inputs.read(contract);
    several_ = contracts_.size() > 1;
    if (!arguments.baseline.empty()) {
      if (several_) throw Error(ErrorKind::usage, "--baseline: is the verdict of one contract: run them one by one");
      baseline_ = read_verdict(arguments.baseline);
      inputs.read("the baseline", arguments.baseline);
    }
    check_ids();
    allowed_ = parse_allowed(contracts_, arguments.allow_untested);
    keep_only(contracts_, arguments.only);
    leave_out_unselected();
    for (Contract& contract : contracts_) set_default_threads(contract, arguments.settings.threads);
    prepare();
  }

  ExitCode run() {
    note_interrupts();
    for (std::size_t i = 0; i < contracts_.size(); ++i) run_one(contracts_[i], options_[i]);
    deliver_all(verdicts_, several_, arguments_.outputs);
    if (several_ && arguments_.outputs.json != "-") print(summary());
    return code_;
  }

 private:
  void check_ids() const {
    std::map<std::string, std::string> taken;
    for (const Contract& contract : contracts_) {
      const auto [first, is_new] = taken.emplace(contract.metadata.id, contract.path);
      if (!is_new)
        throw Error(ErrorKind::usage,
                    fmt::format("{}: its id '{}' is that of {}: contracts of one call have different ids, which name "
                                "their output folders",
                                contract.path, contract.metadata.id, first->second));
    }
  }

  // With several contracts, one may have nothing that --only selects.
  void leave_out_unselected() {
    if (arguments_.only.empty()) return;
    const auto is_left_out = [](const Contract& c) { return c.falsifiers.empty(); };
    left_out_ = static_cast<std::size_t>(std::count_if(contracts_.begin(), contracts_.end(), is_left_out));
    contracts_.erase(std::remove_if(contracts_.begin(), contracts_.end(), is_left_out), contracts_.end());
  }

  // Refuses two outputs of the call at one place.
  void check_places() {
    std::vector<WrittenPlace> places;
    for (const Contract& contract : contracts_) {
      const std::vector<WrittenPlace> more =
          output_places(contract, host_, folder_of(arguments_.settings, contract, several_), true);
      places.insert(places.end(), more.begin(), more.end());
    }
    add_places(arguments_.outputs, places);
    check_apart(places);
  }

  // Whatever is wrong with any of the contracts is found before anything is computed.
  void prepare() {
    check_places();
    std::string mistakes;
    const auto collect = [&](const Contract& contract, const auto& check) {
      try {
        check();
      } catch (const Error& e) {
        if (!several_) throw;
        // What is wrong with the machine concerns this contract only, and is told in its turn.
        if (e.kind() == ErrorKind::usage) mistakes += (mistakes.empty() ? "" : "\n") + told_of(contract.path, e.what());
      }
    };
    for (const Contract& contract : contracts_) {
      RunOptions& options = options_.emplace_back();
      options.out = folder_of(arguments_.settings, contract, several_);
      collect(contract, [&] { options = options_of(arguments_.settings, contract, options.out); });
      options.controls = arguments_.controls;
      options.explain = !arguments_.no_explain;
      options.models = &models_;
    }
    const CallFiles files = files_of(contracts_, options_, arguments_.outputs);
    for (std::size_t i = 0; i < contracts_.size(); ++i) {
      options_[i].files = files;
      collect(contracts_[i], [&] {
        check_outputs(contracts_[i], options_[i]);
        if (several_) check_contract(contracts_[i], host_, options_[i]);
      });
    }
    if (!mistakes.empty()) throw Error(ErrorKind::usage, mistakes);
    check_outputs(arguments_.outputs, arguments_.settings.overwrite);
  }

  void run_one(const Contract& contract, const RunOptions& options) {
    try {
      if (is_interrupted()) throw Error(ErrorKind::environment, "interrupted before it began");
      verdicts_.push_back(run_watched(contract, host_, options));
      if (baseline_) compare_with_baseline(verdicts_.back(), *baseline_, arguments_.worse);
      allow_untested(verdicts_.back(), allowed_);
      if (verdicts_.size() > 1 && arguments_.outputs.json != "-") print("\n");
      deliver(verdicts_.back(), options, arguments_.outputs);
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::usage && !several_) throw;
      fmt::print(stderr, "moe-diag: {}{}\n", several_ ? contract.metadata.id + ": " : "", e.what());
      if (verdicts_.empty() || verdicts_.back().contract != &contract) {
        verdicts_.push_back(not_run(contract, e));
        deliver_failure(verdicts_.back(), options, arguments_.outputs);
      }
      code_ = first_that_applies(code_, exit_code_of(e));
    }
    code_ = first_that_applies(code_, exit_code_of(verdicts_.back()));
  }

  std::string summary() const {
    std::map<std::string_view, int> counts;
    for (const Verdict& v : verdicts_) ++counts[word_of(v)];
    std::string text = fmt::format("\nSUMMARY: {}:", counted(verdicts_.size() + left_out_, "contract"));
    std::string_view separator = " ";
    for (const auto& [word, count] : counts) {
      text += fmt::format("{}{} {}", separator, count, word);
      separator = ", ";
    }
    if (left_out_ > 0) text += fmt::format("{}{} not selected", separator, left_out_);
    return text + fmt::format("; exit code {}\n", static_cast<int>(code_));
  }

  const RunArguments& arguments_;
  PluginHost host_;
  std::vector<Contract> contracts_;
  bool several_ = false;
  std::size_t left_out_ = 0;
  std::optional<EarlierVerdict> baseline_;
  std::vector<Pattern> allowed_;
  std::vector<RunOptions> options_;  // as contracts_
  ModelCache models_;
  std::vector<Verdict> verdicts_;
  ExitCode code_ = exit_held;
};

}  // namespace

void add_baseline_options(CLI::App& command, RunArguments& arguments) {
  command
      .add_option(
          "--baseline", arguments.baseline,
          "The verdict.json of an earlier run: also fail where an error grew since, though it is within its bound")
      ->type_name("VERDICT.json");
  command.add_option("--worse", arguments.worse, "With --baseline: by so many times [1.5]")
      ->type_name("TIMES")
      ->check(CLI::PositiveNumber);
}

// A mistake in a contract is told beside the line of the change that has it, too.
ExitCode run_contracts(const RunArguments& arguments, const Context& context) {
  CallFiles inputs;
  for (const std::string& path : arguments.contracts.paths) inputs.read("the contract", path);
  try {
    return Runs(arguments, context, inputs).run();
  } catch (const OutputClash& e) {
    if (arguments.outputs.github) print(github_annotations(e.what(), workspace()));
    throw;
  } catch (const Error& e) {
    deliver_mistakes(e.what(), arguments.outputs, arguments.settings.overwrite, inputs);
    throw;
  }
}

namespace {

void add_run_options(CLI::App& command, RunArguments& arguments) {
  command.add_flag("--controls", arguments.controls,
                   "Also plant every control: a falsifier that survives one is vacuous");
  command.add_flag("--no-explain", arguments.no_explain, "Do not run again what is falsified: no causes are named");
  command.add_option("--only", arguments.only, "Only these falsifiers: 'GLOB' of ids, or 'tag:GLOB'; may be repeated")
      ->type_name("PATTERN")
      ->allow_extra_args(false);
  command
      .add_option("--allow-untested", arguments.allow_untested,
                  "May be untested: 'GLOB' of ids, 'tag:GLOB', or 'lane:GLOB' for what is untested because that lane "
                  "is absent")
      ->type_name("PATTERN")
      ->allow_extra_args(false);
  add_baseline_options(command, arguments);
  RunOutputs& outputs = arguments.outputs;
  const auto is_named = [](const std::string& file) {
    return file.empty() ? std::string("expected the name of a file, found nothing") : std::string();
  };
  command.add_option("--json", outputs.json, "Write the verdict as JSON here, too; - prints it instead of the report")
      ->type_name("FILE")
      ->check(is_named);
  command.add_option("--junit", outputs.junit, "Write the outcomes as JUnit XML here")
      ->type_name("FILE")
      ->check(is_named);
  command.add_flag("--github", outputs.github,
                   "Annotate the contract's lines in GitHub Actions, and add the outcomes to the step's summary");
}

}  // namespace

void add_run(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("run", "Run contracts and judge their falsifiers");
  auto arguments = std::make_shared<RunArguments>();
  add_contract_options(*command, arguments->contracts, Contracts::several);
  add_run_settings(*command, arguments->settings);
  add_run_options(*command, *arguments);
  command->add_flag_callback("-v,--verbose", context.be_verbose(),
                             "Say more: all divergences and curves, every control");
  command->footer(
      "Examples:\n"
      "  moe-diag run contracts/quickstart.yaml --controls\n"
      "  moe-diag run contracts/quickstart.yaml --set 'model={gguf: /models/qwen3-moe.gguf}' --threads 4\n"
      "  moe-diag run contracts/quickstart.yaml --inject '{inject: scale, stage: moe_expert_out, layer: 2, lane: "
      "step}'\n"
      "  moe-diag run contracts/*.yaml --junit moe-diag.xml --allow-untested lane:cuda\n"
      "Whatever was judged is written to <out>/verdict.json; with several contracts, to <out>/<contract id>. With\n"
      "--out 'DIR/{id}', or without --out, each contract has its folder, whatever their number.\n"
      "All contracts are read and checked first: a mistake in one is exit 2, and nothing is computed. The exit code "
      "is\n"
      "the first of 2, 4, 1, 3, 0 that applies to any. A first SIGINT or SIGTERM keeps what was judged, and is exit "
      "4.");
  command->callback([arguments, &context] {
    arguments->outputs.details = context.verbose;
    arguments->outputs.plugin_dirs = context.plugin_dirs;
    context.exit_code = run_contracts(*arguments, context);
  });
}

}  // namespace moe_diag
