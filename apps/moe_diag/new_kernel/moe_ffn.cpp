// SPDX-License-Identifier: MIT
#include <cmath>
#include <vector>

#include "core/api/kernel.hpp"

// All experts of a layer at once, with floats on the CPU. Put your kernel in the place of the loops: call says what it
// gets and what it has to give. It is called once for every layer.
class MyNameKernel : public moe_diag::MoeFfnKernel {
 public:
  explicit MyNameKernel(const moe_diag::Options&) {}

  void run(const moe_diag::MoeFfnCall& call) override {
    const std::int64_t hidden = call.gate.cols, width = call.gate.rows;
    std::vector<float> inner(static_cast<std::size_t>(width));
    for (std::int64_t row = 0; row < call.rows; ++row) {
      const float* x = call.x + row * hidden;
      float* out = call.out + row * hidden;
      std::fill_n(out, hidden, 0.0F);
      for (std::int64_t slot = row * call.used; slot < (row + 1) * call.used; ++slot) {
        const std::int64_t expert = call.ids[slot];
        for (std::int64_t i = 0; i < width; ++i) {
          const float gate = dot(call.gate, expert, i, x);
          inner[static_cast<std::size_t>(i)] = gate / (1 + std::exp(-gate)) * dot(call.up, expert, i, x);
        }
        for (std::int64_t i = 0; i < hidden; ++i)
          out[i] += call.weights[slot] * dot(call.down, expert, i, inner.data());
      }
    }
  }

 private:
  // Row i of an expert's matrix times x.
  float dot(const moe_diag::Weight& weight, std::int64_t expert, std::int64_t i, const float* x) {
    matrix_row_.resize(static_cast<std::size_t>(weight.cols));
    moe_diag::decode_row(weight, expert, i, matrix_row_.data());
    float sum = 0;
    for (std::int64_t c = 0; c < weight.cols; ++c) sum += matrix_row_[static_cast<std::size_t>(c)] * x[c];
    return sum;
  }

  std::vector<float> matrix_row_;
};

MOE_DIAG_KERNEL(MyNameKernel, "my_name", "all experts of a layer at once", moe_diag::kernel_numerics)
