// SPDX-License-Identifier: MIT
#include <new>

#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

class ThrowingSink : public IdleSink {
 public:
  using IdleSink::IdleSink;
  void consume(const Event&) override { throw std::bad_alloc(); }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::ThrowingSink, "bad", "throws in consume")
