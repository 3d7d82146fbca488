// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"

namespace moe_diag {

// Types of values in a recording. The whole numbers are for ids of experts.
enum class Element : std::uint8_t { f64, f32, f16, bf16, i8, u8, i16, u16, i32, u32, i64 };

std::size_t size_of(Element element);
std::string_view name_of(Element element);
bool is_whole(Element element);
constexpr bool is_of_16_bits(Element e) { return e == Element::f16 || e == Element::bf16; }

// None: a recording does not have it. Two bytes without a type, "V2", are bf16, as ml_dtypes and MLX write it.
std::optional<Element> element_of_npy(std::string_view type);
std::optional<Element> element_of_safetensors(std::string_view type);

// The type that readers get: i32 for all whole numbers.
DType read_as(Element element);
// True when values lie in the file as readers get them.
bool is_read_in_place(Element element);

// Value `i` behind `data`, which has any alignment.
double value_at(Element element, const std::byte* data, std::int64_t i);
// The same of a whole number.
std::int64_t whole_at(Element element, const std::byte* data, std::int64_t i);

}  // namespace moe_diag
