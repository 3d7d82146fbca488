// SPDX-License-Identifier: MIT
#include <cmath>
#include <iterator>
#include <vector>

#include "core/api/npy.hpp"
#include "core/api/sink.hpp"

constexpr moe_diag::PathOption file_option{"file", moe_diag::Required{"my_name.npy"}, "array [rows, 6], float64"};

// How large each tensor is at each position: rows of prompt, lane, layer, stage, position, root mean square.
class MyNameSink : public moe_diag::Sink {
 public:
  explicit MyNameSink(const moe_diag::Options& options) : file_(options.read(file_option)) {}

  void open(const moe_diag::RunInfo& run) override { path_ = moe_diag::claim_file(run, file_); }

  void consume(const moe_diag::Event& e) override {
    const std::int64_t width = e.tensor.shape.row();
    for (std::int64_t row = 0; row < std::ssize(e.positions); ++row) {
      double squares = 0;
      for (std::int64_t i = row * width; i < (row + 1) * width; ++i) squares += std::pow(e.tensor.value(i), 2);
      for (const int number :
           {e.prompt, e.lane, e.site.layer, int(e.site.stage.index()), e.positions[std::size_t(row)]})
        rows_.push_back(number);
      rows_.push_back(std::sqrt(squares / double(width)));
    }
  }

  void close() override { moe_diag::write_npy<double>(path_, rows_, {std::ssize(rows_) / 6, 6}); }

 private:
  std::string file_, path_;
  std::vector<double> rows_;
};

MOE_DIAG_SINK(MyNameSink, "my_name", "root mean square of every row of every tensor", file_option)
