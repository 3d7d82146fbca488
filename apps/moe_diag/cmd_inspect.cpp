// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/inspect_outline.hpp"
#include "apps/moe_diag/inspect_weights.hpp"
#include "core/api/error.hpp"
#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

std::int64_t values_of(const Weight& w) { return w.cols * w.rows * w.experts; }

std::string shape_text(const Weight& w) {
  if (w.experts > 1) return fmt::format("[{}, {}, {}]", w.cols, w.rows, w.experts);
  return w.rows > 1 ? fmt::format("[{}, {}]", w.cols, w.rows) : fmt::format("[{}]", w.cols);
}

// "blk.7.attn_q.weight" is attn_q of layer 7, "output.weight" is output of none (-1).
struct Place {
  std::string_view role;
  int layer = -1;
};
Place place_of(std::string_view name) {
  Place place{name.substr(0, name.rfind(".weight"))};
  if (!name.starts_with("blk.")) return place;
  place.layer = std::stoi(std::string(name.substr(4)));
  place.role.remove_prefix(place.role.find('.', 4) + 1);
  return place;
}

// Tensors of one role and type, with the layers that have them; groups of a role stand together.
struct Group {
  std::string_view role;
  BlockType type;
  std::string shape;
  std::vector<int> layers;  // ascending; empty: model-wide
  std::uint64_t bytes = 0;
};

std::vector<Group> groups_of(const Model& model) {
  std::vector<Group> groups;
  std::vector<std::pair<Place, const Weight*>> places;
  places.reserve(model.view().weights.size());
  for (const Weight& w : model.view().weights) places.emplace_back(place_of(w.name), &w);
  std::stable_sort(places.begin(), places.end(),
                   [](const auto& a, const auto& b) { return a.first.layer < b.first.layer; });
  for (const auto& [place, w] : places) {
    const std::string_view role = place.role;
    const auto behind = std::find_if(groups.rbegin(), groups.rend(), [&](const Group& g) { return g.role == role; });
    const BlockType type = w->type;
    auto group =
        std::find_if(groups.begin(), groups.end(), [&](const Group& g) { return g.role == role && g.type == type; });
    if (group == groups.end()) {
      const auto at = behind == groups.rend() ? groups.end() : behind.base();
      group = groups.insert(at, {role, type, shape_text(*w), {}, 0});
    }
    if (place.layer >= 0) group->layers.push_back(place.layer);
    group->bytes += w->bytes();
  }
  return groups;
}

// "0..=5,8,11", as contracts take layers.
std::string runs_text(const std::vector<int>& layers) {
  std::string text;
  for (std::size_t i = 0; i < layers.size();) {
    std::size_t end = i + 1;
    while (end < layers.size() && layers[end] == layers[end - 1] + 1) ++end;
    text += text.empty() ? "" : ",";
    if (end - i > 2)
      text += fmt::format("{}..={}", layers[i], layers[end - 1]);
    else
      text += end - i == 2 ? fmt::format("{},{}", layers[i], layers[i + 1]) : fmt::format("{}", layers[i]);
    i = end;
  }
  return text;
}

std::string layers_text(const Group& group, int layers) {
  if (group.layers.empty()) return "-";
  return static_cast<int>(group.layers.size()) == layers ? "all" : runs_text(group.layers);
}

std::string size_text(std::uint64_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (b >= 1 << 30) return fmt::format("{:.2f} GiB", b / (1 << 30));
  return b >= 1 << 20 ? fmt::format("{:.2f} MiB", b / (1 << 20)) : fmt::format("{:.2f} KiB", b / (1 << 10));
}

std::string count_text(std::int64_t count) {
  const auto n = static_cast<double>(count);
  return count >= 1'000'000'000 ? fmt::format("{:.3f} billion", n / 1e9) : fmt::format("{:.3f} million", n / 1e6);
}

struct Parameters {
  std::int64_t total = 0;
  std::int64_t active = 0;     // of one token: the experts it uses and all that is not expert
  std::int64_t embedding = 0;  // of which one row is looked up, and not multiplied, unless the head uses it too
};
Parameters parameters_of(const Model& model) {
  Parameters p;
  std::set<const Weight*> of_experts;
  for (const Step& step : build_program(model))
    if (operator_of(step).weights == WeightRows::of_experts)
      of_experts.insert(step.weights.begin(), step.weights.end());
  for (const Weight& w : model.view().weights) {
    p.total += values_of(w);
    p.active += of_experts.count(&w) > 0 ? w.cols * w.rows * model.config().used : values_of(w);
  }
  if (!model.config().tied_output) p.embedding = values_of(model.weight("token_embd"));
  return p;
}

struct TypeBytes {
  BlockType type;
  int tensors = 0;
  std::uint64_t bytes = 0;
};
std::vector<TypeBytes> bytes_by_type(const Model& model) {
  std::vector<TypeBytes> types;
  for (const BlockInfo& block : block_table) {
    TypeBytes entry{block.type};
    for (const Weight& w : model.view().weights) {
      if (w.type != block.type) continue;
      ++entry.tensors;
      entry.bytes += w.bytes();
    }
    if (entry.tensors > 0) types.push_back(entry);
  }
  std::stable_sort(types.begin(), types.end(),
                   [](const TypeBytes& a, const TypeBytes& b) { return a.bytes > b.bytes; });
  return types;
}

double percent(std::uint64_t part, std::uint64_t whole) {
  return 100 * static_cast<double>(part) / static_cast<double>(whole);
}

void print_config(const Model& model) {
  const ModelConfig& c = model.config();
  const Parameters p = parameters_of(model);
  fmt::print("{}\n", model.source());
  fmt::print("  model       {}, {} layers, hidden {}, vocabulary {}, context {}\n", model.architecture().name, c.layers,
             c.hidden, c.vocab, c.context);
  fmt::print("  attention   {} heads and {} kv heads of {}, RoPE base {:g}\n", c.heads, c.kv_heads, c.head_dim,
             c.rope_theta);
  fmt::print("  experts     {}, {} used, {} wide{}\n", c.experts, c.used, c.expert_width,
             c.expert_widths.empty() ? "" : " at most: layers differ");
  const auto& own = model.architecture().own;
  for (std::size_t i = 0; i < own.size(); ++i) fmt::print("  {}  {}\n", own[i], c.own[i]);
  fmt::print("  norms       RMS, epsilon {:g}\n", c.rms_eps);
  fmt::print("  output      {}\n", c.tied_output ? "token_embd (tied)" : "a tensor of its own");
  fmt::print("  parameters  {}, of which a token uses {} ({} without the embedding's table)\n", count_text(p.total),
             count_text(p.active), count_text(p.active - p.embedding));
  const std::size_t parts = model.files().size();
  fmt::print("  file        {}{} ({} bytes), {} tensors, digest {}\n\n",
             parts > 1 ? fmt::format("{} parts, ", parts) : "", size_text(model.bytes()), model.bytes(),
             model.view().weights.size(), model.digest_so_far());
}

void print_groups(const Model& model) {
  const std::vector<Group> groups = groups_of(model);
  std::size_t width = 14;
  for (const Group& g : groups) width = std::max(width, g.role.size());
  fmt::print("{:<{}} {:<5} {:<18} {:>11} {:>7}  {}\n", "TENSOR", width, "TYPE", "SHAPE", "BYTES", "SHARE", "LAYERS");
  for (const Group& g : groups)
    fmt::print("{:<{}} {:<5} {:<18} {:>11} {:>6.2f}%  {}\n", g.role, width, name_of(g.type), g.shape,
               size_text(g.bytes), percent(g.bytes, model.bytes()), layers_text(g, model.config().layers));
  fmt::print("\n{:<14} {:>8} {:>15} {:>7}\n", "TYPE", "TENSORS", "BYTES", "SHARE");
  for (const TypeBytes& t : bytes_by_type(model))
    fmt::print("{:<14} {:>8} {:>15} {:>6.2f}%\n", name_of(t.type), t.tensors, size_text(t.bytes),
               percent(t.bytes, model.bytes()));
}

void print_tensors(const Model& model) {
  fmt::print("\n{:<28} {:<5} {:<18} {:>14} {:>12}\n", "TENSOR", "TYPE", "SHAPE", "OFFSET", "BYTES");
  const std::vector<std::string> files = model.files();
  for (const Weight& w : model.view().weights) {
    const auto [file, offset] = model.place_of(w);
    fmt::print("{:<28} {:<5} {:<18} {:>14} {:>12}{}\n", w.name, name_of(w.type), shape_text(w), offset, w.bytes(),
               files.size() > 1 ? fmt::format("  part {}", file + 1) : "");
  }
  fmt::print("\nShapes list dimensions as the file does, fastest first: columns, rows, experts.\n");
}

nlohmann::ordered_json config_json(const Model& model) {
  const ModelConfig& c = model.config();
  nlohmann::ordered_json json{{"architecture", model.architecture().name},
                              {"layers", c.layers},
                              {"hidden", c.hidden},
                              {"heads", c.heads},
                              {"kv_heads", c.kv_heads},
                              {"head_dim", c.head_dim},
                              {"experts", c.experts},
                              {"used", c.used},
                              {"expert_width", c.expert_width},
                              {"vocab", c.vocab},
                              {"context", c.context},
                              {"rms_eps", c.rms_eps},
                              {"rope_theta", c.rope_theta},
                              {"tied_output", c.tied_output}};
  const auto& own = model.architecture().own;
  for (std::size_t i = 0; i < own.size(); ++i) json[std::string(own[i])] = c.own[i];
  if (!c.expert_widths.empty()) json["expert_widths"] = c.expert_widths;
  return json;
}

nlohmann::ordered_json weights_json(const std::vector<UnsoundBlocks>& unsound) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const UnsoundBlocks& u : unsound) {
    nlohmann::ordered_json one{
        {"tensor", u.tensor}, {"type", name_of(u.type)}, {"expert", nullptr}, {"blocks", u.blocks}, {"nan", u.nan},
        {"inf", u.inf},       {"beyond", u.beyond},      {"zero", u.zero},    {"first", nullptr}};
    if (u.expert >= 0) one["expert"] = u.expert;
    if (u.first >= 0)
      one["first"] = {{"block", u.first}, {"row", u.row}, {"columns", {u.column, u.column + u.columns - 1}}};
    list.push_back(std::move(one));
  }
  return {{"sound", unsound.empty()}, {"unsound", list}};
}

// `unsound` null: the weights were not looked at.
std::string json_of(const Model& model, const std::vector<UnsoundBlocks>* unsound) {
  using Json = nlohmann::ordered_json;
  const Parameters p = parameters_of(model);
  Json types = Json::array(), groups = Json::array(), tensors = Json::array();
  for (const TypeBytes& t : bytes_by_type(model))
    types.push_back({{"type", name_of(t.type)}, {"tensors", t.tensors}, {"bytes", t.bytes}});
  for (const Group& g : groups_of(model))
    groups.push_back({{"tensor", g.role}, {"type", name_of(g.type)}, {"layers", g.layers}, {"bytes", g.bytes}});
  const std::vector<std::string> files = model.files();
  for (const Weight& w : model.view().weights) {
    const auto [file, offset] = model.place_of(w);
    tensors.push_back({{"name", w.name},
                       {"type", name_of(w.type)},
                       {"shape", {w.cols, w.rows, w.experts}},
                       {"offset", offset},
                       {"bytes", w.bytes()}});
    if (files.size() > 1) tensors.back()["file"] = files[file];
  }
  Json document{
      {"schema", 1},
      {"source", model.source()},
      {"bytes", model.bytes()},
      {"digest", model.digest_so_far()},
      {"config", config_json(model)},
      {"parameters", {{"total", p.total}, {"active", p.active}, {"active_without_embedding", p.active - p.embedding}}},
      {"types", types},
      {"groups", groups},
      {"tensors", tensors}};
  if (unsound) document["weights"] = weights_json(*unsound);
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// Shows what a file holds that cannot be computed, before refusing it.
Model opened(const std::string& path, bool json) {
  try {
    return Model::open(path);
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::environment) print_outline(path, e.what(), json);
    throw;
  }
}

}  // namespace

void add_inspect(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("inspect", "Show a model: configuration, tensors, types by layer, bytes");
  auto path = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false), digest = std::make_shared<bool>(false);
  command->add_option("MODEL", *path, "GGUF file of a model")->required();
  auto weights = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print JSON, every tensor included");
  command->add_flag("--digest", *digest,
                    "Digest every byte, as runs do; else the digest is only sampled, of 4 KiB of each tensor");
  command->add_flag("--weights", *weights,
                    "Look at every block for NaN, Inf, values beyond F16, and tensors or experts of zeros");
  command->add_flag_callback("-v,--verbose", context.be_verbose(), "Say more: every tensor with its place in the file");
  command->footer(
      "One line a tensor and type: where the types of a tensor differ by layer, LAYERS says which layer has which, in\n"
      "the form that contracts take. -v lists every tensor with its place in the file.\n"
      "Opening checks the whole header. A file that is refused, exit 4, is not computed either: why is told, and what\n"
      "it holds is listed, where that can be read.\n"
      "--weights reads the whole file, and is exit 1 when it finds something.\n\n"
      "Examples:\n"
      "  moe-diag synth tiny.gguf && moe-diag inspect tiny.gguf\n"
      "  moe-diag inspect model.gguf --weights\n"
      "  moe-diag inspect model.gguf --json | jq '.groups[] | select(.tensor == \"ffn_down_exps\")'");
  command->callback([path, json, digest, weights, &context] {
    const Model model = opened(*path, *json);
    if (*digest) static_cast<void>(model.digest());
    const std::vector<UnsoundBlocks> unsound = *weights ? scan_model(model) : std::vector<UnsoundBlocks>{};
    if (!unsound.empty()) context.exit_code = exit_falsified;
    if (*json) {
      fmt::print("{}", json_of(model, *weights ? &unsound : nullptr));
      return;
    }
    print_config(model);
    print_groups(model);
    if (context.verbose) print_tensors(model);
    if (*weights) fmt::print("{}", weights_text(model, unsound));
  });
}

}  // namespace moe_diag
