# SPDX-License-Identifier: MIT
# Every library the project uses, under one name each. cmake/bootstrap.sh installs them.

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(TBB REQUIRED)
# CMake 3.30 and later warn unless Boost is found by its own package.
if(POLICY CMP0167)
  cmake_policy(SET CMP0167 NEW)
endif()
find_package(Boost 1.74 REQUIRED)
find_package(HDF5 REQUIRED COMPONENTS C)
find_package(PkgConfig REQUIRED)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(hwy REQUIRED IMPORTED_TARGET libhwy)

# yaml-cpp renamed its target after 0.7.
if(NOT TARGET yaml-cpp::yaml-cpp)
  add_library(yaml-cpp::yaml-cpp ALIAS yaml-cpp)
endif()

# utf8cpp, header-only: its target has another name in each version.
find_path(MOE_DIAG_UTF8 utf8.h PATH_SUFFIXES utf8cpp REQUIRED)
add_library(moe_diag_utf8 INTERFACE)
target_include_directories(moe_diag_utf8 SYSTEM INTERFACE ${MOE_DIAG_UTF8})

# Boost.DLL, header-only: with std::filesystem nothing of Boost is linked.
add_library(moe_diag_boost_dll INTERFACE)
target_link_libraries(moe_diag_boost_dll INTERFACE Boost::headers ${CMAKE_DL_LIBS})
target_compile_definitions(moe_diag_boost_dll INTERFACE BOOST_DLL_USE_STD_FS)
