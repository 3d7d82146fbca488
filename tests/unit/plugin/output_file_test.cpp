// SPDX-License-Identifier: MIT
// What sinks inherit for the files that they write: see docs/files.md.
#include "core/api/output_file.hpp"

#include <sys/stat.h>

#include <filesystem>
#include <future>
#include <string>

#include "core/api/npy.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/unit/plugin/sink_support.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using Kind = OutputPlace::Kind;

std::string claim_error(const RunInfo& run, const std::string& file, ErrorKind kind) {
  try {
    claim_file(run, file);
  } catch (const Error& e) {
    CHECK(e.kind() == kind);
    return e.what();
  }
  return "no error";
}

// Reads a FIFO to its end while somebody else writes it.
std::future<std::string> reader_of(const std::string& fifo) {
  return std::async(std::launch::async, [fifo] { return read_text(fifo); });
}

}  // namespace

TEST_CASE("a place is the end of the links that lead there") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "sub");
  write_text(folder / "sub/file", "x");
  fs::create_symlink("sub", folder / "to_sub");
  fs::create_symlink("to_sub/file", folder / "to_file");
  fs::create_symlink("to_sub/new", folder / "to_new");
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  fs::create_symlink(folder / "fifo", folder / "to_fifo");
  fs::create_symlink("loop", folder / "loop");
  CHECK(find_output(folder / "none").kind == Kind::fresh);
  CHECK(find_output(folder / "sub").kind == Kind::folder);
  CHECK(find_output(folder / "to_sub").kind == Kind::folder);
  CHECK(find_output(folder / "to_file").kind == Kind::file);
  CHECK(fs::equivalent(find_output(folder / "to_file").target, folder / "sub/file"));
  CHECK(find_output(folder / "to_new").kind == Kind::fresh);
  CHECK(fs::equivalent(find_output(folder / "to_new").folder(), folder / "sub"));
  CHECK(find_output(folder / "to_fifo").kind == Kind::stream);
  CHECK(find_output(folder / "to_fifo").descriptor == -1);
  CHECK(find_output("/dev/null").kind == Kind::stream);
  CHECK(find_output("/dev/stdout").descriptor == 1);
  CHECK(find_output("/proc/self/fd/2").descriptor == 2);
  fs::create_symlink("/dev/stderr", folder / "to_stderr");
  CHECK(find_output(folder / "to_stderr").descriptor == 2);
  CHECK_THAT(error_of([&] { find_output(folder / "loop"); }), Contains("loop: cannot be followed"));
}

TEST_CASE("a whole file replaces the target of a link, and goes through a FIFO") {
  const TemporaryFolder folder;
  write_text(folder / "file", "before");
  fs::create_symlink("file", folder / "link");
  write_whole_file(folder / "link", "after");
  CHECK(read_text(folder / "file") == "after");
  CHECK(fs::is_symlink(folder / "link"));
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  std::future<std::string> read = reader_of(folder / "fifo");
  write_whole_file(folder / "fifo", {"one", " two"});
  CHECK(read.get() == "one two");
  CHECK(fs::is_fifo(folder / "fifo"));
  CHECK_THAT(error_of([] { write_whole_file("/dev/full", "x"); }), Contains("/dev/full: cannot write: No space left"));
  read = reader_of(folder / "fifo");
  write_npy<double>(folder / "fifo", std::vector<double>{1, 2}, {2});
  CHECK(read.get().size() == npy_header_bytes + 16);
}

TEST_CASE("a file that fails leaves what was there, and nothing beside it") {
  const TemporaryFolder folder;
  write_text(folder / "file", "before");
  fs::create_directory(folder / "folder");
  {
    PartialFile partial(folder / "file");
    partial.write("xy", 2);
    CHECK(std::distance(fs::directory_iterator(folder.str()), {}) == 3);
  }
  CHECK(read_text(folder / "file") == "before");
  CHECK_THROWS_AS(write_whole_file(folder / "folder", "x"), Error);
  CHECK(std::distance(fs::directory_iterator(folder.str()), {}) == 2);
}

TEST_CASE("two that write one file at once leave one of both, whole") {
  const TemporaryFolder folder;
  const std::string a(1 << 20, 'a'), b(1 << 20, 'b');
  std::future<void> other = std::async(std::launch::async, [&] {
    for (int i = 0; i < 5; ++i) write_whole_file(folder / "file", a);
  });
  for (int i = 0; i < 5; ++i) write_whole_file(folder / "file", b);
  other.get();
  const std::string left = read_text(folder / "file");
  CHECK((left == a || left == b));
  CHECK(std::distance(fs::directory_iterator(folder.str()), {}) == 1);
}

TEST_CASE("a sink's file is claimed by one rule") {
  const TemporaryFolder folder;
  MadeRun run(folder / "out");
  CHECK(claim_file(run.info, "new/table.csv") == folder / "out/new/table.csv");
  CHECK(fs::is_directory(folder / "out/new"));
  write_text(folder / "out/file", "x");
  fs::create_symlink("file", folder / "out/link");
  fs::create_symlink("later", folder / "out/dangling");
  REQUIRE(::mkfifo((folder / "out/fifo").c_str(), 0600) == 0);
  for (const std::string name : {"file", "link"})
    CHECK_THAT(claim_error(run.info, name, ErrorKind::usage),
               Contains(name + ": is there already; replace it with --"));
  for (const std::string name : {"new", ".", "new/"})
    CHECK_THAT(claim_error(run.info, name, ErrorKind::usage), Contains("is a folder"));
  CHECK_THAT(claim_error(run.info, "file/below", ErrorKind::environment), Contains("Not a directory"));
  for (const std::string name : {"dangling", "fifo"}) CHECK(claim_file(run.info, name) == folder / ("out/" + name));
  CHECK(claim_file(run.info, "/dev/null") == "/dev/null");
  run.info.overwrite = true;
  for (const std::string name : {"file", "link"}) CHECK(claim_file(run.info, name) == folder / ("out/" + name));
  CHECK_THAT(claim_error(run.info, "new", ErrorKind::usage), Contains("is a folder"));
}

TEST_CASE("sinks that keep arrays follow links too, and refuse what they cannot write through") {
  const TemporaryFolder folder;
  MadeRun run(folder.str());
  const auto events = made_events();
  fs::create_symlink("real.h5", folder / "link.h5");
  fs::create_symlink("real", folder / "dump");
  const auto deliver_to = [&](const std::string& sink, const OptionList& options) {
    deliver(*loaded_sink(sink, options), run.info, events);
  };
  for (const bool again : {false, true}) {
    run.info.overwrite = again;
    deliver_to("hdf5", {{"file", "link.h5"}});
    deliver_to("npy", {{"dir", "dump"}});
    CHECK(fs::is_symlink(folder / "link.h5"));
    CHECK(fs::is_regular_file(folder / "real.h5"));
    CHECK(fs::is_symlink(folder / "dump"));
    CHECK(fs::exists(folder / "real/manifest.json"));
  }
  REQUIRE(::mkfifo((folder / "fifo.h5").c_str(), 0600) == 0);
  CHECK_THAT(error_of([&] { deliver_to("hdf5", {{"file", "fifo.h5"}}); }), Contains("is a FIFO or a device"));
  CHECK_THAT(error_of([&] { deliver_to("npy", {{"dir", "fifo.h5"}}); }), Contains("is no folder"));
  CHECK(fs::is_fifo(folder / "fifo.h5"));
}

}  // namespace moe_diag
