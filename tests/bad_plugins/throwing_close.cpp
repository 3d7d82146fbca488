// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

class ThrowingSink : public IdleSink {
 public:
  using IdleSink::IdleSink;
  void close() override { throw "a text"; }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::ThrowingSink, "bad", "throws a text in close")
