// SPDX-License-Identifier: MIT
#pragma once

// What a plugin shows before any of its code is trusted: a plain manifest, read first and compared exactly.

#include <cstdint>

#include "core/api/option.hpp"

namespace moe_diag {

class Options;

inline constexpr std::uint32_t abi_version = 6;
inline constexpr char plugin_magic[8] = {'M', 'O', 'E', 'D', 'I', 'A', 'G', '\0'};

enum class PluginKind : std::uint32_t { backend = 1, sink = 2 };

#define MOE_DIAG_STRINGIZE_(x) #x
#define MOE_DIAG_STRINGIZE(x) MOE_DIAG_STRINGIZE_(x)

#if defined(__SANITIZE_ADDRESS__)
#define MOE_DIAG_STAMP_SANITIZER "address"
#elif defined(__SANITIZE_THREAD__)
#define MOE_DIAG_STAMP_SANITIZER "thread"
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MOE_DIAG_STAMP_SANITIZER "address"
#elif __has_feature(thread_sanitizer)
#define MOE_DIAG_STAMP_SANITIZER "thread"
#endif
#endif
#ifndef MOE_DIAG_STAMP_SANITIZER
#define MOE_DIAG_STAMP_SANITIZER "none"
#endif

#if defined(_GLIBCXX_DEBUG)
#define MOE_DIAG_STAMP_DEBUG "on"
#else
#define MOE_DIAG_STAMP_DEBUG "off"
#endif

#if defined(_GLIBCXX_USE_CXX11_ABI)
#define MOE_DIAG_STAMP_CXX11 MOE_DIAG_STRINGIZE(_GLIBCXX_USE_CXX11_ABI)
#else
#define MOE_DIAG_STAMP_CXX11 "none"
#endif

// All that must be the same on both sides for C++ objects to cross, as text so that a refusal can show the difference.
#define MOE_DIAG_BUILD_STAMP                                                                 \
  "pointer=" MOE_DIAG_STRINGIZE(__SIZEOF_POINTER__) " cplusplus=" MOE_DIAG_STRINGIZE(        \
      __cplusplus) " cxx11_abi=" MOE_DIAG_STAMP_CXX11 " sanitizer=" MOE_DIAG_STAMP_SANITIZER \
                   " debug_mode=" MOE_DIAG_STAMP_DEBUG

// Append-only: fields are added at the end, and `bytes` says how many there are.
struct PluginManifest {
  char magic[8];
  std::uint32_t abi_version;
  std::uint32_t bytes;  // sizeof(PluginManifest) on the plugin's side
  PluginKind kind;
  const char* build_stamp;
  const char* name;           // what contracts call it
  const char* summary;        // one line
  const OptionInfo* options;  // every key it reads
  std::uint32_t option_count;
};

}  // namespace moe_diag

// The last line of a plugin's main file: MOE_DIAG_SINK(Type, Name, Summary, Option...). Type is constructed from `const
// Options&`; Interface is Sink or Backend. Symbols are aliases in the sense of Boost.DLL: variables that hold the
// address of the thing.
#define MOE_DIAG_PLUGIN_(Interface, Kind, Type, Name, Summary, ...)                                      \
  namespace {                                                                                            \
  constexpr auto moe_diag_option_table = ::moe_diag::option_table(__VA_ARGS__);                          \
  const ::moe_diag::PluginManifest moe_diag_manifest_value = {{'M', 'O', 'E', 'D', 'I', 'A', 'G', '\0'}, \
                                                              ::moe_diag::abi_version,                   \
                                                              sizeof(::moe_diag::PluginManifest),        \
                                                              Kind,                                      \
                                                              MOE_DIAG_BUILD_STAMP,                      \
                                                              Name,                                      \
                                                              Summary,                                   \
                                                              moe_diag_option_table.data(),              \
                                                              moe_diag_option_table.size()};             \
  Interface* moe_diag_create_value(const ::moe_diag::Options& options) { return new Type(options); }     \
  }                                                                                                      \
  extern "C" {                                                                                           \
  __attribute__((visibility("default"), used)) const void* moe_diag_manifest = &moe_diag_manifest_value; \
  __attribute__((visibility("default"), used)) const void* moe_diag_create =                             \
      reinterpret_cast<const void*>(&moe_diag_create_value);                                             \
  }

#define MOE_DIAG_SINK(Type, Name, Summary, ...) \
  MOE_DIAG_PLUGIN_(::moe_diag::Sink, ::moe_diag::PluginKind::sink, Type, Name, Summary __VA_OPT__(, ) __VA_ARGS__)
#define MOE_DIAG_BACKEND(Type, Name, Summary, ...) \
  MOE_DIAG_PLUGIN_(::moe_diag::Backend, ::moe_diag::PluginKind::backend, Type, Name, Summary __VA_OPT__(, ) __VA_ARGS__)
