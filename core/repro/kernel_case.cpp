// SPDX-License-Identifier: MIT
#include "core/repro/kernel_case.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/api/error.hpp"
#include "core/kernel/allowed_error.hpp"
#include "core/kernel/write_cases.hpp"
#include "core/run/open_model.hpp"
#include "core/text/quote.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

constexpr std::string_view without = "leave --cases out, for a contract that runs the step alone";

[[noreturn]] void refuse(const std::string& what) {
  throw Error(ErrorKind::usage, fmt::format("--cases: {}; {}", what, without));
}

// The numerics that a kernel's cases know: a lane in f64 errs by less than one in f32, and is judged as that.
std::string numerics_of(const KernelCaseParts& parts) {
  if (parts.numerics == "f64") return "f32";
  const std::vector<std::string> known = known_numerics();
  if (std::find(known.begin(), known.end(), parts.numerics) == known.end())
    refuse(fmt::format("lane '{}': expected numerics of {}, found {}", parts.lane.name, fmt::join(known, ", "),
                       parts.numerics.empty() ? "none" : shown(parts.numerics)));
  return parts.numerics;
}

CaseIndex source_of(const KernelCaseParts& parts) {
  CaseIndex source;
  const ModelSource& model = parts.contract.model;
  source.synthetic = !model.synthetic.empty();
  source.model_source = parts.model.source();
  if (!source.synthetic) {
    std::error_code error;
    const auto canonical = std::filesystem::canonical(source.model_source, error);
    if (!error) source.model_source = canonical.string();
    return source;
  }
  source.spec = spec_of(model);
  return source;
}

// Words of the lane's engine that cases do not have.
void refuse_engine(const LaneSpec& lane) {
  const EngineNumerics& e = lane.engine;
  if (!e.stages.empty() && !lane.replay)
    refuse(
        fmt::format("lane '{}': `stored` by stage is not written as a case: expected the name of a preset", lane.name));
  const std::pair<std::string_view, bool> others[] = {{"scales of `reads`", !e.scales.empty()},
                                                      {"`weights`", !e.weights.empty()},
                                                      {"`accumulator`", !e.accumulator.empty()},
                                                      {"`kv_cache`", !e.kv_cache.empty()}};
  for (const auto& [what, is_said] : others)
    if (is_said) refuse(fmt::format("lane '{}': {} are not written as a case", lane.name, what));
}

CasesRequest request_of(const KernelCaseParts& parts, const ReproOptions& options) {
  refuse_engine(parts.lane);
  CasesRequest request;
  request.span = name_of(parts.site.stage);
  request.layers = {std::max(parts.site.layer, 0)};
  request.rows = {parts.seen.count};
  request.routings = {CaseRouting::model};
  request.numerics = numerics_of(parts);
  request.reads = parts.lane.engine.reads;
  request.stored = parts.lane.engine.stored;
  for (const auto& [stage, type] : parts.lane.engine.stages)
    if (stage == parts.site.stage) request.stored = name_of(type);
  request.out = options.out;
  request.overwrite = options.overwrite;
  request.tool_version = options.run.tool_version;
  request.interrupted = options.run.interrupted;
  return request;
}

StoredTensor tensor_of(const GivenValues& values) {
  return {std::string(name_of(values.stage)), values.dtype, values.shape, values.bytes};
}

SeenRows rows_of(const KernelCaseParts& parts, int first, int count, const std::string& name) {
  const int row = first - parts.seen.first;
  SeenRows rows;
  rows.name = name;
  rows.positions.resize(static_cast<std::size_t>(count));
  std::iota(rows.positions.begin(), rows.positions.end(), first);
  for (const GivenValues& values : parts.seen.inputs) rows.in.push_back(tensor_of(rows_of(values, row, count)));
  GivenValues output = rows_of(parts.seen.output, row, count);
  output.stage = parts.site.stage;
  rows.out = tensor_of(output);
  return rows;
}

}  // namespace

Repro write_kernel_case(const KernelCaseParts& parts, const ReproOptions& options) {
  const SeenStep& seen = parts.seen;
  const std::string layer = parts.site.layer < 0 ? "model" : fmt::format("layer_{:02}", parts.site.layer);
  std::vector<SeenRows> rows{rows_of(parts, parts.position, 1, fmt::format("{}_position_{}", layer, parts.position))};
  if (seen.count > 1)
    rows.push_back(rows_of(parts, seen.first, seen.count,
                           fmt::format("{}_positions_{}_to_{}", layer, seen.first, seen.first + seen.count - 1)));
  std::string judged;
  const std::string what = fmt::format("{} of lane {}", text_of(parts.site), parts.lane.name);
  try {
    if (!write_seen_cases(parts.model, source_of(parts), request_of(parts, options), rows, judged))
      return {false, fmt::format("{} is right when it is judged as a kernel in its numerics:\n{}", what, judged)};
  } catch (const Error& e) {
    const std::string_view text = e.what(), span = "--span: ";
    if (e.kind() != ErrorKind::usage || !text.starts_with(span)) throw;
    refuse(std::string(text.substr(span.size())));
  }
  return {true, fmt::format("case       {0}: {1}, position {2}; what the lane wrote is in {0}/CASE/{3}\n"
                            "again      moe-diag judge {4}\n\n{5}",
                            options.out, what, parts.position, kernel_file, shell_word(options.out), judged)};
}

}  // namespace moe_diag
