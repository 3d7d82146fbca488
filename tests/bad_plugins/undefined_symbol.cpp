// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

extern "C" int moe_diag_symbol_that_nobody_has();

namespace moe_diag {
namespace {

class LostSink : public IdleSink {
 public:
  using IdleSink::IdleSink;
  void close() override { moe_diag_symbol_that_nobody_has(); }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::LostSink, "bad", "calls what is nowhere")
