# SPDX-License-Identifier: MIT
# The Debian package that cpack makes: it leaves the libraries to the distribution it was built on. cmake/package.sh
# makes the other kinds of package from an installed tree.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME moe-diag)
set(CPACK_PACKAGE_VENDOR "The moe-diag authors")
set(CPACK_PACKAGE_CONTACT "The moe-diag authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY ${PROJECT_DESCRIPTION})
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL runner)
if(TARGET moe_diag_backend_cuda)
  list(APPEND CPACK_COMPONENTS_ALL cuda)
endif()

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_RUNNER_PACKAGE_NAME moe-diag)
set(CPACK_DEBIAN_RUNNER_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_CUDA_PACKAGE_NAME moe-diag-cuda)
set(CPACK_DEBIAN_CUDA_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_CUDA_PACKAGE_DEPENDS "moe-diag (= ${PROJECT_VERSION})")
set(CPACK_COMPONENT_CUDA_DESCRIPTION "the cuda backend, for NVIDIA GPUs")
include(CPack)

# The licences of the project and of what is compiled into it, where Debian packages keep them.
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION share/doc/moe-diag RENAME copyright)
foreach(package libboost-dev libcli11-dev nlohmann-json3-dev libfmt-dev libhwy-dev libxxhash-dev libutfcpp-dev)
  install(FILES /usr/share/doc/${package}/copyright DESTINATION share/doc/moe-diag/licences RENAME ${package} OPTIONAL)
endforeach()
