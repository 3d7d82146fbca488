// SPDX-License-Identifier: MIT
#include "core/arch/architecture.hpp"

#include <fmt/format.h>

#include <charconv>
#include <system_error>
#include <utility>

#include "core/gguf/metadata_reader.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

// The model's file of several parts as llama-gguf-split names them: "-00002-of-00003.gguf". 0: of none.
struct SplitName {
  int part = 0, parts = 0;
};
SplitName split_name(std::string_view path) {
  SplitName name;
  const std::size_t at = path.rfind("-of-");
  if (at == std::string_view::npos || at < 6 || path.substr(at).size() < 9 || path[at - 6] != '-') return {};
  for (const auto& [text, number] :
       {std::pair{path.substr(at - 5, 5), &name.part}, std::pair{path.substr(at + 4, 5), &name.parts}}) {
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
    if (error != std::errc() || stop != text.data() + text.size()) return {};
  }
  return name;
}

// Parts but the first have no architecture of their own, and the first lacks the tensors of the others.
void refuse_split(const GgufFile& file) {
  const SplitName name = split_name(file.source());
  std::int64_t part = file.integer("split.no").value_or(name.part - 1) + 1;
  const std::int64_t parts = file.integer("split.count").value_or(file.find("general.architecture") ? 0 : name.parts);
  if (parts <= 1) return;
  if (part < 1 || part > parts) part = 0;  // neither says which
  refuse_file(
      file,
      "{} of a split model: split files are not supported yet; join them: llama-gguf-split --merge FIRST-PART.gguf "
      "MODEL.gguf",
      part > 0 ? fmt::format("part {} of {}", part, parts) : fmt::format("one of {} parts", parts));
}

std::string supported() {
  std::string names;
  for (const Architecture* a : architectures()) names += fmt::format("{}'{}'", names.empty() ? "" : ", ", a->name);
  return names;
}

}  // namespace

std::string TensorSpec::name() const {
  return layer < 0 ? fmt::format("{}.weight", role) : fmt::format("blk.{}.{}.weight", layer, role);
}

std::vector<std::int64_t> TensorSpec::dims() const {
  if (rank == 1) return {cols};
  if (rank == 2) return {cols, rows};
  return {cols, rows, experts};
}

const Architecture& architecture_of(const GgufFile& file) {
  refuse_split(file);
  const auto found = file.text("general.architecture");
  if (!found) refuse_file(file, "metadata key 'general.architecture' is missing, expected {}", supported());
  for (const Architecture* a : architectures()) {
    if (*found == a->name) return *a;
    if (*found == a->dense)
      refuse_file(file, "the architecture is '{}', a dense model without experts; supported: {}", *found, supported());
  }
  refuse_file(file, "the architecture is {}; supported: {}", quoted(*found), supported());
}

}  // namespace moe_diag
