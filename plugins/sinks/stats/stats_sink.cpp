// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "core/api/output_file.hpp"
#include "core/api/sink.hpp"
#include "plugins/sinks/stats/record.hpp"

namespace moe_diag {

namespace {

namespace fs = std::filesystem;

constexpr PathOption file_option{"file", Required{"stats.json"}, "table of all sites, JSON or CSV"};
constexpr ChoiceOption format_option{"format", "json csv", Computed{"by the file's name"}, "form of the file"};
constexpr FlagOption print_option{"print", "false", "prints the table, too"};

constexpr std::size_t table_rows = 40;        // a lane
constexpr std::uint64_t record_bytes = 1024;  // of a site in the file, at most

// Orders the records: prompt after prompt, lane after lane, then as the forward pass goes.
struct Key {
  int prompt = 0, lane = 0;
  Site site;

  friend bool operator<(const Key& a, const Key& b) {
    return std::tie(a.prompt, a.lane, a.site) < std::tie(b.prompt, b.lane, b.site);
  }
};

}  // namespace

// Keeps statistics of every prompt, lane and site, and writes them at the end; no tensor is kept.
class StatsSink : public Sink {
 public:
  explicit StatsSink(const Options& options) : file_(options.read(file_option)), print_(options.read(print_option)) {
    const std::string extension = fs::path(file_).extension().string();
    if (options.has(format_option))
      csv_ = options.read(format_option) == "csv";
    else if (extension == ".json" || extension == ".csv")
      csv_ = extension == ".csv";
    else
      options.refuse(file_option, "expected a name that ends in .json or .csv; or say format: json or csv");
  }

  SinkOutput output(const Load& load) const override {
    return {file_, static_cast<std::uint64_t>(load.tensors) * record_bytes, true};
  }

  void open(const RunInfo& run) override {
    run_ = run;
    path_ = claim_file(run, file_);
  }

  void consume(const Event& event) override {
    check(event);
    const auto [at, fresh] = records_.try_emplace({event.prompt, event.lane, event.site});
    StatsRecord& record = at->second;
    const bool indices = event.tensor.dtype == DType::i32;
    if (fresh) {
      record.prompt = run_.prompts[static_cast<std::size_t>(event.prompt)].id;
      record.lane = run_.lanes[static_cast<std::size_t>(event.lane)].name;
      record.site = event.site;
      record.dtype = event.tensor.dtype;
      if (indices) record.stats = IndexStats();
    }
    if (record.dtype != event.tensor.dtype)
      throw Error(ErrorKind::environment,
                  fmt::format("event: {}: {} came after {}; a site has one type", name_of(event.site.stage),
                              name_of(event.tensor.dtype), name_of(record.dtype)));
    record.rows += event.tensor.shape[0];
    if (event.tensor.shape.count() == 0) return;
    if (indices)
      std::get<IndexStats>(record.stats).add(event.tensor);
    else
      std::get<ValueStats>(record.stats).add(event.tensor, event.positions);
  }

  void close() override {
    std::vector<const StatsRecord*> records;
    for (const auto& [key, record] : records_) records.push_back(&record);
    path_ = claim_file(run_, file_);  // whatever was put there meanwhile
    write_whole_file(path_, csv_ ? csv_of(records) : json_of(run_, records));
    if (!print_) return;
    fmt::print("{}", table_of(records, table_rows, path_));
    std::fflush(stdout);
  }

 private:
  void check(const Event& e) const {
    const Tensor& t = e.tensor;
    if (e.prompt >= 0 && static_cast<std::size_t>(e.prompt) < run_.prompts.size() && e.lane >= 0 &&
        static_cast<std::size_t>(e.lane) < run_.lanes.size() && t.shape.rank >= 1 &&
        t.shape[0] == static_cast<std::int64_t>(e.positions.size()) && (t.data || t.bytes() == 0))
      return;
    throw Error(ErrorKind::environment, fmt::format("event: prompt {} of {}, lane {} of {}, {}: {} positions, {} rows",
                                                    e.prompt, run_.prompts.size(), e.lane, run_.lanes.size(),
                                                    name_of(e.site.stage), e.positions.size(), t.shape[0]));
  }

  std::string file_;
  bool print_ = false, csv_ = false;
  RunInfo run_;
  std::string path_;
  std::map<Key, StatsRecord> records_;
};

}  // namespace moe_diag

MOE_DIAG_SINK(moe_diag::StatsSink, "stats", "statistics of every captured tensor, as JSON, CSV or a table",
              moe_diag::file_option, moe_diag::format_option, moe_diag::print_option)
