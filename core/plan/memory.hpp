// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>

namespace moe_diag {

// Bytes that the system can give this process without swapping, or ending it: control groups may allow less than there
// is.
std::uint64_t available_memory();

// What the control groups of a process leave it, files in memory that can be dropped included; no limit is the largest
// value. `groups` is its /proc/self/cgroup, `mount` where control groups are: of version 2, or of version 1 with a
// folder `memory`.
std::uint64_t available_in_groups(const std::filesystem::path& groups, const std::filesystem::path& mount);

}  // namespace moe_diag
