// SPDX-License-Identifier: MIT
// A part of a model is what one step reads of it, byte for byte, and nothing else will do.
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/api/error.hpp"
#include "core/gguf/gguf_header.hpp"
#include "core/model/part.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"
#include "tests/unit/model/scratch.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

const Model& whole() {
  static const Model model = Model::synthetic({"tiny", 3, "q4_k_m", 7, 1});
  return model;
}

Weight weight_of(const Model& model, std::string_view name) {
  for (const Weight& w : model.view().weights)
    if (w.name == name) return w;
  FAIL(name << " is not there");
  throw std::logic_error(std::string(name));
}

bool same_row(const Weight& a, std::int64_t expert_a, std::int64_t row_a, const Weight& b, std::int64_t expert_b,
              std::int64_t row_b) {
  return a.type == b.type && a.row_bytes() == b.row_bytes() &&
         std::memcmp(a.row(expert_a, row_a), b.row(expert_b, row_b), a.row_bytes()) == 0;
}

TensorSpec attn_norm_of(int layer) { return whole().architecture().layer_tensors(whole().config(), layer).front(); }

// A file that claims to be a part.
struct Draft {
  ModelConfig config = whole().config();
  std::string stage = "attn_norm";
  std::vector<std::uint32_t> layer = {1};
  std::vector<TensorSpec> tensors = {attn_norm_of(1)};

  std::string refusal() const {
    GgufHeader header;
    header.add("general.architecture", "qwen3moe");
    whole().architecture().add_config(header, config, 1);
    header.add("moe_diag.part.stage", stage);
    for (std::uint32_t l : layer) header.add("moe_diag.part.layer", l);
    for (const TensorSpec& t : tensors) header.add_tensor(t.name(), BlockType::f32, t.dims());
    std::vector<std::byte> bytes = header.bytes();
    bytes.resize(bytes.size() + header.data_bytes());
    const test::Scratch scratch("part");
    test::write_file(scratch.path("p.gguf"), bytes);
    try {
      Model::open(scratch.path("p.gguf"));
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::environment);
      return e.what();
    }
    return "";
  }
};

}  // namespace

TEST_CASE("a part has the tensors of its step, some experts of them, and the sizes of both") {
  const test::Scratch scratch("part");
  const std::vector<std::int32_t> experts = {1, 4, 11};
  const PartSpec spec{{stages::moe_expert_out, 2}, experts, {}};
  write_part(whole(), spec, scratch.path("p.gguf"));
  const Model part = Model::open(scratch.path("p.gguf"));
  CHECK(part.part() == spec.site);
  CHECK_FALSE(whole().part());
  CHECK(part.config().experts == 3);
  CHECK(part.config().vocab == whole().config().vocab);
  CHECK(part.config().layers == 3);
  REQUIRE(part.view().weights.size() == 1);
  const Weight kept = part.view().weights[0];
  const Weight all = weight_of(whole(), "blk.2.ffn_down_exps.weight");
  CHECK(kept.name == all.name);
  CHECK(part_bytes(whole(), spec) == kept.bytes());
  for (std::int64_t e = 0; e < 3; ++e)
    for (std::int64_t r : {std::int64_t{0}, all.rows - 1})
      CHECK(same_row(kept, e, r, all, experts[static_cast<std::size_t>(e)], r));
  // Pointers of what it lacks are there, without data.
  CHECK(part.weight("attn_q", 0).data == nullptr);
  CHECK(part.weight("ffn_down_exps", 2).data == kept.data);
}

TEST_CASE("a part of the head or of the embedding has the rows that are asked for") {
  for (const auto& [stage, name] :
       {std::pair{stages::lm_head, "output.weight"}, {stages::embedding, "token_embd.weight"}}) {
    const test::Scratch scratch("part");
    write_part(whole(), {{stage, -1}, {}, {3, 300, 511}}, scratch.path("p.gguf"));
    const Model part = Model::open(scratch.path("p.gguf"));
    CHECK(part.config().vocab == 3);
    const Weight kept = weight_of(part, name);
    CHECK(kept.rows == 3);
    CHECK(same_row(kept, 0, 1, weight_of(whole(), name), 0, 300));
    CHECK(same_row(kept, 0, 2, weight_of(whole(), name), 0, 511));
  }
}

TEST_CASE("every stage has a part that opens, and that the gguf package reads") {
  const test::Scratch scratch("part");
  for (const Stage s : qwen3moe.stages) {
    INFO(name_of(s));
    const Site site{s, info(s).scope != Scope::layer ? -1 : 1};
    const std::string path = scratch.path(std::string(name_of(s)) + ".gguf");
    write_part(whole(), {site, {}, {}}, path);
    const Model part = Model::open(path);
    CHECK(part.part() == site);
    std::size_t read = 0;
    for (std::string_view name : info(s).weights) read += !name.empty();
    CHECK(part.view().weights.size() == read);
    const std::string script =
        "import gguf, sys; r = gguf.GGUFReader('" + path + "'); assert len(r.tensors) == " + std::to_string(read);
    if (read > 1) CHECK(std::system((MOE_DIAG_PYTHON " -c \"" + script + "\"").c_str()) == 0);
  }
}

TEST_CASE("a file that is no part of a model says what is wrong with it") {
  CHECK(Draft().refusal().empty());
  Draft stage;
  stage.stage = "attn_nor";
  CHECK_THAT(stage.refusal(), Contains("moe_diag.part.stage' is 'attn_nor': there is no such stage"));
  Draft outside;
  outside.layer = {3};
  CHECK_THAT(outside.refusal(), Contains("moe_diag.part.layer' is 3: attn_norm is in the layers 0 to 2"));
  Draft without;
  without.layer = {};
  CHECK_THAT(without.refusal(), Contains("is -1: attn_norm is in the layers 0 to 2"));
  Draft of_model;
  of_model.stage = "final_norm";
  CHECK_THAT(of_model.refusal(), Contains("is 1: final_norm is of no layer"));
  Draft missing;
  missing.tensors = {};
  CHECK_THAT(missing.refusal(), Contains("tensor blk.1.attn_norm.weight is missing"));
  Draft more;
  more.tensors.push_back(attn_norm_of(2));
  CHECK_THAT(more.refusal(), Contains("blk.2.attn_norm.weight' is no part"));
  Draft tall;
  tall.config.layers = 1 << 20;
  CHECK_THAT(tall.refusal(), Contains("a part of a model of 1048576 layers, expected 4096 at most"));
}

}  // namespace moe_diag
