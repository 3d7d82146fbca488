# SPDX-License-Identifier: MIT
# The runner, the contracts and what a plugin is written against; each plugin installs itself (moe_diag_add_plugin).

install(TARGETS moe-diag RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/contracts/ DESTINATION ${CMAKE_INSTALL_DATADIR}/moe-diag/contracts
        PATTERN rejected EXCLUDE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/core/api DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/moe-diag/core
        FILES_MATCHING PATTERN *.hpp)
