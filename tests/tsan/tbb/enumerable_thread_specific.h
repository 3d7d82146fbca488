// SPDX-License-Identifier: MIT
#pragma once

#include "tests/tsan/tbb/threads.hpp"
