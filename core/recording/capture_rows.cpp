// SPDX-License-Identifier: MIT
#include "core/recording/capture_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "core/file/bounded_file.hpp"
#include "core/recording/npy_rows.hpp"
#include "core/recording/site_name.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr int most = std::numeric_limits<int>::max();
constexpr std::size_t largest_manifest = std::size_t{1} << 30;

struct Prompt {
  std::string id;
  std::vector<std::int32_t> tokens;  // those generated stand behind the prompt
  int generated = 0;
};

// An array of the lane.
struct Captured {
  int prompt = 0;
  Site site;
  std::vector<std::int32_t> positions;  // of each row, ascending
  std::string file;                     // within the folder
};

std::string needed(const JsonFields& json, const char* key) {
  const auto text = json.text(key);
  if (!text) refuse_recording(fmt::format("{}: has no {}", json.where(), key));
  return *text;
}

// An array at some positions of a prompt.
struct Mapped {
  MappedNpy npy;
  std::int64_t elements = 0;
  std::vector<std::int32_t> positions;
};

class CapturedRows final : public RowSource {
 public:
  CapturedRows(const std::string& folder, const std::vector<Captured>& arrays, const CallTable& table,
               const RowRules& rules, const std::vector<Prompt>& prompts)
      : table_(table) {
    for (const Prompt& prompt : prompts) prompts_.try_emplace(prompt.id, static_cast<int>(prompts_.size()));
    for (const Captured& array : arrays) {
      if (sites_.empty() || sites_.back().site != array.site) {
        sites_.push_back({array.site, Element::f32, std::filesystem::path(array.file).filename().string()});
        arrays_.emplace_back(prompts.size());
      }
      add(folder, array, rules);
    }
  }

  const std::vector<StoredSite>& sites() const override { return sites_; }

  StoredRows at(std::size_t site, int call, int row) const override {
    const RecordedCall& of = table_.calls()[static_cast<std::size_t>(call)];
    const int prompt = prompts_.at(of.request), position = of.first + row;
    const std::optional<Mapped>& array = arrays_[site][static_cast<std::size_t>(prompt)];
    if (!array) return {nullptr, of.rows - row, 0, prompt};
    const auto& positions = array->positions;
    const auto found = std::lower_bound(positions.begin(), positions.end(), position);
    if (found == positions.end()) return {nullptr, of.rows - row, 0, prompt};
    if (*found != position) return {nullptr, std::min(of.end(), *found) - position, 0, prompt};
    int count = 1;
    while (position + count < of.end() && found + count != positions.end() && found[count] == position + count) ++count;
    const auto bytes = array->elements * static_cast<std::int64_t>(size_of(sites_[site].element));
    return {array->npy.facts.data.data() + (found - positions.begin()) * bytes, count, array->elements, prompt};
  }

  RecordedPlace place(std::size_t site, const StoredRows& rows) const override {
    const MappedFile& file = arrays_[site][static_cast<std::size_t>(rows.file)]->npy.file;
    return {file.path(), static_cast<std::uint64_t>(rows.data - file.bytes().data()), ""};
  }

 private:
  void add(const std::string& folder, const Captured& array, const RowRules& rules) {
    const std::string path = folder + '/' + array.file;
    MappedNpy npy = MappedNpy::open(path, text_of(array.site), /*is_cut=*/false, /*is_bf16_u2=*/false);
    const auto rows = static_cast<std::int64_t>(array.positions.size());
    const std::int64_t elements = checked_row(npy.facts, array.site, rules, rows);
    if (npy.facts.shape[0] != rows)
      refuse_recording(
          fmt::format("{}: has {} rows, expected {}, as the manifest has positions", path, npy.facts.shape[0], rows));
    std::optional<Mapped>& place = arrays_.back()[static_cast<std::size_t>(array.prompt)];
    if (place) refuse_recording(fmt::format("{}: {} is listed twice for its prompt", path, text_of(array.site)));
    const bool is_first =
        std::none_of(arrays_.back().begin(), arrays_.back().end(), [](const auto& a) { return a.has_value(); });
    if (!is_first && sites_.back().element != npy.facts.element)
      refuse_recording(fmt::format("{}: has {}, other prompts have {} of this stage: expected one type", path,
                                   name_of(npy.facts.element), name_of(sites_.back().element)));
    sites_.back().element = npy.facts.element;
    place = Mapped{std::move(npy), elements, array.positions};
  }

  const CallTable& table_;
  std::map<std::string, int> prompts_;
  std::vector<StoredSite> sites_;
  std::vector<std::vector<std::optional<Mapped>>> arrays_;  // of each site, by prompt
};

}  // namespace

struct CaptureManifest::Impl {
  std::string folder, path;
  std::string lane, numerics;
  std::vector<Prompt> prompts;
  std::vector<Captured> arrays;  // in forward order

  void read_lanes(const JsonFields& manifest, const std::string& wanted) {
    std::vector<std::string> names;
    for (const JsonFields& one : manifest.objects("lanes")) {
      names.push_back(needed(one, "name"));
      if (wanted.empty() || names.back() == wanted) {
        lane = names.back();
        numerics = one.text("numerics").value_or("");
      }
    }
    if (names.empty()) refuse_recording(fmt::format("{}: has no lane", path));
    if (wanted.empty() && names.size() > 1)
      refuse_recording(fmt::format("{}: has the lanes {}: say which one is judged", path, listed(names)));
    if (lane.empty() || (!wanted.empty() && lane != wanted))
      refuse_recording(fmt::format("{}: {}", path, unknown("lane", wanted, names)));
  }

  void read_prompts(const JsonFields& manifest, const ModelConfig& config) {
    for (const JsonFields& one : manifest.objects("prompts")) {
      Prompt prompt{needed(one, "id"), one.numbers("tokens").value_or(std::vector<std::int32_t>()),
                    one.number("generated", 0, most).value_or(0)};
      if (static_cast<std::size_t>(prompt.generated) > prompt.tokens.size())
        refuse_recording(
            fmt::format("{}: {} of {} tokens were generated", one.where(), prompt.generated, prompt.tokens.size()));
      for (const std::int32_t token : prompt.tokens)
        if (token >= config.vocab)
          refuse_recording(fmt::format("{}: token {}: the model's vocabulary has {}; is the capture of another model?",
                                       one.where(), token, config.vocab));
      if (number_of(prompt.id) >= 0)
        refuse_recording(fmt::format("{}: prompt '{}' comes twice", one.where(), shown(prompt.id)));
      prompts.push_back(std::move(prompt));
    }
    if (prompts.empty()) refuse_recording(fmt::format("{}: has no prompt", path));
  }

  int number_of(const std::string& prompt) const {
    for (std::size_t p = 0; p < prompts.size(); ++p)
      if (prompts[p].id == prompt) return static_cast<int>(p);
    return -1;
  }

  void read_array(const JsonFields& tensor, const ModelConfig& config) {
    if (needed(tensor, "lane") != lane) return;
    Captured array;
    array.prompt = number_of(needed(tensor, "prompt"));
    if (array.prompt < 0) refuse_recording(fmt::format("{}: its prompt is not listed", tensor.where()));
    std::string name = needed(tensor, "stage");
    if (tensor.has("layer") && !tensor.json()["layer"].is_null())
      name = fmt::format("layer_{}/{}", *tensor.number("layer", 0, most), name);
    array.site = site_named(name, config, tensor.where());
    array.file = needed(tensor, "file");
    array.positions = tensor.numbers("positions").value_or(std::vector<std::int32_t>());
    for (std::size_t i = 0; i < array.positions.size(); ++i)
      if (array.positions[i] == most || (i > 0 && array.positions[i] <= array.positions[i - 1]))
        refuse_recording(
            fmt::format("{}: position {}: expected ascending positions", tensor.where(), array.positions[i]));
    arrays.push_back(std::move(array));
  }
};

CaptureManifest::CaptureManifest(CaptureManifest&&) noexcept = default;
CaptureManifest::~CaptureManifest() = default;

CaptureManifest::CaptureManifest(const std::string& folder, const ModelConfig& config, const std::string& lane)
    : impl_(std::make_unique<Impl>()) {
  impl_->folder = folder;
  impl_->path = folder + "/manifest.json";
  std::string text;
  try {
    text = read_bounded(impl_->path, largest_manifest);
  } catch (const Error& e) {
    refuse_recording(fmt::format("{}: {}", impl_->path, e.what()));
  }
  const JsonFields manifest = JsonFields::parse(text, impl_->path);
  if (manifest.text("format") != "moe-diag capture")
    refuse_recording(fmt::format("{}: no capture of moe-diag, expected \"format\": \"moe-diag capture\"", impl_->path));
  (void)manifest.number("format_version", 1, 1);
  impl_->read_lanes(manifest, lane);
  impl_->read_prompts(manifest, config);
  for (const JsonFields& tensor : manifest.objects("tensors")) impl_->read_array(tensor, config);
  if (impl_->arrays.empty())
    refuse_recording(fmt::format("{}: has no array of lane {}", impl_->path, shown(impl_->lane)));
  std::stable_sort(impl_->arrays.begin(), impl_->arrays.end(),
                   [](const Captured& a, const Captured& b) { return a.site < b.site; });
}

const std::string& CaptureManifest::lane() const { return impl_->lane; }
const std::string& CaptureManifest::numerics() const { return impl_->numerics; }

CallTable CaptureManifest::calls() const {
  std::vector<int> ends(impl_->prompts.size(), 0);  // of the positions that arrays have
  for (const Captured& array : impl_->arrays)
    if (!array.positions.empty()) {
      int& end = ends[static_cast<std::size_t>(array.prompt)];
      end = std::max(end, array.positions.back() + 1);
    }
  CallTable table;
  for (std::size_t p = 0; p < impl_->prompts.size(); ++p) {
    const Prompt& prompt = impl_->prompts[p];
    const auto count = static_cast<int>(prompt.tokens.size());
    const int own = std::min(count - prompt.generated, ends[p]);
    if (ends[p] > count)
      refuse_recording(fmt::format("{}: prompt '{}' has {} tokens, and rows of position {}", impl_->path,
                                   shown(prompt.id), count, ends[p] - 1));
    for (int first = 0, end = own; first < ends[p]; first = end, end = first + 1) {
      RecordedCall call;
      call.number = table.lines();
      call.request = prompt.id;
      call.first = first;
      call.rows = call.batch_rows = std::max(end, 1) - first;
      end = first + call.rows;
      call.tokens.assign(prompt.tokens.begin() + first, prompt.tokens.begin() + end);
      table.add(std::move(call));
    }
  }
  return table;
}

std::unique_ptr<RowSource> CaptureManifest::open(const CallTable& table, const RowRules& rules) const {
  return std::make_unique<CapturedRows>(impl_->folder, impl_->arrays, table, rules, impl_->prompts);
}

}  // namespace moe_diag
