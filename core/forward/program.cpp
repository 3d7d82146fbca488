// SPDX-License-Identifier: MIT
#include "core/forward/program.hpp"

#include <algorithm>
#include <array>
#include <cmath>

namespace moe_diag {
namespace {

class Builder {
 public:
  explicit Builder(const Model& model) : model_(model), config_(model.config()) {}

  Program build() {
    add(-1, Op::embed, {}, {&model_.token_embd()}, {Stage::embedding});
    Stage x = Stage::embedding;
    for (int l = 0; l < config_.layers; ++l) x = layer(l, x);
    norm(-1, x, model_.output_norm(), Stage::final_norm);
    add(-1, Op::linear, {Stage::final_norm}, {&model_.output()}, {Stage::lm_head});
    return std::move(program_);
  }

 private:
  // One decoder layer; returns the stage that holds its output.
  Stage layer(int l, Stage x) {
    const LayerWeights& w = model_.layers()[static_cast<std::size_t>(l)];
    using enum Stage;

    norm(l, x, *w.attn_norm, attn_norm);
    add(l, Op::linear, {attn_norm}, {w.attn_q, w.attn_k, w.attn_v}, {qkv_matmul});
    head_norm(l, 0, *w.attn_q_norm, q_norm);
    head_norm(l, config_.q_width(), *w.attn_k_norm, k_norm);
    add(l, Op::rope, {q_norm}, {}, {q_post_rope}).params.theta = config_.rope_theta;
    add(l, Op::rope, {k_norm}, {}, {k_post_rope}).params.theta = config_.rope_theta;
    add(l, Op::scores, {q_post_rope, k_post_rope}, {}, {attn_scores}).params.scale = 1 / std::sqrt(config_.head_dim);
    add(l, Op::softmax, {attn_scores}, {}, {attn_softmax}).params.causal = true;
    add(l, Op::mix, {attn_softmax, qkv_matmul}, {}, {attention}).params.offset = config_.q_width() + config_.kv_width();
    add(l, Op::linear, {attention}, {w.attn_output}, {attn_out});
    add(l, Op::add, {x, attn_out}, {}, {post_attn_residual});

    norm(l, post_attn_residual, *w.ffn_norm, ffn_norm);
    add(l, Op::linear, {ffn_norm}, {w.ffn_gate_inp}, {moe_router_logits});
    add(l, Op::softmax, {moe_router_logits}, {}, {moe_router_probs});
    add(l, Op::topk, {moe_router_probs}, {}, {moe_router_indices, moe_router_weights});
    add(l, Op::expert_linear, {ffn_norm, moe_router_indices}, {w.ffn_gate_exps}, {moe_expert_gate});
    add(l, Op::expert_linear, {ffn_norm, moe_router_indices}, {w.ffn_up_exps}, {moe_expert_up});
    add(l, Op::swiglu, {moe_expert_gate, moe_expert_up}, {}, {moe_expert_swiglu});
    add(l, Op::expert_linear, {moe_expert_swiglu, moe_router_indices}, {w.ffn_down_exps}, {moe_expert_out});
    add(l, Op::weigh, {moe_expert_out, moe_router_weights}, {}, {moe_expert_weighted});
    add(l, Op::combine, {moe_expert_weighted}, {}, {moe_ffn_out});
    add(l, Op::add, {post_attn_residual, moe_ffn_out}, {}, {post_ffn_residual});
    return post_ffn_residual;
  }

  void norm(int l, Stage in, const Weight& w, Stage out) {
    Params& p = add(l, Op::rms_norm, {in}, {&w}, {out}).params;
    p.width = config_.hidden;
    p.eps = config_.rms_eps;
  }
  // RMSNorm of each head of q or k, which start at column `offset` of qkv_matmul.
  void head_norm(int l, int offset, const Weight& w, Stage out) {
    Params& p = add(l, Op::rms_norm, {Stage::qkv_matmul}, {&w}, {out}).params;
    p.offset = offset;
    p.width = config_.head_dim;
    p.eps = config_.rms_eps;
  }

  Step& add(int l, Op op, Few<Stage, 2> in, Few<const Weight*, 3> weights, Few<Stage, 2> out) {
    Step step;
    step.op = op;
    step.layer = l;
    step.in = in;
    step.weights = weights;
    step.out = out;
    program_.push_back(step);
    return program_.back();
  }

  const Model& model_;
  const ModelConfig& config_;
  Program program_;
};

}  // namespace

Program build_program(const Model& model) {
  Program whole = Builder(model).build();
  return model.part() ? Program{*find_step(whole, *model.part())} : whole;
}

const Step* find_step(const Program& program, Site site) {
  for (const Step& step : program)
    if (step.layer == site.layer && std::find(step.out.begin(), step.out.end(), site.stage) != step.out.end())
      return &step;
  return nullptr;
}

std::span<const Step> steps_up_to(const Program& program, Site site) {
  const Step* last = find_step(program, site);
  return last ? std::span(program.data(), last + 1) : std::span(program);
}

std::vector<Site> inputs_of(const Program& program, Site site) {
  std::array<int, stage_count> written{};  // in which layer each stage was written last
  std::vector<Site> inputs;
  for (const Step& step : program) {
    if (step.layer == site.layer && std::find(step.out.begin(), step.out.end(), site.stage) != step.out.end())
      for (Stage stage : step.in) inputs.push_back({stage, written[static_cast<std::size_t>(stage)]});
    for (Stage stage : step.out) written[static_cast<std::size_t>(stage)] = step.layer;
  }
  return inputs;
}

std::vector<Site> sites_that_depend_on(const Program& program, Site site) {
  std::array<bool, stage_count> touched{};  // as buffers are: one a stage, written anew in each layer
  std::vector<Site> reached;
  const auto is_touched = [&](Stage stage) { return touched[static_cast<std::size_t>(stage)]; };
  for (const Step& step : program) {
    const bool inherits = std::any_of(step.in.begin(), step.in.end(), is_touched);
    for (Stage stage : step.out) {
      const bool here = inherits || site_of(step, stage) == site;
      touched[static_cast<std::size_t>(stage)] = here;
      if (here) reached.push_back(site_of(step, stage));
    }
  }
  return reached;
}

}  // namespace moe_diag
