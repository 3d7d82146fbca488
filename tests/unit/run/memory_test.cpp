// SPDX-License-Identifier: MIT
#include "core/plan/memory.hpp"

#include <cstdint>
#include <limits>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

constexpr std::uint64_t no_limit = std::numeric_limits<std::uint64_t>::max();

class Groups {
 public:
  void write(const std::string& name, const std::string& text) { write_text(folder_ / name, text); }
  std::uint64_t available() const { return available_in_groups(folder_ / "of_process", folder_ / "mount"); }

 private:
  TemporaryFolder folder_;
};

}  // namespace

TEST_CASE("there is memory, and no more of it than the machine has") {
  CHECK(available_memory() > 1 << 20);
  CHECK(available_memory() < no_limit);
}

TEST_CASE("a control group and those it is in limit what is available; files in memory can be dropped") {
  Groups groups;
  CHECK(groups.available() == no_limit);
  groups.write("of_process", "0::/a/b\n");
  CHECK(groups.available() == no_limit);
  groups.write("mount/a/b/memory.max", "max\n");
  groups.write("mount/a/b/memory.current", "700\n");
  CHECK(groups.available() == no_limit);
  groups.write("mount/a/memory.max", "1000\n");
  groups.write("mount/a/memory.current", "900\n");
  CHECK(groups.available() == 100);
  groups.write("mount/a/memory.stat", "anon 500\nfile 400\ninactive_file 300\nactive_file 50\n");
  CHECK(groups.available() == 450);
  groups.write("mount/a/b/memory.max", "600\n");
  CHECK(groups.available() == 0);
}

TEST_CASE("in a container the group may be known by another path, and be the one that is mounted") {
  Groups groups;
  groups.write("of_process", "0::/outside/here\n");
  groups.write("mount/memory.max", "5000\n");
  groups.write("mount/memory.current", "2000\n");
  CHECK(groups.available() == 3000);
}

TEST_CASE("control groups of version 1 have names of their own") {
  Groups groups;
  groups.write("of_process", "5:devices:/a\n4:memory:/a\n");
  groups.write("mount/memory/a/memory.limit_in_bytes", "1000\n");
  groups.write("mount/memory/a/memory.usage_in_bytes", "900\n");
  groups.write("mount/memory/a/memory.stat", "total_inactive_file 100\ntotal_active_file 20\ninactive_file 7\n");
  CHECK(groups.available() == 220);
  groups.write("of_process", "nonsense\n::\n");
  CHECK(groups.available() == no_limit);
}

}  // namespace moe_diag
