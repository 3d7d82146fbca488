// SPDX-License-Identifier: MIT
#include "core/kernel/judged_case.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <utility>

#include "core/api/error.hpp"
#include "core/compare/measure.hpp"
#include "core/file/bounded_file.hpp"
#include "core/kernel/allowed_error.hpp"
#include "core/kernel/case_footprint.hpp"
#include "core/ops/values.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t longest_file = std::size_t{16} << 30;
constexpr std::string_view write_anew = "write the cases anew with `moe-diag cases`";

// A file of tensors, with its own bytes. A mistake names the file and the remedy.
class OpenedFile {
 public:
  OpenedFile(std::string path, std::string_view remedy) : path_(std::move(path)), remedy_(remedy) {
    try {
      bytes_ = read_bounded(path_, longest_file);
      file_ = parse_safetensors(bytes_);
    } catch (const Error& e) {
      refuse(e.what());
    }
  }
  OpenedFile(const OpenedFile&) = delete;
  OpenedFile& operator=(const OpenedFile&) = delete;

  [[noreturn]] void refuse(const std::string& what) const { refuse(what, remedy_); }
  [[noreturn]] void refuse(const std::string& what, std::string_view remedy) const {
    throw Error(ErrorKind::usage, fmt::format("{}: {}; {}", path_, what, remedy));
  }

  StoredTensor read(std::string_view name, const std::vector<std::int64_t>& shape, std::string_view remedy) const {
    const SafeTensor* tensor = file_.find(name);
    if (!tensor)
      refuse(fmt::format("expected a tensor named {}, found {}", shown(name),
                         file_.tensors.empty() ? "none" : listed(printable(file_.names()))),
             remedy);
    if (tensor->shape != shape)
      refuse(fmt::format("tensor {}: expected shape {}, found {}", shown(name), shape_text(shape),
                         shape_text(tensor->shape)),
             remedy);
    try {
      return stored(*tensor);
    } catch (const Error& e) {
      refuse(e.what(), remedy);
    }
  }

 private:
  static std::vector<std::string> printable(std::vector<std::string> names) {
    for (std::string& name : names) name = shown(name);
    return names;
  }

  const std::string path_;
  const std::string_view remedy_;
  std::string bytes_;
  SafetensorsFile file_;
};

StoredTensor read_out(const KernelCase& of, const CaseIndex& index, const std::string& path) {
  const OpenedFile file(path, "write it with a safetensors library, whole");
  StoredTensor out =
      file.read(index.output, of.shape,
                "write the kernel's output under the name of its stage, a row for each row of the inputs");
  if (out.dtype == DType::i32)
    file.refuse(fmt::format("tensor {}: expected F64, F32, F16 or BF16, found I32", index.output),
                "write the values as they come from the kernel");
  return out;
}

void read_own_files(const CaseIndex& index, const std::string& folder, JudgedCase& judged) {
  const KernelCase& of = *judged.of;
  const OpenedFile in(fmt::format("{}/{}/{}", folder, of.name, inputs_file), write_anew);
  for (const IndexedTensor& t : of.inputs) judged.inputs.push_back(in.read(t.name, t.shape, write_anew));
  const OpenedFile expected(fmt::format("{}/{}/{}", folder, of.name, expected_file_name), write_anew);
  judged.expected = expected.read(index.output, of.shape, write_anew);
  if (judged.expected.dtype != DType::f64)
    expected.refuse(
        fmt::format("tensor {}: expected F64, found {}", index.output, safetensors_type(judged.expected.dtype)));
  if (index.choice.empty()) return;
  const OpenedFile& at = index.writes_choice ? expected : in;
  judged.choice = at.read(index.choice, {of.rows, index.used}, write_anew);
  if (judged.choice.dtype != DType::i32)
    at.refuse(fmt::format("tensor {}: expected I32, found {}", index.choice, safetensors_type(judged.choice.dtype)));
}

// Elements that are off by more than any error of their vector lets them be.
bool has_wild_element(const Tensor& a, const Tensor& b, std::int64_t at, std::int64_t n, double bound, double rms) {
  for (std::int64_t i = at; i < at + n; ++i) {
    const double expected = value_at(b, i);
    if (!(std::fabs(value_at(a, i) - expected) <= bound * std::max(rms, std::fabs(expected)))) return true;
  }
  return false;
}

JudgedVector compared(const Tensor& a, const Tensor& b, std::int64_t at, std::int64_t n, double allowed) {
  JudgedVector v;
  v.allowed = allowed;
  Measure m;
  m.add(a, at, b, at, n);
  v.nonfinite = m.nonfinite_a;
  v.first_nonfinite = m.first_nonfinite_new;
  v.error = m.finite() ? m.rel_l2() : std::numeric_limits<double>::infinity();
  const double rms = std::sqrt(m.squares_b / static_cast<double>(n));
  v.fails = !(v.error <= allowed) || has_wild_element(a, b, at, n, alone_allowed * allowed, rms);
  return v;
}

void compare(const CaseIndex& index, JudgedCase& judged) {
  const Tensor a = judged.out.tensor(), b = judged.expected.tensor();
  const int slots = index.of_slots ? index.used : 1;
  const std::int64_t width = b.shape.row() / slots;
  for (int row = 0; row < judged.of->rows; ++row)
    for (int slot = 0; slot < slots; ++slot) {
      const std::int64_t at = (row * std::int64_t{slots} + slot) * width;
      JudgedVector v = compared(a, b, at, width, judged.allowed()[static_cast<std::size_t>(row)]);
      v.row = row;
      if (index.of_slots) {
        v.slot = slot;
        v.expert = judged.choice.tensor().as<std::int32_t>()[row * slots + slot];
      }
      judged.vectors.push_back(v);
    }
  const bool fails = std::any_of(judged.vectors.begin(), judged.vectors.end(), [](const auto& v) { return v.fails; });
  judged.outcome = fails ? CaseOutcome::falsified : CaseOutcome::held;
}

}  // namespace

std::string_view name_of(CaseOutcome outcome) {
  switch (outcome) {
    case CaseOutcome::held: return "held";
    case CaseOutcome::falsified: return "falsified";
    case CaseOutcome::untested: return "untested";
    case CaseOutcome::refused: return "refused";
  }
  return "unknown";
}

const JudgedVector* JudgedCase::worst() const {
  const auto found = std::max_element(vectors.begin(), vectors.end(), [](const JudgedVector& x, const JudgedVector& y) {
    return std::pair(x.fails, x.ratio()) < std::pair(y.fails, y.ratio());
  });
  return found == vectors.end() ? nullptr : &*found;
}

const StoredTensor* JudgedCase::input(std::string_view name) const {
  for (const StoredTensor& t : inputs)
    if (t.name == name) return &t;
  return nullptr;
}

JudgedCase judge_case(const CaseIndex& index, const KernelCase& of, const std::string& folder) {
  JudgedCase judged;
  judged.of = &of;
  read_own_files(index, folder, judged);
  if (count_nonfinite(judged.expected.tensor(), 0, judged.expected.shape.count()) > 0) {
    judged.why =
        "what is expected holds NaN or Inf, which nothing can be held against; look at the model's weights "
        "with `moe-diag inspect --weights`";
    return judged;
  }
  const std::string path = fmt::format("{}/{}/{}", folder, of.name, kernel_file);
  std::error_code error;
  if (!std::filesystem::exists(std::filesystem::symlink_status(path, error))) {
    judged.why = fmt::format("there is no {}/{}: the kernel's test writes it", of.name, kernel_file);
    return judged;
  }
  try {
    judged.out = read_out(of, index, path);
  } catch (const Error& e) {
    judged.outcome = CaseOutcome::refused;
    judged.why = e.what();
    return judged;
  }
  compare(index, judged);
  if (judged.outcome == CaseOutcome::falsified) judged.footprint = footprint_of(index, judged);
  return judged;
}

}  // namespace moe_diag
