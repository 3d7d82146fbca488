// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/api/stage.hpp"
#include "core/gguf/signal_text.hpp"

namespace moe_diag {

// The data that a call into a plugin is about, as far as its caller knows.
struct CallPlace {
  std::string_view prompt = {}, lane = {};       // names; empty: not known
  std::optional<Site> first = {}, last = {};     // what is consumed or computed, in forward order
  std::span<const std::int32_t> positions = {};  // ascending
};

// One call into a plugin. Views only: an error, a warning and a fatal signal name the call with them.
struct PluginCall {
  std::string_view plugin;  // "sink 'mine' (plugin stats)"
  std::string_view call;    // "consume"
  CallPlace place = {};
};

// "prompt 'short', lane 'truth', layer 2, moe_ffn_out, positions 0 to 2"; empty when nothing is known.
void add(SignalText& text, const CallPlace& place);
std::string text_of(const CallPlace& place);

// "sink 'mine' (plugin stats): consume: prompt 'short', lane 'truth', layer 2, moe_ffn_out, positions 0 to 2"
void add(SignalText& text, const PluginCall& call);
std::string text_of(const PluginCall& call);

// The thread is in this call while the scope lives. Calls may be nested.
class CallScope {
 public:
  explicit CallScope(const PluginCall& call);
  explicit CallScope(PluginCall&&) = delete;  // it is pointed to
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;
  ~CallScope();

 private:
  const PluginCall* outer_;
};

// The innermost call that this thread is in, or null. Safe in a signal handler.
const PluginCall* current_call();

}  // namespace moe_diag
