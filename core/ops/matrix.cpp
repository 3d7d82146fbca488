// SPDX-License-Identifier: MIT
#include "core/ops/matrix.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "core/api/blocks.hpp"
#include "core/ops/block_scales.hpp"
#include "core/ops/sizes.hpp"

namespace moe_diag::host {
namespace {

void decode_bytes(BlockType type, const std::byte* row, std::span<double> out) {
  with_block(type, [&](auto block) {
    for (std::size_t k = 0; k < out.size(); k += at(block.elements), row += sizeof block) {
      std::memcpy(&block, row, sizeof block);
      for (int i = 0; i < block.elements; ++i) out[k + at(i)] = decode<double>(block, i);
    }
  });
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

}  // namespace

bool can_read(const Weight& weight, BlockType type) { return weight.cols % info(type).elements == 0; }

Values decode_row(const Matrix& matrix, std::int64_t r) {
  check(matrix, "decode_row");
  expect_below("decode_row", fmt::format("row of {}", matrix.weight->name), matrix.weight->rows, r);
  if (matrix.transposed) return transposed_row(matrix, r);
  const Weight weight = retyped(matrix);
  const Bytes bytes(*matrix.weight, at(matrix.expert) * weight.expert_bytes() + at(r) * weight.row_bytes(),
                    weight.row_bytes());
  Values row(at(weight.cols));
  if (matrix.scale_shift != 0)
    decode_with_scales_of(weight.type, bytes.data(), matrix.scale_shift, row);
  else
    decode_bytes(weight.type, bytes.data(), row);
  return row;
}

}  // namespace moe_diag::host
