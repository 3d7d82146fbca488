// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/npy.hpp"
#include "core/recording/recording.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {

// Sizes of a model whose recordings fit on a screen.
inline ModelConfig small_config() {
  ModelConfig config{.layers = 3,
                     .hidden = 8,
                     .heads = 2,
                     .kv_heads = 1,
                     .head_dim = 4,
                     .experts = 6,
                     .used = 2,
                     .expert_width = 4,
                     .vocab = 32,
                     .context = 64,
                     .rms_eps = 1e-6f,
                     .rope_theta = 1e6f};
  config.stages = qwen3moe.stages;
  config.caches = qwen3moe.caches;
  return config;
}

// A value of row `row` of the arrays made here, which no other row or column has.
inline double made_value(int row, std::int64_t column) { return row + 1 + static_cast<double>(column) / 1024; }
// Ids that no strided view has: the same experts for rows of the same number.
inline std::int64_t made_id(int row, std::int64_t slot) { return (row + slot * 2) % 5; }

// Bytes of an .npy file: the rows that `values` lists.
inline std::string npy_bytes(std::string_view type, const Shape& shape, std::string_view values) {
  return npy_header(type, shape) + std::string(values);
}
template <class T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

inline std::string safetensors_bytes(const std::string& header, std::string_view data) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + std::string(data);
}

// A dump in the native layout that goes with the test case. Files are written by put(), or arrays of made values.
class MadeDump {
 public:
  explicit MadeDump(ModelConfig sizes = small_config()) : config(std::move(sizes)) {}

  ModelConfig config;
  RecordingOptions options;

  std::string path() const { return folder_ / "dump"; }
  std::string operator/(const std::string& name) const { return path() + '/' + name; }
  void put(const std::string& name, std::string_view bytes) const { write_text(path() + '/' + name, bytes); }
  void remove(const std::string& name) const { std::filesystem::remove_all(path() + '/' + name); }

  void head(const std::string& more = R"(, "closed": true)") const {
    put("dump.json", R"({"format": "moe-diag dump", "version": 1, "engine": "made")" + more + "}\n");
  }
  void calls(const std::vector<std::string>& lines) const {
    std::string text;
    for (const std::string& line : lines) text += line + '\n';
    put("calls.jsonl", text);
  }

  // Made values of rows `rows`, f32 or ids of i32, of the stage's shape; `name` as "layer_01/<stage>".
  void array(const std::string& name, const std::vector<int>& rows, const std::string& suffix = ".npy") const {
    const std::size_t slash = name.find('/');
    const Stage stage = config.stages.find(slash == std::string::npos ? name : name.substr(slash + 1));
    const Shape shape = config.shape_of({stage, slash == std::string::npos ? -1 : 0},
                                        static_cast<std::int64_t>(rows.size()), /*sequence=*/16);
    const std::int64_t columns = config.shape_of({stage, 0}, 1, 16).count();
    std::vector<float> values;
    std::vector<std::int32_t> ids;
    for (const int row : rows)
      for (std::int64_t c = 0; c < columns; ++c) {
        values.push_back(static_cast<float>(made_value(row, c)));
        ids.push_back(static_cast<std::int32_t>(made_id(row, c)));
      }
    const bool is_choice = payload_of(stage) == Payload::indices;
    put(name + suffix, is_choice ? npy_bytes("<i4", shape, bytes_of(ids)) : npy_bytes("<f4", shape, bytes_of(values)));
  }

  Recording open() const { return Recording::open(path(), config, options); }
  // Why it is refused; empty: it is read.
  std::string refusal() const {
    try {
      open();
    } catch (const Error& e) {
      const std::string message = e.what();
      // A recording that is not there leaves claims untested; every other mistake is one.
      CHECK((e.kind() == ErrorKind::absent) == message.ends_with("there is no such recording"));
      CHECK(message.starts_with(path()));
      return message;
    }
    return "";
  }

 private:
  TemporaryFolder folder_;
};

inline const std::vector<std::string> made_stages{"embedding", "layer_00/moe_router_indices", "layer_00/moe_ffn_out",
                                                  "layer_02/post_ffn_residual", "lm_head"};

// A prompt of four tokens and two decoded ones: rows are numbered by position.
inline void make_sound(const MadeDump& dump) {
  dump.head();
  dump.calls({R"({"request": "r0", "first": 0, "rows": 4, "tokens": [3, 1, 4, 1], "mode": "eager"})",
              R"({"request": "r0", "tokens": [5], "mode": "graph", "graph_size": 8, "kernel": "small", "rank": 0})",
              R"({"request": "r0", "tokens": [9]})"});
  for (const std::string& name : made_stages) dump.array(name, {0, 1, 2, 3, 4, 5});
}

// The first value of each of these rows; -1 where one is not there.
inline std::vector<int> rows_seen(const Recording& recording, Site site, int first, int count, int request = 0) {
  std::vector<int> seen;
  std::vector<std::byte> memory;
  for (int p = first; p < first + count; ++p) {
    const Tensor row = recording.rows(request, site, {p, 1}, memory);
    seen.push_back(row ? static_cast<int>(row.value(0)) - 1 : -1);
  }
  return seen;
}

}  // namespace moe_diag
