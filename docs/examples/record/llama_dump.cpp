// SPDX-License-Identifier: MIT
// An eval callback of llama.cpp that writes what `moe-diag judge MODEL DUMP --map llama.cpp` reads.
#include <sys/stat.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include <ggml-backend.h>
#include <ggml.h>

struct LlamaDump {
  std::string folder;               // is there
  int call = -1;                    // number of the llama_decode at hand
  std::map<std::string, int> seen;  // how often each name came in this call
};

static void save(const std::string& path, const char* type, const std::string& shape, const std::vector<char>& bytes) {
  std::string header = std::string("{'descr': '") + type + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  header.resize(117, ' ');  // 10 bytes before it, and a newline: 128 in all
  FILE* file = std::fopen(path.c_str(), "wb");
  if (!file) return std::perror(path.c_str());
  std::fwrite("\x93NUMPY\x01\x00\x76\x00", 1, 10, file);
  std::fputs((header + '\n').c_str(), file);
  std::fwrite(bytes.data(), 1, bytes.size(), file);
  if (std::fclose(file) != 0) std::perror(path.c_str());
}

static void save(const std::string& path, const std::vector<int32_t>& values) {
  const char* first = reinterpret_cast<const char*>(values.data());
  save(path, "<i4", std::to_string(values.size()) + ",", {first, first + values.size() * sizeof(int32_t)});
}

// Before each llama_decode.
void begin_call(LlamaDump& dump, const std::vector<int32_t>& tokens, int first_position) {
  dump.seen.clear();
  const std::string folder = dump.folder + "/call_" + std::to_string(++dump.call);
  mkdir(folder.c_str(), 0777);
  std::vector<int32_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), first_position);
  save(folder + "/tokens.npy", tokens);
  save(folder + "/positions.npy", positions);
}

// context_params.cb_eval, with a LlamaDump as cb_eval_user_data.
bool dump_tensor(ggml_tensor* t, bool ask, void* user) {
  if (ask) return true;
  auto& dump = *static_cast<LlamaDump*>(user);
  const std::map<int, const char*> types = {{GGML_TYPE_F32, "<f4"}, {GGML_TYPE_F16, "<f2"}, {GGML_TYPE_I32, "<i4"}};
  const std::string name = t->name;
  const bool is_named = name.find_first_of("/() ") == std::string::npos;  // others are views, reshaped or copied
  if (types.count(t->type) == 0 || !is_named) return true;
  const size_t size = ggml_type_size(t->type);
  std::vector<char> lying(ggml_nbytes(t)), bytes;  // the first with the strides of a view
  ggml_backend_tensor_get(t, lying.data(), 0, lying.size());
  for (int64_t i3 = 0; i3 < t->ne[3]; ++i3)
    for (int64_t i2 = 0; i2 < t->ne[2]; ++i2)
      for (int64_t i1 = 0; i1 < t->ne[1]; ++i1)
        for (int64_t i0 = 0; i0 < t->ne[0]; ++i0) {
          const char* value = lying.data() + i0 * t->nb[0] + i1 * t->nb[1] + i2 * t->nb[2] + i3 * t->nb[3];
          bytes.insert(bytes.end(), value, value + size);
        }
  std::string shape;  // slowest dimension first, without those of size 1 in front
  for (int i = 3; i >= 0; --i)
    if (!shape.empty() || t->ne[i] > 1 || i == 0) shape += std::to_string(t->ne[i]) + ", ";
  const std::string call = "/call_" + std::to_string(dump.call) + '/', n = std::to_string(dump.seen[name]++);
  save(dump.folder + call + name + '.' + n + ".npy", types.at(t->type), shape, bytes);
  return true;
}
