// SPDX-License-Identifier: MIT
#include "apps/moe_diag/inspect_weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <set>
#include <string_view>

#include "apps/moe_diag/interrupt.hpp"
#include "apps/moe_diag/progress_line.hpp"
#include "core/api/error.hpp"

namespace moe_diag {
namespace {

std::string place_of_first(const UnsoundBlocks& u) {
  if (u.first < 0) return "all are zero";
  if (u.columns == 1) return fmt::format("row {}, column {}", u.row, u.column);
  return fmt::format("block {}: row {}, columns {} to {}", u.first, u.row, u.column, u.column + u.columns - 1);
}

}  // namespace

std::vector<UnsoundBlocks> scan_model(const Model& model) {
  note_interrupts();
  const auto start = std::chrono::steady_clock::now();
  constexpr std::uint64_t mib = 1 << 20;
  std::vector<const Weight*> weights;
  for (const Weight& weight : model.view().weights) weights.push_back(&weight);
  ProgressLine line;
  return scan_weights(weights, [&](std::uint64_t done, std::uint64_t total) {
    if (is_interrupted())
      throw Error(ErrorKind::environment,
                  fmt::format("{}: interrupted: not all weights were looked at", model.source()));
    if (!line.is_visible()) return;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    line.show({fmt::format("weights, {:.0f} MiB a second", static_cast<double>(done) / mib / seconds),
               static_cast<std::int64_t>(done / mib), static_cast<std::int64_t>(total / mib), "MiB"});
  });
}

std::string weights_text(const Model& model, const std::vector<UnsoundBlocks>& unsound) {
  const std::size_t tensors = model.view().weights.size();
  if (unsound.empty()) return fmt::format("\nweights     sound: every block of {} tensors was looked at\n", tensors);
  std::size_t width = std::string_view("TENSOR").size();
  std::set<std::string_view> names;
  for (const UnsoundBlocks& u : unsound) {
    width = std::max(width, u.tensor.size());
    names.insert(u.tensor);
  }
  std::string text = fmt::format("\nweights     NOT SOUND: {} of {} tensors\n\n", names.size(), tensors);
  text += fmt::format("{:<{}} {:<5} {:>6} {:>10} {:>8} {:>8} {:>8} {:>10}  {}\n", "TENSOR", width, "TYPE", "EXPERT",
                      "BLOCKS", "NAN", "INF", "BEYOND", "ZERO", "FIRST");
  for (const UnsoundBlocks& u : unsound)
    text += fmt::format("{:<{}} {:<5} {:>6} {:>10} {:>8} {:>8} {:>8} {:>10}  {}\n", u.tensor, width, name_of(u.type),
                        u.expert < 0 ? "-" : std::to_string(u.expert), u.blocks, u.nan, u.inf, u.beyond, u.zero,
                        place_of_first(u));
  return text + fmt::format(
                    "\nBLOCKS of quantised types share scales; of float types each value is one. BEYOND: with a value "
                    "beyond {},\nthe largest of F16. ZERO: with no scale but zero. FIRST: of those in NAN, INF and "
                    "BEYOND.\n",
                    largest_f16);
}

}  // namespace moe_diag
