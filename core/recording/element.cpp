// SPDX-License-Identifier: MIT
#include "core/recording/element.hpp"

#include <array>
#include <cstring>

namespace moe_diag {
namespace {

struct Row {
  Element element;
  std::size_t bytes;
  std::string_view name, safetensors;
  std::array<std::string_view, 2> npy;
};
constexpr std::array rows{
    Row{Element::f64, 8, "f64", "F64", {"<f8", "<f8"}}, Row{Element::f32, 4, "f32", "F32", {"<f4", "<f4"}},
    Row{Element::f16, 2, "f16", "F16", {"<f2", "<f2"}}, Row{Element::bf16, 2, "bf16", "BF16", {"|V2", "<V2"}},
    Row{Element::i8, 1, "i8", "I8", {"|i1", "<i1"}},    Row{Element::u8, 1, "u8", "U8", {"|u1", "<u1"}},
    Row{Element::i16, 2, "i16", "I16", {"<i2", "<i2"}}, Row{Element::u16, 2, "u16", "U16", {"<u2", "<u2"}},
    Row{Element::i32, 4, "i32", "I32", {"<i4", "<i4"}}, Row{Element::u32, 4, "u32", "U32", {"<u4", "<u4"}},
    Row{Element::i64, 8, "i64", "I64", {"<i8", "<i8"}}};

constexpr const Row& row_of(Element element) { return rows[static_cast<std::size_t>(element)]; }

template <class T>
T load(const std::byte* data, std::int64_t i) {
  T value;
  std::memcpy(&value, data + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

std::size_t size_of(Element element) { return row_of(element).bytes; }
std::string_view name_of(Element element) { return row_of(element).name; }
bool is_whole(Element element) { return element >= Element::i8; }

std::optional<Element> element_of_npy(std::string_view type) {
  for (const Row& row : rows)
    if (type == row.npy[0] || type == row.npy[1]) return row.element;
  return std::nullopt;
}

std::optional<Element> element_of_safetensors(std::string_view type) {
  for (const Row& row : rows)
    if (type == row.safetensors) return row.element;
  return std::nullopt;
}

DType read_as(Element element) {
  switch (element) {
    case Element::f64: return DType::f64;
    case Element::f32: return DType::f32;
    case Element::f16: return DType::f16;
    case Element::bf16: return DType::bf16;
    default: return DType::i32;
  }
}

// Ids above the largest int32 are refused when a recording is opened.
bool is_read_in_place(Element element) {
  return !is_whole(element) || element == Element::i32 || element == Element::u32;
}

std::int64_t whole_at(Element element, const std::byte* data, std::int64_t i) {
  switch (element) {
    case Element::i8: return load<std::int8_t>(data, i);
    case Element::u8: return load<std::uint8_t>(data, i);
    case Element::i16: return load<std::int16_t>(data, i);
    case Element::u16: return load<std::uint16_t>(data, i);
    case Element::i32: return load<std::int32_t>(data, i);
    case Element::u32: return load<std::uint32_t>(data, i);
    default: return load<std::int64_t>(data, i);
  }
}

double value_at(Element element, const std::byte* data, std::int64_t i) {
  switch (element) {
    case Element::f64: return load<double>(data, i);
    case Element::f32: return static_cast<double>(load<float>(data, i));
    case Element::f16: return static_cast<double>(float_from_f16(load<std::uint16_t>(data, i)));
    case Element::bf16: return static_cast<double>(float_from_bf16(load<std::uint16_t>(data, i)));
    default: return static_cast<double>(whole_at(element, data, i));
  }
}

}  // namespace moe_diag
