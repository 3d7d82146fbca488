// SPDX-License-Identifier: MIT
#include "core/model/synthetic_weights.hpp"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

namespace moe_diag {
namespace {

// A stream of random words that can be entered anywhere: word n is what SplitMix64 gives in its n-th step.
// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
class Words {
 public:
  explicit Words(std::uint64_t key) : key_(key) {}

  std::uint64_t at(std::uint64_t n) const {
    std::uint64_t z = key_ + (n + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  // In [0, 1).
  float fraction(std::uint64_t n) const { return static_cast<float>(at(n) >> 40) * 0x1p-24f; }

 private:
  std::uint64_t key_;
};

Words words_of(std::string_view name, std::uint64_t seed) {
  return Words(XXH3_64bits_withSeed(name.data(), name.size(), seed));
}

// A bell-shaped value of mean 0 and standard deviation 1: the sum of the word's four 16-bit numbers, each uniform.
float bell(std::uint64_t word) {
  constexpr float to_unit = 1.7320508f / 65536;  // four uniform numbers have the variance 4/12
  const auto part = [word](int i) { return static_cast<std::int32_t>(word >> (16 * i) & 0xFFFF); };
  return static_cast<float>(part(0) + part(1) + part(2) + part(3) - 2 * 65535) * to_unit;
}

// Nearest, ties to even. For weights: no infinities, no NaN.
std::uint16_t to_bf16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
std::uint16_t to_f16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude >= 0x38800000)  // 2^-14: a normal f16
    return static_cast<std::uint16_t>(sign | (((magnitude + 0xFFF + (magnitude >> 13 & 1)) >> 13) - (112u << 10)));
  constexpr float integers = 0x1p23f;  // adding it leaves no fraction
  const float steps = float_from_bits(magnitude) * 0x1p24f + integers - integers;
  return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(steps));
}

// A block's scale varies by a factor of three, so that mixing up two blocks is seen.
struct VaryingScale {
  static constexpr float rms = 1.0408330f;  // of 1/2 + uniform: sqrt(1 + 1/12)
  static float of(std::uint64_t word) { return (0.5f + static_cast<float>(word >> 40) * 0x1p-24f) / rms; }
};

// The block makers fill one block with values of mean 0 and the standard deviation `deviation`, from the words n,
// n+1...
void make_block(BlockF32& block, const Words& words, std::uint64_t n, float deviation) {
  block.value = deviation * bell(words.at(n));
}
void make_block(BlockF16& block, const Words& words, std::uint64_t n, float deviation) {
  block.bits = to_f16(deviation * bell(words.at(n)));
}
void make_block(BlockBF16& block, const Words& words, std::uint64_t n, float deviation) {
  block.bits = to_bf16(deviation * bell(words.at(n)));
}

void make_block(BlockQ8_0& block, const Words& words, std::uint64_t n, float deviation) {
  constexpr float rms = 73.6116f;  // of -127..127, where -127 is drawn twice
  block.d = to_f16(deviation / rms * VaryingScale::of(words.at(n)));
  for (int i = 0; i < 4; ++i) {
    const std::uint64_t word = words.at(n + 1 + static_cast<std::uint64_t>(i));
    std::memcpy(block.q + 8 * i, &word, sizeof word);
  }
  for (std::int8_t& q : block.q)
    if (q == -128) q = -127;  // quantisers make no -128
}

// x = d * scale * q - dmin * min, with q in 0..15, dmin = 7.5 d and min about scale: zero on average. That min is never
// scale shows a decoder that swaps them.
void make_block(BlockQ4_K& block, const Words& words, std::uint64_t n, float deviation) {
  constexpr float rms = 4.6098f * 46.3f;  // of q - 7.5, times that of the scales 32..59
  const float d = deviation / rms * VaryingScale::of(words.at(n));
  block.d = to_f16(d);
  block.dmin = to_f16(7.5f * d);
  const std::uint64_t random = words.at(n + 1);
  std::uint8_t scale[8], min[8];
  for (int g = 0; g < 8; ++g) {
    const auto bits = static_cast<int>(random >> (8 * g) & 0xFF);
    const int scaled = 32 + ((bits & 31) * 28 >> 5), shift = bits >> 5;
    scale[g] = static_cast<std::uint8_t>(scaled);
    min[g] = static_cast<std::uint8_t>(scaled + (shift < 4 ? shift - 4 : shift - 3));
  }
  for (int g = 0; g < 4; ++g) {
    block.groups[g] = static_cast<std::uint8_t>(scale[g] | scale[g + 4] >> 4 << 6);
    block.groups[g + 4] = static_cast<std::uint8_t>(min[g] | min[g + 4] >> 4 << 6);
    block.groups[g + 8] = static_cast<std::uint8_t>((scale[g + 4] & 0xF) | min[g + 4] << 4);
  }
  for (int i = 0; i < 16; ++i) {
    const std::uint64_t word = words.at(n + 2 + static_cast<std::uint64_t>(i));
    std::memcpy(block.q + 8 * i, &word, sizeof word);
  }
}

// x = d * scale * (q - 32), q in 0..63, scales of either sign.
void make_block(BlockQ6_K& block, const Words& words, std::uint64_t n, float deviation) {
  constexpr float rms = 18.48f * 97.2f;  // of q - 32, times that of the scales 64..127
  block.d = to_f16(deviation / rms * VaryingScale::of(words.at(n)));
  for (int i = 0; i < 16; ++i) {
    const auto bits = static_cast<int>(words.at(n + 1 + static_cast<std::uint64_t>(i / 8)) >> (8 * (i % 8)) & 0xFF);
    const int magnitude = 64 + (bits & 63);
    block.groups[i] = static_cast<std::int8_t>((bits & 64) != 0 ? -magnitude : magnitude);
  }
  for (int i = 0; i < 24; ++i) {
    const std::uint64_t word = words.at(n + 3 + static_cast<std::uint64_t>(i));
    std::memcpy(i < 16 ? block.ql + 8 * i : block.qh + 8 * (i - 16), &word, sizeof word);
  }
}

// Sets a factor of a block of a type without a maker of its own. Of a power of two, `chance` takes the one below or
// above, so that squares of factors are right on average.
void set_factor(std::byte* block, const BlockScale& scale, double factor, double chance = 0) {
  if (scale.is_exponent) {
    const int below = std::ilogb(factor);
    const double ratio = std::ldexp(factor, -below);  // 1 to 2
    const bool above = chance < (ratio * ratio - 1) / 3;
    block[scale.at] = static_cast<std::byte>(std::clamp(below + above + 128, 0, 254));
    return;
  }
  const std::uint16_t bits = to_f16(static_cast<float>(factor));
  std::memcpy(block + scale.at, &bits, sizeof bits);
}

// The values of a block with this one of its factors alone being 1.
template <class Block>
std::vector<double> values_with(Block block, std::size_t factor) {
  std::byte bytes[sizeof block];
  std::memcpy(bytes, &block, sizeof block);
  for (std::size_t s = 0; s < Block::scales.count; ++s) set_factor(bytes, Block::scales.scale[s], s == factor ? 1 : 0);
  std::memcpy(&block, bytes, sizeof block);
  std::vector<double> values;
  for (int i = 0; i < Block::elements; ++i) values.push_back(decode<double>(block, i));
  return values;
}

// A block of any other type: random bytes, and factors that give its values the standard deviation and the mean 0, of
// each block where it has two factors, else by random signs.
template <class Block>
void make_block(Block& block, const Words& words, std::uint64_t n, float deviation) {
  std::byte bytes[sizeof block];
  for (std::size_t i = 0; i < sizeof bytes; i += 8) {
    const std::uint64_t word = words.at(n + 1 + i / 8);
    std::memcpy(bytes + i, &word, std::min(sizeof word, sizeof bytes - i));
  }
  std::memcpy(&block, bytes, sizeof block);
  std::vector<double> values = values_with(block, 0);
  double second = 0;
  if (Block::scales.count == 2) {
    const std::vector<double> others = values_with(block, 1);
    const double sum = std::accumulate(others.begin(), others.end(), 0.0);
    second = sum == 0 ? 0 : -std::accumulate(values.begin(), values.end(), 0.0) / sum;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += second * others[i];
  }
  const double squares = std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
  const double rms = squares == 0 ? 1 : std::sqrt(squares / Block::elements);
  const std::uint64_t word = words.at(n);
  const double size = static_cast<double>(deviation) / rms * static_cast<double>(VaryingScale::of(word));
  const double first = (word & 1) != 0 && !Block::scales.scale[0].is_exponent ? -size : size;
  const double factors[] = {first, second * first};
  for (std::size_t s = 0; s < Block::scales.count; ++s)
    set_factor(bytes, Block::scales.scale[s], factors[s], std::ldexp(static_cast<double>(word >> 8 & 0xFFFFFF), -24));
  std::memcpy(&block, bytes, sizeof block);
}

template <class Block>
void make_row(std::byte* out, std::int64_t blocks, const Words& words, std::uint64_t first_block, float deviation) {
  constexpr std::uint64_t words_per_block = 32;  // room for the largest
  static_assert(sizeof(Block) <= 8 * (words_per_block - 1));
  constexpr std::uint64_t step = sizeof(Block) <= sizeof(float) ? 1 : words_per_block;
  for (std::int64_t b = 0; b < blocks; ++b) {
    Block block;
    make_block(block, words, (first_block + static_cast<std::uint64_t>(b)) * step, deviation);
    std::memcpy(out + b * static_cast<std::int64_t>(sizeof block), &block, sizeof block);
  }
}

void make_row(BlockType type, std::byte* out, std::int64_t cols, const Words& words, std::uint64_t row,
              float deviation) {
  const std::int64_t blocks = cols / info(type).elements;
  const std::uint64_t first = row * static_cast<std::uint64_t>(blocks);
  with_block(type, [&](auto block) { make_row<decltype(block)>(out, blocks, words, first, deviation); });
}

constexpr float embedding_deviation = 0.5f;

// Some experts are popular: a larger router row wins more often.
float popularity(const Words& words) {
  const float u = words.fraction(0);
  return 0.4f + 1.8f * u * u;
}

// Whether a hidden dimension carries massive activations, as a few do in trained models.
bool is_massive(std::int64_t dimension, std::int64_t hidden, std::uint64_t seed) {
  const Words words = words_of("massive", seed);
  const std::int64_t count = 1 + hidden / 1024;
  for (std::int64_t i = 0; i < count; ++i)
    if (static_cast<std::int64_t>(words.at(static_cast<std::uint64_t>(i)) % static_cast<std::uint64_t>(hidden)) ==
        dimension)
      return true;
  return false;
}

// So that what flows through many layers looks like a trained model: the residual grows slowly, attention and routing
// prefer some, logits spread by a few units.
float deviation_of(const TensorSpec& spec, const std::string& name, std::uint64_t seed, std::int64_t row) {
  if (spec.kind == TensorKind::table) return embedding_deviation;
  if (spec.kind == TensorKind::bias) return spec.gain;
  const float base = spec.gain / std::sqrt(static_cast<float>(spec.cols));
  if (spec.kind == TensorKind::router) return base * popularity(words_of(name + std::to_string(row), seed));
  if (spec.massive && is_massive(row % spec.rows, spec.rows, seed)) return 8 * base;
  return base;
}

// Norm weights: about the gain, and one in 64 three times as large.
void make_norm(const TensorSpec& spec, const Words& words, std::byte* out) {
  const float centre = spec.gain;
  for (std::int64_t i = 0; i < spec.cols; ++i) {
    const auto n = static_cast<std::uint64_t>(2 * i);
    const bool large = words.at(n) % 64 == 0;
    const float value = (large ? 3 * centre : centre) * (1 + 0.2f * bell(words.at(n + 1)));
    std::memcpy(out + 4 * i, &value, sizeof value);
  }
}

}  // namespace

std::size_t SyntheticTensor::row_bytes() const {
  return static_cast<std::size_t>(spec.cols / info(type).elements * info(type).bytes);
}

void make_rows(const SyntheticTensor& tensor, std::uint64_t seed, std::int64_t first, std::int64_t last,
               std::byte* out) {
  const std::string name = tensor.spec.name();
  const Words words = words_of(name, seed);
  if (tensor.spec.kind == TensorKind::norm) return make_norm(tensor.spec, words, out);
  for (std::int64_t row = first; row < last; ++row, out += tensor.row_bytes())
    make_row(tensor.type, out, tensor.spec.cols, words, static_cast<std::uint64_t>(row),
             tensor.scale * deviation_of(tensor.spec, name, seed, row));
}

}  // namespace moe_diag
