// SPDX-License-Identifier: MIT
#include <vector>

#include "core/api/sink.hpp"

namespace moe_diag {
namespace {

// Takes every tensor for one of floats.
class WrongTypeSink final : public Sink {
 public:
  explicit WrongTypeSink(const Options& /*options*/) {}

  void open(const RunInfo& /*run*/) override {}
  void consume(const Event& event) override { kept_.push_back(event.tensor.as<float>()[0]); }
  void close() override {}

 private:
  std::vector<float> kept_;
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::WrongTypeSink, "bad", "takes every tensor for one of floats")
