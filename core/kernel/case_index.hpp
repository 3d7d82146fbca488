// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/tensor.hpp"
#include "core/model/synthetic.hpp"

namespace moe_diag {

// Files of a folder of cases.
inline constexpr std::string_view index_file = "case.json", inputs_file = "in.safetensors",
                                  expected_file_name = "expected.safetensors", kernel_file = "out.safetensors";

// A tensor that a case has in a file.
struct IndexedTensor {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
};

// A weight of the span, as the file of its layer has it: its bytes under its own name, decoded under that of f32.
struct IndexedWeight {
  std::string name, type;           // "blk.3.ffn_gate_exps.weight", "Q4_K"
  std::string f32;                  // name of the tensor with its values; empty: not written
  std::vector<std::int64_t> shape;  // of the values: experts, rows, columns, without those of 1
};

struct IndexedLayer {
  int layer = -1;
  std::string file;  // relative to the folder; empty: the span reads no weights
  std::vector<IndexedWeight> weights;
};

// The experts that the rows choose: as the model does, all the same, one of them never, or those of one rank only.
enum class CaseRouting { model, one, none, rank };
std::string_view name_of(CaseRouting routing);

struct KernelCase {
  std::string name;  // of its folder
  int layer = -1, rows = 0;
  int first = 0;  // position of row 0: as many are in the caches
  CaseRouting routing = CaseRouting::model;
  std::string changed;  // what was done to the routing, for a person; empty: nothing
  std::vector<IndexedTensor> inputs;
  std::vector<std::int64_t> shape;               // of the output
  std::map<DType, std::vector<double>> allowed;  // relative L2 error of each row, by the output's type
};

// All that case.json says.
struct CaseIndex {
  std::string tool_version;
  std::string model_source;  // path, without symbolic links
  bool synthetic = false;    // the model is in no file: it is made from `spec`
  SyntheticSpec spec;
  std::string model_digest, architecture;
  int experts = 0, used = 0;
  double rms_eps = 0, rope_theta = 0;
  std::string span;  // as it was asked for
  std::vector<std::string> steps;
  std::string numerics;
  std::string reads, stored;  // roundings of the engine, which are computed; empty: none
  unsigned seed = 0;
  std::string output;          // name of the tensor that the kernel writes
  std::string choice;          // name of the tensor with the ids of experts; empty: nothing is of an expert
  bool writes_choice = false;  // it is in the file with what is expected, not in the inputs
  bool of_slots = false;       // the output has a vector for each expert chosen
  std::vector<IndexedLayer> layers;
  std::vector<KernelCase> cases;
};

std::string index_text(const CaseIndex& index);
// Throws Error(usage) naming the file, the key, what was expected and what to do.
CaseIndex read_index(const std::string& folder);

}  // namespace moe_diag
