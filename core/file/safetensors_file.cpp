// SPDX-License-Identifier: MIT
#include "core/file/safetensors_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "core/api/error.hpp"
#include "core/api/output_file.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are read as they stand in the file");

using Json = nlohmann::json;

constexpr std::size_t length_bytes = 8;              // of the header's length, which the file begins with
constexpr std::uint64_t longest_header = 100 << 20;  // as the format's own reader takes
constexpr std::string_view metadata_key = "__metadata__";

struct TypeRow {
  std::string_view name;
  std::size_t bytes;
  std::optional<DType> dtype;
};
constexpr std::array type_rows{
    TypeRow{"F64", 8, DType::f64},      TypeRow{"F32", 4, DType::f32},       TypeRow{"F16", 2, DType::f16},
    TypeRow{"BF16", 2, DType::bf16},    TypeRow{"I32", 4, DType::i32},       TypeRow{"I64", 8, std::nullopt},
    TypeRow{"U64", 8, std::nullopt},    TypeRow{"U32", 4, std::nullopt},     TypeRow{"I16", 2, std::nullopt},
    TypeRow{"U16", 2, std::nullopt},    TypeRow{"I8", 1, std::nullopt},      TypeRow{"U8", 1, std::nullopt},
    TypeRow{"BOOL", 1, std::nullopt},   TypeRow{"F8_E4M3", 1, std::nullopt}, TypeRow{"F8_E5M2", 1, std::nullopt},
    TypeRow{"F8_E8M0", 1, std::nullopt}};

const TypeRow* find_type(std::string_view name) {
  const auto found = std::find_if(type_rows.begin(), type_rows.end(), [&](const TypeRow& r) { return r.name == name; });
  return found == type_rows.end() ? nullptr : &*found;
}

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::usage, message); }

// The header, which names nothing twice: a name that comes again would hide the first.
Json header_of(std::string_view text) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    constexpr int deepest = 4;
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty() && !keys.back().insert(value.get<std::string>()).second)
      twice = value.get<std::string>();
    return depth <= deepest;
  };
  Json header = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (header.is_discarded()) refuse("its header is no JSON");
  if (!header.is_object()) refuse("its header is no JSON object");
  if (!twice.empty()) refuse(fmt::format("its header names {} twice", quoted_bytes(twice)));
  return header;
}

std::map<std::string, std::string> metadata_of(const Json& json) {
  std::map<std::string, std::string> metadata;
  if (!json.is_object()) refuse("its __metadata__ is no JSON object");
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) refuse(fmt::format("its __metadata__ {} is no text", quoted_bytes(key)));
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

// Numbers of a list, each at least 0 and small enough for a size.
std::optional<std::vector<std::int64_t>> numbers_of(const Json& entry, const char* key) {
  const auto list = entry.find(key);
  if (list == entry.end() || !list->is_array()) return std::nullopt;
  std::vector<std::int64_t> numbers;
  for (const Json& one : *list) {
    if (!one.is_number_unsigned() || one.get<std::uint64_t>() > (std::uint64_t{1} << 62)) return std::nullopt;
    numbers.push_back(one.get<std::int64_t>());
  }
  return numbers;
}

// Elements times bytes of each; none when there are more than fit.
std::optional<std::int64_t> bytes_of(const std::vector<std::int64_t>& shape, std::size_t element) {
  std::int64_t bytes = static_cast<std::int64_t>(element);
  for (const std::int64_t size : shape)
    if (__builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  return bytes;
}

struct Placed {
  SafeTensor tensor;
  std::int64_t begin = 0, end = 0;
};

Placed read_entry(const std::string& name, const Json& entry, std::string_view data) {
  const std::string who = fmt::format("tensor {}", quoted_bytes(name));
  if (!entry.is_object()) refuse(fmt::format("{}: expected an object with dtype, shape and data_offsets", who));
  const auto dtype = entry.find("dtype");
  if (dtype == entry.end() || !dtype->is_string()) refuse(fmt::format("{}: has no dtype", who));
  const auto shape = numbers_of(entry, "shape"), offsets = numbers_of(entry, "data_offsets");
  if (!shape) refuse(fmt::format("{}: has no shape of numbers", who));
  if (!offsets || offsets->size() != 2) refuse(fmt::format("{}: has no pair of data_offsets", who));
  Placed placed{{name, dtype->get<std::string>(), *shape, {}}, (*offsets)[0], (*offsets)[1]};
  const auto size = static_cast<std::int64_t>(data.size());
  if (placed.begin > placed.end || placed.end > size)
    refuse(fmt::format("{}: its data_offsets are [{}, {}], and {} bytes of data follow the header", who, placed.begin,
                       placed.end, size));
  const TypeRow* type = find_type(placed.tensor.dtype);
  if (!type) refuse(fmt::format("{}: dtype {} is not known", who, quoted_bytes(placed.tensor.dtype)));
  const auto bytes = bytes_of(*shape, type->bytes);
  if (!bytes || *bytes != placed.end - placed.begin)
    refuse(fmt::format("{}: {} of shape {} has {} bytes, expected by its data_offsets {}", who, type->name,
                       shape_text(*shape), bytes ? fmt::format("{}", *bytes) : "too many", placed.end - placed.begin));
  placed.tensor.data = data.substr(static_cast<std::size_t>(placed.begin), static_cast<std::size_t>(*bytes));
  return placed;
}

void check_without_gaps(const std::vector<Placed>& placed, std::size_t size) {
  std::int64_t end = 0;
  for (const Placed& p : placed) {
    if (p.begin < end) refuse(fmt::format("tensor {}: lies over another one", quoted_bytes(p.tensor.name)));
    if (p.begin > end) refuse(fmt::format("bytes {} to {} of its data belong to no tensor", end, p.begin - 1));
    end = p.end;
  }
  if (static_cast<std::size_t>(end) != size)
    refuse(fmt::format("its last {} bytes belong to no tensor", size - static_cast<std::size_t>(end)));
}

}  // namespace

const SafeTensor* SafetensorsFile::find(std::string_view name) const {
  for (const SafeTensor& tensor : tensors)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const SafeTensor& tensor : tensors) names.push_back(tensor.name);
  return names;
}

SafetensorsFile parse_safetensors(std::string_view file) {
  if (file.size() < length_bytes) refuse(fmt::format("it has {} bytes, too few for a safetensors file", file.size()));
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), length_bytes);
  if (length > longest_header)
    refuse(fmt::format("it announces a header of {} bytes, expected at most {}: no safetensors file", length,
                       longest_header));
  if (length > file.size() - length_bytes)
    refuse(fmt::format("it announces a header of {} bytes and ends within it: {} bytes follow", length,
                       file.size() - length_bytes));
  const Json header = header_of(file.substr(length_bytes, length));
  const std::string_view data = file.substr(length_bytes + length);
  SafetensorsFile result;
  std::vector<Placed> placed;
  for (const auto& [name, entry] : header.items()) {
    if (name == metadata_key)
      result.metadata = metadata_of(entry);
    else
      placed.push_back(read_entry(name, entry, data));
  }
  std::stable_sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_without_gaps(placed, data.size());
  for (Placed& p : placed) result.tensors.push_back(std::move(p.tensor));
  return result;
}

std::string_view safetensors_type(DType dtype) {
  for (const TypeRow& row : type_rows)
    if (row.dtype == dtype) return row.name;
  return "";
}

std::string safetensors_types() {
  std::vector<std::string_view> names;
  for (const TypeRow& row : type_rows)
    if (row.dtype) names.push_back(row.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

StoredTensor stored(const SafeTensor& tensor) {
  const TypeRow* type = find_type(tensor.dtype);
  if (!type || !type->dtype)
    refuse(fmt::format("tensor {}: expected one of the types {}, found {}", quoted_bytes(tensor.name),
                       safetensors_types(), tensor.dtype));
  StoredTensor values{tensor.name, *type->dtype, {}, {}};
  if (tensor.shape.empty() || tensor.shape.size() > values.shape.dims.size())
    refuse(fmt::format("tensor {}: expected 1 to {} dimensions, found {}", quoted_bytes(tensor.name),
                       values.shape.dims.size(), tensor.shape.size()));
  for (const std::int64_t size : tensor.shape) values.shape.dims[static_cast<std::size_t>(values.shape.rank++)] = size;
  values.bytes.resize(tensor.data.size());
  if (!tensor.data.empty()) std::memcpy(values.bytes.data(), tensor.data.data(), tensor.data.size());
  return values;
}

std::string shape_text(const std::vector<std::int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::string shape_text(const Shape& shape) {
  return shape_text(std::vector<std::int64_t>(shape.dims.begin(), shape.dims.begin() + shape.rank));
}

TensorSource source_of(const StoredTensor& tensor) {
  return {tensor.name,
          std::string(safetensors_type(tensor.dtype)),
          {tensor.shape.dims.begin(), tensor.shape.dims.begin() + tensor.shape.rank},
          tensor.bytes.size(),
          [&tensor](const TensorSource::Put& put) { put(tensor.bytes.data(), tensor.bytes.size()); }};
}

void write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(metadata_key)] = metadata;
  std::uint64_t end = 0;
  for (const TensorSource& t : tensors) {
    header[t.name] = {{"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {end, end + t.bytes}}};
    end += t.bytes;
  }
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.append((length_bytes - text.size() % length_bytes) % length_bytes, ' ');
  const std::uint64_t length = text.size();
  OutputFile file(path, OutputFile::Mode::create);
  file.write(&length, length_bytes);
  file.write(text.data(), text.size());
  for (const TensorSource& t : tensors) {
    std::uint64_t written = 0;
    t.write([&](const void* data, std::size_t bytes) {
      file.write(data, bytes);
      written += bytes;
    });
    if (written != t.bytes)
      throw Error(ErrorKind::environment, fmt::format("{}: tensor {}: expected {} bytes to be written, found {}", path,
                                                      t.name, t.bytes, written));
  }
  file.close();
}

}  // namespace moe_diag
