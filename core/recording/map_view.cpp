// SPDX-License-Identifier: MIT
#include "core/recording/map_view.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>

#include "core/file/safetensors_file.hpp"
#include "core/recording/strict_json.hpp"

namespace moe_diag {
namespace {

using Axes = std::vector<MapAxis>;

std::int64_t count_of(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

[[noreturn]] void refuse_shape(const MapArray& array, const std::string& where, const std::string& what) {
  refuse_recording(fmt::format("{}: found shape {}: {} ({})", array.where(), shape_text(array.shape), what, where));
}

// Positions first; before them a batch of one, where the array has a dimension more than the stage.
Axes usual_axes(std::size_t found, std::size_t of_row, std::int64_t first) {
  Axes axes;
  if (found == of_row + 2 && first == 1) axes.push_back({MapAxis::Kind::batch, {}});
  axes.push_back({MapAxis::Kind::token, {}});
  while (axes.size() < found) axes.push_back({});
  return axes;
}

// The values of a row that the map takes, which are some of those along the last dimension.
void take_columns(MapView& view, const MapArray& array, const MapShape& shape) {
  using Part = MapColumns::Part;
  const MapColumns& columns = shape.map.columns;
  if (columns.part == Part::all) return;
  if (view.values.empty()) refuse_shape(array, shape.where, "columns of a row of a single value");
  MapView::Dim& last = view.values.back();
  if (columns.part == Part::range) {
    if (columns.first + columns.count > last.size)
      refuse_shape(
          array, shape.where,
          fmt::format("columns {} to {} of a row of {}", columns.first, columns.first + columns.count - 1, last.size));
    view.first += columns.first * last.stride;
    last.size = columns.count;
    return;
  }
  if (last.size % 2 != 0) refuse_shape(array, shape.where, "half of a row of an odd number of values");
  last.size /= 2;
  if (columns.part == Part::second_half) view.first += last.size * last.stride;
  if (columns.part == Part::odd) view.first += last.stride;
  if (columns.part == Part::even || columns.part == Part::odd) last.stride *= 2;
}

// Elements of a row in the files: twice those of the stage, where the map takes a half of it.
std::int64_t width_in_files(const MapShape& shape) {
  using Part = MapColumns::Part;
  const Part part = shape.map.columns.part;
  return part == Part::all || part == Part::range ? shape.width : shape.width * 2;
}

// A file without a header has rows of the stage's width.
std::vector<std::int64_t> shape_in(const MapArray& array, const MapShape& shape) {
  if (shape.map.type.empty()) return array.shape;
  const std::int64_t width = width_in_files(shape);
  if (array.shape[0] % width != 0)
    refuse_shape(array, shape.where, fmt::format("no whole number of rows of {} values", width));
  return {array.shape[0] / width, width};
}

}  // namespace

bool MapView::is_one_piece() const {
  std::int64_t expected = 1;
  for (auto dim = values.rbegin(); dim != values.rend(); ++dim) {
    if (dim->size != 1 && dim->stride != expected) return false;
    expected *= dim->size;
  }
  return true;
}

const std::byte* MapView::row(std::int64_t index) const {
  return array->data.data() + static_cast<std::size_t>(first + index * rows.stride) * size_of(array->element);
}

std::optional<std::int64_t> layers_of(const MapArray& array, const StageMap& map) {
  if (!map.axes) return std::nullopt;
  for (std::size_t i = 0; i < map.axes->size() && i < array.shape.size(); ++i)
    if ((*map.axes)[i].kind == MapAxis::Kind::layer) return array.shape[i];
  return std::nullopt;
}

MapView view_of(const MapArray& array, const MapShape& shape) {
  std::vector<std::int64_t> found = shape_in(array, shape);
  // The one row of a call of one token may lack the dimension of tokens.
  const bool is_row = shape.together == width_in_files(shape);
  if (!shape.map.axes && is_row) found.insert(found.begin(), 1);
  const std::size_t of_row = is_row ? found.size() : shape.dimensions;
  const Axes axes = shape.map.axes.value_or(usual_axes(found.size(), of_row, found.empty() ? 0 : found.front()));
  if (axes.size() != found.size()) refuse_shape(array, shape.where, fmt::format("the map has {} axes", axes.size()));
  MapView view{&array, {}, 0, {}};
  std::int64_t stride = 1;
  for (std::size_t i = axes.size(); i-- > 0; stride *= found[i]) {
    if (found[i] <= 0) refuse_shape(array, shape.where, "a dimension of 0");
    const MapView::Dim dim{found[i], stride};
    switch (axes[i].kind) {
      case MapAxis::Kind::token: view.rows = dim; break;
      case MapAxis::Kind::layer: view.first += shape.layer * stride; break;
      case MapAxis::Kind::batch:
        if (found[i] != 1) refuse_shape(array, shape.where, "a batch of several: expected the axis batch of size 1");
        break;
      case MapAxis::Kind::values:
      case MapAxis::Kind::qkv: view.values.insert(view.values.begin(), dim); break;
    }
  }
  take_columns(view, array, shape);
  return view;
}

JoinedRows::JoinedRows(std::vector<std::vector<MapView>> sources, const StageMap& map, std::vector<std::int64_t> qkv)
    : sources_(std::move(sources)), is_sum_(map.is_sum), read_(first().array->element), element_(read_) {
  std::size_t dim = 0;
  for (const MapAxis& axis : map.axes.value_or(Axes{})) {
    const bool holds_values = axis.kind == MapAxis::Kind::values || axis.kind == MapAxis::Kind::qkv;
    if (axis.ranks == MapAxis::Ranks::sum) is_rank_sum_ = true;
    if (axis.ranks == MapAxis::Ranks::cut) cut_ = dim;
    if (axis.kind == MapAxis::Kind::qkv) qkv_ = std::move(qkv);
    dim += holds_values;
  }
  check_sources();
  // Sums are of f64, and kept as f32.
  if (is_sum_ || is_rank_sum_) element_ = Element::f32;
  values_ = rows() > 0 ? row_of(0).shape : std::vector<std::int64_t>();
}

void JoinedRows::check_sources() const {
  for (const std::vector<MapView>& ranks : sources_) {
    if (ranks.size() > 1 && !cut_ && !is_rank_sum_)
      refuse_recording(
          fmt::format("{}: {} ranks have this stage: the map's axes say [tp] on the one that they have a part of, or "
                      "[tp:sum] where they have partial sums",
                      ranks.front().array->where(), ranks.size()));
    for (const MapView& view : ranks) {
      if (view.array->element != read_)
        refuse_recording(fmt::format("{}: has {}, {} has {}: expected one type", view.array->where(),
                                     name_of(view.array->element), first().array->name, name_of(read_)));
      if (view.rows.size != first().rows.size)
        refuse_recording(fmt::format("{}: has {} rows, {} has {}: expected as many", view.array->where(),
                                     view.rows.size, first().array->name, first().rows.size));
      if ((is_sum_ || is_rank_sum_) && is_whole(read_))
        refuse_recording(fmt::format("{}: a sum of ids", view.array->where()));
    }
  }
}

std::size_t JoinedRows::row_bytes() const { return static_cast<std::size_t>(count_of(values_)) * size_of(element_); }

const std::byte* JoinedRows::in_place(std::int64_t row) const {
  const bool is_single = sources_.size() == 1 && sources_.front().size() == 1 && !is_sum_ && !is_rank_sum_;
  return is_single && first().is_one_piece() ? first().row(row) : nullptr;
}

void JoinedRows::gather(std::int64_t row, std::byte* to) const {
  const Block block = row_of(row);
  std::memcpy(to, block.bytes.data(), block.bytes.size());
}

JoinedRows::Block JoinedRows::row_of(std::int64_t row) const {
  std::vector<Block> parts;
  for (const std::vector<MapView>& ranks : sources_) {
    std::vector<Block> of_ranks;
    for (const MapView& view : ranks) of_ranks.push_back(block_of(view, row));
    if (is_rank_sum_)
      parts.push_back(summed(of_ranks));
    else
      parts.push_back(of_ranks.size() == 1 ? std::move(of_ranks.front()) : joined(of_ranks, cut_.value_or(0), qkv_));
  }
  if (parts.size() == 1 && !is_sum_) return std::move(parts.front());
  // Heads of queries and keys, of which there are not as many.
  const bool are_alike = std::all_of(parts.begin(), parts.end(), [&](const Block& part) {
    return part.shape.size() == parts.front().shape.size() &&
           std::equal(part.shape.begin(), part.shape.end() - !part.shape.empty(), parts.front().shape.begin());
  });
  if (!are_alike)
    for (Block& part : parts) part.shape = {count_of(part.shape)};
  return is_sum_ ? summed(parts) : joined(parts, std::max<std::size_t>(parts.front().shape.size(), 1) - 1, {});
}

JoinedRows::Block JoinedRows::block_of(const MapView& view, std::int64_t row) const {
  Block block{read_, {}, {}};
  for (const MapView::Dim& dim : view.values) block.shape.push_back(dim.size);
  const std::int64_t count = count_of(block.shape);
  const std::size_t size = size_of(read_);
  block.bytes.resize(static_cast<std::size_t>(count) * size);
  const std::byte* from = view.row(row);
  if (view.is_one_piece()) {
    std::memcpy(block.bytes.data(), from, block.bytes.size());
    return block;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t rest = i, at = 0;
    for (auto dim = view.values.rbegin(); dim != view.values.rend(); ++dim) {
      at += rest % dim->size * dim->stride;
      rest /= dim->size;
    }
    std::memcpy(block.bytes.data() + static_cast<std::size_t>(i) * size, from + static_cast<std::size_t>(at) * size,
                size);
  }
  return block;
}

// Along a dimension: all of the first part, then of the second. With shares, the first share of each part, then the
// second of each.
JoinedRows::Block JoinedRows::joined(const std::vector<Block>& parts, std::size_t dim,
                                     std::vector<std::int64_t> shares) const {
  if (shares.empty()) shares = {1};
  const std::int64_t all = std::accumulate(shares.begin(), shares.end(), std::int64_t{0});
  Block joined{parts.front().element, parts.front().shape, {}};
  const auto refuse = [&](const Block& part) {
    refuse_recording(fmt::format("{}: parts of {} and {} values cannot be put side by side", first().array->where(),
                                 shape_text(parts.front().shape), shape_text(part.shape)));
  };
  if (joined.shape.size() <= dim) refuse(parts.front());
  joined.shape[dim] = 0;
  for (const Block& part : parts) {
    std::vector<std::int64_t> other = part.shape;
    const std::int64_t own = other.size() > dim ? std::exchange(other[dim], joined.shape[dim]) : 0;
    if (other != joined.shape || own % all != 0) refuse(part);
    joined.shape[dim] += own;
  }
  std::int64_t outer = 1;
  for (std::size_t d = 0; d < dim; ++d) outer *= joined.shape[d];
  for (std::int64_t o = 0; o < outer; ++o)
    for (std::int64_t s = 0, before = 0; s < std::ssize(shares); before += shares[static_cast<std::size_t>(s++)])
      for (const Block& part : parts) {
        const std::int64_t inner = std::ssize(part.bytes) / outer, unit = inner / all;
        const auto from = part.bytes.begin() + o * inner + before * unit;
        joined.bytes.insert(joined.bytes.end(), from, from + shares[static_cast<std::size_t>(s)] * unit);
      }
  return joined;
}

JoinedRows::Block JoinedRows::summed(const std::vector<Block>& parts) const {
  Block sum{Element::f32, parts.front().shape, {}};
  const std::int64_t count = count_of(sum.shape);
  for (const Block& part : parts)
    if (part.shape != sum.shape)
      refuse_recording(fmt::format("{}: parts of {} and {} values cannot be summed", first().array->where(),
                                   shape_text(sum.shape), shape_text(part.shape)));
  sum.bytes.resize(static_cast<std::size_t>(count) * sizeof(float));
  for (std::int64_t i = 0; i < count; ++i) {
    double value = 0;
    for (const Block& part : parts) value += value_at(part.element, part.bytes.data(), i);
    const auto rounded = static_cast<float>(value);
    std::memcpy(sum.bytes.data() + static_cast<std::size_t>(i) * sizeof rounded, &rounded, sizeof rounded);
  }
  return sum;
}

}  // namespace moe_diag
