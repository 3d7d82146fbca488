// SPDX-License-Identifier: MIT
#include "core/api/kernel.hpp"

// In my_name.cu; the pointers of call are of host memory.
void my_name_moe_ffn(const moe_diag::MoeFfnCall& call);
void refuse_without_gpu();

// All experts of a layer at once, on a GPU. It is called once for every layer.
class MyNameKernel : public moe_diag::MoeFfnKernel {
 public:
  static constexpr std::string_view device = "GPU";

  explicit MyNameKernel(const moe_diag::Options&) { refuse_without_gpu(); }
  void run(const moe_diag::MoeFfnCall& call) override { my_name_moe_ffn(call); }
};

MOE_DIAG_KERNEL(MyNameKernel, "my_name", "all experts of a layer at once, on a GPU", moe_diag::kernel_numerics)
