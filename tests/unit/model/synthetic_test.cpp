// SPDX-License-Identifier: MIT
#include "core/model/synthetic.hpp"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/api/error.hpp"
#include "core/model/model.hpp"
#include "tests/support/catch.hpp"
#include "tests/unit/model/scratch.hpp"

namespace moe_diag {
namespace {

std::vector<std::byte> bytes_of(const SyntheticImage& image) { return {image.bytes().begin(), image.bytes().end()}; }

std::vector<std::byte> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> text{std::istreambuf_iterator<char>(file), {}};
  const auto* data = reinterpret_cast<const std::byte*>(text.data());
  return {data, data + text.size()};
}

TEST_CASE("the same seed gives the same bytes, in memory and in a file, whatever the threads") {
  const test::Scratch scratch("synthetic");
  for (const std::string quant : {"q4_k_m", "bf16"}) {
    const SyntheticSpec spec{"tiny", 3, quant, 42};
    const std::vector<std::byte> expected = bytes_of(make_synthetic(spec, 1));
    CHECK(expected.size() == synthetic_bytes(spec));
    for (const int threads : {0, 2, 7}) {
      CHECK(bytes_of(make_synthetic(spec, threads)) == expected);
      const std::string path = scratch.path(quant + std::to_string(threads));
      write_synthetic(spec, path, {.threads = threads});
      CHECK(read_file(path) == expected);
    }
  }
}

TEST_CASE("another seed gives other weights, another number of layers the same ones") {
  const Model a = Model::synthetic({"tiny", 4, "q6_k", 1}), b = Model::synthetic({"tiny", 4, "q6_k", 2}),
              shorter = Model::synthetic({"tiny", 2, "q6_k", 1});
  const auto row = [](const Model& model) {
    const Weight& w = model.weight("ffn_up_exps", 1);
    return std::vector<std::byte>(w.row(3, 5), w.row(3, 5) + w.row_bytes());
  };
  CHECK(row(a) != row(b));
  CHECK(row(a) == row(shorter));
  CHECK(a.digest() != b.digest());
}

TEST_CASE("a model in memory is the model in the file") {
  const test::Scratch scratch("same_model");
  const SyntheticSpec spec{"tiny", 0, "q4_k_m", 5};
  write_synthetic(spec, scratch.path("m.gguf"));
  const Model file = Model::open(scratch.path("m.gguf")), memory = Model::synthetic(spec);
  CHECK(file.digest() == memory.digest());
  CHECK(file.bytes() == memory.bytes());
  CHECK(file.place_of(file.weight("output")).offset == memory.place_of(memory.weight("output")).offset);
}

struct Spread {
  double mean = 0, deviation = 0;
};
Spread spread_of(const Weight& w) {
  double sum = 0, squares = 0;
  for (std::int64_t r = 0; r < w.rows; ++r)
    for (std::int64_t i = 0; i < w.cols; ++i) {
      const auto x = decode<double>(w.type, w.row(0, r), i);
      sum += x;
      squares += x * x;
    }
  const auto n = static_cast<double>(w.rows * w.cols);
  return {sum / n, std::sqrt(squares / n - sum / n * (sum / n))};
}

TEST_CASE("weights of every type have mean zero and the size that keeps activations in bounds") {
  for (const std::string_view quant : synthetic_quants()) {
    INFO(quant);
    const Model model = Model::synthetic({"tiny", 1, std::string(quant), 9});
    const Weight& up = model.weight("ffn_up_exps", 0);
    const Spread s = spread_of(up);
    const double wanted = 1 / std::sqrt(static_cast<double>(up.cols));
    CHECK(std::abs(s.deviation - wanted) < 0.03 * wanted);
    CHECK(std::abs(s.mean) < 0.02 * wanted);
  }
}

TEST_CASE("the real mix of types by layer, and F32 where every mix has it") {
  const Model model = Model::synthetic({"tiny", 48, "q4_k_m", 0});
  std::vector<int> larger;
  for (int l = 0; l < 48; ++l) {
    CHECK(model.weight("attn_v", l).type == model.weight("ffn_down_exps", l).type);
    CHECK(model.weight("attn_q", l).type == BlockType::q4_k);
    CHECK(model.weight("ffn_gate_inp", l).type == BlockType::f32);
    if (model.weight("ffn_down_exps", l).type == BlockType::q6_k) larger.push_back(l);
  }
  CHECK(larger ==
        std::vector<int>{0, 1, 2, 3, 4, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35, 38, 41, 42, 43, 44, 45, 46, 47});
  CHECK(model.weight("token_embd").type == BlockType::q4_k);
  CHECK(model.weight("output").type == BlockType::q6_k);
}

TEST_CASE("the full model is as large as the real one") {
  const auto bytes = static_cast<double>(synthetic_bytes({"qwen3-30b-a3b", 0, "q4_k_m", 0}));
  CHECK(std::abs(bytes / (1 << 30) - 17.28) < 0.005);
}

TEST_CASE("a spec that names no model is refused with what there is") {
  const auto refused = [](const SyntheticSpec& spec) -> std::string {
    try {
      synthetic_bytes(spec);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return e.what();
    }
    return {};
  };
  CHECK(refused({"huge", 0, "f32", 0}) ==
        "there is no synthetic model 'huge'; there are: tiny-qwen2moe, qwen1.5-moe-a2.7b, tiny, qwen3-30b-a3b");
  CHECK_THAT(refused({"tiny", 0, "q7_k", 0}),
             Catch::Matchers::StartsWith("there is no synthetic type 'q7_k'; there are: f32, f16, bf16, "));
  CHECK(refused({"tiny", -1, "f32", 0}) == "a synthetic model has 1 to 1000 layers, found -1");
  CHECK(refused({"tiny", 0, "f32", 0, -1}) == "router_scale is a number from 0 to 1000000, found -1");
  CHECK(refused({"tiny", 0, "f32", 0, std::nan("")}) == "router_scale is a number from 0 to 1000000, found nan");
}

TEST_CASE("the router's weights are scaled, and nothing else is") {
  const Model plain = Model::synthetic({"tiny", 1, "f32", 7});
  const Model steep = Model::synthetic({"tiny", 1, "f32", 7, 1000}), flat = Model::synthetic({"tiny", 1, "f32", 7, 0});
  const auto value = [](const Weight& w, std::int64_t row) {
    float v;
    std::memcpy(&v, w.row(0, row), sizeof v);
    return v;
  };
  for (std::int64_t row = 0; row < plain.config().experts; ++row) {
    const float expected = value(plain.weight("ffn_gate_inp", 0), row);
    CHECK(std::abs(value(steep.weight("ffn_gate_inp", 0), row) - 1000 * expected) <= 1e-3f * std::abs(expected));
    CHECK(value(flat.weight("ffn_gate_inp", 0), row) == 0);
    CHECK(value(steep.weight("attn_q", 0), row) == value(plain.weight("attn_q", 0), row));
  }
}

TEST_CASE("writing leaves a whole file or none, and nothing beside it") {
  const test::Scratch scratch("writing");
  const std::string path = scratch.path("m.gguf");
  const SyntheticSpec spec{"tiny", 4, "f32", 1};
  SECTION("when it is stopped") {
    SyntheticWriting writing;
    int calls = 0;
    writing.progress = [&calls](std::uint64_t, std::uint64_t) {
      if (++calls == 3) throw Error(ErrorKind::environment, "stopped");
    };
    CHECK_THROWS_WITH(write_synthetic(spec, path, writing), "stopped");
    CHECK(scratch.files() == 0);
  }
  SECTION("when it is there already, unless it may be overwritten") {
    test::write_file(path, {std::byte{1}});
    CHECK_THROWS_WITH(write_synthetic(spec, path),
                      path + ": is there already; replace it with --overwrite or choose another place (OUT)");
    CHECK(std::filesystem::file_size(path) == 1);
    write_synthetic(spec, path, {.overwrite = true});
    CHECK(std::filesystem::file_size(path) == synthetic_bytes(spec));
    CHECK(scratch.files() == 1);
  }
  SECTION("when there is no such folder, or it is one") {
    CHECK_THROWS_WITH(write_synthetic(spec, scratch.path("no/m.gguf")),
                      Catch::Matchers::Contains("there is no folder"));
    CHECK_THROWS_WITH(write_synthetic(spec, scratch.path(".")), Catch::Matchers::Contains("is a folder"));
    CHECK(scratch.files() == 0);
  }
  SECTION("and tells how far it is") {
    std::uint64_t last = 0;
    bool ascending = true;
    SyntheticWriting writing;
    writing.progress = [&](std::uint64_t done, std::uint64_t) {
      ascending = ascending && done > last;
      last = done;
    };
    write_synthetic(spec, path, writing);
    CHECK(ascending);
    CHECK(last == synthetic_bytes(spec));
  }
}

// What the gguf package must find: the tensors in order, and the last row of each.
void write_listing(const Model& model, const std::string& path) {
  std::ofstream file(path);
  for (const Weight& w : model.view().weights) {
    std::vector<std::int64_t> shape{w.cols};
    if (w.rows > 1) shape.push_back(w.rows);
    if (w.experts > 1) shape.push_back(w.experts);
    std::vector<std::uint32_t> values;
    for (std::int64_t i = 0; i < w.cols; ++i)
      values.push_back(std::bit_cast<std::uint32_t>(decode<float>(w.type, w.row(w.experts - 1, w.rows - 1), i)));
    file << nlohmann::json{{"name", w.name}, {"type", name_of(w.type)}, {"shape", shape}, {"values", values}} << '\n';
  }
}

TEST_CASE("the gguf package reads the files: keys, tensors, values") {
  const test::Scratch scratch("gguf_package");
  for (const std::string_view quant : synthetic_quants()) {
    INFO(quant);
    const std::string model = scratch.path("m.gguf"), listing = scratch.path("listing");
    write_synthetic({"tiny", 2, std::string(quant), 3}, model, {.overwrite = true});
    write_listing(Model::open(model), listing);
    const std::string command =
        MOE_DIAG_PYTHON " " MOE_DIAG_SOURCE_DIR "/tests/unit/model/read_with_gguf.py " + model + " " + listing;
    CHECK(std::system(command.c_str()) == 0);
  }
}

}  // namespace
}  // namespace moe_diag
