// SPDX-License-Identifier: MIT
#include "core/gguf/gguf_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "core/api/error.hpp"
#include "core/gguf/ggml_type.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {

static_assert(std::endian::native == std::endian::little, "tensor data is used in place, and it is little-endian");

namespace {

constexpr std::uint32_t magic = 0x46554747;                      // "GGUF"
constexpr std::uint64_t least_entry_bytes = 8 + 4 + 1;           // empty key, type, one byte of value
constexpr std::uint64_t least_tensor_bytes = 8 + 4 + 8 + 4 + 8;  // empty name, rank, one dimension, type, offset

constexpr std::string_view cut_short = "a download may be incomplete: compare the file's size with that at its source";

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Bytes of a number or boolean; 0 for text and array.
std::uint64_t size_of(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean: return 1;
    case GgufType::u16:
    case GgufType::i16: return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32: return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64: return 8;
    case GgufType::text:
    case GgufType::array: return 0;
  }
  return 0;
}

std::string supported_types() {
  std::string list;
  for (const BlockInfo& block : block_table) list += fmt::format("{}{}", list.empty() ? "" : ", ", block.name);
  return list;
}

bool overflows(std::int64_t a, std::int64_t b) { return b != 0 && a > std::numeric_limits<std::int64_t>::max() / b; }

}  // namespace

std::string_view name_of(GgufType type) {
  constexpr std::string_view names[] = {"u8",      "i8",   "u16",   "i16", "u32", "i32", "f32",
                                        "boolean", "text", "array", "u64", "i64", "f64"};
  return names[static_cast<std::size_t>(type)];
}

// Reads the file front to back. Nothing is believed before it was compared with the bytes that are left, and nothing is
// allocated by a number from the file.
class GgufParser {
 public:
  // An outline takes types and places of tensors as they are.
  GgufParser(std::span<const std::byte> bytes, std::string source, bool outline) : outline_(outline) {
    file_.bytes_ = bytes;
    file_.source_ = std::move(source);
  }

  GgufFile parse() {
    read_preamble();
    for (std::uint64_t i = 0; i < entries_; ++i) read_entry(i);
    read_alignment();
    for (std::uint64_t i = 0; i < tensors_; ++i) read_tensor(i);
    file_.headers_ = {file_.bytes_.first(at_)};
    if (outline_) return std::move(file_);
    place_tensors();
    refuse_overlaps();
    return std::move(file_);
  }

 private:
  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> message, Args&&... args) const {
    throw Error(ErrorKind::environment,
                fmt::format("{}: {}", file_.source_, fmt::format(message, std::forward<Args>(args)...)));
  }

  std::uint64_t left() const { return file_.bytes_.size() - at_; }

  // The next `size` bytes; `what` and `index` say what they were to be when the file ends before.
  const std::byte* take(std::uint64_t size, std::string_view what, std::string_view of) {
    if (size > left())
      refuse("the file ends too early: {} of {} takes {} bytes at byte {}, found {} bytes in all; {}", what, of, size,
             at_, file_.bytes_.size(), cut_short);
    const std::byte* data = file_.bytes_.data() + at_;
    at_ += size;
    return data;
  }
  template <class T>
  T number(std::string_view what, std::string_view of) {
    return load<T>(take(sizeof(T), what, of));
  }
  std::string_view text(std::string_view what, std::string_view of) {
    const auto length = number<std::uint64_t>(fmt::format("the length of {}", what), of);
    return {reinterpret_cast<const char*>(take(length, what, of)), length};
  }

  void read_preamble() {
    const auto found = number<std::uint32_t>("the magic", "the header");
    if (found != magic)
      refuse("not a GGUF file: it starts with the bytes {:02x} {:02x} {:02x} {:02x}, expected 47 47 55 46 (\"GGUF\")",
             found & 0xFF, found >> 8 & 0xFF, found >> 16 & 0xFF, found >> 24);
    file_.version_ = number<std::uint32_t>("the version", "the header");
    const std::uint32_t v = file_.version_;
    if (v != 0 && (v & 0xFFFF) == 0)
      refuse("a big-endian GGUF file; convert it with gguf-convert-endian of the gguf package");
    if (v == 1) refuse("GGUF version 1, supported are 2 and 3; convert the model again with a current converter");
    if (v != 2 && v != 3) refuse("GGUF version {}, supported are 2 and 3", v);
    tensors_ = number<std::uint64_t>("the number of tensors", "the header");
    entries_ = number<std::uint64_t>("the number of metadata entries", "the header");
    if (entries_ > left() / least_entry_bytes)
      refuse("the header announces {} metadata entries, the {} bytes that follow hold {} at most; {}", entries_, left(),
             left() / least_entry_bytes, cut_short);
    if (tensors_ > left() / least_tensor_bytes)
      refuse("the header announces {} tensors, the {} bytes that follow hold {} at most; {}", tensors_, left(),
             left() / least_tensor_bytes, cut_short);
  }

  GgufType value_type(std::string_view what, std::string_view of) {
    const auto type = number<std::uint32_t>(what, of);
    if (type > static_cast<std::uint32_t>(GgufType::f64))
      refuse("{} has value type {}, expected 0 to {}", of, type, static_cast<std::uint32_t>(GgufType::f64));
    return static_cast<GgufType>(type);
  }

  void read_entry(std::uint64_t i) {
    GgufEntry entry;
    const std::string which = fmt::format("metadata entry {} of {}", i + 1, entries_);
    entry.key = text("the key", which);
    const std::string of = fmt::format("metadata key {}", quoted_bytes(entry.key));
    if (entry.key.empty()) refuse("{} has an empty key", which);
    entry.type = value_type("the value type", of);
    read_value(entry, of);
    const auto [first, added] = file_.keys_.emplace(entry.key, file_.metadata_.size());
    if (!added) refuse("{} stands in entries {} and {}, expected once", of, first->second + 1, i + 1);
    file_.metadata_.push_back(entry);
  }

  void read_value(GgufEntry& entry, const std::string& of) {
    if (entry.type == GgufType::text) {
      const std::string_view value = text("the text", of);
      entry.value = reinterpret_cast<const std::byte*>(value.data());
      entry.count = value.size();
    } else if (entry.type == GgufType::array) {
      read_array(entry, of);
    } else {
      entry.value = take(size_of(entry.type), "the value", of);
    }
  }

  void read_array(GgufEntry& entry, const std::string& of) {
    entry.element = value_type("the element type", of);
    if (entry.element == GgufType::array) refuse("{} is an array of arrays, expected an array of plain values", of);
    entry.count = number<std::uint64_t>("the array's length", of);
    const std::uint64_t each = entry.element == GgufType::text ? 8 : size_of(entry.element);
    if (entry.count > left() / each)
      refuse("{} announces {} elements, the {} bytes that follow hold {} at most", of, entry.count, left(),
             left() / each);
    entry.value = file_.bytes_.data() + at_;
    if (entry.element != GgufType::text) {
      at_ += entry.count * each;
      return;
    }
    for (std::uint64_t i = 0; i < entry.count; ++i) {
      if (left() < 8 || load<std::uint64_t>(file_.bytes_.data() + at_) > left() - 8)
        refuse("the file ends too early: within text {} of {} of {}, at byte {} of {}; {}", i + 1, entry.count, of, at_,
               file_.bytes_.size(), cut_short);
      at_ += 8 + load<std::uint64_t>(file_.bytes_.data() + at_);
    }
  }

  void read_alignment() {
    const GgufEntry* entry = file_.find("general.alignment");
    if (entry == nullptr) return;
    if (entry->type != GgufType::u32)
      refuse("metadata key 'general.alignment' is of type {}, expected u32", name_of(entry->type));
    file_.alignment_ = load<std::uint32_t>(entry->value);
    if (!std::has_single_bit(file_.alignment_))
      refuse("general.alignment is {}, expected a power of two", file_.alignment_);
  }

  void read_tensor(std::uint64_t i) {
    GgufTensor tensor;
    const std::string which = fmt::format("row {} of {} of the tensor table", i + 1, tensors_);
    tensor.name = text("the name", which);
    const std::string of = fmt::format("tensor {}", quoted_bytes(tensor.name));
    if (tensor.name.empty()) refuse("{} has an empty name", which);
    read_shape(tensor, of);
    const auto type = number<std::uint32_t>("the type", of);
    tensor.offset = number<std::uint64_t>("the offset", of);
    tensor.type_id = type;
    if (!outline_ || find_block_info(type) != nullptr) {
      tensor.bytes = check_type(tensor, type, of);
      tensor.type = static_cast<BlockType>(type);
    }
    if (!outline_ && tensor.offset % file_.alignment_ != 0)
      refuse("{} starts at offset {} of the data, expected a multiple of the alignment {}", of, tensor.offset,
             file_.alignment_);
    const auto [first, added] = file_.names_.emplace(tensor.name, file_.tensors_.size());
    if (!added) refuse("{} stands in rows {} and {} of the table, expected once", of, first->second + 1, i + 1);
    file_.tensors_.push_back(tensor);
  }

  void read_shape(GgufTensor& tensor, const std::string& of) {
    const auto rank = number<std::uint32_t>("the number of dimensions", of);
    if (rank < 1 || rank > 4) refuse("{} has {} dimensions, expected 1 to 4", of, rank);
    tensor.rank = static_cast<int>(rank);
    std::int64_t elements = 1;
    for (std::size_t d = 0; d < rank; ++d) {
      const auto size = number<std::uint64_t>("a dimension", of);
      if (size == 0) refuse("{} has size 0 in dimension {}, expected at least 1", of, d);
      if (size > std::numeric_limits<std::int64_t>::max() || overflows(elements, static_cast<std::int64_t>(size)))
        refuse("{} has dimensions whose product does not fit in 63 bits", of);
      tensor.dims[d] = static_cast<std::int64_t>(size);
      elements *= tensor.dims[d];
    }
  }

  // The tensor's size in bytes; refuses a type that cannot be read and rows that are not whole blocks.
  std::uint64_t check_type(const GgufTensor& tensor, std::uint32_t type, const std::string& of) const {
    const BlockInfo* block = find_block_info(type);
    if (block == nullptr) {
      const std::string_view name = ggml_type_name(type);
      if (name.empty())
        refuse(
            "{} has the type id {}, which this version of moe-diag does not know: it may be a newer type; supported: "
            "{}",
            of, type, supported_types());
      refuse("{} is of type {}, which is not supported; supported: {}", of, name, supported_types());
    }
    if (tensor.dims[0] % block->elements != 0)
      refuse("{} is of type {} with {} values a row, expected a multiple of the block of {}", of, block->name,
             tensor.dims[0], block->elements);
    const std::int64_t blocks = tensor.dims[0] / block->elements * tensor.dims[1] * tensor.dims[2] * tensor.dims[3];
    if (overflows(blocks, block->bytes)) refuse("{} has a size in bytes that does not fit in 63 bits", of);
    return static_cast<std::uint64_t>(blocks) * static_cast<std::uint64_t>(block->bytes);
  }

  // Turns offsets of the data into offsets of the file, each checked to lie within it.
  void place_tensors() {
    if (file_.tensors_.empty()) return;
    const std::uint64_t size = file_.bytes_.size();
    const std::uint64_t start = (at_ + file_.alignment_ - 1) / file_.alignment_ * file_.alignment_;
    if (start >= size)
      refuse("the file ends too early: tensor data starts at byte {}, found {} bytes in all; {}", start, size,
             cut_short);
    for (GgufTensor& tensor : file_.tensors_) {
      if (tensor.offset > size - start || tensor.bytes > size - start - tensor.offset)
        refuse("tensor {} lies outside the file: {} bytes at byte {}+{}, found {} bytes in all; {}",
               quoted_bytes(tensor.name), tensor.bytes, start, tensor.offset, size, cut_short);
      tensor.offset += start;
      tensor.data = file_.bytes_.data() + tensor.offset;
    }
  }

  void refuse_overlaps() const {
    std::vector<const GgufTensor*> order;
    for (const GgufTensor& tensor : file_.tensors_) order.push_back(&tensor);
    std::sort(order.begin(), order.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
    for (std::size_t i = 1; i < order.size(); ++i) {
      const GgufTensor &a = *order[i - 1], &b = *order[i];
      if (a.offset + a.bytes > b.offset)
        refuse("tensors {} (bytes {} to {}) and {} (bytes {} to {}) overlap", quoted_bytes(a.name), a.offset,
               a.offset + a.bytes - 1, quoted_bytes(b.name), b.offset, b.offset + b.bytes - 1);
    }
  }

  const bool outline_;
  GgufFile file_;
  std::uint64_t at_ = 0, entries_ = 0, tensors_ = 0;
};

GgufFile GgufFile::parse(std::span<const std::byte> bytes, std::string source) {
  return GgufParser(bytes, std::move(source), false).parse();
}

GgufFile GgufFile::outline(std::span<const std::byte> bytes, std::string source) {
  return GgufParser(bytes, std::move(source), true).parse();
}

void GgufFile::add_part(GgufFile part) {
  for (GgufTensor& tensor : part.tensors_) {
    if (!names_.emplace(tensor.name, tensors_.size()).second)
      throw Error(ErrorKind::environment,
                  fmt::format("{}: tensor {} is in an earlier part, too", part.source_, quoted_bytes(tensor.name)));
    tensor.part = headers_.size();
    tensors_.push_back(tensor);
  }
  headers_.push_back(part.headers_.front());
}

const GgufEntry* GgufFile::find(std::string_view key) const {
  const auto found = keys_.find(key);
  return found == keys_.end() ? nullptr : &metadata_[found->second];
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = names_.find(name);
  return found == names_.end() ? nullptr : &tensors_[found->second];
}

namespace {

[[noreturn]] void refuse_type(const GgufFile& file, const GgufEntry& entry, std::string_view expected) {
  throw Error(ErrorKind::environment, fmt::format("{}: metadata key {} is of type {}, expected {}", file.source(),
                                                  quoted_bytes(entry.key), name_of(entry.type), expected));
}

// An integer of that type; empty when the type is none. A u64 beyond i64 is as wrong as any other huge number.
std::optional<std::int64_t> load_integer(GgufType type, const std::byte* at) {
  switch (type) {
    case GgufType::u8: return load<std::uint8_t>(at);
    case GgufType::i8: return load<std::int8_t>(at);
    case GgufType::u16: return load<std::uint16_t>(at);
    case GgufType::i16: return load<std::int16_t>(at);
    case GgufType::u32: return load<std::uint32_t>(at);
    case GgufType::i32: return load<std::int32_t>(at);
    case GgufType::i64: return load<std::int64_t>(at);
    case GgufType::u64:
      return static_cast<std::int64_t>(
          std::min<std::uint64_t>(load<std::uint64_t>(at), std::numeric_limits<std::int64_t>::max()));
    default: return std::nullopt;
  }
}
std::optional<std::int64_t> as_integer(const GgufEntry& entry) { return load_integer(entry.type, entry.value); }

}  // namespace

std::optional<std::int64_t> GgufFile::integer(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::nullopt;
  const std::optional<std::int64_t> value = as_integer(*entry);
  if (!value) refuse_type(*this, *entry, "an integer");
  return value;
}

std::optional<double> GgufFile::real(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::nullopt;
  if (entry->type == GgufType::f32) return load<float>(entry->value);
  if (entry->type == GgufType::f64) return load<double>(entry->value);
  const std::optional<std::int64_t> value = as_integer(*entry);
  if (!value) refuse_type(*this, *entry, "a number");
  return static_cast<double>(*value);
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::nullopt;
  if (entry->type != GgufType::boolean) refuse_type(*this, *entry, "boolean");
  return load<std::uint8_t>(entry->value) != 0;
}

std::optional<std::string_view> GgufFile::text(std::string_view key) const {
  const GgufEntry* entry = find(key);
  if (entry == nullptr) return std::nullopt;
  if (entry->type != GgufType::text) refuse_type(*this, *entry, "text");
  return std::string_view(reinterpret_cast<const char*>(entry->value), entry->count);
}

std::vector<std::int64_t> GgufFile::integers(std::string_view key) const {
  const GgufEntry* entry = find(key);
  std::vector<std::int64_t> list;
  if (entry == nullptr || entry->type != GgufType::array) return list;
  const std::size_t size = entry->element == GgufType::u8 || entry->element == GgufType::i8     ? 1
                           : entry->element == GgufType::u16 || entry->element == GgufType::i16 ? 2
                           : entry->element == GgufType::u64 || entry->element == GgufType::i64 ? 8
                                                                                                : 4;
  for (std::uint64_t i = 0; i < entry->count; ++i) {
    const auto value = load_integer(entry->element, entry->value + i * size);
    if (!value) return {};
    list.push_back(*value);
  }
  return list;
}

std::vector<std::string_view> GgufFile::texts(std::string_view key) const {
  const GgufEntry* entry = find(key);
  std::vector<std::string_view> list;
  if (entry == nullptr || entry->type != GgufType::array || entry->element != GgufType::text) return list;
  list.reserve(entry->count);
  // The parser has seen these lengths, but the file is another's and may have changed since.
  const std::byte *at = entry->value, *end = bytes_.data() + bytes_.size();
  for (std::uint64_t i = 0; i < entry->count && end - at >= 8; ++i) {
    const auto length = load<std::uint64_t>(at);
    at += 8;
    if (length > static_cast<std::uint64_t>(end - at)) break;
    list.emplace_back(reinterpret_cast<const char*>(at), length);
    at += length;
  }
  return list;
}

}  // namespace moe_diag
