// SPDX-License-Identifier: MIT
#include <stdexcept>

#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

class ThrowingSink : public IdleSink {
 public:
  explicit ThrowingSink(const Options& options) : IdleSink(options) { throw std::runtime_error("no licence found"); }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::ThrowingSink, "bad", "throws in its constructor")
