# SPDX-License-Identifier: MIT
# -DMOE_DIAG_SANITIZE=address;undefined or =thread, for every target alike: plugins are refused when theirs differs.

set(MOE_DIAG_SANITIZE "" CACHE STRING "Sanitizers, as -fsanitize takes them, separated by semicolons")

if(MOE_DIAG_SANITIZE)
  list(JOIN MOE_DIAG_SANITIZE "," moe_diag_sanitizers)
  # -O1 and short debug information: instrumented vector code at -O3 takes GCC minutes a file. GCC 12 also takes
  # instrumented code of its own library for uninitialised reads.
  add_compile_options(-O1 -g1 $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  add_compile_options(-fsanitize=${moe_diag_sanitizers} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${moe_diag_sanitizers})
  # oneTBB as packaged is not built with ThreadSanitizer: plain threads take its place.
  if("thread" IN_LIST MOE_DIAG_SANITIZE)
    include_directories(BEFORE ${PROJECT_SOURCE_DIR}/tests/tsan)
  endif()
endif()
