// SPDX-License-Identifier: MIT
#include "core/kernel/write_cases.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>
#include <utility>

#include "core/api/error.hpp"
#include "core/file/new_folder.hpp"
#include "core/kernel/allowed_error.hpp"
#include "core/kernel/case_weights.hpp"
#include "core/kernel/judge_kernel.hpp"
#include "core/kernel/judge_report.hpp"
#include "core/kernel/real_values.hpp"
#include "core/kernel/routing_edit.hpp"
#include "core/report/text.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

// The reason why a folder is no folder of cases, or holds something besides.
std::string why_kept(const std::string& folder) {
  std::error_code error;
  if (!fs::is_regular_file(fs::path(folder) / index_file, error)) return "is there and holds no cases";
  fs::recursive_directory_iterator entry(folder, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    const fs::path relative = entry->path().lexically_relative(folder);
    const fs::file_status status = entry->symlink_status();
    const bool is_part = fs::is_directory(status) || relative == index_file ||
                         (fs::is_regular_file(status) && relative.extension() == ".safetensors");
    if (!is_part) return fmt::format("is there and holds {}, which is no part of cases", relative.filename().string());
  }
  return error ? "cannot be read: " + error.message() : "";
}

std::string layer_name(int layer) { return layer < 0 ? "model" : fmt::format("layer_{:02}", layer); }

class CasesWriter {
 public:
  CasesWriter(const Model& model, const CaseIndex& source, const CasesRequest& request)
      : model_(model),
        request_(request),
        folder_(request.out, request.overwrite, {"cases", std::string(index_file), why_kept}),
        index_(source) {}

  std::string write(PluginHost& host);
  bool write(const std::vector<SeenRows>& seen, std::string& text);

 private:
  void find_spans();
  void describe();
  void check_routings();
  std::map<Site, StoredTensor> values(PluginHost& host) const;
  SpanValues inputs_of(const Span& span, const std::map<Site, StoredTensor>& real, int first) const;
  std::vector<int> first_positions() const;
  DType type_of(const Span& span, Stage stage) const;
  void write_weights(const Span& span);
  void write_layer(const Span& span, const SpanValues& inputs);
  void write_seen(const Span& span, const SeenRows& seen);
  void write_case(const Span& span, const SpanValues& all, const AllowedErrors& allowed, KernelCase c);
  void tell(const std::string& what) const;
  std::string summary() const;

  const Model& model_;
  const CasesRequest& request_;
  const Program program_ = build_program(model_);
  NewFolder folder_;
  std::vector<Span> spans_;
  std::vector<CaseRouting> routings_;
  std::map<std::string, DType> types_;  // of inputs that were seen, by name
  CaseIndex index_;
};

void CasesWriter::tell(const std::string& what) const {
  if (request_.interrupted && request_.interrupted())
    throw Error(ErrorKind::environment, fmt::format("{}: interrupted; nothing was written", request_.out));
  if (request_.progress) request_.progress(what);
}

void CasesWriter::find_spans() {
  for (const int layer : request_.layers) {
    spans_.push_back(find_span(model_, program_, request_.span, layer));
    round_as(request_.reads, request_.stored, model_.config(), spans_.back());
    if (spans_.back().layer >= 0) continue;
    break;  // of the whole model: there is one
  }
}

void CasesWriter::check_routings() {
  routings_ = request_.routings;
  const bool reads_choice = spans_.front().reads_choice();
  if (routings_.empty() && reads_choice) routings_ = {CaseRouting::model, CaseRouting::one, CaseRouting::none};
  if (routings_.empty()) routings_ = {CaseRouting::model};
  for (const CaseRouting routing : routings_)
    if (routing != CaseRouting::model && !reads_choice)
      throw Error(ErrorKind::usage, fmt::format("--routing {}: {} reads no choice of experts; leave --routing out",
                                                name_of(routing), request_.span));
}

void CasesWriter::describe() {
  const Span& span = spans_.front();
  const ModelConfig& config = model_.config();
  index_.tool_version = request_.tool_version;
  index_.model_digest = model_.digest(request_.interrupted);
  index_.architecture = model_.architecture().name;
  index_.experts = config.experts;
  index_.used = config.used;
  index_.rms_eps = static_cast<double>(config.rms_eps);
  index_.rope_theta = static_cast<double>(config.rope_theta);
  index_.span = request_.span;
  for (const Step& step : span.steps) index_.steps.emplace_back(name_of(step.out[0]));
  index_.numerics = request_.numerics;
  index_.reads = request_.reads;
  index_.stored = request_.stored;
  index_.seed = request_.seed;
  index_.output = name_of(span.output);
  index_.of_slots = holds_experts(span.output);
  if (!span.choice) return;
  index_.choice = name_of(span.choice);
  index_.writes_choice =
      std::none_of(span.inputs.begin(), span.inputs.end(), [&](const Site& site) { return site.stage == span.choice; });
}

std::map<Site, StoredTensor> CasesWriter::values(PluginHost& host) const {
  std::vector<Site> sites;
  const auto add = [&](const Site& site) {
    if (std::find(sites.begin(), sites.end(), site) == sites.end()) sites.push_back(site);
  };
  for (const Span& span : spans_) {
    for (const Site& site : span.inputs) add(site);
    for (const SpanCache& cache : span.caches) add(cache.from);
  }
  const int count = first_positions().back() + request_.rows.back();
  return real_values(model_, host, random_tokens(count, model_.config().vocab, request_.seed), sites);
}

// A span that reads no cache has the same rows whatever is before them.
std::vector<int> CasesWriter::first_positions() const {
  return spans_.front().caches.empty() ? std::vector<int>{0} : request_.cached;
}

// The type that the engine stores the stage in, where it is known. Engines that compute in bf16 keep activations in it,
// and their routers in f32.
DType CasesWriter::type_of(const Span& span, Stage stage) const {
  if (payload_of(stage) == Payload::indices) return DType::i32;
  if (const auto own = types_.find(std::string(name_of(stage))); own != types_.end()) return own->second;
  if (!span.storage.empty()) return span.storage[stage.index()];
  return request_.numerics == "bf16" && !is_of_router(stage) ? DType::bf16 : DType::f32;
}

// The values as the kernel gets them: rounded to the type that they are written in.
SpanValues CasesWriter::inputs_of(const Span& span, const std::map<Site, StoredTensor>& real, int first) const {
  SpanValues values;
  values.positions.resize(static_cast<std::size_t>(request_.rows.back()));
  std::iota(values.positions.begin(), values.positions.end(), first);
  for (const Site& site : span.inputs) {
    values.of[site.stage] = host::values_of(real.at(site).tensor(), first, values.rows());
    put(stored(values, site, model_.config(), type_of(span, site.stage)), site.stage, values);
  }
  for (const SpanCache& cache : span.caches) {
    host::Values& earlier = values.earlier[cache.cache.index()];
    if (first == 0) continue;
    const std::int64_t width = model_.config().cache_width(cache.cache, span.layer);
    earlier = cached_columns(host::values_of(real.at(cache.from).tensor(), 0, first), first, cache.column, width);
    earlier = rounded_to(std::move(earlier), type_of(span, cache.from.stage));
  }
  return values;
}

void CasesWriter::write_weights(const Span& span) {
  CaseWeights weights = weights_of(span, request_.decoded, request_.fused);
  IndexedLayer layer{span.layer, "", std::move(weights.listed)};
  if (!weights.sources.empty()) {
    layer.file = fmt::format("weights_{}.safetensors", layer_name(span.layer));
    tell("writing " + layer.file);
    write_safetensors(folder_.make_room(layer.file), weights.sources, weights.metadata);
  }
  index_.layers.push_back(std::move(layer));
}

void CasesWriter::write_case(const Span& span, const SpanValues& all, const AllowedErrors& allowed, KernelCase c) {
  std::vector<std::int64_t> rows(static_cast<std::size_t>(c.rows));
  std::iota(rows.begin(), rows.end(), 0);
  const SpanValues values = rows_of(all, rows);
  std::vector<StoredTensor> inputs, expected;
  for (const Site& site : span.inputs)
    inputs.push_back(stored(values, site, model_.config(), type_of(span, site.stage)));
  for (const SpanCache& cache : span.caches)
    inputs.push_back(stored(values, cache, model_.config(), type_of(span, cache.from.stage)));
  expected.push_back(stored(values, {span.output, span.layer}, model_.config(), DType::f64));
  if (index_.writes_choice) expected.push_back(stored(values, {span.choice, span.layer}, model_.config(), DType::i32));
  const auto write = [&](std::string_view file, const std::vector<StoredTensor>& tensors) {
    std::vector<TensorSource> sources;
    for (const StoredTensor& t : tensors) sources.push_back(source_of(t));
    write_safetensors(folder_.make_room(fmt::format("{}/{}", c.name, file)), sources);
    return sources;
  };
  for (const TensorSource& t : write(inputs_file, inputs)) c.inputs.push_back({t.name, t.dtype, t.shape});
  c.shape = write(expected_file_name, expected)[0].shape;
  for (const auto& [type, errors] : allowed) c.allowed[type] = {errors.begin(), errors.begin() + c.rows};
  index_.cases.push_back(std::move(c));
}

void CasesWriter::write_layer(const Span& span, const SpanValues& inputs) {
  for (const CaseRouting routing : routings_) {
    tell(fmt::format("computing {} of {}", request_.span, layer_name(span.layer)));
    SpanValues values = inputs;
    const std::string changed =
        routing == CaseRouting::model ? "" : edit_routing(routing, span.choice, model_.config().experts, values);
    compute_steps(span, model_.config(), 0, values);
    const AllowedErrors allowed = allowed_errors(span, model_.config(), request_.numerics, values);
    for (const int rows : request_.rows) {
      KernelCase c;
      c.name = fmt::format("{}_rows_{}", layer_name(span.layer), rows);
      if (values.first() > 0) c.name += fmt::format("_cached_{}", values.first());
      c.first = values.first();
      if (routing != CaseRouting::model) c.name += fmt::format("_{}", name_of(routing));
      c.layer = span.layer;
      c.rows = rows;
      c.routing = routing;
      c.changed = changed;
      write_case(span, values, allowed, std::move(c));
    }
  }
}

std::string CasesWriter::summary() const {
  std::vector<std::string> names;
  for (const IndexedTensor& t : index_.cases.front().inputs) names.push_back(t.name);
  const Span& span = spans_.front();
  return fmt::format(
      "cases      {}: {}, of {}; {:.1f} MiB\n"
      "span       {}: {} to {}, {}\n"
      "reads      {}\n"
      "writes     {}, of shape {} a row, in F64, F32, F16 or BF16, to {}/CASE/{}\n"
      "judge      moe-diag judge {}\n",
      request_.out, counted(index_.cases.size(), "case"), counted(spans_.size(), "layer"),
      static_cast<double>(folder_.bytes()) / (1 << 20), request_.span, index_.steps.front(), index_.steps.back(),
      counted(span.steps.size(), "step"), fmt::join(names, ", "), index_.output,
      shape_text({index_.cases.front().shape.begin() + 1, index_.cases.front().shape.end()}), request_.out, kernel_file,
      request_.out);
}

std::string CasesWriter::write(PluginHost& host) {
  find_spans();
  check_routings();
  describe();
  tell("computing activations");
  const std::map<Site, StoredTensor> real = values(host);
  for (const Span& span : spans_) {
    write_weights(span);
    for (const int first : first_positions()) write_layer(span, inputs_of(span, real, first));
  }
  folder_.write(std::string(index_file), index_text(index_));
  const std::string text = summary();
  folder_.put_in_place();
  return text;
}

void CasesWriter::write_seen(const Span& span, const SeenRows& seen) {
  SpanValues values;
  values.positions = seen.positions;
  for (const Site& site : span.inputs)
    for (const StoredTensor& tensor : seen.in) {
      if (tensor.name != name_of(site.stage)) continue;
      put(tensor, site.stage, values);
      types_[tensor.name] = tensor.dtype;
    }
  compute_steps(span, model_.config(), 0, values);
  KernelCase c;
  c.name = seen.name;
  c.layer = span.layer;
  c.rows = static_cast<int>(values.rows());
  c.first = values.first();
  write_case(span, values, allowed_errors(span, model_.config(), request_.numerics, values), std::move(c));
  write_safetensors(folder_.make_room(fmt::format("{}/{}", seen.name, kernel_file)), {source_of(seen.out)});
}

bool CasesWriter::write(const std::vector<SeenRows>& seen, std::string& text) {
  find_spans();
  describe();
  const Span& span = spans_.front();
  write_weights(span);
  for (const SeenRows& rows : seen) write_seen(span, rows);
  folder_.write(std::string(index_file), index_text(index_));
  const JudgedKernel judged = judge_kernel({.folder = folder_.path(), .interrupted = request_.interrupted});
  text = judge_report(judged, request_.out);
  if (judged.count(CaseOutcome::falsified) == 0) return false;
  folder_.put_in_place();
  return true;
}

}  // namespace

bool write_seen_cases(const Model& model, const CaseIndex& source, const CasesRequest& request,
                      const std::vector<SeenRows>& seen, std::string& text) {
  return CasesWriter(model, source, request).write(seen, text);
}

std::string write_cases(const Model& model, const CaseIndex& source, PluginHost& host, const CasesRequest& request) {
  return CasesWriter(model, source, request).write(host);
}

}  // namespace moe_diag
