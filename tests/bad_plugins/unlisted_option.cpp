// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

namespace moe_diag {
namespace {

constexpr FlagOption secret_option{"secret", "false", "is not in the list"};

class SecretSink : public IdleSink {
 public:
  explicit SecretSink(const Options& options) : IdleSink(options) { options.read(secret_option); }
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::SecretSink, "bad", "reads an option that it does not list")
