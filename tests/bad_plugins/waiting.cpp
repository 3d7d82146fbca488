// SPDX-License-Identifier: MIT
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "core/api/sink.hpp"

namespace moe_diag {
namespace {

// At final_norm it makes the file `waits`, and does not return before there is a file `go` beside it.
class WaitingSink final : public Sink {
 public:
  explicit WaitingSink(const Options& /*options*/) {}

  void open(const RunInfo& run) override { out_ = run.out; }
  void consume(const Event& event) override {
    if (name_of(event.site.stage) != "final_norm") return;
    std::ofstream(out_ + "/waits") << "x";
    while (!std::filesystem::exists(out_ + "/go")) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  void close() override {}

 private:
  std::string out_;
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::WaitingSink, "bad", "waits for a file")
