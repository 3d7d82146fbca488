// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/contract/where.hpp"

namespace moe_diag {

// The files of one array, or of many: the path below the dump's folder, and behind '#' the name of a tensor of a
// safetensors file. Words in braces stand for what differs.
struct MapPattern {
  std::string text;
  Where where;
};

// A dimension of an array as it lies in its file.
struct MapAxis {
  enum class Kind {
    token,
    layer,
    batch,  // of size 1: left out
    values,
    qkv,  // values of a fused product: those of q, k and v, one behind the other
  };
  enum class Ranks {
    none,
    cut,  // each rank has a part of the dimension
    sum,  // each rank has a part of the sum
  };

  Kind kind = Kind::values;
  Ranks ranks = Ranks::none;
};

// Values that are taken out of each row.
struct MapColumns {
  enum class Part { all, first_half, second_half, even, odd, range };

  Part part = Part::all;
  std::int64_t first = 0, count = 0;  // of a range
};

// Where a stage lies.
struct StageMap {
  std::string stage;
  std::vector<MapPattern> from;              // several: side by side, or summed
  bool is_sum = false;                       // of `from`
  std::optional<std::vector<MapAxis>> axes;  // none: positions first
  MapColumns columns;
  std::optional<MapPattern> order;  // array whose entries are token k + slot: where each row belongs
  std::optional<int> occurrence;    // of {n}, from 0; -1 is the last, -2 the one before
  bool is_last_rows = false;        // of each call only the last rows, as many as there are
  bool is_optional = false;
  int layer_offset = 0;     // the dump's number of a layer is the model's plus this
  std::vector<int> layers;  // the dump's numbers along the axis `layer`; empty: 0 and up
  std::optional<int> at;    // index on the axis `layer`, of a stage of the whole model
  std::string type;         // of a file without a header; empty: it has one
  std::uint64_t skip = 0;   // bytes before the values of such a file
  Where where;
};

// True for the path of a map; else it is the name of one that comes with the program.
inline bool is_map_file(std::string_view text) { return text.ends_with(".yaml") || text.ends_with(".yml"); }

// A description of another tool's files, as `map:` and `--map` name one.
struct DumpMap {
  std::string file;  // path, or the name of a map that comes with the program
  std::string engine, numerics, stored, kv_cache;
  bool fused_shared_expert = false;
  std::optional<MapPattern> calls, tokens, positions, lengths;
  std::vector<StageMap> stages;

  // "file:line:column"
  std::string at(const Where& where) const;

  // `file` is what messages begin with. Throws Error(usage) with a line for each mistake.
  static DumpMap parse(std::string_view text, const std::string& file);
  // Throws Error(usage) also for a file that cannot be read.
  static DumpMap read(const std::string& path);
};

}  // namespace moe_diag
