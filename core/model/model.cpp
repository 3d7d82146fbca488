// SPDX-License-Identifier: MIT
#include "core/model/model.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <utility>

#include "core/api/error.hpp"
#include "core/gguf/gguf_file.hpp"
#include "core/gguf/mapped_file.hpp"
#include "core/gguf/metadata_reader.hpp"
#include "core/gguf/split_files.hpp"
#include "core/model/digest_memory.hpp"
#include "core/model/part.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {

// A tensor that is not in the file: its name and shape, no data.
struct Lacked {
  std::string name;
  Weight weight;
};

struct Model::Impl {
  std::vector<MappedFile> mapped;  // all parts of it; none: in memory
  SyntheticImage image;
  std::string source, sampled;
  std::span<const std::byte> bytes;  // of the first part
  std::vector<std::span<const std::byte>> headers;
  ModelConfig config;
  std::optional<Site> part;
  std::vector<Weight> weights;
  ModelView view;             // of the two
  std::deque<Lacked> lacked;  // what a part of a model does not have
  const Architecture* architecture = nullptr;
  std::map<std::pair<int, std::string_view>, const Weight*> roles;  // by layer and role
  std::optional<FileState> state;  // of the files when they were opened; none: in memory, or not to be remembered

  // Of every byte; empty until it is known.
  std::mutex digest_mutex;
  std::string digest;
  bool remembered = false;
  std::unique_ptr<DigestWork> work;  // gone first: it reads the bytes

  void read(const GgufFile& file);
  void begin_digest();
  void take_digest(std::string found);
};

namespace {

constexpr std::size_t sampled_bytes = 4096;  // of each tensor
constexpr std::size_t most_others = 6;       // tensors named where one is missing
constexpr std::string_view not_fused = "fused tensors are not supported; convert the model without fusing them";
constexpr std::string_view not_joined = "not supported; convert the model again with a current llama.cpp";

std::string shape_text(std::span<const std::int64_t> dims) {
  std::string text;
  for (const std::int64_t size : dims) text += fmt::format("{}{}", text.empty() ? "" : ", ", size);
  return fmt::format("[{}]", text);
}

// Finds the tensors of a model in a file, refuses wrong ones, and remembers which it found.
class Finder {
 public:
  Finder(const GgufFile& file, const std::vector<Weight>& weights, const Architecture& architecture,
         const ModelConfig& config, const std::optional<Site>& part, std::deque<Lacked>& lacked)
      : file_(file),
        weights_(weights),
        architecture_(architecture),
        config_(config),
        part_(part),
        lacked_(lacked),
        taken_(weights.size(), false) {}

  const Weight* take(const TensorSpec& spec) {
    const std::string wanted = spec.name();
    const GgufTensor* tensor = file_.find_tensor(wanted);
    if (tensor == nullptr && spec.is_optional) return nullptr;
    if (part_ && !is_read_by(*part_, spec, config_)) return lack(spec);
    if (tensor == nullptr)
      refuse_file(file_, "tensor {} is missing; expected one of shape {} (fastest first){}", wanted,
                  shape_text(spec.dims()), instead_of(spec));
    std::array<std::int64_t, 4> expected{spec.cols, spec.rows, spec.experts, 1};
    if (tensor->dims != expected)
      refuse_file(file_, "tensor {} has shape {}, expected {} (fastest first: columns, rows, experts)", wanted,
                  shape_text(std::span(tensor->dims).first(static_cast<std::size_t>(tensor->rank))),
                  shape_text(spec.dims()));
    if (spec.kind == TensorKind::norm && tensor->type != BlockType::f32)
      refuse_file(file_, "tensor {} is of type {}, expected F32 for a norm; convert the model with a current llama.cpp",
                  wanted, name_of(tensor->type));
    const auto index = static_cast<std::size_t>(tensor - file_.tensors().data());
    taken_[index] = true;
    return &weights_[index];
  }

  void refuse_left_over() const {
    for (std::size_t i = 0; i < taken_.size(); ++i) {
      if (taken_[i]) continue;
      const std::string_view name = file_.tensors()[i].name;
      refuse_file(file_, "tensor {} is no part of a {} model: {}", quoted_bytes(name), architecture_.name,
                  what_it_may_be(name));
    }
  }

 private:
  // A tensor that the part's step does not read.
  const Weight* lack(const TensorSpec& spec) {
    Lacked& lacked = lacked_.emplace_back();
    lacked.name = spec.name();
    lacked.weight = {lacked.name, BlockType::f32, spec.cols, spec.rows, spec.experts, nullptr};
    return &lacked.weight;
  }

  // The tensors that stand where this one is missing: converters and versions of them differ.
  std::string instead_of(const TensorSpec& spec) const {
    const std::string block = spec.layer < 0 ? std::string() : fmt::format("blk.{}.", spec.layer);
    const bool of_attention = spec.role == "attn_q" || spec.role == "attn_k" || spec.role == "attn_v";
    const bool gates = spec.role == "ffn_gate_exps" || spec.role == "ffn_up_exps";
    if (const std::string name = block + "attn_qkv.weight"; of_attention && file_.find_tensor(name))
      return fmt::format("; found {}, queries, keys and values in one tensor: {}", name, not_fused);
    if (const std::string name = block + "ffn_gate_up_exps.weight"; gates && file_.find_tensor(name))
      return fmt::format("; found {}, gate and up in one tensor: {}", name, not_fused);
    if (std::string name(spec.role); name.ends_with("_exps")) {
      name = fmt::format("{}{}.0.weight", block, name.substr(0, name.size() - 5));
      if (file_.find_tensor(name))
        return fmt::format("; found {} and more, a tensor an expert, as old converters wrote: {}", name, not_joined);
    }
    std::vector<std::string> others;
    for (const GgufTensor& tensor : file_.tensors()) {
      if (!tensor.name.starts_with(block) || (spec.layer < 0 && tensor.name.starts_with("blk."))) continue;
      if (!is_known(tensor.name, spec.layer)) others.push_back(quoted_bytes(tensor.name));
      if (others.size() == most_others) break;
    }
    if (others.empty()) return "";
    return fmt::format("; found instead, not known here: {}", fmt::join(others, ", "));
  }

  bool is_known(std::string_view name, int layer) const {
    const auto holds = [name](const std::vector<TensorSpec>& specs) {
      return std::any_of(specs.begin(), specs.end(), [&](const TensorSpec& s) { return s.name() == name; });
    };
    if (layer >= 0) return holds(architecture_.layer_tensors(config_, layer));
    ModelConfig untied = config_;
    untied.tied_output = false;
    return holds(architecture_.first_tensors(config_)) || holds(architecture_.last_tensors(untied));
  }

  static std::string_view what_it_may_be(std::string_view name) {
    const auto has = [name](std::string_view part) { return name.find(part) != std::string_view::npos; };
    if (name.ends_with(".bias")) return "this bias is not supported";
    if (has("_shexp")) return "shared experts are not supported";
    if (has("rope_freqs") || has("rope_factors")) return "RoPE frequency factors are not supported";
    if (has("attn_qkv") || has("ffn_gate_up_exps")) return "fused tensors are not supported";
    if (has("ffn_gate.") || has("ffn_up.") || has("ffn_down."))
      return "dense feed-forward layers, or a tensor an expert, are not supported";
    return "it may change what is computed and is not supported";
  }

  const GgufFile& file_;
  const std::vector<Weight>& weights_;
  const Architecture& architecture_;
  const ModelConfig& config_;
  const std::optional<Site>& part_;
  std::deque<Lacked>& lacked_;
  std::vector<bool> taken_;
};

std::vector<Weight> make_weights(const GgufFile& file) {
  std::vector<Weight> weights;
  for (const GgufTensor& t : file.tensors())
    weights.push_back({t.name, t.type, t.dims[0], t.dims[1], t.dims[2], t.data});
  return weights;
}

std::vector<NamedRange> ranges_of(const GgufFile& file, std::size_t part) {
  std::vector<NamedRange> ranges;
  for (const GgufTensor& t : file.tensors())
    if (t.part == part) ranges.push_back({fmt::format("tensor {}", t.name), t.offset, t.offset + t.bytes});
  return ranges;
}

// Shows a model without reading it whole. It decides nothing: a changed weight beyond the first bytes of its tensor
// goes unseen.
std::string sampled_digest_of(const GgufFile& file) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(), XXH3_freeState);
  XXH3_64bits_reset(state.get());
  for (const std::span<const std::byte> header : file.headers())
    XXH3_64bits_update(state.get(), header.data(), header.size());
  for (const GgufTensor& t : file.tensors())
    XXH3_64bits_update(state.get(), t.data, std::min<std::size_t>(t.bytes, sampled_bytes));
  return fmt::format("sampled {:016x}", XXH3_64bits_digest(state.get()));
}

// The state of several files, as if they were one: any that changes changes it.
FileState joined(const std::vector<FileState>& states) {
  FileState all = states.front();
  if (states.size() == 1) return all;
  std::vector<std::uint64_t> numbers;
  all.bytes = 0;
  for (const FileState& s : states) {
    for (const std::uint64_t number : {s.device, s.inode, s.bytes}) numbers.push_back(number);
    for (const std::int64_t time : {s.modified, s.changed}) numbers.push_back(static_cast<std::uint64_t>(time));
    all.bytes += s.bytes;
    all.modified = std::max(all.modified, s.modified);
    all.changed = std::max(all.changed, s.changed);
  }
  all.inode = XXH3_64bits(numbers.data(), numbers.size() * sizeof numbers[0]);
  return all;
}

// None when one of the files is not there any more.
std::optional<FileState> state_now(const std::vector<MappedFile>& files) {
  std::vector<FileState> states;
  for (const MappedFile& file : files) {
    const std::optional<FileState> state = state_of(file.path());
    if (!state) return std::nullopt;
    states.push_back(*state);
  }
  return joined(states);
}

}  // namespace

void Model::Impl::read(const GgufFile& file) {
  for (std::size_t i = 0; i < mapped.size(); ++i) mapped[i].name_ranges(ranges_of(file, i));
  architecture = &architecture_of(file);
  config = architecture->read_config(file);
  config.stages = architecture->stages;
  config.caches = architecture->caches;
  part = read_part(file, config);
  weights = make_weights(file);
  Finder finder(file, weights, *architecture, config, part, lacked);
  const auto take = [&](const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs)
      if (const Weight* weight = finder.take(spec)) roles[{spec.layer, spec.role}] = weight;
  };
  take(architecture->first_tensors(config));
  for (int l = 0; l < config.layers; ++l) take(architecture->layer_tensors(config, l));
  take(architecture->last_tensors(config));
  if (config.tied_output) roles[{-1, "output"}] = roles.at({-1, "token_embd"});
  finder.refuse_left_over();
  headers = file.headers();
  sampled = sampled_digest_of(file);
}

void Model::Impl::begin_digest() {
  if (!digest.empty() || work) return;
  if (state)
    if (std::optional<std::string> found = DigestMemory().recall(source, *state, sampled)) {
      digest = *std::move(found);
      remembered = true;
      return;
    }
  std::vector<std::span<const std::byte>> tensors;
  for (const Weight& weight : weights) tensors.emplace_back(weight.data, weight.bytes());
  work = std::make_unique<DigestWork>(headers, tensors);
  work->begin();
}

// A file that was changed while it was read is not remembered.
void Model::Impl::take_digest(std::string found) {
  digest = std::move(found);
  work.reset();
  if (state && state_now(mapped) == state) DigestMemory().remember(source, *state, sampled, digest);
}

Model Model::open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  ModelFiles files = open_model_files(path);
  impl->mapped = std::move(files.mapped);
  impl->source = path;
  impl->bytes = impl->mapped.front().bytes();
  std::vector<FileState> states;
  for (const MappedFile& file : impl->mapped) states.push_back(file.state());
  if (const FileState state = joined(states); is_settled(state)) impl->state = state;
  impl->read(files.file);
  return Model(std::move(impl));
}

Model Model::synthetic(const SyntheticSpec& spec, int threads) {
  auto impl = std::make_unique<Impl>();
  impl->image = make_synthetic(spec, threads);
  impl->source = to_string(spec);
  impl->bytes = impl->image.bytes();
  impl->read(GgufFile::parse(impl->bytes, impl->source));
  return Model(std::move(impl));
}

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) { impl_->view = {&impl_->config, impl_->weights}; }
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

const ModelConfig& Model::config() const { return impl_->config; }
const std::optional<Site>& Model::part() const { return impl_->part; }
const ModelView& Model::view() const { return impl_->view; }
const Architecture& Model::architecture() const { return *impl_->architecture; }
const Weight& Model::weight(std::string_view role, int layer) const { return *impl_->roles.at({layer, role}); }

const Weight* Model::find_weight(std::string_view role, int layer) const {
  const auto found = impl_->roles.find({layer, role});
  return found == impl_->roles.end() ? nullptr : found->second;
}
const std::string& Model::source() const { return impl_->source; }
std::uint64_t Model::bytes() const {
  if (impl_->mapped.empty()) return impl_->bytes.size();
  std::uint64_t bytes = 0;
  for (const MappedFile& file : impl_->mapped) bytes += file.bytes().size();
  return bytes;
}
std::vector<std::string> Model::files() const {
  std::vector<std::string> paths;
  for (const MappedFile& file : impl_->mapped) paths.push_back(file.path());
  return paths;
}
const std::string& Model::sampled() const { return impl_->sampled; }

void Model::begin_digest() const {
  const std::lock_guard lock(impl_->digest_mutex);
  impl_->begin_digest();
}

const std::string& Model::digest(const Interrupted& interrupted, const DigestProgress& progress) const {
  const std::lock_guard lock(impl_->digest_mutex);
  impl_->begin_digest();
  if (impl_->digest.empty()) impl_->take_digest(impl_->work->finish(interrupted, progress));
  return impl_->digest;
}

bool Model::digest_was_remembered() const {
  const std::lock_guard lock(impl_->digest_mutex);
  return impl_->remembered;
}

std::string Model::digest_so_far() const {
  const std::lock_guard lock(impl_->digest_mutex);
  return impl_->digest.empty() ? impl_->sampled : impl_->digest;
}

Vocabulary Model::vocabulary() const { return Vocabulary(GgufFile::parse(impl_->bytes, impl_->source)); }
WeightPlace Model::place_of(const Weight& weight) const {
  const auto place_in = [&](std::span<const std::byte> bytes) {
    return static_cast<std::uint64_t>(weight.data - bytes.data());
  };
  const std::less<const std::byte*> before;
  for (std::size_t file = 0; file < impl_->mapped.size(); ++file) {
    const std::span<const std::byte> bytes = impl_->mapped[file].bytes();
    if (!before(weight.data, bytes.data()) && before(weight.data, bytes.data() + bytes.size()))
      return {file, place_in(bytes)};
  }
  return {0, place_in(impl_->bytes)};
}

}  // namespace moe_diag
