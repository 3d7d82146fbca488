// SPDX-License-Identifier: MIT
#include <csignal>
#include <cstdlib>
#include <string>
#include <thread>

#include "core/api/sink.hpp"

namespace moe_diag {
namespace {

constexpr ChoiceOption at_option{"at", "consume open close thread kill stack", "consume", "where the process ends"};

void write_to(volatile int* address) { *address = 1; }

// Until the stack is used up: `end` is never set, but a compiler cannot know.
int deeper(volatile const char* end) {  // NOLINT(misc-no-recursion): that is the fault
  volatile char here[4096] = {};
  return *end != 0 ? 0 : deeper(here) + here[1];
}

// Ends the process by a fatal signal.
class DyingSink final : public Sink {
 public:
  explicit DyingSink(const Options& options) : at_(options.read(at_option)) {}

  void open(const RunInfo& /*run*/) override {
    if (at_ == "open") std::abort();
  }
  void consume(const Event& event) override {
    if (event.lane != 0 || name_of(event.site.stage) != "final_norm") return;
    if (at_ == "consume") write_to(nullptr);
    if (at_ == "thread") std::thread([] { write_to(nullptr); }).join();
    if (at_ == "kill") std::raise(SIGKILL);
    if (const char start = 0; at_ == "stack") deeper(&start);
  }
  void close() override {
    if (at_ == "close" && std::raise(SIGFPE) == 0) at_.clear();  // no tail call: this frame is to be found
  }

 private:
  std::string at_;
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::DyingSink, "bad", "ends the process", moe_diag::at_option)
