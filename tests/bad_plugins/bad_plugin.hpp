// SPDX-License-Identifier: MIT
#pragma once

#include "core/api/sink.hpp"

namespace moe_diag {

// Does nothing, well. A bad plugin differs from it in one thing.
class IdleSink : public Sink {
 public:
  explicit IdleSink(const Options&) {}
  void open(const RunInfo&) override {}
  void consume(const Event&) override {}
  void close() override {}
};

inline Sink* make_idle_sink(const Options& options) { return new IdleSink(options); }

// What a good plugin of this folder would show.
inline constexpr PluginManifest good_manifest = {{'M', 'O', 'E', 'D', 'I', 'A', 'G', '\0'},
                                                 abi_version,
                                                 sizeof(PluginManifest),
                                                 PluginKind::sink,
                                                 MOE_DIAG_BUILD_STAMP,
                                                 "bad",
                                                 "a bad plugin",
                                                 nullptr,
                                                 0};

}  // namespace moe_diag

// Exports the two aliases with a manifest and a factory that the macros of abi.hpp would not make.
#define MOE_DIAG_EXPORT_BAD(Manifest, Factory)                                                                       \
  extern "C" {                                                                                                       \
  __attribute__((visibility("default"), used)) const void* moe_diag_manifest = &Manifest;                            \
  __attribute__((visibility("default"), used)) const void* moe_diag_create = reinterpret_cast<const void*>(Factory); \
  }
