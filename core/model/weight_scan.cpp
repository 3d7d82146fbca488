// SPDX-License-Identifier: MIT
#include "core/model/weight_scan.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>

#include "core/api/blocks.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t chunk_bytes = std::size_t{4} << 20;
constexpr std::uint32_t f16_inf = 0x7C00, bf16_inf = 0x7F80, f32_inf = 0x7F800000;

// The size of a float by its bits: as unsigned numbers these are in the order of the values, then Inf, then NaN.
struct Floats {
  std::uint32_t inf;
  std::uint32_t beyond;  // the first above the largest f16; `inf` when there is none
};
constexpr Floats floats_of(BlockType type) {
  if (type == BlockType::f32) return {f32_inf, 0x477FE001};  // 65504 is 0x477FE000
  if (type == BlockType::bf16) return {bf16_inf, 0x4780};    // 65536
  return {f16_inf, f16_inf};
}

// A stretch of the blocks of one expert.
struct Chunk {
  std::size_t of = 0;  // index of its tensor and expert
  const std::byte* data = nullptr;
  std::int64_t first = 0, count = 0;  // blocks
};

template <class Word>
std::uint32_t size_bits(const std::byte* at) {
  Word word{};
  std::memcpy(&word, at, sizeof word);
  return word & (static_cast<std::uint32_t>(std::numeric_limits<Word>::max()) >> 1);
}

// The bits of a factor, as unsigned numbers in the order of its size.
std::uint32_t factor_bits(const BlockScale& scale, const std::byte* block) {
  const std::byte* at = block + scale.at;
  return scale.is_exponent ? std::to_integer<std::uint32_t>(*at) : size_bits<std::uint16_t>(at);
}
float factor_of(const BlockScale& scale, std::uint32_t bits) {
  return scale.is_exponent ? float_from_exponent(static_cast<std::uint8_t>(bits))
                           : float_from_f16(static_cast<std::uint16_t>(bits));
}

// The first factor that may make a value beyond the largest f16, when each factor has an equal share of it.
std::uint32_t suspect(const BlockScale& scale, std::size_t scales) {
  if (scale.is_exponent) {
    std::uint32_t e = 0;
    while (e < 255 && factor_of(scale, e) * static_cast<float>(scale.most) <= static_cast<float>(largest_f16)) ++e;
    return e;
  }
  std::uint32_t bits = 0;
  for (std::uint32_t step = 0x4000; step > 0; step /= 2) {
    const std::uint32_t next = bits + step;
    if (next < f16_inf && float_from_f16(static_cast<std::uint16_t>(next)) * static_cast<float>(scale.most) *
                                  static_cast<float>(scales) <=
                              static_cast<float>(largest_f16))
      bits = next;
  }
  return bits + 1;
}

// What a chunk shows at a glance: whether any of its blocks needs a second look, and how many are zero.
struct Glance {
  bool suspicious = false;
  std::int64_t zero = 0;
};

template <class Word>
Glance glance_at_floats(const Chunk& chunk, std::uint32_t beyond) {
  std::uint32_t largest = 0, zero = 0;
  for (std::int64_t i = 0; i < chunk.count; ++i) {
    const std::uint32_t bits = size_bits<Word>(chunk.data + i * static_cast<std::int64_t>(sizeof(Word)));
    largest = std::max(largest, bits);
    zero += bits == 0;
  }
  return {largest >= beyond, zero};
}

template <class Block>
Glance glance_at_scales(const Chunk& chunk) {
  constexpr BlockScales scales = Block::scales;
  std::uint32_t largest[2] = {0, 0}, zero = 0;
  for (std::int64_t i = 0; i < chunk.count; ++i) {
    std::uint32_t any = 0;
    for (std::size_t s = 0; s < scales.count; ++s) {
      const std::uint32_t bits =
          factor_bits(scales.scale[s], chunk.data + i * static_cast<std::int64_t>(sizeof(Block)));
      largest[s] = std::max(largest[s], bits);
      any |= bits;
    }
    zero += any == 0;
  }
  Glance glance{false, zero};
  for (std::size_t s = 0; s < scales.count; ++s)
    glance.suspicious = glance.suspicious || largest[s] >= suspect(scales.scale[s], scales.count);
  return glance;
}

Glance glance_at(BlockType type, const Chunk& chunk) {
  Glance glance;
  with_block(type, [&](auto block) {
    using Block = decltype(block);
    if constexpr (Block::elements > 1)
      glance = glance_at_scales<Block>(chunk);
    else if constexpr (sizeof(Block) == 4)
      glance = glance_at_floats<std::uint32_t>(chunk, floats_of(type).beyond);
    else
      glance = glance_at_floats<std::uint16_t>(chunk, floats_of(type).beyond);
  });
  return glance;
}

enum class Kind { sound, nan, inf, beyond };

Kind kind_of_bits(std::uint32_t bits, const Floats& floats) {
  if (bits > floats.inf) return Kind::nan;
  if (bits == floats.inf) return Kind::inf;
  return bits >= floats.beyond ? Kind::beyond : Kind::sound;
}

Kind kind_of_block(BlockType type, const std::byte* at) {
  const BlockInfo& block = info(type);
  const BlockScales& scales = block.scales;
  if (scales.count == 0)
    return kind_of_bits(block.bytes == 4 ? size_bits<std::uint32_t>(at) : size_bits<std::uint16_t>(at),
                        floats_of(type));
  double most = 0;
  Kind kind = Kind::sound;
  for (std::size_t s = 0; s < scales.count; ++s) {
    const std::uint32_t bits = factor_bits(scales.scale[s], at);
    const Kind of_scale = scales.scale[s].is_exponent ? Kind::sound : kind_of_bits(bits, {f16_inf, f16_inf});
    if (of_scale == Kind::nan || kind == Kind::sound) kind = of_scale;
    most += static_cast<double>(factor_of(scales.scale[s], bits)) * scales.scale[s].most;
  }
  if (kind != Kind::sound || most <= largest_f16) return kind;
  for (int i = 0; i < block.elements; ++i)
    if (std::fabs(decode<double>(type, at, i)) > largest_f16) return Kind::beyond;
  return Kind::sound;
}

void look_closely(BlockType type, const Chunk& chunk, BlockCounts& into) {
  for (std::int64_t i = 0; i < chunk.count; ++i) {
    const Kind kind = kind_of_block(type, chunk.data + i * info(type).bytes);
    if (kind == Kind::sound) continue;
    if (into.first < 0) into.first = chunk.first + i;
    ++(kind == Kind::nan ? into.nan : kind == Kind::inf ? into.inf : into.beyond);
  }
}

// Reads the pages of a chunk in one go instead of fault by fault. Where the kernel cannot, they come one by one.
void read_ahead(const Chunk& chunk, std::size_t bytes) {
#ifdef MADV_POPULATE_READ
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(chunk.data) / page * page;
  const auto last = reinterpret_cast<std::uintptr_t>(chunk.data) + bytes;
  ::madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_READ);
#else
  static_cast<void>(chunk), static_cast<void>(bytes);
#endif
}

class Scan {
 public:
  Scan(std::span<const Weight* const> weights, const ScanProgress& progress) : progress_(progress) {
    for (const Weight* weight : weights)
      if (weight->data) add(*weight);
  }

  std::vector<UnsoundBlocks> run() {
    std::vector<BlockCounts> found(chunks_.size());
    std::atomic<std::size_t> next{0};
    // In the order of the file, so that a disk is read in one sweep.
    tbb::parallel_for(0, tbb::this_task_arena::max_concurrency(), [&](int) {
      for (std::size_t i = next++; i < chunks_.size(); i = next++) found[i] = look_at(chunks_[i]);
    });
    return merged(found);
  }

 private:
  void add(const Weight& weight) {
    const BlockInfo& block = info(weight.type);
    const std::int64_t in_chunk = std::max<std::int64_t>(1, static_cast<std::int64_t>(chunk_bytes) / block.bytes);
    total_ += weight.bytes();
    for (std::int64_t expert = 0; expert < weight.experts; ++expert) {
      UnsoundBlocks& part = parts_.emplace_back();
      part.tensor = weight.name;
      part.type = weight.type;
      part.expert = weight.experts > 1 ? static_cast<int>(expert) : -1;
      part.blocks = weight.rows * (weight.cols / block.elements);
      in_row_.push_back(weight.cols / block.elements);
      for (std::int64_t first = 0; first < part.blocks; first += in_chunk)
        chunks_.push_back({parts_.size() - 1, weight.row(expert, 0) + first * block.bytes, first,
                           std::min(in_chunk, part.blocks - first)});
    }
  }

  BlockCounts look_at(const Chunk& chunk) {
    const BlockType type = parts_[chunk.of].type;
    const auto bytes = static_cast<std::size_t>(chunk.count * info(type).bytes);
    read_ahead(chunk, bytes);
    const Glance glance = glance_at(type, chunk);
    BlockCounts found;
    found.zero = glance.zero;
    if (glance.suspicious) look_closely(type, chunk, found);
    if (progress_) {
      const std::lock_guard lock(mutex_);
      done_ += bytes;
      progress_(done_, total_);
    }
    return found;
  }

  std::vector<UnsoundBlocks> merged(const std::vector<BlockCounts>& found) {
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      UnsoundBlocks& part = parts_[chunks_[i].of];
      part.nan += found[i].nan;
      part.inf += found[i].inf;
      part.beyond += found[i].beyond;
      part.zero += found[i].zero;
      if (part.first < 0) part.first = found[i].first;
    }
    std::vector<UnsoundBlocks> unsound;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      UnsoundBlocks& part = parts_[i];
      if (part.first < 0 && !part.is_all_zero()) continue;
      if (part.first >= 0) {
        part.columns = info(part.type).elements;
        part.row = part.first / in_row_[i];
        part.column = part.first % in_row_[i] * part.columns;
      }
      unsound.push_back(part);
    }
    return unsound;
  }

  const ScanProgress& progress_;
  std::vector<UnsoundBlocks> parts_;  // every tensor, or expert
  std::vector<std::int64_t> in_row_;  // as parts_: blocks of a row
  std::vector<Chunk> chunks_;
  std::uint64_t total_ = 0, done_ = 0;
  std::mutex mutex_;
};

}  // namespace

std::string text_of(const UnsoundBlocks& u) {
  const bool is_float = info(u.type).elements == 1;
  const std::string_view unit = is_float ? "values" : "blocks";
  std::string text;
  const auto add = [&](std::int64_t count, const std::string& what) {
    if (count > 0) text += fmt::format("{}{} of {} {} {}", text.empty() ? "" : ", ", count, u.blocks, unit, what);
  };
  add(u.nan, is_float ? "are NaN" : "hold NaN");
  add(u.inf, is_float ? "are Inf" : "hold Inf");
  add(u.beyond, fmt::format("{} beyond {}", is_float ? "are" : "hold a value", largest_f16));
  if (u.first < 0) return fmt::format("all {} {} are zero", u.blocks, unit);
  return text + (is_float ? fmt::format(", the first at row {}, column {}", u.row, u.column)
                          : fmt::format(", the first is block {}: row {}, columns {} to {}", u.first, u.row, u.column,
                                        u.column + u.columns - 1));
}

std::vector<UnsoundBlocks> scan_weights(std::span<const Weight* const> weights, const ScanProgress& progress) {
  return Scan(weights, progress).run();
}

}  // namespace moe_diag
