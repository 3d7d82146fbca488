// SPDX-License-Identifier: MIT
#include "core/recording/sequences.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/recording/strict_json.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

std::int32_t token_at(const RecordedCall& call, int position) {
  return call.tokens[static_cast<std::size_t>(position - call.first)];
}

// The first span that ends behind a position.
auto span_behind(const std::vector<Span>& spans, int position) {
  return std::upper_bound(spans.begin(), spans.end(), position, [](int p, const Span& span) { return p < span.end; });
}

}  // namespace

Sequences::Sequences(const std::vector<RecordedCall>& calls, RecordingOptions::Take take, const std::string& where)
    : calls_(calls), take_(take), where_(where) {
  std::map<std::string, int> numbers;
  for (std::size_t c = 0; c < calls.size(); ++c) {
    const auto [entry, is_new] = numbers.try_emplace(calls[c].request, static_cast<int>(requests_.size()));
    if (is_new) {
      requests_.push_back({calls[c].request, {}, {}, 0, 0});
      spans_.emplace_back();
      accepted_.push_back(0);
    }
    add(entry->second, static_cast<int>(c));
  }
  for (int r = 0; r < static_cast<int>(requests_.size()); ++r) finish(r);
}

const Span* Sequences::find(int request, int position) const {
  if (request < 0 || static_cast<std::size_t>(request) >= spans_.size()) return nullptr;
  const std::vector<Span>& of = spans(request);
  const auto span = span_behind(of, position);
  return span != of.end() && span->first <= position ? &*span : nullptr;
}

void Sequences::add(int request, int call) {
  const RecordedCall& added = calls_[static_cast<std::size_t>(call)];
  std::vector<Span>& spans = spans_[static_cast<std::size_t>(request)];
  if (spans.empty() || spans.back().end <= added.first)
    spans.push_back({added.first, added.end(), call});
  else
    add_again(request, call);
  int& accepted = accepted_[static_cast<std::size_t>(request)];
  accepted = std::max(accepted, added.first + 1);
  requests_[static_cast<std::size_t>(request)].calls.push_back(call);
}

// The first position up to `end` whose token is not that of the call; `end` when there is none; -1 when tokens of
// either are not known.
int Sequences::agreement(int request, const RecordedCall& call, int end) const {
  const std::vector<Span>& of = spans(request);
  for (auto span = span_behind(of, call.first); span != of.end() && span->first < end; ++span) {
    const RecordedCall& before = calls_[static_cast<std::size_t>(span->call)];
    if (before.tokens.empty() || call.tokens.empty()) return -1;
    for (int p = std::max(span->first, call.first); p < std::min(span->end, end); ++p)
      if (token_at(before, p) != token_at(call, p)) return p;
  }
  return end;
}

void Sequences::add_again(int request, int call) {
  const RecordedCall& added = calls_[static_cast<std::size_t>(call)];
  const int accepted = accepted_[static_cast<std::size_t>(request)];
  int agreed = agreement(request, added, added.end());
  if (added.first < accepted && agreed < 0)
    refuse_again(request, added, "expected tokens that show that the same is computed again, found none");
  if (added.first < accepted && agreed < std::min(accepted, added.end())) {
    const RecordedCall& before = calls_[static_cast<std::size_t>(find(request, agreed)->call)];
    refuse_again(request, added,
                 fmt::format("expected the same tokens there, found token {} at position {}, in call {} it is {}",
                             token_at(added, agreed), agreed, before.number, token_at(before, agreed)));
  }
  if (agreed < 0 && take_ == RecordingOptions::Take::last) agreed = added.first;
  if (agreed >= 0 && agreed < added.end()) truncate(request, agreed);
  put(request, {added.first, added.end(), call});
}

void Sequences::refuse_again(int request, const RecordedCall& added, const std::string& found) const {
  refuse_recording(fmt::format(
      "{}: call {} of request {} goes back to position {}, the request had come to position {}: {}. Give another "
      "sequence a `request` of its own; a call without `first` begins behind the one before",
      where_, added.number, shown(added.request), added.first, accepted_[static_cast<std::size_t>(request)] - 1,
      found));
}

void Sequences::truncate(int request, int end) {
  std::vector<Span>& spans = spans_[static_cast<std::size_t>(request)];
  while (!spans.empty() && spans.back().first >= end) spans.pop_back();
  if (!spans.empty()) spans.back().end = std::min(spans.back().end, end);
}

// Puts a span over those before it, or, where the first rows count, between them.
void Sequences::put(int request, Span added) {
  std::vector<Span>& spans = spans_[static_cast<std::size_t>(request)];
  const auto touched = span_behind(spans, added.first);
  std::vector<Span> result;
  const bool is_over = take_ == RecordingOptions::Take::last;
  int next = added.first;  // of the added span, what is not placed yet
  const auto place = [&](int end) {
    if (next < end) result.push_back({next, end, added.call});
    next = std::max(next, end);
  };
  for (auto at = touched; at != spans.end(); ++at) {
    const Span span = *at;
    if (is_over) {
      if (span.first < added.first) result.push_back({span.first, added.first, span.call});
      if (span.end > added.end) {
        place(added.end);
        result.push_back({std::max(span.first, added.end), span.end, span.call});
      }
    } else {
      place(std::min(span.first, added.end));
      result.push_back(span);
      next = std::max(next, span.end);
    }
  }
  place(added.end);
  spans.erase(touched, spans.end());
  spans.insert(spans.end(), result.begin(), result.end());
}

void Sequences::finish(int request) {
  RecordedRequest& of = requests_[static_cast<std::size_t>(request)];
  const std::vector<Span>& spans = spans_[static_cast<std::size_t>(request)];
  of.first = spans.front().first;
  of.end = spans.back().end;
  int next = 0;
  for (const Span& span : spans) {
    const RecordedCall& call = calls_[static_cast<std::size_t>(span.call)];
    if (span.first != next || call.tokens.empty()) {
      of.tokens.clear();
      return;
    }
    of.tokens.insert(of.tokens.end(), call.tokens.begin() + (span.first - call.first),
                     call.tokens.begin() + (span.end - call.first));
    next = span.end;
  }
}

}  // namespace moe_diag
