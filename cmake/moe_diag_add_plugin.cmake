# SPDX-License-Identifier: MIT
# moe_diag_add_plugin(KIND sink|backend [NAME <name>] [SOURCES <file>...] [LIBRARIES <target>...])
#
# A loadable module moe_diag_<kind>_<name>.so, by default named after its folder and made of the folder's *.cpp.
# It sees moe_diag::api and nothing else of the project. Installed, this file is part of find_package(moe_diag), and a
# plugin of another project is built at the top of its build folder.
function(moe_diag_add_plugin)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "KIND;NAME" "SOURCES;LIBRARIES")
  if(NOT arg_KIND MATCHES "^(sink|backend)$")
    message(FATAL_ERROR "moe_diag_add_plugin: KIND is sink or backend, found '${arg_KIND}'")
  endif()
  if(NOT arg_NAME)
    get_filename_component(arg_NAME ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  endif()
  if(NOT arg_SOURCES)
    file(GLOB arg_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  endif()

  set(target moe_diag_${arg_KIND}_${arg_NAME})
  add_library(${target} MODULE ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE moe_diag::api ${arg_LIBRARIES})
  if(NOT MOE_DIAG_PLUGIN_OUTPUT_DIRECTORY)
    set(MOE_DIAG_PLUGIN_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  endif()
  set_target_properties(${target} PROPERTIES
    PREFIX ""
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    LIBRARY_OUTPUT_DIRECTORY ${MOE_DIAG_PLUGIN_OUTPUT_DIRECTORY})
  install(TARGETS ${target} ${MOE_DIAG_RUNTIME_DEPENDENCIES} LIBRARY DESTINATION lib/moe-diag/plugins)
endfunction()
