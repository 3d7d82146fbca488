# SPDX-License-Identifier: MIT
# How every target of the project is compiled. The numerics need contraction off: a fused multiply-add is written, never inferred.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "Debug, Release, RelWithDebInfo" FORCE)
endif()

option(MOE_DIAG_WERROR "Treat warnings as errors" OFF)

# GCC 13 takes a reference that a function returns for one into a temporary argument, whatever the function does.
add_library(moe_diag_compile_options INTERFACE)
target_compile_options(moe_diag_compile_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Woverloaded-virtual
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_GREATER:$<CXX_COMPILER_VERSION>,13>>:-Wno-dangling-reference> -ffp-contract=off $<$<BOOL:${MOE_DIAG_WERROR}>:-Werror>>)
