# SPDX-License-Identifier: MIT
# moe_diag_add_test(NAME <name> SOURCES <file>... [LIBRARIES <target>...])
#
# A Catch2 program whose test cases ctest runs one by one, from the source folder, with the built runner and plugins at
# hand as MOE_DIAG_EXE and MOE_DIAG_PLUGINS, and a Python that has numpy and gguf as MOE_DIAG_PYTHON. What the tests
# themselves compute is little: -O1 halves the time that compiling them takes.
find_package(Catch2 REQUIRED)
include(Catch)

# The Python of .venv, which cmake/bootstrap.sh makes. Any other may lack what the tests compare with; they then fail
# and say so.
if(EXISTS ${PROJECT_SOURCE_DIR}/.venv/bin/python)
  set(moe_diag_python ${PROJECT_SOURCE_DIR}/.venv/bin/python)
else()
  find_program(moe_diag_python python3 REQUIRED NO_CACHE)
endif()
set(MOE_DIAG_PYTHON ${moe_diag_python} CACHE FILEPATH "Python with tests/requirements.txt, for the tests")

function(moe_diag_add_test)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "NAME" "SOURCES;LIBRARIES")
  add_executable(${arg_NAME} ${arg_SOURCES})
  target_link_libraries(${arg_NAME} PRIVATE moe_diag_test_support ${arg_LIBRARIES})
  target_compile_options(${arg_NAME} PRIVATE -O1)
  add_dependencies(${arg_NAME} moe-diag moe_diag_plugins)
  catch_discover_tests(${arg_NAME} TEST_PREFIX "${arg_NAME}: " WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
                       DISCOVERY_MODE PRE_TEST)
endfunction()
