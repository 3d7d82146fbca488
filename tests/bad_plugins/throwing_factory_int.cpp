// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

class ThrowingSink : public IdleSink {
 public:
  explicit ThrowingSink(const Options& options) : IdleSink(options) { throw 42; }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::ThrowingSink, "bad", "throws a number in its constructor")
