// SPDX-License-Identifier: MIT
#include "core/kernel/judge_kernel.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "core/api/error.hpp"
#include "core/kernel/allowed_error.hpp"
#include "core/kernel/case_cause.hpp"
#include "core/kernel/case_footprint.hpp"
#include "core/text/nearest.hpp"

namespace moe_diag {
namespace {

void check_index(const CaseIndex& index, const std::string& folder) {
  const std::vector<std::string> numerics = known_numerics();
  const std::string path = fmt::format("{}/{}", folder, index_file);
  if (std::find(numerics.begin(), numerics.end(), index.numerics) == numerics.end())
    throw Error(ErrorKind::usage, fmt::format("{}: {}; write the cases anew with `moe-diag cases`", path,
                                              unknown("numerics", index.numerics, numerics)));
  for (const KernelCase& c : index.cases)
    if (index.of_slots && (index.choice.empty() || c.shape.size() != 3 || c.shape[1] != index.used))
      throw Error(ErrorKind::usage,
                  fmt::format("{}: case {}: expected an output of shape [{}, {}, ...], a slot for each "
                              "expert chosen, found {}; write the cases anew with `moe-diag cases`",
                              path, c.name, c.rows, index.used, shape_text(c.shape)));
}

// The model that the cases are of.
Model opened(const CaseIndex& index, const JudgeRequest& request) {
  const std::string& path = request.model.empty() ? index.model_source : request.model;
  std::optional<Model> model;
  try {
    model = index.synthetic && request.model.empty() ? Model::synthetic(index.spec) : Model::open(path);
  } catch (const Error& e) {
    throw Error(ErrorKind::absent,
                fmt::format("the model cannot be opened: {}; say where it is with --model", e.what()));
  }
  const std::string& digest = model->digest(request.interrupted);
  if (digest != index.model_digest)
    throw Error(ErrorKind::absent,
                fmt::format("{} is another model: expected digest {}, found {}; say where the one of the cases is with "
                            "--model, or write the cases anew",
                            path, index.model_digest, digest));
  return std::move(*model);
}

// Whether the case has all that its span reads, as the model has it.
void check_fits(const Span& span, const ModelConfig& config, const JudgedCase& judged) {
  for (const Site& site : span.inputs) {
    const StoredTensor* tensor = judged.input(name_of(site.stage));
    const Shape shape = config.shape_of(site, judged.of->rows, 0);
    const bool is_ids = payload_of(site.stage) == Payload::indices;
    if (!tensor || tensor->shape != shape || (tensor->dtype == DType::i32) != is_ids)
      throw Error(ErrorKind::absent, fmt::format("case {} has no {} of shape {}, which its span reads", judged.of->name,
                                                 name_of(site.stage), shape_text(shape)));
  }
  for (const SpanCache& cache : span.caches) {
    const StoredTensor* tensor = judged.input(name_of(cache.cache));
    const Shape shape = shape_of(cache, judged.of->first, config);
    if (!tensor || tensor->shape != shape)
      throw Error(ErrorKind::absent, fmt::format("case {} has no {} of shape {}, which its span reads", judged.of->name,
                                                 name_of(cache.cache), shape_text(shape)));
  }
  if (judged.expected.shape != config.shape_of({span.output, span.layer}, judged.of->rows, 0))
    throw Error(ErrorKind::absent,
                fmt::format("the output of case {} is not of the shape that the model gives it", judged.of->name));
}

void look_for_causes(const JudgeRequest& request, JudgedKernel& judged) {
  std::map<int, std::vector<JudgedCase*>> by_layer;
  for (JudgedCase& c : judged.cases)
    if (c.outcome == CaseOutcome::falsified) by_layer[c.of->layer].push_back(&c);
  if (by_layer.empty()) return;
  const Model model = opened(judged.index, request);
  const Program program = build_program(model);
  for (const auto& [layer, cases] : by_layer) {
    if (layer >= model.config().layers) throw Error(ErrorKind::absent, fmt::format("the model has no layer {}", layer));
    Span span = find_span(model, program, judged.index.span, layer);
    round_as(judged.index.reads, judged.index.stored, model.config(), span);
    for (const JudgedCase* c : cases) check_fits(span, model.config(), *c);
    explain_cases(judged.index, model, program, span, cases);
  }
}

}  // namespace

std::size_t JudgedKernel::count(CaseOutcome outcome) const {
  return static_cast<std::size_t>(
      std::count_if(cases.begin(), cases.end(), [&](const JudgedCase& c) { return c.outcome == outcome; }));
}

JudgedKernel judge_kernel(const JudgeRequest& request) {
  JudgedKernel judged;
  judged.index = read_index(request.folder);
  check_index(judged.index, request.folder);
  for (const KernelCase& c : judged.index.cases) judged.cases.push_back(judge_case(judged.index, c, request.folder));
  judged.row_counts = row_count_texts(judged.cases);
  try {
    look_for_causes(request, judged);
  } catch (const Error& e) {
    if (request.interrupted && request.interrupted()) throw;
    judged.no_causes = e.what();
  }
  return judged;
}

}  // namespace moe_diag
