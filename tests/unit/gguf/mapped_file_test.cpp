// SPDX-License-Identifier: MIT
#include "core/gguf/mapped_file.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "core/api/error.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

// A file of some bytes that disappears with the test.
class Scratch {
 public:
  explicit Scratch(std::size_t size)
      : path_(std::filesystem::temp_directory_path() / ("moe_diag_mapped_" + std::to_string(::getpid()))) {
    std::ofstream(path_) << std::string(size, 'x');
  }
  ~Scratch() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

ErrorKind kind_of_open(const std::string& path) {
  try {
    MappedFile::open(path);
  } catch (const Error& e) {
    return e.kind();
  }
  FAIL(path << " was opened");
  return ErrorKind::usage;
}

TEST_CASE("a file is mapped whole") {
  const Scratch scratch(5000);
  const MappedFile file = MappedFile::open(scratch.path());
  CHECK(file.bytes().size() == 5000);
  CHECK(file.bytes()[4999] == std::byte{'x'});
  CHECK(file.path() == scratch.path());
}

TEST_CASE("what cannot be mapped is refused with what it is") {
  CHECK(kind_of_open("no/such/file.gguf") == ErrorKind::absent);
  CHECK_THROWS_WITH(MappedFile::open("no/such/file.gguf"), "no/such/file.gguf: there is no such file");
  const Scratch empty(0);
  CHECK(kind_of_open(empty.path()) == ErrorKind::environment);
  CHECK_THROWS_WITH(MappedFile::open(empty.path()), empty.path() + ": the file is empty");
  CHECK(kind_of_open(".") == ErrorKind::environment);
  CHECK_THROWS_WITH(MappedFile::open("."), ".: is a folder, expected a file");
  CHECK_THROWS_WITH(MappedFile::open("/dev/null"), "/dev/null: is not a regular file, expected a file");
}

// What a process says that reads byte `at` after the file was cut to nothing, and its exit code.
struct Death {
  std::string message;
  int code;
};
Death read_after_cutting(std::size_t at) {
  const Scratch scratch(20000);
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(pipe[1], STDERR_FILENO);
    MappedFile file = MappedFile::open(scratch.path());
    file.name_ranges({{"tensor a", 4096, 8192}, {"tensor b", 8192, 20000}});
    std::filesystem::resize_file(scratch.path(), 0);
    const volatile std::byte* byte = file.bytes().data() + at;
    static_cast<void>(*byte);
    ::_exit(0);
  }
  ::close(pipe[1]);
  Death death;
  char buffer[512];
  for (ssize_t n; (n = ::read(pipe[0], buffer, sizeof buffer)) > 0;)
    death.message.append(buffer, static_cast<std::size_t>(n));
  ::close(pipe[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  death.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return death;
}

TEST_CASE("a file that is cut while mapped ends the process with the name of what was read") {
  const Death tensor = read_after_cutting(9000);
  CHECK(tensor.code == 4);
  CHECK_THAT(tensor.message, Catch::Matchers::Contains("byte 9000, in tensor b, cannot be read any more"));
  CHECK_THAT(tensor.message, Catch::Matchers::Contains("moe_diag_mapped_"));
  const Death header = read_after_cutting(10);
  CHECK(header.code == 4);
  CHECK_THAT(header.message, Catch::Matchers::Contains("byte 10, in the header, cannot be read"));
}

}  // namespace
}  // namespace moe_diag
