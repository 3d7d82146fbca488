// SPDX-License-Identifier: MIT
#include "core/file/npy_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <functional>
#include <numeric>
#include <system_error>
#include <utility>

#include "core/api/error.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

static_assert(std::endian::native == std::endian::little, "arrays are read as they stand in the file");

constexpr std::size_t most_dimensions = 8;

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::usage, message); }

// The header of an .npy file: a Python dictionary of three known keys, as numpy writes it.
// Source: numpy.lib.format, versions 1.0 to 3.0.
class NpyHeader {
 public:
  explicit NpyHeader(std::string_view text) : text_(text) {}

  std::string_view descr() {
    std::string_view rest = value("descr");
    const std::size_t end = rest.empty() ? std::string_view::npos : rest.find(rest.front(), 1);
    if (end == std::string_view::npos || (rest.front() != '\'' && rest.front() != '"')) malformed("descr");
    return rest.substr(1, end - 1);
  }
  bool fortran_order() {
    const std::string_view rest = value("fortran_order");
    if (rest.starts_with("True")) return true;
    if (!rest.starts_with("False")) malformed("fortran_order");
    return false;
  }
  // "5," between the brackets of the shape
  std::string_view shape() {
    const std::string_view rest = value("shape");
    const std::size_t end = rest.find(')');
    if (!rest.starts_with('(') || end == std::string_view::npos) malformed("shape");
    return rest.substr(1, end - 1);
  }

 private:
  [[noreturn]] static void malformed(std::string_view key) {
    refuse(fmt::format("its header has no {} as numpy writes it", key));
  }
  std::string_view value(std::string_view key) const {
    for (const char quote : {'\'', '"'}) {
      const std::string name = fmt::format("{0}{1}{0}:", quote, key);
      const std::size_t at = text_.find(name);
      if (at == std::string_view::npos) continue;
      std::string_view rest = text_.substr(at + name.size());
      const std::size_t start = rest.find_first_not_of(' ');
      return start == std::string_view::npos ? std::string_view() : rest.substr(start);
    }
    malformed(key);
  }

  std::string_view text_;
};

std::vector<std::int64_t> dimensions_of(std::string_view text) {
  std::vector<std::int64_t> shape;
  const auto malformed = [&] { refuse(fmt::format("its shape is ({}), which is none", shown(text))); };
  std::string_view rest = text;
  while (true) {
    rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
    if (rest.empty()) break;
    std::int64_t size = 0;
    const auto [stop, error] = std::from_chars(rest.data(), rest.data() + rest.size(), size);
    if (error != std::errc() || size < 0 || shape.size() == most_dimensions) malformed();
    shape.push_back(size);
    rest.remove_prefix(static_cast<std::size_t>(stop - rest.data()));
    if (rest.starts_with(','))
      rest.remove_prefix(1);
    else if (!rest.empty() || shape.size() < 2)
      malformed();
  }
  return shape;
}

std::size_t element_bytes(std::string_view type) {
  if (type.size() == 3 && type[0] == '<' && (type[2] == '4' || type[2] == '8'))
    return static_cast<std::size_t>(type[2] - '0');
  refuse(fmt::format("its type is '{}', expected little-endian numbers of 4 or 8 bytes", shown(type)));
}

}  // namespace

std::int64_t NpyArray::count() const {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

NpyHead parse_npy_head(std::string_view file) {
  constexpr std::string_view magic = "\x93NUMPY";
  if (!file.starts_with(magic) || file.size() < 12) refuse("not an .npy file");
  const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(file[i])); };
  const std::size_t version = byte(6);
  if (version < 1 || version > 3) refuse(fmt::format("version {} of the .npy format, supported are 1 to 3", version));
  const std::size_t start = version == 1 ? 10 : 12;
  const std::size_t length = byte(8) | byte(9) << 8 | (version == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
  if (length > file.size() - start) refuse("it ends within its header");
  NpyHeader header(file.substr(start, length));
  NpyHead head;
  head.bytes = start + length;
  head.type = header.descr();
  if (header.fortran_order()) refuse("it is in Fortran order, expected C order");
  head.shape = dimensions_of(header.shape());
  return head;
}

NpyArray parse_npy(std::string_view file) {
  NpyHead head = parse_npy_head(file);
  NpyArray array{std::move(head.type), std::move(head.shape), file.substr(head.bytes)};
  const std::size_t bytes = element_bytes(array.type);
  std::int64_t count = 1;
  for (const std::int64_t size : array.shape)
    if (__builtin_mul_overflow(count, size, &count))
      refuse(fmt::format("its shape is ({})", fmt::join(array.shape, ", ")));
  if (array.data.size() % bytes != 0 || static_cast<std::size_t>(count) != array.data.size() / bytes)
    refuse(
        fmt::format("its header announces {} elements of {} bytes, {} bytes follow", count, bytes, array.data.size()));
  return array;
}

}  // namespace moe_diag
