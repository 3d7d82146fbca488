// SPDX-License-Identifier: MIT
#include "core/plugin/crash.hpp"

#include <execinfo.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "core/gguf/mapped_file.hpp"
#include "core/gguf/signal_text.hpp"
#include "core/plugin/call.hpp"

namespace moe_diag {
namespace {

struct FatalSignal {
  int number;
  const char* name;  // strsignal() may allocate
};
constexpr std::array fatal_signals{FatalSignal{SIGSEGV, "segmentation fault"}, FatalSignal{SIGBUS, "bus error"},
                                   FatalSignal{SIGFPE, "arithmetic exception"},
                                   FatalSignal{SIGILL, "illegal instruction"}, FatalSignal{SIGABRT, "aborted"}};
std::array<struct sigaction, fatal_signals.size()> previous_actions;

// A loaded plugin. `path` is never freed, as no plugin is ever unloaded.
struct LoadedRange {
  std::uintptr_t first = 0, last = 0;
  const char* path = nullptr;
};
std::array<LoadedRange, 64> ranges;  // the first `range_count` are valid
std::atomic<std::size_t> range_count = 0;
std::atomic_flag told = ATOMIC_FLAG_INIT;

const LoadedRange* range_of(const void* address) {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  const auto* end = ranges.data() + range_count.load(std::memory_order_acquire);
  const auto* found = std::find_if(static_cast<const LoadedRange*>(ranges.data()), end,
                                   [&](const LoadedRange& r) { return at >= r.first && at < r.last; });
  return found == end ? nullptr : found;
}

// "/path/moe_diag_sink_x.so+0x12ab": the innermost code of a plugin on this thread's stack.
bool add_plugin_frame(SignalText& text) {
  std::array<void*, 64> frames;
  const int count = ::backtrace(frames.data(), static_cast<int>(frames.size()));
  for (int i = 0; i < count; ++i)
    if (const LoadedRange* range = range_of(frames[static_cast<std::size_t>(i)])) {
      text.add(range->path);
      text.add("+0x");
      text.add(reinterpret_cast<std::uintptr_t>(frames[static_cast<std::size_t>(i)]) - range->first, 16);
      return true;
    }
  return false;
}

// In two writes: a stack that is damaged may end the process while it is walked.
void tell_of_call(const PluginCall& call, const char* signal) {
  SignalText what;
  what.add("moe-diag: error: ");
  add(what, call);
  what.add(": the process died in this call: ");
  what.add(signal);
  what.write_to_stderr();
  SignalText where;
  where.add(", in ");
  if (!add_plugin_frame(where)) where = {};
  where.add("\n");
  where.write_to_stderr();
}

// A thread of ours or of a library that is in no call: only code of a plugin on its stack speaks of one.
void tell_of_thread(const char* signal) {
  SignalText text;
  text.add("moe-diag: error: ");
  if (!add_plugin_frame(text)) return;
  text.add(": the process died in a thread of this plugin: ");
  text.add(signal);
  text.add("\n");
  text.write_to_stderr();
}

bool sent_by_another_process(const siginfo_t& info) { return info.si_code <= 0 && info.si_pid != ::getpid(); }

void on_fatal_signal(int signal, siginfo_t* info, void* context) {
  const auto at = static_cast<std::size_t>(std::find_if(fatal_signals.begin(), fatal_signals.end(),
                                                        [&](const FatalSignal& s) { return s.number == signal; }) -
                                           fatal_signals.begin());
  const bool of_a_file = signal == SIGBUS && info->si_code > 0 && lies_in_mapped_file(info->si_addr);
  if (!of_a_file && !sent_by_another_process(*info) && !told.test_and_set()) {
    if (const PluginCall* call = current_call())
      tell_of_call(*call, fatal_signals[at].name);
    else
      tell_of_thread(fatal_signals[at].name);
  }
  const struct sigaction& before = previous_actions[at];
  if ((before.sa_flags & SA_SIGINFO) != 0) return before.sa_sigaction(signal, info, context);
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) return before.sa_handler(signal);
  ::signal(signal, SIG_DFL);
  if (info->si_code <= 0) ::raise(signal);  // else the instruction is repeated, and ends the process
}

void install_handlers() {
  std::array<void*, 1> frame;
  ::backtrace(frame.data(), 1);  // loads what it needs now: a handler must not
  for (std::size_t i = 0; i < fatal_signals.size(); ++i) {
    struct sigaction action {};
    action.sa_sigaction = on_fatal_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigemptyset(&action.sa_mask);
    ::sigaction(fatal_signals[i].number, &action, &previous_actions[i]);
  }
}

struct Search {
  std::uintptr_t symbol;
  LoadedRange found;
};

int look_at_object(dl_phdr_info* info, std::size_t /*size*/, void* data) {
  auto& search = *static_cast<Search*>(data);
  LoadedRange range{UINTPTR_MAX, 0, nullptr};
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    range.first = std::min<std::uintptr_t>(range.first, info->dlpi_addr + segment.p_vaddr);
    range.last = std::max<std::uintptr_t>(range.last, info->dlpi_addr + segment.p_vaddr + segment.p_memsz);
  }
  if (search.symbol < range.first || search.symbol >= range.last) return 0;
  search.found = range;
  return 1;
}

class AlternateStack {
 public:
  AlternateStack() {
    stack_t now{};
    if (::sigaltstack(nullptr, &now) != 0 || (now.ss_flags & SS_DISABLE) == 0) return;  // a sanitizer has made one
    memory_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
    stack_t mine{};
    mine.ss_sp = memory_.get();
    mine.ss_size = bytes;
    ::sigaltstack(&mine, nullptr);
  }
  AlternateStack(const AlternateStack&) = delete;
  AlternateStack& operator=(const AlternateStack&) = delete;
  ~AlternateStack() {
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    if (memory_) ::sigaltstack(&none, nullptr);
  }

 private:
  static constexpr std::size_t bytes = 64 << 10;  // registers alone take up to 11 KB
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace

void watch_for_crashes(const std::string& path, const void* symbol) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  static std::once_flag installed;
  std::call_once(installed, install_handlers);
  Search search{reinterpret_cast<std::uintptr_t>(symbol), {}};
  const std::size_t count = range_count.load();
  if (::dl_iterate_phdr(look_at_object, &search) == 0 || count == ranges.size()) return;
  static auto& paths = *new std::array<std::string, std::tuple_size_v<decltype(ranges)>>;  // reached by the handler
  paths[count] = path;
  search.found.path = paths[count].c_str();
  ranges[count] = search.found;
  range_count.store(count + 1, std::memory_order_release);
}

void give_signals_a_stack() { thread_local const AlternateStack stack; }

}  // namespace moe_diag
