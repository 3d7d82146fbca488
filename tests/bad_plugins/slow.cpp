// SPDX-License-Identifier: MIT
#include <cstdint>
#include <thread>
#include <vector>

#include "core/api/npy.hpp"
#include "core/api/sink.hpp"

namespace moe_diag {
namespace {

constexpr PathOption file_option{"file", Required{"positions.npy"}, "last position of each event, int32"};

// Takes a second for each event, and loses none.
class SlowSink final : public Sink {
 public:
  explicit SlowSink(const Options& options) : file_(options.read(file_option)) {}
  void open(const RunInfo& run) override { path_ = claim_file(run, file_); }
  void consume(const Event& event) override {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    positions_.push_back(event.positions.back());
  }
  void close() override { write_npy<std::int32_t>(path_, positions_, {std::ssize(positions_)}); }

 private:
  std::string file_, path_;
  std::vector<std::int32_t> positions_;
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::SlowSink, "bad", "takes a second for each event", moe_diag::file_option)
