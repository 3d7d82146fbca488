# SPDX-License-Identifier: MIT
# moe_diag_add_test(NAME <name> SOURCES <file>... [LIBRARIES <target>...])
#
# A Catch2 program whose test cases ctest runs one by one, from the source folder, with the built runner and plugins at
# hand as MOE_DIAG_EXE and MOE_DIAG_PLUGINS.
find_package(Catch2 REQUIRED)
include(Catch)

function(moe_diag_add_test)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "NAME" "SOURCES;LIBRARIES")
  add_executable(${arg_NAME} ${arg_SOURCES})
  target_link_libraries(${arg_NAME} PRIVATE moe_diag_test_support ${arg_LIBRARIES})
  target_compile_definitions(${arg_NAME} PRIVATE
    MOE_DIAG_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
    MOE_DIAG_EXE="$<TARGET_FILE:moe-diag>"
    MOE_DIAG_PLUGINS="${MOE_DIAG_PLUGIN_OUTPUT_DIRECTORY}")
  add_dependencies(${arg_NAME} moe-diag moe_diag_plugins)
  catch_discover_tests(${arg_NAME} TEST_PREFIX "${arg_NAME}: " WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
                       DISCOVERY_MODE PRE_TEST)
endfunction()
