// SPDX-License-Identifier: MIT
// What sinks will write is said beforehand, refused when it is too much, and told truthfully when the disk disagrees.
#include "core/plan/budget.hpp"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/small_disk.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
namespace fs = std::filesystem;

class Job {
 public:
  Job() {
    write_text(contract(), R"(
metadata: {id: budget, version: 1.0.0, description: captures all}
model: {synthetic: tiny, seed: 7}
prompts: [{id: short, tokens: [3, 141, 59, 26, 53, 58]}]
oracle: truth
lanes: {truth: {backend: cpu, numerics: f64}, f32: {backend: cpu, numerics: f32}}
capture:
  - {stages: all, to: [dump, file, sums]}
sinks: {dump: {sink: npy, dir: dump}, file: {sink: hdf5, file: capture.h5}, sums: {sink: stats, file: sums.csv}}
)");
  }
  std::string contract() const { return folder / "c.yaml"; }
  std::string out() const { return folder / "out"; }
  Finished tool(const std::string& command, const std::string& more = "") const {
    return run_tool(command + " " + quoted(contract()) + " " + more);
  }

  TemporaryFolder folder;
};

std::uint64_t bytes_below(const std::string& path) {
  if (fs::is_regular_file(path)) return fs::file_size(path);
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(path))
    if (entry.is_regular_file()) bytes += entry.file_size();
  return bytes;
}

}  // namespace

TEST_CASE("a plan says what each sink will write, and that is not exceeded") {
  const Job job;
  const Finished text = job.tool("plan");
  CHECK_THAT(text.out, Contains("sink       dump (npy): 190 tensors") && Contains("writes at most") &&
                           Contains("writing    at most"));
  const auto plan = nlohmann::json::parse(job.tool("plan", "--json --out " + quoted(job.out())).out);
  REQUIRE(job.tool("capture", "--out " + quoted(job.out())).code == 0);
  std::uint64_t sum = 0;
  for (const auto& sink : plan["sinks"]) {
    INFO(sink["name"]);
    const std::uint64_t planned = sink["writes"], written = bytes_below(sink["path"]);
    CHECK(written <= planned);
    CHECK(sink["bytes"] == plan["sinks"][0]["bytes"]);
    if (sink["name"] != "sums") CHECK(written >= sink["bytes"].get<std::uint64_t>());
    if (sink["name"] != "sums") CHECK(planned - written < 190 * 1200);
    sum += planned;
  }
  CHECK(plan["writing"]["bytes"] == sum);
  CHECK(plan["writing"]["max_bytes"].is_null());
  CHECK(plan["writing"]["refused"].is_null());
}

TEST_CASE("a run that would write more than max_bytes is refused before it starts, by check as well") {
  const Job job;
  for (const std::string command : {"capture", "run"}) {
    const Finished finished = job.tool(command, "--set max_bytes=1MiB --out " + quoted(job.out()));
    CHECK(finished.code == 2);
    CHECK_THAT(finished.err, Contains("--set max_bytes") && Contains("the sinks would write") && Contains("dump ") &&
                                 Contains("1.00 MiB may be written; capture less, or raise it"));
    CHECK_FALSE(fs::exists(job.out()));
  }
  CHECK(job.tool("check", "--set max_bytes=1MiB").code == 2);
  CHECK(job.tool("check", "--set max_bytes=1GB").code == 0);
  const Finished plan = job.tool("plan", "--set max_bytes=1MiB");
  CHECK(plan.code == 0);
  CHECK_THAT(plan.out, Contains("1.00 MiB may be written (max_bytes)") && Contains("the run would be refused"));
  CHECK(job.tool("capture", "--set max_bytes=1GB --set queue_mb=1 --out " + quoted(job.out())).code == 0);
}

TEST_CASE("evidence counts once it is there") {
  const Job job;
  const std::string more =
      "--set 'capture=[{stages: all, to: [dump, file, sums], when: falsified}]' --set 'falsifiers=[{id: F, claim: c, "
      "lane: f32, stage: all, metric: nonfinite, equals: 0}]' --set max_bytes=";
  CHECK(job.tool("run", more + "1kB --out " + quoted(job.out())).code == 0);
  const std::string fault = " --inject '{inject: nan, stage: moe_expert_out, layer: 1, lane: f32}' --out ";
  const Finished too_much = job.tool("run", more + "1kB" + fault + quoted(job.folder / "two"));
  CHECK(too_much.code == 2);
  CHECK_THAT(too_much.out + too_much.err, Contains("max_bytes") && Contains("1 falsified"));
  CHECK_FALSE(fs::exists(job.folder / "two/dump"));
  CHECK(job.tool("run", more + "10MB" + fault + quoted(job.folder / "three")).code == 1);
  CHECK(fs::exists(job.folder / "three/dump/manifest.json"));
}

TEST_CASE("more than the file system has free is refused with both numbers") {
  const TemporaryFolder folder;
  const std::vector<PlannedOutput> outputs = {{"small", folder / "a/b/c", 10, true},
                                              {"vast", folder / "d", std::uint64_t{1} << 60, true},
                                              {"unknown", folder / "e", 0, false}};
  CHECK_THAT(over_free_space(outputs, false),
             Contains("1073741824.00 GiB would be written to its file system (small 10 bytes, vast 1073741824.00 GiB), "
                      "which has ") &&
                 Contains("--out"));
  CHECK(over_free_space({outputs[0], outputs[2]}, false).empty());
}

TEST_CASE("a run that the disk cannot hold is refused before it starts; what it replaces counts as free") {
  const Job job;
  const SmallDisk disk("8m");
  if (!disk.mounted()) {
    WARN("only root can mount a small file system");
    return;
  }
  const std::string out = " --out " + quoted(disk / "out");
  CHECK(job.tool("capture", out).code == 0);
  const Finished refused = job.tool("capture", "--out " + quoted(disk / "other") + " --set prompts.0.generate=6");
  CHECK(refused.code == 4);
  CHECK_THAT(refused.err, Contains("would be written to its file system") && Contains("MiB free; capture less"));
  CHECK_FALSE(fs::exists(disk / "other"));
  CHECK_THAT(job.tool("plan", "--out " + quoted(disk / "other") + " --set prompts.0.generate=6").out,
             Contains("the run would be refused"));
  CHECK(job.tool("capture", out + " --overwrite").code == 0);
}

TEST_CASE("a disk that is full in the middle: exit 4, what is kept is whole, and nothing looks complete") {
  const Job job;
  std::string full;
  {
    // Larger than every array of the npy sink, smaller than the file of the other.
    const LargestFile limit(300'000);
    const Finished finished = job.tool("capture", "--out " + quoted(job.out()));
    CHECK(finished.code == 4);
    full = finished.out + finished.err;
  }
  CHECK_THAT(full, Contains("sink 'file' (plugin hdf5): consume: ") && Contains("cannot write: File too large") &&
                       Contains("arrays are whole and kept in " + job.out() + "/capture.h5.partial"));
  CHECK_FALSE(fs::exists(job.out() + "/capture.h5"));
  CHECK_FALSE(fs::exists(job.out() + "/dump/manifest.json"));
  CHECK_FALSE(fs::exists(job.out() + "/sums.csv"));
  std::size_t arrays = 0;
  for (const auto& entry : fs::recursive_directory_iterator(job.out() + "/dump"))
    if (entry.path().extension() == ".npy") ++arrays;
  CHECK(arrays > 5);
  const Finished numpy = run_command(
      quoted(MOE_DIAG_PYTHON) + " -c 'import numpy, pathlib, sys; [numpy.load(p) for p in pathlib.Path(sys.argv[1])" +
      ".rglob(\"*.npy\")]' " + quoted(job.out() + "/dump"));
  CHECK(numpy.code == 0);
  const Finished h5 = run_command("h5ls -r " + quoted(job.out() + "/capture.h5.partial"));
  CHECK_THAT(h5.out, Contains("/short/truth/embedding"));
  {
    const LargestFile limit(100'000);
    const Finished npy = job.tool("capture",
                                  "--overwrite --set 'sinks={dump: {sink: npy, dir: dump}}' --set "
                                  "'capture=[{stages: all, to: dump}]' --set prompts.0.generate=60 --out " +
                                      quoted(job.out()));
    CHECK(npy.code == 4);
    CHECK_THAT(npy.out + npy.err, Contains("cannot write: File too large") && Contains("arrays are whole and kept in"));
  }
  CHECK_FALSE(fs::exists(job.out() + "/dump/manifest.json"));
}

}  // namespace moe_diag
