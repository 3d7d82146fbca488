// SPDX-License-Identifier: MIT
#include <stdexcept>

#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

class ThrowingSink : public IdleSink {
 public:
  using IdleSink::IdleSink;
  void open(const RunInfo&) override { throw std::runtime_error("the disk is full"); }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::ThrowingSink, "bad", "throws in open")
