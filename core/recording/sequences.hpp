// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/recording/recording.hpp"

namespace moe_diag {

// Consecutive positions of a request, and the call whose rows count there.
struct Span {
  int first = 0, end = 0, call = 0;
};

// The positions of each request, and which call counts at each.
//
// A call may begin before the end of the request, for two reasons:
// - Drafts were rejected: the call begins behind the first row of every call before. It replaces what differs in
//   tokens, and everything behind it.
// - The engine computed the sequence again (preemption): every token that it had accepted comes again, which only
//   tokens can show. Anything else is refused.
// Where both calls have the same tokens, `take` decides; without tokens, it decides about drafts.
class Sequences {
 public:
  // `where` begins the messages. Throws Error(usage).
  Sequences(const std::vector<RecordedCall>& calls, RecordingOptions::Take take, const std::string& where);

  const std::vector<RecordedRequest>& requests() const { return requests_; }
  const std::vector<Span>& spans(int request) const { return spans_[static_cast<std::size_t>(request)]; }
  // The span at a position; null: there is none.
  const Span* find(int request, int position) const;

 private:
  void add(int request, int call);
  void add_again(int request, int call);
  void finish(int request);
  [[noreturn]] void refuse_again(int request, const RecordedCall& added, const std::string& found) const;
  int agreement(int request, const RecordedCall& call, int end) const;
  void truncate(int request, int end);
  void put(int request, Span span);

  const std::vector<RecordedCall>& calls_;
  RecordingOptions::Take take_;
  const std::string& where_;
  std::vector<RecordedRequest> requests_;
  std::vector<std::vector<Span>> spans_;  // of each request, ascending
  std::vector<int> accepted_;  // of each request: the end of the positions that a call began at, whose tokens are sure
};

}  // namespace moe_diag
