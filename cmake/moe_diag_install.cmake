# SPDX-License-Identifier: MIT
# The runner, the contracts, the pages, and what a plugin is written against: find_package(moe_diag) gives moe_diag::api,
# moe_diag_add_plugin(), the runner as moe_diag::moe-diag, and MOE_DIAG_PLUGIN_DIR. Each plugin installs itself
# (moe_diag_add_plugin). The tree finds its own parts by their place in it, so it can be moved as a whole.
include(CMakePackageConfigHelpers)

set(moe_diag_package lib/cmake/moe_diag)
install(TARGETS moe_diag_api EXPORT moe_diag_targets)
install(TARGETS moe-diag EXPORT moe_diag_targets ${MOE_DIAG_RUNTIME_DEPENDENCIES} RUNTIME DESTINATION bin)
install(EXPORT moe_diag_targets NAMESPACE moe_diag:: DESTINATION ${moe_diag_package})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/core/api DESTINATION include/moe-diag/core FILES_MATCHING PATTERN *.hpp)
install(FILES ${PROJECT_SOURCE_DIR}/apps/c/moe_diag_dump.h DESTINATION include)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/contracts/ DESTINATION share/moe-diag/contracts PATTERN rejected EXCLUDE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/apps/python/moe_diag DESTINATION share/moe-diag/python PATTERN __pycache__ EXCLUDE)
install(FILES ${PROJECT_SOURCE_DIR}/apps/python/pyproject.toml DESTINATION share/moe-diag/python)
# Beside the contracts, as in the tree: pages refer to contracts, and the worked examples are part of the pages.
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs DESTINATION share/moe-diag)
install(FILES ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION share/moe-diag)

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/moe_diag_config.cmake.in moe_diag-config.cmake
  INSTALL_DESTINATION ${moe_diag_package} NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(moe_diag-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moe_diag-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/moe_diag-config-version.cmake
              ${CMAKE_CURRENT_LIST_DIR}/moe_diag_add_plugin.cmake
        DESTINATION ${moe_diag_package})

if(MOE_DIAG_BUNDLE)
  moe_diag_install_libraries()
endif()
