// SPDX-License-Identifier: MIT
#include "core/model/host_ops.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <string_view>

#include "core/api/blocks.hpp"
#include "core/api/error.hpp"

namespace moe_diag::host {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
std::int64_t size_of(std::span<const double> x) { return static_cast<std::int64_t>(x.size()); }

[[noreturn]] void refuse(std::string_view op, std::string_view what, std::int64_t expected, std::int64_t found) {
  throw Error(ErrorKind::environment, fmt::format("host {}: {}: expected {}, found {}", op, what, expected, found));
}
void expect(std::string_view op, std::string_view what, std::int64_t expected, std::int64_t found) {
  if (expected != found) refuse(op, what, expected, found);
}
void expect_multiple(std::string_view op, std::string_view what, std::int64_t unit, std::int64_t found) {
  if (unit <= 0 || found % unit != 0)
    throw Error(ErrorKind::environment,
                fmt::format("host {}: {}: expected a multiple of {}, found {}", op, what, unit, found));
}
void expect_below(std::string_view op, std::string_view what, std::int64_t limit, std::int64_t found) {
  if (found < 0 || found >= limit)
    throw Error(ErrorKind::environment,
                fmt::format("host {}: {}: expected 0 to {}, found {}", op, what, limit - 1, found));
}

template <class Block>
void decode_blocks(const std::byte* row, int elements, std::span<double> out) {
  for (std::size_t k = 0; k < out.size(); k += at(elements), row += sizeof(Block)) {
    Block block;
    std::memcpy(&block, row, sizeof block);
    for (int i = 0; i < elements; ++i) out[k + at(i)] = decode<double>(block, i);
  }
}

void decode_bytes(BlockType type, const std::byte* row, std::span<double> out) {
  const int elements = info(type).elements;
  switch (type) {
    case BlockType::q8_0: return decode_blocks<BlockQ8_0>(row, elements, out);
    case BlockType::q4_k: return decode_blocks<BlockQ4_K>(row, elements, out);
    case BlockType::q6_k: return decode_blocks<BlockQ6_K>(row, elements, out);
    case BlockType::f32:
    case BlockType::f16:
    case BlockType::bf16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = decode<double>(type, row, static_cast<std::int64_t>(i));
      return;
  }
}

// Bytes of the weight from `first` on, as they stand in the file when all of them do; else a copy padded with zeros.
class Bytes {
 public:
  Bytes(const Weight& weight, std::size_t first, std::size_t count) {
    const std::size_t all = weight.bytes(), there = first < all ? std::min(count, all - first) : 0;
    if (there == count) {
      data_ = weight.data + first;
      return;
    }
    padded_.resize(count);
    if (there > 0) std::memcpy(padded_.data(), weight.data + first, there);
    data_ = padded_.data();
  }
  const std::byte* data() const { return data_; }

 private:
  const std::byte* data_ = nullptr;
  std::vector<std::byte> padded_;
};

// The weight as if its bytes were of the type: the shape stays, the places of rows follow.
Weight retyped(const Matrix& matrix) {
  Weight weight = *matrix.weight;
  weight.type = matrix.type;
  return weight;
}

void check(const Matrix& matrix, std::string_view op) {
  const Weight& w = *matrix.weight;
  expect_below(op, fmt::format("expert of {}", w.name), w.experts, matrix.expert);
  expect_multiple(op, fmt::format("columns of {} as {}", w.name, name_of(matrix.type)), info(matrix.type).elements,
                  w.cols);
}

Values transposed_row(const Matrix& matrix, std::int64_t r) {
  const Weight weight = retyped(matrix);
  const auto elements = info(weight.type).elements;
  const auto block_bytes = at(info(weight.type).bytes);
  const std::size_t start = at(matrix.expert) * weight.expert_bytes();
  Values row(at(weight.cols));
  for (std::int64_t c = 0; c < weight.cols; ++c) {
    const std::int64_t place = c * weight.rows + r;
    const Bytes block(*matrix.weight, start + at(place / elements) * block_bytes, block_bytes);
    row[at(c)] = decode<double>(weight.type, block.data(), place % elements);
  }
  return row;
}

// x with `bits` bits of significand, ties to even, as a type does whose smallest normal number is 2^lowest.
double with_bits(double x, int bits, int lowest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), lowest);
  return std::ldexp(std::nearbyint(std::ldexp(x, bits - 1 - exponent)), exponent - (bits - 1));
}
double nearest_f16(double x) {
  const double rounded = with_bits(x, 11, -14);
  return std::fabs(rounded) > 65504 ? std::copysign(INFINITY, x) : rounded;
}

float largest_of(std::span<const double> block) {
  double largest = 0;
  for (double v : block)
    if (std::fabs(v) > std::fabs(largest)) largest = v;
  return static_cast<float>(largest);
}

void round_q8_0(std::span<const double> x, double* out) {
  const float largest = std::fabs(largest_of(x)), quotient = 127.0F / largest;
  const float inverse = std::isfinite(quotient) ? quotient : 0.0F;  // largest is 0, or next to it
  const double kept = nearest_f16(largest / 127.0F);
  for (double v : x) *out++ = kept * double{std::nearbyint(static_cast<float>(v) * inverse)};
}
void round_q8_1(std::span<const double> x, double* out) {
  const float step = std::fabs(largest_of(x)) / 127.0F;
  for (double v : x) *out++ = step > 0 ? step * double{std::nearbyint(static_cast<float>(v) / step)} : 0;
}
void round_q8_k(std::span<const double> x, double* out) {
  const float largest = largest_of(x);
  const float inverse = -127.0F / largest, step = 1.0F / inverse;
  if (!std::isfinite(inverse)) return void(std::fill_n(out, x.size(), 0.0));  // largest is 0, or next to it
  for (double v : x) {  // the product of two floats is exact in double: as a fused multiply-add has it
    const double exact = double{static_cast<float>(v)} * double{inverse};
    *out++ = double{step} * std::min(127.0, std::nearbyint(exact));
  }
}

}  // namespace

std::string_view name_of(Rounding rounding) {
  constexpr std::string_view names[] = {"BF16", "F16", "Q8_0", "Q8_1", "Q8_K"};
  return names[static_cast<std::size_t>(rounding)];
}

std::int64_t block_of(Rounding rounding) {
  if (rounding == Rounding::q8_k) return 256;
  return rounding == Rounding::q8_0 || rounding == Rounding::q8_1 ? 32 : 1;
}

Values rounded(std::span<const double> x, Rounding rounding) {
  const std::int64_t block = block_of(rounding);
  expect_multiple("rounded", fmt::format("values as {}", name_of(rounding)), block, size_of(x));
  Values out(x.size());
  for (std::size_t k = 0; k < x.size(); k += at(block)) {
    const auto some = x.subspan(k, at(block));
    switch (rounding) {
      case Rounding::bf16: out[k] = with_bits(x[k], 8, -126); break;
      case Rounding::f16: out[k] = nearest_f16(x[k]); break;
      case Rounding::q8_0: round_q8_0(some, &out[k]); break;
      case Rounding::q8_1: round_q8_1(some, &out[k]); break;
      case Rounding::q8_k: round_q8_k(some, &out[k]); break;
    }
  }
  return out;
}

Values values_of(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  const std::int64_t rows = tensor.shape.rank == 0 ? 0 : tensor.shape[0];
  if (first < 0 || count < 0 || first + count > rows) refuse("values", "rows", rows, first + count);
  const std::int64_t from = first * tensor.shape.row(), n = count * tensor.shape.row();
  const auto copy = [&](const auto* p) { return Values(p + from, p + from + n); };
  switch (tensor.dtype) {
    case DType::f32: return copy(tensor.as<float>());
    case DType::f64: return copy(tensor.as<double>());
    case DType::i32: return copy(tensor.as<std::int32_t>());
  }
  return {};
}
Values values_of(const Tensor& tensor) { return values_of(tensor, 0, tensor.shape.rank == 0 ? 0 : tensor.shape[0]); }

bool can_read(const Weight& weight, BlockType type) { return weight.cols % info(type).elements == 0; }

Values decode_row(const Matrix& matrix, std::int64_t r) {
  check(matrix, "decode_row");
  expect_below("decode_row", fmt::format("row of {}", matrix.weight->name), matrix.weight->rows, r);
  if (matrix.transposed) return transposed_row(matrix, r);
  const Weight weight = retyped(matrix);
  const Bytes bytes(*matrix.weight, at(matrix.expert) * weight.expert_bytes() + at(r) * weight.row_bytes(),
                    weight.row_bytes());
  Values row(at(weight.cols));
  decode_bytes(weight.type, bytes.data(), row);
  return row;
}

// In partial sums: shorter chains of roundings, and the compiler can put them into vectors.
double dot(std::span<const double> a, std::span<const double> b) {
  expect("dot", "values", size_of(a), size_of(b));
  constexpr std::size_t width = 16;
  std::array<double, width> sums{};
  std::size_t k = 0;
  for (; k + width <= a.size(); k += width)
    for (std::size_t i = 0; i < width; ++i) sums[i] += a[k + i] * b[k + i];
  for (; k < a.size(); ++k) sums[k % width] += a[k] * b[k];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

Values linear(const Matrix& matrix, std::span<const double> x, std::span<const std::int64_t> rows) {
  const std::int64_t cols = matrix.weight->cols;
  expect_multiple("linear", "values of x", cols, size_of(x));
  const std::size_t n = x.size() / at(cols);
  Values out(n * rows.size());
  for (std::size_t j = 0; j < rows.size(); ++j) {
    const Values row = decode_row(matrix, rows[j]);
    for (std::size_t i = 0; i < n; ++i) out[i * rows.size() + j] = dot(row, x.subspan(i * at(cols), at(cols)));
  }
  return out;
}
Values linear(const Matrix& matrix, std::span<const double> x) {
  std::vector<std::int64_t> all(at(matrix.weight->rows));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  return linear(matrix, x, all);
}

Values expert_linear(const Matrix& matrix, std::span<const std::int32_t> experts, std::int64_t used,
                     std::span<const double> x) {
  const std::size_t cols = at(matrix.weight->cols), rows = at(matrix.weight->rows);
  expect_multiple("expert_linear", "experts chosen", used, static_cast<std::int64_t>(experts.size()));
  const bool own_input = x.size() == experts.size() * cols;
  if (!own_input)
    expect("expert_linear", "values of x", static_cast<std::int64_t>(experts.size() * cols) / used, size_of(x));
  std::map<std::int32_t, std::vector<std::size_t>> places;  // by expert: its rows are decoded once
  for (std::size_t i = 0; i < experts.size(); ++i) places[experts[i]].push_back(i);
  Values out(experts.size() * rows);
  for (const auto& [expert, slots] : places) {
    Matrix of_expert = matrix;
    of_expert.expert = expert;
    Values inputs;
    for (std::size_t i : slots) {
      const auto from = x.subspan((own_input ? i : i / at(used)) * cols, cols);
      inputs.insert(inputs.end(), from.begin(), from.end());
    }
    const Values products = linear(of_expert, inputs);
    for (std::size_t j = 0; j < slots.size(); ++j)
      std::copy_n(products.begin() + static_cast<std::ptrdiff_t>(j * rows), rows,
                  out.begin() + static_cast<std::ptrdiff_t>(slots[j] * rows));
  }
  return out;
}

Values embed(const Matrix& table, std::span<const std::int32_t> tokens) {
  Values out;
  for (std::int32_t token : tokens) {
    const Values row = decode_row(table, token);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

Values rms_norm(std::span<const double> x, std::span<const double> w, const NormOptions& options) {
  expect_multiple("rms_norm", "values of x", size_of(w), size_of(x));
  const std::size_t width = w.size();
  Values out(x.size());
  for (std::size_t g = 0; g < x.size(); g += width) {
    const auto group = x.subspan(g, width);
    const double mean = dot(group, group) / static_cast<double>(width);
    const double factor = options.normalise ? 1 / std::sqrt(mean + options.eps) : 1;
    for (std::size_t i = 0; i < width; ++i) out[g + i] = group[i] * factor * w[i];
  }
  return out;
}

Values rope(std::span<const double> x, std::int64_t head_dim, std::int64_t position, const RopeOptions& options) {
  expect_multiple("rope", "values of a head", 2, head_dim);
  expect_multiple("rope", "values of x", head_dim, size_of(x));
  const std::size_t h = at(head_dim), half = h / 2;
  const bool halves = options.pairs == RopePairs::halves;
  Values out(x.size());
  for (std::size_t i = 0; i < half; ++i) {
    const double turn = std::pow(options.theta, -2.0 * static_cast<double>(i) / static_cast<double>(h));
    const double angle = static_cast<double>(position) * turn, c = std::cos(angle), s = std::sin(angle);
    for (std::size_t head = 0; head < x.size(); head += h) {
      const std::size_t a = head + (halves ? i : 2 * i), b = head + (halves ? i + half : 2 * i + 1);
      out[a] = x[a] * c - x[b] * s;
      out[b] = x[b] * c + x[a] * s;
    }
  }
  return out;
}

namespace {

void check(const Attention& a, std::string_view op, std::span<const double> cache) {
  if (a.heads <= 0 || a.head_dim <= 0) refuse(op, "heads", 1, a.heads);
  expect_multiple(op, "query heads", a.kv_heads, a.heads);
  expect_below(op, "keys seen", a.total + 1, a.seen);
  expect_multiple(op, "cached values", a.kv_heads * a.head_dim, size_of(cache));
  if (size_of(cache) < a.seen * a.kv_heads * a.head_dim)
    refuse(op, "cached values", a.seen * a.kv_heads * a.head_dim, size_of(cache));
}

// The key or value of a position that a query head reads.
std::span<const double> cached(const Attention& a, std::span<const double> cache, std::int64_t position,
                               std::int64_t head) {
  const std::int64_t kv_head = head / (a.heads / a.kv_heads);
  return cache.subspan(at((position * a.kv_heads + kv_head) * a.head_dim), at(a.head_dim));
}

}  // namespace

Values scores(const Attention& a, std::span<const double> q, std::span<const double> keys, double scale) {
  check(a, "scores", keys);
  expect("scores", "values of q", a.heads * a.head_dim, size_of(q));
  Values out(at(a.heads * a.total));
  for (std::int64_t head = 0; head < a.heads; ++head)
    for (std::int64_t s = 0; s < a.seen; ++s)
      out[at(head * a.total + s)] =
          dot(q.subspan(at(head * a.head_dim), at(a.head_dim)), cached(a, keys, s, head)) * scale;
  return out;
}

Values mix(const Attention& a, std::span<const double> probs, std::span<const double> values) {
  check(a, "mix", values);
  expect("mix", "probabilities", a.heads * a.total, size_of(probs));
  Values out(at(a.heads * a.head_dim));
  for (std::int64_t head = 0; head < a.heads; ++head)
    for (std::int64_t s = 0; s < a.seen; ++s) {
      const std::span<const double> value = cached(a, values, s, head);
      for (std::int64_t i = 0; i < a.head_dim; ++i)
        out[at(head * a.head_dim + i)] += probs[at(head * a.total + s)] * value[at(i)];
    }
  return out;
}

Values softmax(std::span<const double> x, std::int64_t width, std::int64_t seen) {
  expect_multiple("softmax", "values of x", width, size_of(x));
  expect_below("softmax", "values seen", width + 1, seen);
  Values out(x.size());
  for (std::size_t g = 0; seen > 0 && g < x.size(); g += at(width)) {
    const auto in = x.subspan(g, at(seen));
    const double highest = *std::max_element(in.begin(), in.end());
    double total = 0;
    for (std::size_t i = 0; i < in.size(); ++i) total += out[g + i] = std::exp(in[i] - highest);
    for (std::size_t i = 0; i < in.size(); ++i) out[g + i] /= total;
  }
  return out;
}

Values add(std::span<const double> a, std::span<const double> b) {
  expect("add", "values", size_of(a), size_of(b));
  Values out(a.begin(), a.end());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += b[i];
  return out;
}

Chosen topk(std::span<const double> probs, std::int64_t used) {
  expect_below("topk", "experts used", size_of(probs) + 1, used);
  std::vector<std::int32_t> ids(probs.size());
  std::iota(ids.begin(), ids.end(), 0);
  // NaN orders last, by id, so that the order is a strict one whatever the values.
  const auto key = [&](std::int32_t id) { return std::isnan(probs[at(id)]) ? -INFINITY : probs[at(id)]; };
  std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) { return key(a) > key(b); });
  ids.resize(at(used));
  Chosen chosen{std::move(ids), {}};
  double total = 0;
  for (std::int32_t id : chosen.experts) total += probs[at(id)];
  for (std::int32_t id : chosen.experts) chosen.weights.push_back(probs[at(id)] / total);
  return chosen;
}

Values swiglu(std::span<const double> gate, std::span<const double> up) {
  expect("swiglu", "values", size_of(gate), size_of(up));
  Values out(gate.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return out;
}

Values weigh(std::span<const double> x, std::span<const double> weights) {
  expect_multiple("weigh", "values of x", size_of(weights), size_of(x));
  const std::size_t width = x.size() / weights.size();
  Values out(x.begin(), x.end());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] *= weights[i / width];
  return out;
}

Values combine(std::span<const double> x, std::int64_t slots) {
  expect_multiple("combine", "values of x", slots, size_of(x));
  const std::size_t width = x.size() / at(slots);
  Values out(width);
  for (std::size_t i = 0; i < x.size(); ++i) out[i % width] += x[i];
  return out;
}

}  // namespace moe_diag::host
