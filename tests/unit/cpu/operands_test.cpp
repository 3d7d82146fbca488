// SPDX-License-Identifier: MIT
// What bf16 and q8_k make of operands, in every instruction set this processor has: against plain definitions, bit by
// bit, and against golden data of numpy and the gguf package (tests/golden/operands).
#include "plugins/backends/cpu/operands.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "plugins/backends/cpu/kernels.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag::cpu {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

std::mt19937_64& generator() {
  static std::mt19937_64 g(21);
  return g;
}

std::vector<float> random_values(std::int64_t n, double spread = 1) {
  std::normal_distribution<double> normal(0, spread);
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = static_cast<float>(normal(generator()));
  return v;
}

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
bool same_value(float a, float b) { return (std::isnan(a) && std::isnan(b)) || bits_of(a) == bits_of(b); }

// Quantised activations in the order of k, whatever order the kernels keep them in.
struct Blocks {
  std::vector<float> d;
  std::vector<int> q;
};

// The middle two of each four values have changed places.
std::int64_t place_of(std::int64_t k) { return k % 4 == 1 ? k + 1 : k % 4 == 2 ? k - 1 : k; }

template <class Block>
Blocks read_blocks(const std::vector<std::byte>& bytes) {
  Blocks result;
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(Block)) {
    Block block;
    std::memcpy(&block, bytes.data() + at, sizeof block);
    result.d.push_back(block.d);
    for (int k = 0; k < Block::elements; ++k) result.q.push_back(block.q[place_of(k)]);
    if constexpr (requires { block.sums; })
      for (int g = 0; g < Block::elements / 32; ++g) {
        int sum = 0;
        for (int k = 0; k < 32; ++k) sum += block.q[g * 32 + k];
        CHECK(block.sums[place_of(g)] == sum);
      }
  }
  return result;
}

std::vector<std::byte> quantised(const InstructionSet& set, Reading reading, const std::vector<float>& x) {
  const auto n = static_cast<std::int64_t>(x.size());
  std::vector<std::byte> bytes(quantised_bytes(reading, n));
  set.operands->quantise(reading, x.data(), n, bytes.data());
  return bytes;
}
Blocks quantised_blocks(const InstructionSet& set, Reading reading, const std::vector<float>& x) {
  const std::vector<std::byte> bytes = quantised(set, reading, x);
  return reading == Reading::q8_0 ? read_blocks<ActivationsQ8_0>(bytes) : read_blocks<ActivationsQ8_K>(bytes);
}

// The rule of q8_k's sums, written out from the decoders' layout: whole numbers of a block, then blocks in order.
float plain_dot(BlockType type, const std::byte* row, const Blocks& x, std::int64_t cols) {
  float s = 0;
  for (std::int64_t b = 0; b < cols / info(type).elements; ++b) {
    const std::byte* block = row + b * info(type).bytes;
    const auto at = [&](int offset) { return static_cast<std::uint8_t>(block[offset]); };
    const auto half_at = [&](int offset) {
      return float_from_f16(static_cast<std::uint16_t>(at(offset) | at(offset + 1) << 8));
    };
    const float dx = x.d[static_cast<std::size_t>(b)];
    std::int64_t whole = 0, mins = 0;
    float d = 0, dmin = 0;
    for (int k = 0; k < info(type).elements; ++k) {
      const int q = x.q[static_cast<std::size_t>(b * info(type).elements + k)];
      if (type == BlockType::q8_0) {
        d = half_at(0);
        whole += q * static_cast<std::int8_t>(at(2 + k));
      } else if (type == BlockType::q6_k) {
        BlockQ6_K w;
        std::memcpy(&w, block, sizeof w);
        d = float_from_f16(w.d);
        w.d = 0x3C00;  // one
        whole += q * static_cast<int>(decode<float>(w, k));
      } else {
        BlockQ4_K w;
        std::memcpy(&w, block, sizeof w);
        d = float_from_f16(w.d);
        dmin = float_from_f16(w.dmin);
        w.d = 0x3C00;
        w.dmin = 0;
        whole += q * static_cast<int>(decode<float>(w, k));
        mins += q * q4_k_scale_min(w.groups, k / 32).min;
      }
    }
    s = std::fma(d * dx, static_cast<float>(whole), s);
    if (type == BlockType::q4_k) s = std::fma(-dmin * dx, static_cast<float>(mins), s);
  }
  return s;
}

// Random blocks with scales of a size that keeps sums finite.
std::vector<std::byte> random_weight(BlockType type, std::int64_t rows, std::int64_t cols) {
  std::vector<std::byte> weight(static_cast<std::size_t>(rows * cols / info(type).elements * info(type).bytes));
  for (std::byte& b : weight) b = static_cast<std::byte>(generator()());
  for (std::size_t at = 0; at < weight.size(); at += static_cast<std::size_t>(info(type).bytes)) {
    const auto tame = [&](std::size_t offset) {
      weight[at + offset + 1] = (weight[at + offset + 1] & std::byte{0x83}) | std::byte{0x20};
    };
    if (type == BlockType::q6_k) tame(offsetof(BlockQ6_K, d));
    if (type != BlockType::q6_k) tame(0);
    if (type == BlockType::q4_k) tame(offsetof(BlockQ4_K, dmin));
  }
  return weight;
}

// Room for the unpacked rows of any type, aligned as they have to be.
std::vector<RowsQ4_K> room_for(std::int64_t cols) { return std::vector<RowsQ4_K>(static_cast<std::size_t>(cols / 32)); }
std::byte* bytes_of(std::vector<RowsQ4_K>& room) { return reinterpret_cast<std::byte*>(room.data()); }

void check_products(const InstructionSet& set, BlockType type, int rows, int count, std::int64_t cols) {
  INFO(set.name << ", " << name_of(type) << ": " << rows << " rows, " << count << " vectors, " << cols << " columns");
  const std::vector<std::byte> weight = random_weight(type, rows, cols);
  const std::size_t row_bytes = weight.size() / static_cast<std::size_t>(rows);
  std::vector<RowsQ4_K> unpacked = room_for(cols);
  set.operands->unpack(type, weight.data(), row_bytes, rows, bytes_of(unpacked));

  const Reading reading = reading_of(Numerics::q8_k, type);
  std::vector<std::vector<std::byte>> x;
  std::vector<Blocks> blocks;
  std::vector<std::vector<float>> y(static_cast<std::size_t>(count),
                                    std::vector<float>(static_cast<std::size_t>(rows + 2), 77));
  std::vector<const std::byte*> px;
  std::vector<float*> py;
  for (std::vector<float>& out : y) {
    const std::vector<float> values = random_values(cols);
    x.push_back(quantised(set, reading, values));
    blocks.push_back(quantised_blocks(set, reading, values));
    py.push_back(out.data());
  }
  for (const auto& bytes : x) px.push_back(bytes.data());
  set.operands->products(type, bytes_of(unpacked), rows, px.data(), py.data(), count, cols, 1);
  for (std::size_t c = 0; c < y.size(); ++c) {
    CHECK(y[c].front() == 77);
    CHECK(y[c].back() == 77);
    for (int r = 0; r < rows; ++r)
      CHECK(same_value(y[c][static_cast<std::size_t>(r) + 1],
                       plain_dot(type, weight.data() + static_cast<std::size_t>(r) * row_bytes, blocks[c], cols)));
  }
}

// The arrays of tests/golden/operands, by name.
class Golden {
 public:
  Golden() {
    const std::string folder = MOE_DIAG_SOURCE_DIR "/tests/golden/operands/";
    index_ = nlohmann::json::parse(read_file(folder + "operands.json"));
    bytes_ = read_file(folder + "operands.bin");
  }
  template <class T>
  std::vector<T> array(const std::string& name) const {
    for (const auto& entry : index_["arrays"]) {
      if (entry["name"] != name) continue;
      std::size_t count = 1;
      for (const auto& d : entry["shape"]) count *= d.get<std::size_t>();
      std::vector<T> values(count);
      std::memcpy(values.data(), bytes_.data() + entry["offset"].get<std::size_t>(), count * sizeof(T));
      return values;
    }
    FAIL("no golden array is called " << name);
    return {};
  }

 private:
  static std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    REQUIRE(in.good());
    return {std::istreambuf_iterator<char>(in), {}};
  }
  nlohmann::json index_;
  std::string bytes_;
};

// y = W x for one vector, through unpacking and products.
std::vector<float> product(const InstructionSet& set, BlockType type, const std::vector<std::byte>& weight, int rows,
                           const std::vector<float>& x) {
  const auto cols = static_cast<std::int64_t>(x.size());
  std::vector<RowsQ4_K> unpacked = room_for(cols);
  set.operands->unpack(type, weight.data(), weight.size() / static_cast<std::size_t>(rows), rows, bytes_of(unpacked));
  const std::vector<std::byte> q = quantised(set, reading_of(Numerics::q8_k, type), x);
  std::vector<float> y(static_cast<std::size_t>(rows));
  const std::byte* px = q.data();
  float* py = y.data();
  set.operands->products(type, bytes_of(unpacked), rows, &px, &py, 1, cols, 0);
  return y;
}

}  // namespace

TEST_CASE("quantised activations are those of the gguf package and of numpy") {
  const Golden golden;
  const std::vector<float> x = golden.array<float>("x");
  for (const InstructionSet& set : instruction_sets())
    for (Reading reading : {Reading::q8_0, Reading::q8_k}) {
      INFO(set.name << ", " << name_of(reading));
      const std::string name = reading == Reading::q8_0 ? "q8_0" : "q8_k";
      const Blocks found = quantised_blocks(set, reading, x);
      const std::vector<float> d = golden.array<float>(name + ".d");
      const std::vector<std::int8_t> q = golden.array<std::int8_t>(name + ".q");
      REQUIRE(found.d.size() == d.size());
      for (std::size_t b = 0; b < d.size(); ++b) CHECK(found.d[b] == d[b]);
      CHECK(std::equal(q.begin(), q.end(), found.q.begin(), found.q.end()));
    }
}

TEST_CASE("products with quantised activations are those of numpy in float64") {
  constexpr int rows = 5;
  constexpr std::size_t cols = 512;
  const Golden golden;
  const std::vector<float> x = golden.array<float>("x");
  for (const InstructionSet& set : instruction_sets())
    for (BlockType type : {BlockType::q8_0, BlockType::q4_k, BlockType::q6_k}) {
      const std::string name(info(type).name);
      const std::vector<std::byte> weight = golden.array<std::byte>(name + ".blocks");
      const std::vector<double> expected = golden.array<double>(name + ".y");
      for (std::size_t v = 0; v < x.size() / cols; ++v) {
        const auto from = x.begin() + static_cast<std::ptrdiff_t>(v * cols);
        const std::vector<float> y = product(set, type, weight, rows, {from, from + cols});
        double difference = 0, size = 0;
        for (std::size_t r = 0; r < rows; ++r) {
          difference += std::pow(static_cast<double>(y[r]) - expected[v * rows + r], 2);
          size += std::pow(expected[v * rows + r], 2);
        }
        INFO(set.name << ", " << name << ", vector " << v);
        CHECK(size > 0);
        CHECK(std::sqrt(difference / size) < 2e-6);
      }
    }
}

TEST_CASE("roundings are those of the gguf package and of numpy") {
  const Golden golden;
  const std::vector<float> x = golden.array<float>("any");
  const std::vector<std::uint16_t> bf16 = golden.array<std::uint16_t>("any.bf16");
  const std::vector<std::uint16_t> f16 = golden.array<std::uint16_t>("any.f16");
  for (const InstructionSet& set : instruction_sets())
    for (Reading reading : {Reading::bf16, Reading::f16}) {
      std::vector<float> y(x.size());
      set.operands->round(reading, x.data(), static_cast<std::int64_t>(x.size()), y.data());
      for (std::size_t i = 0; i < x.size(); ++i) {
        INFO(set.name << ", " << name_of(reading) << ": bits " << bits_of(x[i]));
        CHECK(same_value(y[i], reading == Reading::bf16 ? float_from_bf16(bf16[i]) : float_from_f16(f16[i])));
      }
    }
}

TEST_CASE("products with quantised activations follow their rule, bit by bit") {
  for (const InstructionSet& set : instruction_sets())
    for (BlockType type : {BlockType::q8_0, BlockType::q4_k, BlockType::q6_k})
      for (int rows : {1, 5, 16})
        for (int count : {1, 3, 4, 33})
          for (std::int64_t blocks : {1, 3}) check_products(set, type, rows, count, blocks * info(type).elements);
}

TEST_CASE("quantising keeps what the formats say") {
  for (const InstructionSet& set : instruction_sets()) {
    INFO(set.name);
    std::vector<float> x(256, 0.0F);
    x[7] = -4;
    x[8] = 4;
    x[9] = 2;  // 63.5 steps
    x[10] = 6.0F / 127 * 0.5F;
    const Blocks k = quantised_blocks(set, Reading::q8_k, x);
    CHECK(k.d[0] == 1 / (-127.0F / -4.0F));
    CHECK(k.q[7] == -127);
    CHECK(k.q[8] == 127);
    CHECK(k.q[9] == 64);  // to even

    x[9] = 2 + 4.0F / 127;  // 64.5 steps
    CHECK(quantised_blocks(set, Reading::q8_k, x).q[9] == 64);
    const Blocks zero = quantised_blocks(set, Reading::q8_0, x);
    CHECK(zero.d[0] == nearest_f16(4.0F / 127));
    CHECK(zero.q[7] == -127);
    CHECK(zero.q[8] == 127);
    x[7] = -127;
    x[9] = 62.5F;
    x[10] = -62.5F;
    const Blocks even = quantised_blocks(set, Reading::q8_0, x);
    CHECK(even.d[0] == 1);
    CHECK(even.q[9] == 62);
    CHECK(even.q[10] == -62);
    CHECK(even.d[1] == 0);
  }
}

TEST_CASE("Q8_K rounds once, as ggml's fused multiply-add does, and Q8_0 its product before") {
  struct Near {
    float largest, x;
    int once, twice;
  };
  // Products with -127 / largest that are 5e-6 or less beside a half, which rounding to f32 makes of them.
  const std::vector<Near> cases = {{0x1.4bb7e6p+1F, 0x1.47cce8p+1F, -125, -126},
                                   {0x1.79b2acp+1F, -0x1.5a789p+1F, 117, 116},
                                   {0x1.14be7ap+0F, -0x1.fbba3p-1F, 117, 116}};
  for (const InstructionSet& set : instruction_sets())
    for (const Near& c : cases) {
      INFO(set.name << ": " << c.x << " beside " << c.largest);
      std::vector<float> x(256, 0.0F);
      x[3] = c.largest;
      x[200] = c.x;
      CHECK(quantised_blocks(set, Reading::q8_k, x).q[200] == c.once);
      x[1] = c.x;
      CHECK(quantised_blocks(set, Reading::q8_0, x).q[1] == -c.twice);
    }
}

TEST_CASE("quantising blocks of zeros, next to zero, and not finite") {
  for (const InstructionSet& set : instruction_sets())
    for (Reading reading : {Reading::q8_0, Reading::q8_k}) {
      INFO(set.name << ", " << name_of(reading));
      for (float small : {0.0F, -0.0F, 1e-45F, -1e-40F}) {
        const Blocks b = quantised_blocks(set, reading, std::vector<float>(256, small));
        CHECK(b.d[0] == 0);
        CHECK(std::count(b.q.begin(), b.q.end(), 0) == 256);
      }
      for (float bad : {infinity, -infinity, std::nanf("")}) {
        std::vector<float> x(512, 1.0F);
        x[17] = bad;
        const Blocks b = quantised_blocks(set, reading, x);
        CHECK(std::isnan(b.d.front()));
        CHECK(b.q[17] == 0);
        CHECK_FALSE(std::isnan(b.d.back()));
      }
    }
}

TEST_CASE("the edges of f16: its largest, its smallest, ties to even") {
  CHECK(nearest_f16(65520.0F) == infinity);
  CHECK(nearest_f16(-65520.0F) == -infinity);
  CHECK(nearest_f16(65519.0F) == 65504.0F);
  CHECK(nearest_f16(0x1p-25F) == 0);
  CHECK(nearest_f16(0x1.8p-25F) == 0x1p-24F);
  CHECK(nearest_f16(0x1.8p-24F) == 0x1p-23F);
}

}  // namespace moe_diag::cpu
