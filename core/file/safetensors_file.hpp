// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/tensor.hpp"

namespace moe_diag {

// A tensor of a safetensors file. Points into the file's bytes, which have no alignment guarantee.
struct SafeTensor {
  std::string name;
  std::string dtype;                // as the format names it: "BF16"
  std::vector<std::int64_t> shape;  // slowest dimension first; of a scalar empty
  std::string_view data;            // as many bytes as type and shape say
};

struct SafetensorsFile {
  std::vector<SafeTensor> tensors;  // by place in the file
  std::map<std::string, std::string> metadata;

  const SafeTensor* find(std::string_view name) const;  // null: there is none
  std::vector<std::string> names() const;
};

// Trusts no byte of it: the header is JSON without a name twice, every tensor has the bytes that its type and shape
// say, and the tensors follow each other without a gap up to the end. Throws Error(usage) with what is wrong. Source:
// https://github.com/huggingface/safetensors, "Format".
SafetensorsFile parse_safetensors(std::string_view file);

// A tensor that owns its values: at most four dimensions, of a type that Tensor has.
struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::byte> bytes;

  Tensor tensor() const { return {bytes.data(), dtype, shape}; }
};

// The format's name of a type.
std::string_view safetensors_type(DType dtype);
// "F64, F32, F16, BF16, I32": the types that stored() takes.
std::string safetensors_types();

// A copy of the values. Throws Error(usage) for a type or a number of dimensions that StoredTensor has not.
StoredTensor stored(const SafeTensor& tensor);

// "[7, 256]"
std::string shape_text(const Shape& shape);
std::string shape_text(const std::vector<std::int64_t>& shape);

// A tensor to be written. `write` is called once, and puts exactly `bytes` bytes, in pieces of any size.
struct TensorSource {
  using Put = std::function<void(const void* data, std::size_t bytes)>;

  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t bytes = 0;
  std::function<void(const Put&)> write;
};
// A tensor of values that outlive it.
TensorSource source_of(const StoredTensor& tensor);

// Writes a new file in bounded memory. The header is padded so that data begin at a multiple of 8 bytes. Throws Error
// (environment) when it cannot be written, or a source puts another number of bytes.
void write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace moe_diag
