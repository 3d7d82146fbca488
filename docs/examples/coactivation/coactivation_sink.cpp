// SPDX-License-Identifier: MIT
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/api/npy.hpp"
#include "core/api/sink.hpp"

namespace {

constexpr moe_diag::PathOption counts_option{"counts", moe_diag::Required{"coactivation.npy"},
                                             "array [lanes, layers, experts, experts], int64"};
constexpr moe_diag::PathOption totals_option{"totals", "coactivation_totals.npy",
                                             "array [lanes, layers], int64: tokens that were counted"};

// Which experts work together: for each lane and layer, how many tokens were sent to both of two experts, over all
// prompts. The diagonal says how many were sent to one. Takes the stage moe_router_indices, the choice of experts, and
// no other.
//
// A sink is a plugin: the last line exports it, and a contract names it, `{sink: coactivation}`, to have tensors sent
// to it. open() learns what is run, consume() gets one tensor a call, and close() writes the files. A tensor's memory
// is valid during the call only. A sink touches its own files and nothing of the run. To count something else, change
// consume(), and the shape of the arrays in open() and close().
class CoactivationSink : public moe_diag::Sink {
 public:
  explicit CoactivationSink(const moe_diag::Options& options)
      : counts_file_(options.read(counts_option)), totals_file_(options.read(totals_option)) {}

  void open(const moe_diag::RunInfo& run) override {
    counts_path_ = moe_diag::claim_file(run, counts_file_);
    totals_path_ = moe_diag::claim_file(run, totals_file_);
    lanes_ = std::ssize(run.lanes);
    layers_ = run.model.config.layers;
    experts_ = run.model.config.experts;
    counts_.assign(static_cast<std::size_t>(lanes_ * layers_ * experts_ * experts_), 0);
    totals_.assign(static_cast<std::size_t>(lanes_ * layers_), 0);
  }

  void consume(const moe_diag::Event& event) override {
    if (!is(event.site.stage, moe_diag::Role::choice))
      throw moe_diag::Error(moe_diag::ErrorKind::usage, "coactivation counts moe_router_indices, found " +
                                                            std::string(moe_diag::name_of(event.site.stage)) +
                                                            ": capture that stage alone for it");
    const std::int64_t site = event.lane * layers_ + event.site.layer;
    const std::int64_t used = event.tensor.shape.row();
    const auto* experts = event.tensor.as<std::int32_t>();  // [positions, used], all different within a row
    for (std::int64_t row = 0; row < event.tensor.shape[0]; ++row, experts += used)
      for (const std::int32_t a : std::span(experts, static_cast<std::size_t>(used)))
        for (const std::int32_t b : std::span(experts, static_cast<std::size_t>(used)))
          ++counts_.at(static_cast<std::size_t>((site * experts_ + a) * experts_ + b));
    totals_.at(static_cast<std::size_t>(site)) += event.tensor.shape[0];
  }

  void close() override {
    moe_diag::write_npy<std::int64_t>(counts_path_, counts_, {lanes_, layers_, experts_, experts_});
    moe_diag::write_npy<std::int64_t>(totals_path_, totals_, {lanes_, layers_});
  }

 private:
  std::string counts_file_, totals_file_, counts_path_, totals_path_;
  std::int64_t lanes_ = 0, layers_ = 0, experts_ = 0;
  std::vector<std::int64_t> counts_, totals_;
};

}  // namespace

MOE_DIAG_SINK(CoactivationSink, "coactivation", "how often two experts of a layer get the same token", counts_option,
              totals_option)
