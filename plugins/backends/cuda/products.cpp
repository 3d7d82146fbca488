// SPDX-License-Identifier: MIT
#include "core/api/blocks.hpp"
#include "plugins/backends/cuda/kernels.hpp"

// Which kernels a product runs: a matter of numerics, type and sizes alone.
namespace moe_diag::cuda {

Numerics numerics_for(Numerics numerics, BlockType type) {
  const bool whole_numbers = type == BlockType::q8_0 || type == BlockType::q4_k || type == BlockType::q6_k;
  return numerics == Numerics::q8_1 && !whole_numbers ? Numerics::f32 : numerics;
}

int tile_of(Numerics numerics, Way way) {
  if (numerics == Numerics::f32) return way == Way::few ? 4 : 32;
  return way == Way::few ? 8 : 64;
}

bool few_fits(Numerics numerics, std::int64_t cols, const Device& device) {
  switch (numerics) {
    case Numerics::f32: return few_bytes_f32(cols) <= device.shared_bytes;
    case Numerics::bf16: return few_bytes_bf16(cols) <= device.shared_bytes;
    case Numerics::q8_1: return few_bytes_q8_1(cols) <= device.shared_bytes;
  }
  return false;
}

std::size_t least_shared(Numerics numerics) {
  if (numerics == Numerics::f32) return 0;
  return numerics == Numerics::bf16 ? many_bytes_bf16() : many_bytes_q8_1();
}

void products(Numerics numerics, Way way, const Matrices& w, const Vectors& v, const Operand& operand,
              const Device& device, cudaStream_t stream) {
  switch (numerics) {
    case Numerics::f32: return products_f32(way, w, v, device, stream);
    case Numerics::bf16: return products_bf16(way, w, v, operand, device, stream);
    case Numerics::q8_1: return products_q8_1(way, w, v, operand, device, stream);
  }
}

}  // namespace moe_diag::cuda
