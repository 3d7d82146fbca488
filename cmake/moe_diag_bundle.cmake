# SPDX-License-Identifier: MIT
# -DMOE_DIAG_BUNDLE=ON: the installed tree brings every shared library that a base system lacks, and so runs wherever
# glibc and libstdc++ are not older than those it was built with. ./dev package makes its archive and wheel of it.
option(MOE_DIAG_BUNDLE "Install the shared libraries that a base system lacks, too" OFF)

# Parts of an installation: the runner with all that belongs to it, the libraries, and the cuda backend.
set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME runner)
set(MOE_DIAG_RUNTIME_DEPENDENCIES "")
if(NOT MOE_DIAG_BUNDLE)
  return()
endif()

# DT_RPATH, not DT_RUNPATH: it also serves the libraries that the libraries need.
add_link_options(-Wl,--disable-new-dtags -Wl,--as-needed)
# Seen from the runner in bin/, and from the plugins in lib/moe-diag/plugins/.
set(CMAKE_INSTALL_RPATH "$ORIGIN/../lib/moe-diag/libraries" "$ORIGIN/../libraries")
set(MOE_DIAG_RUNTIME_DEPENDENCIES RUNTIME_DEPENDENCY_SET moe_diag_libraries)

function(moe_diag_install_libraries)
  set(base_system "^ld-linux" "^lib(c|m|dl|rt|pthread|resolv|util|stdc\\+\\+|gcc_s)\\.so")
  install(RUNTIME_DEPENDENCY_SET moe_diag_libraries PRE_EXCLUDE_REGEXES ${base_system}
          LIBRARY DESTINATION lib/moe-diag/libraries COMPONENT libraries)
endfunction()
