// SPDX-License-Identifier: MIT
#include "core/api/kernel.hpp"

// In my_name.cu; the pointers of call are of host memory.
void my_name_expert_linear(const moe_diag::ExpertLinearCall& call);
void refuse_without_gpu();

// The matrix product of experts, on a GPU. It is called for gate, up and down of every layer.
class MyNameKernel : public moe_diag::ExpertLinearKernel {
 public:
  static constexpr std::string_view device = "GPU";

  explicit MyNameKernel(const moe_diag::Options&) { refuse_without_gpu(); }
  void run(const moe_diag::ExpertLinearCall& call) override { my_name_expert_linear(call); }
};

MOE_DIAG_KERNEL(MyNameKernel, "my_name", "the matrix product of experts, on a GPU", moe_diag::kernel_numerics)
