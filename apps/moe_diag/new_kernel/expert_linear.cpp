// SPDX-License-Identifier: MIT
#include <vector>

#include "core/api/kernel.hpp"

// The matrix product of experts, with floats on the CPU. Put your kernel in the place of the loops: call says what it
// gets and what it has to give. It is called for gate, up and down of every layer.
class MyNameKernel : public moe_diag::ExpertLinearKernel {
 public:
  explicit MyNameKernel(const moe_diag::Options&) {}

  void run(const moe_diag::ExpertLinearCall& call) override {
    const std::int64_t cols = call.weight.cols, width = call.weight.rows;
    std::vector<float> matrix_row(static_cast<std::size_t>(cols));
    for (std::int64_t slot = 0; slot < call.rows * call.used; ++slot) {
      const std::int64_t expert = call.ids[slot];
      const float* x = call.x + (call.x_by_slot ? slot : slot / call.used) * cols;
      for (std::int64_t r = 0; r < width; ++r) {
        moe_diag::decode_row(call.weight, expert, r, matrix_row.data());
        float sum = 0;
        for (std::int64_t c = 0; c < cols; ++c) sum += matrix_row[static_cast<std::size_t>(c)] * x[c];
        call.out[slot * width + r] = sum;
      }
    }
  }
};

MOE_DIAG_KERNEL(MyNameKernel, "my_name", "the matrix product of experts", moe_diag::kernel_numerics)
