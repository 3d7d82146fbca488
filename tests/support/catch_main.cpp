// SPDX-License-Identifier: MIT
#include <cstdlib>

// The programs that tests start remember digests of models here, and not in the home of who tests.
static const int cache_is_set = ::setenv("XDG_CACHE_HOME", MOE_DIAG_TEST_CACHE, 1);

#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
int main(int argc, char** argv) { return Catch::Session().run(argc, argv); }
#else
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
