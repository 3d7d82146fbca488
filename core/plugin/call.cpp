// SPDX-License-Identifier: MIT
#include "core/plugin/call.hpp"

#include "core/plugin/crash.hpp"

namespace moe_diag {
namespace {

// Not touched by constructors or destructors: a signal handler may read it at any time.
constinit thread_local const PluginCall* current = nullptr;

// Adds ", " between the parts of a place.
class Parts {
 public:
  explicit Parts(SignalText& text) : text_(text) {}
  SignalText& next() {
    if (!first_) text_.add(", ");
    first_ = false;
    return text_;
  }

 private:
  SignalText& text_;
  bool first_ = true;
};

void add_name(Parts& parts, std::string_view what, std::string_view name) {
  if (name.empty()) return;
  SignalText& text = parts.next();
  text.add(what);
  text.add(" '");
  text.add(name);
  text.add("'");
}

void add_site(SignalText& text, const Site& site) {
  if (site.layer >= 0) {
    text.add("layer ");
    text.add(static_cast<std::uint64_t>(site.layer));
    text.add(", ");
  }
  text.add(name_of(site.stage));
}

}  // namespace

void add(SignalText& text, const CallPlace& place) {
  Parts parts(text);
  add_name(parts, "prompt", place.prompt);
  add_name(parts, "lane", place.lane);
  if (place.first) add_site(parts.next(), *place.first);
  if (place.last && !(place.last == place.first)) {
    text.add(" to ");
    add_site(text, *place.last);
  }
  if (place.positions.empty()) return;
  parts.next().add(place.positions.size() > 1 ? "positions " : "position ");
  text.add(static_cast<std::uint64_t>(place.positions.front()));
  if (place.positions.size() < 2) return;
  text.add(" to ");
  text.add(static_cast<std::uint64_t>(place.positions.back()));
}

void add(SignalText& text, const PluginCall& call) {
  text.add(call.plugin);
  text.add(": ");
  text.add(call.call);
  SignalText place;
  add(place, call.place);
  if (place.text().empty()) return;
  text.add(": ");
  text.add(place.text());
}

std::string text_of(const CallPlace& place) {
  SignalText text;
  add(text, place);
  return std::string(text.text());
}

std::string text_of(const PluginCall& call) {
  SignalText text;
  add(text, call);
  return std::string(text.text());
}

CallScope::CallScope(const PluginCall& call) : outer_(current) {
  give_signals_a_stack();
  current = &call;
}
CallScope::~CallScope() { current = outer_; }

const PluginCall* current_call() { return current; }

}  // namespace moe_diag
