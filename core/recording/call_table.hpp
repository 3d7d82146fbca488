// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/api/model.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

inline constexpr int every_layer = -2;

// Rows of one request in the arrays of one forward pass.
struct CallPart {
  int line = 0;
  int rows = 0;                                        // padding among them
  std::optional<int> kept;                             // last rows that stages have; none: all rows
  std::map<std::pair<std::size_t, int>, int> kept_of;  // the same by stage and layer
};

// Place of a part's rows in an array that has the rows of all calls one behind the other.
struct PartRows {
  std::int64_t start = 0;  // row of the array
  int count = 0;           // the part's last rows

  friend bool operator==(const PartRows&, const PartRows&) = default;
};

// The calls of a recording, and where their rows lie.
class CallTable {
 public:
  // Lines of calls.jsonl. `is_cut`: the last one may not be whole, and is left out then.
  static CallTable read(const std::string& path, const ModelConfig& config, bool is_cut);
  // The same lines; `where` begins the messages.
  static CallTable parse(std::string_view text, const std::string& where, const ModelConfig& config);

  struct Place {
    int part = 0, row = 0;  // of the part, where the call begins
  };
  // Adds a forward pass of one request, its rows where nothing else was.
  void add(RecordedCall call);

  int lines() const { return static_cast<int>(line_parts_.size()) - 1; }
  const std::vector<RecordedCall>& calls() const { return calls_; }
  std::vector<RecordedCall> take_calls() { return std::move(calls_); }
  const Place& place_of(int call) const { return places_[static_cast<std::size_t>(call)]; }
  const CallPart& part(int part) const { return parts_[static_cast<std::size_t>(part)]; }
  const std::vector<CallPart>& parts() const { return parts_; }
  int first_part(int line) const { return line_parts_[static_cast<std::size_t>(line)]; }
  std::int64_t rows_of_line(int line) const;  // padding among them
  int padding_of_line(int line) const { return paddings_[static_cast<std::size_t>(line)]; }
  int graph_size_of_line(int line) const { return graph_sizes_[static_cast<std::size_t>(line)]; }
  // Number of last rows of a part that the arrays of a site have; none: it is not said.
  std::optional<int> rows_said(int part, Site site) const;
  // The same of all parts of a line; none: no part says it.
  std::optional<std::int64_t> rows_said_of_line(int line, Site site) const;

  // For every part.
  std::vector<PartRows> rows_of(Site site) const;
  // Forgets the lines from that one on.
  void cut(int lines);

 private:
  friend class CallReader;

  std::vector<RecordedCall> calls_;
  std::vector<Place> places_;  // of each call
  std::vector<CallPart> parts_;
  std::vector<int> line_parts_{0};  // first part of each line, and the number of parts
  std::vector<int> paddings_, graph_sizes_;
};

}  // namespace moe_diag
