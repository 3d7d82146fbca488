// SPDX-License-Identifier: MIT
// Captures of a model of full width through the queue and each sink that keeps arrays, beside a plain write of the same
// bytes in turn. What counts is `over_plain`: how much of the plain write's speed is left.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/api/output_file.hpp"
#include "core/capture/event_queue.hpp"
#include "core/contract/contract.hpp"
#include "core/plugin/host.hpp"
#include "tests/support/made_run.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

constexpr int layers = 8;

ModelConfig full_width() {
  ModelConfig c;
  c.stages = qwen3moe.stages;
  c.layers = layers;
  c.hidden = 2048;
  c.heads = 32;
  c.kv_heads = 4;
  c.head_dim = 128;
  c.experts = 128;
  c.used = 8;
  c.expert_width = 768;
  c.vocab = 151936;
  return c;
}

// Every stage of every layer, at all positions of a prompt. As in a lane, a stage has one place in memory.
class Captured {
 public:
  explicit Captured(int tokens) : positions_(static_cast<std::size_t>(tokens)) {
    std::iota(positions_.begin(), positions_.end(), 0);
    const ModelConfig config = full_width();
    for (int layer = 0; layer < layers; ++layer)
      for (const Stage stage : qwen3moe.stages) {
        if (info(stage).scope != Scope::layer) continue;
        const DType dtype = payload_of(stage) == Payload::indices ? DType::i32 : DType::f32;
        const Tensor tensor{nullptr, dtype, config.shape_of({stage, 0}, tokens, tokens)};
        events_.push_back({0, 0, {stage, layer}, positions_, tensor, tokens});
        bytes_ += tensor.bytes();
        std::vector<float>& values = values_[stage.index()];
        values.resize(tensor.bytes() / sizeof(float));
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 1013) * 0.37f;
        events_.back().tensor.data = values.data();
      }
  }

  const std::vector<Event>& events() const { return events_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::vector<std::int32_t> positions_;
  std::vector<Event> events_;
  std::map<std::size_t, std::vector<float>> values_;  // by stage
  std::size_t bytes_ = 0;
};

// Folders that stay until the program ends, emptied after use: file systems are slow for minutes where many files were
// deleted, and memory that the system has never used before is slow as well.
class Folders {
 public:
  // One more.
  std::string next() { return folders_.emplace_back(std::make_unique<TemporaryFolder>())->str(); }
  static void empty(const std::string& folder) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
      if (entry.is_regular_file()) std::filesystem::resize_file(entry.path(), 0);
  }

 private:
  std::vector<std::unique_ptr<TemporaryFolder>> folders_;
};

using Body = void (*)(const Captured& captured, const std::string& folder);

double seconds_of(const Captured& captured, Body body) {
  static Folders folders;
  const std::string folder = folders.next();
  ::sync();  // what was written before is not written now
  const auto start = std::chrono::steady_clock::now();
  body(captured, folder);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  Folders::empty(folder);
  return taken.count();
}

void write_one_file(const Captured& captured, const std::string& folder) {
  OutputFile file(folder + "/plain", OutputFile::Mode::create);
  for (const Event& event : captured.events()) file.write(event.tensor.data, event.tensor.bytes());
  file.close();
}

void write_as_many_files(const Captured& captured, const std::string& folder) {
  int written = 0;
  for (const Event& event : captured.events()) {
    OutputFile file(fmt::format("{}/{}", folder, written++), OutputFile::Mode::create);
    file.write(event.tensor.data, event.tensor.bytes());
    file.close();
  }
}

void capture(const Captured& captured, const std::string& folder, const std::string& plugin,
             const std::pair<std::string, std::string>& option) {
  static PluginHost host({MOE_DIAG_PLUGINS});
  const auto sink = host.make_sink(plugin, made_options("sink", {option}));
  MadeRun run(folder, layers);
  const auto consume = [&](const Event& event, std::span<const int>) { sink->consume(event); };
  EventQueue queue(Contract().queue_bytes(), consume, {});
  queue.call([&] { sink->open(run.info); });
  const int receivers[] = {0};
  for (const Event& event : captured.events()) queue.push(event, 0, receivers);
  queue.call([&] { sink->close(); });
}

void capture_npy(const Captured& c, const std::string& folder) { capture(c, folder, "npy", {"dir", "dump"}); }
void capture_hdf5(const Captured& c, const std::string& folder) { capture(c, folder, "hdf5", {"file", "capture.h5"}); }

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The plain write comes in turn with the sink, so that both meet the same machine.
void sink(benchmark::State& state, Body body, Body plain_write) {
  const Captured captured(static_cast<int>(state.range(0)));
  std::vector<double> ratios, plain;
  for (auto _ : state) {
    plain.push_back(seconds_of(captured, plain_write));
    const double seconds = seconds_of(captured, body);
    ratios.push_back(plain.back() / seconds);
    state.SetIterationTime(seconds);
  }
  const auto bytes = static_cast<double>(captured.bytes());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(captured.bytes()));
  state.counters["over_plain"] = median(ratios);
  state.counters["plain_GB_per_s"] = bytes / median(plain) / 1e9;
}
void timed(benchmark::internal::Benchmark* b) {
  b->Arg(32)->Arg(128)->UseManualTime()->Iterations(15)->Unit(benchmark::kMillisecond);
}
BENCHMARK_CAPTURE(sink, npy, capture_npy, write_as_many_files)->Apply(timed);
BENCHMARK_CAPTURE(sink, npy_one_file, capture_npy, write_one_file)->Apply(timed);
BENCHMARK_CAPTURE(sink, hdf5, capture_hdf5, write_one_file)->Apply(timed);

}  // namespace
}  // namespace moe_diag
