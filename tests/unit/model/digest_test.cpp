// SPDX-License-Identifier: MIT
// The digest of a model: of every byte, whoever computes it, and remembered only while it is right.
#include <fcntl.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "core/api/error.hpp"
#include "core/model/digest_memory.hpp"
#include "core/model/digest_work.hpp"
#include "core/model/model.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/test_cache.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::byte>;

Bytes made_bytes(std::size_t count) {
  Bytes bytes(count);
  std::uint64_t state = count + 1;
  for (std::size_t i = 0; i + 8 <= count; i += 8) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    std::memcpy(&bytes[i], &state, 8);
  }
  return bytes;
}

std::string digest_of(const Bytes& header, const std::vector<Bytes>& tensors, bool behind = false) {
  std::vector<std::span<const std::byte>> spans(tensors.begin(), tensors.end());
  DigestWork work({header}, spans);
  if (behind) work.begin();
  return work.finish({}, {});
}

// A tiny model in a file of its own, and a folder to remember digests in.
struct Remembering {
  Remembering() {
    REQUIRE(run_tool("synth " + quoted(path) + " --seed 7 >/dev/null").code == 0);
    let_files_settle();
  }

  // What opening it anew gives, and whether that was remembered.
  std::string digest(bool remembered) const {
    const Model model = Model::open(path);
    std::string text = model.digest();
    CHECK(model.digest_was_remembered() == remembered);
    return text;
  }
  // Flips a bit of one expert, far behind what sampling sees.
  void change() const {
    const Model model = Model::open(path);
    const Weight& weight = model.weight("ffn_down_exps", 2);
    const auto at = static_cast<std::streamoff>(model.place_of(weight).offset + 5 * weight.expert_bytes() + 100);
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(at);
    const int byte = file.get();
    file.seekp(at);
    file.put(static_cast<char>(byte ^ 1));
  }
  std::vector<fs::path> entries() const {
    std::vector<fs::path> found;
    if (fs::exists(folder / "cache"))
      for (const auto& entry : fs::recursive_directory_iterator(folder / "cache"))
        if (!entry.is_directory()) found.push_back(entry.path());
    return found;
  }

  TemporaryFolder folder;
  Variable cache{"XDG_CACHE_HOME", folder / "cache"};
  const std::string path = folder / "models/m.gguf";

 private:
  const bool made_ = fs::create_directories(folder / "models");
};

}  // namespace

TEST_CASE("the digest is that of pieces of 4 MiB, of tensors, of the model, in their order") {
  const auto xxh3 = [](const void* data, std::size_t bytes) { return XXH3_64bits(data, bytes); };
  const Bytes header = made_bytes(100), small = made_bytes(1000), large = made_bytes((4 << 20) + 5);
  const std::array<std::uint64_t, 2> pieces{xxh3(large.data(), 4 << 20), xxh3(large.data() + (4 << 20), 5)};
  const std::uint64_t of_small = xxh3(small.data(), small.size());
  const std::array<std::uint64_t, 3> parts{xxh3(header.data(), header.size()), xxh3(&of_small, 8),
                                           xxh3(pieces.data(), 16)};
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(xxh3(parts.data(), 24)));
  CHECK(digest_of(header, {small, large}) == text.data());
  CHECK(digest_of(header, {large, small}) != text.data());
}

TEST_CASE("every byte counts, and threads do not") {
  const Bytes header = made_bytes(64);
  std::vector<Bytes> tensors{made_bytes(33 << 20), made_bytes(7), made_bytes(40 << 20)};
  const std::string digest = digest_of(header, tensors);
  CHECK(digest_of(header, tensors, true) == digest);
  for (const auto& [tensor, at] : {std::pair<int, int>{0, (33 << 20) - 1}, {1, 0}, {2, 4097}, {2, 4 << 20}}) {
    std::byte& byte = tensors[static_cast<std::size_t>(tensor)][static_cast<std::size_t>(at)];
    byte ^= std::byte{1};
    CHECK(digest_of(header, tensors, true) != digest);
    byte ^= std::byte{1};
  }
  CHECK(digest_of(made_bytes(65), tensors) != digest);
}

TEST_CASE("a digest that is interrupted is an error, and can be finished later") {
  const Bytes header = made_bytes(64);
  const std::vector<Bytes> tensors{made_bytes(70 << 20)};
  const std::vector<std::span<const std::byte>> spans(tensors.begin(), tensors.end());
  DigestWork work({header}, spans);
  work.begin();
  CHECK_THROWS_AS(work.finish([] { return true; }, {}), Error);
  CHECK(work.finish({}, {}) == digest_of(header, tensors));
}

TEST_CASE("a model in a file and the same in memory have one digest; another byte of one expert gives another") {
  const Remembering made;
  const Model before = Model::open(made.path);
  CHECK(before.digest() == Model::synthetic({"tiny", 0, "q4_k_m", 7}).digest());
  const std::string digest = before.digest(), sampled = before.sampled();
  CHECK(sampled.starts_with("sampled "));
  made.change();
  const Model after = Model::open(made.path);
  CHECK(after.sampled() == sampled);
  CHECK(after.digest_so_far() == sampled);
  CHECK(after.digest() != digest);
  CHECK(after.digest_so_far() == after.digest());
}

TEST_CASE("a digest is remembered by the file it is of, and not beside it") {
  const Remembering made;
  const std::string digest = made.digest(false);
  CHECK(made.entries().size() == 1);
  CHECK(made.digest(true) == digest);
  CHECK(std::distance(fs::directory_iterator(fs::path(made.path).parent_path()), {}) == 1);

  SECTION("by another name that leads there") {
    fs::create_symlink(made.path, made.folder / "link.gguf");
    const Model linked = Model::open(made.folder / "link.gguf");
    CHECK(linked.digest() == digest);
    CHECK(linked.digest_was_remembered());
    CHECK(made.entries().size() == 1);
  }
  SECTION("until it is changed, even where its times are set back") {
    struct stat before {};
    REQUIRE(::stat(made.path.c_str(), &before) == 0);
    made.change();
    const std::array<timespec, 2> times{before.st_atim, before.st_mtim};
    REQUIRE(::utimensat(AT_FDCWD, made.path.c_str(), times.data(), 0) == 0);
    let_files_settle();
    const std::string changed = made.digest(false);
    CHECK(changed != digest);
    CHECK(made.digest(true) == changed);
  }
  SECTION("until another takes its place") {
    fs::copy_file(made.path, made.path + ".new");
    fs::rename(made.path + ".new", made.path);
    let_files_settle();
    CHECK(made.digest(false) == digest);
  }
}

TEST_CASE("a file that was changed just now, or while it was read, is not remembered") {
  const Remembering made;
  SECTION("just now") {
    const std::array<timespec, 2> times{timespec{0, UTIME_NOW}, timespec{std::time(nullptr) + 3600, 1}};
    REQUIRE(::utimensat(AT_FDCWD, made.path.c_str(), times.data(), 0) == 0);
    made.digest(false);
    CHECK(made.entries().empty());
  }
  SECTION("while it was read") {
    const Model model = Model::open(made.path);
    made.change();
    static_cast<void>(model.digest());
    CHECK(made.entries().empty());
  }
}

TEST_CASE("what was remembered is not trusted: cut, changed or strange, it is computed anew") {
  const Remembering made;
  const std::string digest = made.digest(false);
  const std::string entry = made.entries().at(0).string(), text = read_text(entry);
  const auto broken = [&](const std::string& now) {
    write_text(entry, now);
    CHECK(made.digest(false) == digest);
    CHECK(read_text(entry) == text);
  };
  for (std::size_t end = 0; end < text.size(); end += 7) broken(text.substr(0, end));
  for (std::size_t at = 0; at < text.size(); at += 5) {
    std::string twisted = text;
    twisted[at] = twisted[at] == 'f' ? 'e' : 'f';
    broken(twisted);
  }
  broken(text + text);
  broken(std::string(1 << 20, 'x'));
  fs::remove(entry);
  fs::create_directory(entry);
  CHECK(made.digest(false) == digest);
}

TEST_CASE("where nothing can be remembered, a digest is computed each time") {
  const Remembering made;
  const std::string digest = Model::synthetic({"tiny", 0, "q4_k_m", 7}).digest();
  const auto forgets = [&](const std::optional<std::string>& xdg, const std::optional<std::string>& home) {
    const Variable cache("XDG_CACHE_HOME", xdg), home_folder("HOME", home);
    CHECK(made.digest(false) == digest);
    CHECK(made.digest(false) == digest);
  };
  write_text(made.folder / "file", "");
  forgets(std::nullopt, std::nullopt);
  forgets("", "");
  forgets("relative", std::nullopt);
  forgets(made.folder / "file", std::nullopt);
  forgets("/proc/no/such", std::nullopt);
  forgets(std::nullopt, "/dev/full");
  CHECK(read_text(made.folder / "file").empty());
  CHECK_FALSE(fs::exists("relative"));

  const Variable none("XDG_CACHE_HOME", std::nullopt), home("HOME", made.folder / "home");
  made.digest(false);
  made.digest(true);
  CHECK(fs::exists(made.folder / "home/.cache/moe-diag"));
}

TEST_CASE("several that remember one file at once leave one whole entry") {
  const Remembering made;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int n = 0; n < 5; ++n) {
        const FileState state = *state_of(made.path);
        DigestMemory().remember(made.path, state, "sampled 0", "0123456789abcdef");
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(made.entries().size() == 1);
  CHECK(DigestMemory().recall(made.path, *state_of(made.path), "sampled 0") == "0123456789abcdef");
  CHECK_FALSE(DigestMemory().recall(made.path, *state_of(made.path), "sampled 1").has_value());
}

TEST_CASE("inspect samples a model and says so, unless it is asked for every byte") {
  const Remembering made;
  const Finished quick = run_tool("inspect " + quoted(made.path));
  CHECK_THAT(quick.out, Catch::Matchers::Contains("digest sampled "));
  CHECK(made.entries().empty());
  const std::string digest = Model::open(made.path).digest();
  CHECK_THAT(run_tool("inspect --digest " + quoted(made.path)).out, Catch::Matchers::Contains("digest " + digest));
  CHECK_THAT(run_tool("inspect --digest --json " + quoted(made.path)).out,
             Catch::Matchers::Contains("\"digest\": \"" + digest + "\""));
}

}  // namespace moe_diag
