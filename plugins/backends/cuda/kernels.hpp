// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/api/blocks.hpp"
#include "plugins/backends/cuda/device.hpp"

// The arithmetic of the cuda lanes, all of it launched on the stream given. Nothing here waits.
//
// In f32 every dot product follows one rule, so that the bytes do not depend on how many rows are computed at once: k
// is cut into segments of 64, each summed with fused multiply-adds in the order of k, and the sums of the segments are
// added in their order. What is a sum of another kind (norms, softmax) has a tree that depends on its length alone.
namespace moe_diag::cuda {

enum class Numerics : std::uint8_t { f32, bf16, q8_1 };

inline constexpr int segment = 64;
inline constexpr int causal_threads = 128;  // that share the sum over the keys of a position

// A weight on the device, in its file's block format, 256-byte aligned and with room to read 4 bytes past its end.
struct Matrix {
  const std::byte* data = nullptr;
  BlockType type = BlockType::f32;
  std::int64_t cols = 0, rows = 0;
  std::size_t row_bytes = 0, expert_bytes = 0;
};

// Vectors [first, first + count) of one expert.
struct Tile {
  int expert, first, count;
};

// Up to three matrices of one type and width, each with the place of its results: one launch computes them all.
struct Matrices {
  Matrix w[3];
  float* y[3] = {};
  int count = 0;
  bool swiglu = false;  // the first is the gate, the second the other factor, and y[0] is swiglu of their products
};

// What matrices are multiplied with. Vector v is row order[v] / divide of x and its result row order[v] of y; without
// an order, row v of both.
struct Vectors {
  const float* x = nullptr;
  std::int64_t x_stride = 0, y_stride = 0;
  int count = 0;
  int divide = 1;
  // Of experts, all on the device: vectors sorted by expert, or, when `ids` is set, each on its own.
  const int* order = nullptr;
  const Tile* tiles = nullptr;
  const int* tile_count = nullptr;
  int most_tiles = 0;
  const std::int32_t* ids = nullptr;
};

// Rows of x as products of many vectors read them: bf16, or int8 with the scales of their blocks; `padded` values a
// row.
struct Operand {
  std::byte* data = nullptr;
  float* scales = nullptr;  // two a block of 32, see BlockScale
  std::int64_t padded = 0;
};

// How a product goes about its vectors: few are whole in shared memory, many pass through it.
enum class Way : std::uint8_t { few, many };

// Vectors in a tile of each way.
int tile_of(Numerics numerics, Way way);

// True when the way for few vectors of `cols` values fits in shared memory.
bool few_fits(Numerics numerics, std::int64_t cols, const Device& device);
// Shared memory that a device must have for products of these numerics.
std::size_t least_shared(Numerics numerics);

// `operand` is what prepare() made of the vectors' rows; only the way for many reads it, and f32 none.
void products(Numerics numerics, Way way, const Matrices& w, const Vectors& v, const Operand& operand,
              const Device& device, cudaStream_t stream);
std::size_t few_bytes_f32(std::int64_t cols);
std::size_t few_bytes_bf16(std::int64_t cols);
std::size_t few_bytes_q8_1(std::int64_t cols);
std::size_t many_bytes_bf16();
std::size_t many_bytes_q8_1();
void products_f32(Way way, const Matrices& w, const Vectors& v, const Device& device, cudaStream_t stream);
void products_bf16(Way way, const Matrices& w, const Vectors& v, const Operand& operand, const Device& device,
                   cudaStream_t stream);
void products_q8_1(Way way, const Matrices& w, const Vectors& v, const Operand& operand, const Device& device,
                   cudaStream_t stream);

// The numerics a product with weights of this type has in a lane of `numerics`: q8_1 has integers of blocks only.
Numerics numerics_for(Numerics numerics, BlockType type);

// Rounds or quantises `rows` rows of x.
void prepare(Numerics numerics, const float* x, std::int64_t x_stride, std::int64_t cols, int rows,
             const Operand& operand, cudaStream_t stream);
std::int64_t padded_cols(std::int64_t cols);
std::size_t operand_bytes(Numerics numerics, std::int64_t cols, std::int64_t rows);
std::size_t scale_bytes(Numerics numerics, std::int64_t cols, std::int64_t rows);

// Sorts the `count` ids by expert: order, and tiles of at most `tile`.
void group_by_expert(const std::int32_t* ids, int count, int experts, int tile, int* order, Tile* tiles,
                     int* tile_count, cudaStream_t stream);

void embed(const Matrix& table, const std::int32_t* tokens, int rows, float* out, cudaStream_t stream);

// Groups of `width` values from column `offset` of rows of `x_stride`; the rows of y are groups * width long.
void rms_norm(const float* x, std::int64_t x_stride, int offset, const Matrix& w, int rows, int groups, int width,
              float eps, float* y, cudaStream_t stream);

// cosines and sines: [total, half].
void angles(double theta, int total, int head_dim, float* cosines, float* sines, cudaStream_t stream);
void rope(const float* x, std::int64_t x_stride, const float* cosines, const float* sines, const int* first, int rows,
          int heads, int head_dim, float* y, cudaStream_t stream);

// Row r becomes position *first + r of the cache.
void append(const float* x, std::int64_t x_stride, int offset, int rows, int width, const int* first, float* cache,
            cudaStream_t stream);

struct Attention {
  int rows = 0, heads = 0, kv_heads = 0, head_dim = 0, total = 0;
  const int* first = nullptr;  // position of row 0, on the device, so that a recorded graph serves every position
};
void scores(const float* q, const float* keys, const Attention& a, float scale, float* out, cudaStream_t stream);
void mix(const float* p, const float* values, const Attention& a, float* out, cudaStream_t stream);

// Rows of `width`, `groups` to a position; causal (first != null): over the keys up to the own position, 0 after it.
void softmax(const float* x, int rows, int groups, int width, const int* first, float* y, cudaStream_t stream);
void topk(const float* probs, int rows, int experts, int used, bool renormalised, std::int32_t* ids, float* weights,
          cudaStream_t stream);

void add(const float* a, const float* b, std::int64_t count, float* y, cudaStream_t stream);
void swiglu(const float* gate, const float* up, std::int64_t count, float* y, cudaStream_t stream);

// Rounds values to f16, or to bf16, ties to even, and keeps them as floats.
void round_values(float* values, std::int64_t count, bool to_f16, cudaStream_t stream);

// Adds a vector to the first columns of rows that lie `stride` apart.
void add_bias(const Matrix& bias, int rows, std::int64_t stride, float* y, cudaStream_t stream);

// y = x / (1 + exp(-gate)), one gate a row
void sigmoid_gate(const float* x, const float* gates, int rows, int width, float* y, cudaStream_t stream);
void weigh(const float* x, const float* weights, std::int64_t rows, int width, float* y, cudaStream_t stream);
void combine(const float* x, int rows, int used, int width, float* y, cudaStream_t stream);

// ---- for when nobody looks at what is between: the same arithmetic without storing it
// --------------------------------

// RMSNorm and rotation of the heads of q and k, which stand with v in rows of qkv: q goes to `q`, k and v to the cache.
struct Heads {
  const float* qkv = nullptr;
  Matrix q_norm, k_norm;
  float q_eps = 0, k_eps = 0;
  const float *cosines = nullptr, *sines = nullptr;
  float *q = nullptr, *keys = nullptr, *values = nullptr;
};
void prepare_heads(const Heads& h, const Attention& a, cudaStream_t stream);

// scores, softmax and mix of a few positions, where their scores fit in shared memory.
bool attend_fits(const Attention& a, std::size_t shared_bytes);
void attend(const float* q, const float* keys, const float* values, const Attention& a, float scale, float* out,
            cudaStream_t stream);

// softmax and topk.
void route(const float* logits, int rows, int experts, int used, std::int32_t* ids, float* weights,
           cudaStream_t stream);

// What a layer adds to its residual: one vector, or those of the experts, weighed and combined.
struct Addend {
  const float* x = nullptr;
  const float* weights = nullptr;  // null: one vector
  int used = 1;
};
// sum = residual + addend, and, when there is a norm, y = RMSNorm(sum).
struct Norm {
  Matrix w;
  float eps = 0;
  float* y = nullptr;
};
void add_norm(const float* residual, const Addend& addend, int rows, int width, float* sum, const Norm& norm,
              cudaStream_t stream);

}  // namespace moe_diag::cuda
