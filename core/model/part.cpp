// SPDX-License-Identifier: MIT
#include "core/model/part.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "core/api/error.hpp"
#include "core/api/output_file.hpp"
#include "core/gguf/gguf_header.hpp"
#include "core/gguf/metadata_reader.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::string_view stage_key = part_stage_key, layer_key = "moe_diag.part.layer";
constexpr int most_layers = 4096;  // a part may announce layers without having them

// A tensor of the part, and what it has of the model's.
struct Kept {
  TensorSpec spec;
  const Weight* weight;
  std::vector<std::int32_t> experts, rows;  // of the model's tensor
};

std::vector<std::int32_t> all_of(std::int64_t count) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

std::vector<Kept> kept_tensors(const Model& model, const PartSpec& spec, const ModelConfig& config) {
  const Architecture& architecture = model.architecture();
  std::vector<TensorSpec> specs = architecture.first_tensors(config);
  if (spec.site.layer >= 0) {
    const std::vector<TensorSpec> of_layer = architecture.layer_tensors(config, spec.site.layer);
    specs.insert(specs.end(), of_layer.begin(), of_layer.end());
  }
  for (const TensorSpec& last : architecture.last_tensors(config)) specs.push_back(last);
  std::vector<Kept> kept;
  for (const TensorSpec& tensor : specs) {
    if (!is_read_by(spec.site, tensor, config)) continue;
    const auto weights = model.view().weights;
    const std::string name = tensor.name();
    const auto weight = std::find_if(weights.begin(), weights.end(), [&](const Weight& w) { return w.name == name; });
    if (weight == weights.end()) continue;  // optional
    const bool of_vocabulary = tensor.kind == TensorKind::table || tensor.kind == TensorKind::head;
    kept.push_back({tensor, &*weight, spec.experts.empty() || tensor.rank < 3 ? all_of(weight->experts) : spec.experts,
                    spec.vocabulary.empty() || !of_vocabulary ? all_of(weight->rows) : spec.vocabulary});
  }
  return kept;
}

void write_data(const Kept& kept, OutputFile& file) {
  const Weight& weight = *kept.weight;
  std::uint64_t written = 0;
  for (const std::int32_t expert : kept.experts)
    for (const std::int32_t row : kept.rows) {
      file.write(weight.row(expert, row), weight.row_bytes());
      written += weight.row_bytes();
    }
  const std::array<std::byte, GgufHeader::alignment> zeros{};
  file.write(zeros.data(), (GgufHeader::alignment - written % GgufHeader::alignment) % GgufHeader::alignment);
}

}  // namespace

std::optional<Site> read_part(const GgufFile& file, const ModelConfig& config) {
  if (!is_part(file)) return std::nullopt;
  const std::string_view name = *file.text(stage_key);
  const Stage stage = config.stages.find(name);
  if (!stage) refuse_file(file, "metadata key '{}' is {}: there is no such stage", stage_key, quoted_bytes(name));
  const int layers = config.layers;
  if (layers > most_layers)
    refuse_file(file, "a part of a model of {} layers, expected {} at most", layers, most_layers);
  const std::int64_t layer = file.integer(layer_key).value_or(-1);
  const bool in_layer = info(stage).scope == Scope::layer;
  if (in_layer ? layer < 0 || layer >= layers : layer != -1)
    refuse_file(file, "metadata key '{}' is {}: {} is {}", layer_key, layer, name,
                in_layer ? fmt::format("in the layers 0 to {}", layers - 1) : "of no layer");
  return Site{stage, static_cast<int>(layer)};
}

bool is_read_by(Site site, const TensorSpec& spec, const ModelConfig& config) {
  if (is(site.stage, Role::logits) && config.tied_output) return spec.kind == TensorKind::table;
  const auto& read = info(site.stage).weights;
  std::string_view role = spec.role;
  if (role.ends_with(".bias")) role.remove_suffix(std::string_view(".bias").size());
  const bool is_there = spec.layer == site.layer || spec.layer < 0;  // steps of a layer may read what is of none
  return is_there && std::find(read.begin(), read.end(), role) != read.end();
}

ModelConfig config_of(const ModelConfig& whole, const PartSpec& spec) {
  ModelConfig config = whole;
  if (!spec.experts.empty()) config.experts = static_cast<int>(spec.experts.size());
  if (!spec.vocabulary.empty()) config.vocab = static_cast<int>(spec.vocabulary.size());
  return config;
}

std::uint64_t part_bytes(const Model& model, const PartSpec& spec) {
  std::uint64_t bytes = 0;
  for (const Kept& kept : kept_tensors(model, spec, config_of(model.config(), spec)))
    bytes += kept.weight->row_bytes() * kept.rows.size() * kept.experts.size();
  return bytes;
}

void write_part(const Model& model, const PartSpec& spec, const std::string& path) {
  const ModelConfig config = config_of(model.config(), spec);
  GgufHeader header;
  header.add("general.architecture", model.architecture().name);
  header.add("general.name", fmt::format("A step of {}", model.source()));
  model.architecture().add_config(header, config, config.expert_width);
  header.add(stage_key, name_of(spec.site.stage));
  if (spec.site.layer >= 0) header.add(layer_key, static_cast<std::uint32_t>(spec.site.layer));
  header.add("moe_diag.part.of", model.digest());
  if (!spec.experts.empty()) header.add("moe_diag.part.experts", fmt::format("{}", fmt::join(spec.experts, " ")));
  if (!spec.vocabulary.empty())
    header.add("moe_diag.part.vocabulary", fmt::format("{}", fmt::join(spec.vocabulary, " ")));
  const std::vector<Kept> kept = kept_tensors(model, spec, config);
  for (const Kept& tensor : kept) header.add_tensor(tensor.spec.name(), tensor.weight->type, tensor.spec.dims());
  const std::vector<std::byte> before = header.bytes();
  OutputFile file(path, OutputFile::Mode::create);
  file.write(before.data(), before.size());
  for (const Kept& tensor : kept) write_data(tensor, file);
  file.close();
}

}  // namespace moe_diag
