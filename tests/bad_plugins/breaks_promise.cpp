// SPDX-License-Identifier: MIT
#include <unistd.h>

#include <chrono>
#include <clocale>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/api/npy.hpp"
#include "core/api/sink.hpp"

namespace moe_diag {
namespace {

constexpr PathOption file_option{"file", Required{"sums.npy"}, "sum of each event, float64"};
constexpr ChoiceOption breaks_option{"breaks",
                                     "nothing build build_far options_read options_unknown outside far far_child "
                                     "far_removed bytes place repeat view past_view copy empty existing overwrite "
                                     "unclosed unwritable locale die hang hang_late refuse_all refuse_indices throw "
                                     "thread last_event",
                                     "nothing", "the promise that it does not keep"};
constexpr FlagOption unread_option{"unread", "false", "is read by some"};

// Writes the sum of each tensor, and breaks one promise of core/api/sink.hpp.
class BreakingSink final : public Sink {
 public:
  explicit BreakingSink(const Options& options)
      : file_(options.read(file_option)), breaks_(options.read(breaks_option)) {
    if (!breaks("options_read")) options.read(unread_option);
    if (breaks("options_unknown"))
      for (const Options::Entry& entry : options.entries()) entry.read = true;
    if (breaks("build")) touch("built");
    if (breaks("build_far")) touch(far());
  }

  SinkOutput output(const Load& load) const override {
    const auto sums = static_cast<std::uint64_t>(load.tensors + load.rows) + 1;
    return {breaks("place") ? std::string_view("elsewhere") : file_,
            breaks("bytes") ? 100 : npy_header_bytes + sums * sizeof(double), true};
  }

  void open(const RunInfo& run) override {
    if (breaks("existing") || breaks("unwritable"))
      path_ = std::string(run.out) + "/" + file_;
    else
      path_ = claim_file(run, file_);
    fresh_ = !run.overwrite;
    if (breaks("unclosed") && fresh_) touch(path_ + ".part");
    if (breaks("overwrite") && std::ifstream(path_)) sums_.push_back(1);
  }

  void consume(const Event& event) override {
    const bool indices = event.tensor.dtype == DType::i32;
    if (breaks("refuse_all") || (indices && breaks("refuse_indices")))
      throw Error(ErrorKind::usage, "mend the contract: not this stage");
    if (breaks("throw")) throw 7;
    if (breaks("thread") && std::this_thread::get_id() != built_by_)
      throw std::logic_error("called from another thread than the one that built it");
    if (breaks("die")) std::abort();
    if (breaks("hang") || (breaks("hang_late") && event.site.layer == 2)) wait_for_ever();
    if (breaks("last_event")) join(event);
    auto* bytes = static_cast<char*>(const_cast<void*>(event.tensor.data));
    if (breaks("view") && event.tensor.bytes() > 0) bytes[0] = static_cast<char>(bytes[0] + 1);
    if (breaks("past_view")) bytes[event.tensor.bytes()] = 'X';
    if (breaks("copy") && event.tensor.bytes() > 0) kept_ = event.tensor;
    double sum = 0;
    for (std::int64_t i = 0; i < event.tensor.shape.count(); ++i) sum += event.tensor.value(i);
    sums_.push_back(sum);
  }

  void close() override {
    if (breaks("outside")) touch("outside");
    if (breaks("far")) touch(far());
    if (breaks("far_child")) far_status_ = std::system(("echo x > '" + far() + "'").c_str());
    if (breaks("far_removed")) ::unlink(far().c_str());
    if (breaks("repeat"))
      sums_.push_back(static_cast<double>(std::chrono::steady_clock::now().time_since_epoch().count()));
    if (kept_) sums_.push_back(kept_.value(0));
    if (breaks("empty") && sums_.empty()) return;
    if (breaks("locale")) sums_.push_back(std::localeconv()->decimal_point[0]);
    if (breaks("unclosed") && fresh_) ::unlink((path_ + ".part").c_str());
    write_npy<double>(path_, sums_, {std::ssize(sums_)});
  }

 private:
  bool breaks(std::string_view promise) const { return breaks_ == promise; }
  static void touch(const std::string& path) { std::ofstream(path) << "x"; }
  // A file that the test has set, outside of all that the sink is given.
  static std::string far() {
    const char* path = std::getenv("MOE_DIAG_TEST_FAR");
    return path ? path : "/dev/null";
  }
  [[noreturn]] static void wait_for_ever() {
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
  }

  // Takes the weights to be those of the experts that came last, as if the lanes ran one after the other.
  void join(const Event& event) {
    if (is(event.site.stage, Role::choice)) {
      chosen_by_ = event.lane;
      chosen_in_ = event.site.layer;
    }
    if (!is(event.site.stage, Role::choice_weights) || chosen_by_ < 0) return;
    if (chosen_by_ != event.lane || chosen_in_ != event.site.layer)
      throw std::logic_error("weights of lane " + std::to_string(event.lane) + " came after the experts of lane " +
                             std::to_string(chosen_by_));
  }

  std::string file_, breaks_, path_;
  std::vector<double> sums_;
  Tensor kept_;
  bool fresh_ = true;
  int chosen_by_ = -1, chosen_in_ = -1;
  int far_status_ = 0;
  std::thread::id built_by_ = std::this_thread::get_id();
};

}  // namespace
}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::BreakingSink, "bad", "breaks one promise", moe_diag::file_option, moe_diag::breaks_option,
              moe_diag::unread_option)
