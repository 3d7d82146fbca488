// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/model.hpp"
#include "core/arch/architecture.hpp"
#include "core/model/digest_work.hpp"
#include "core/model/synthetic.hpp"
#include "core/model/vocabulary.hpp"

namespace moe_diag {

// Where a weight's bytes begin: in which of the model's files, and how far from its start.
struct WeightPlace {
  std::size_t file = 0;
  std::uint64_t offset = 0;
};

// A model of one of the architectures, its weights mapped and never copied. Throws Error: absent when there is no such
// file, environment when it is not a model this project computes (message: file, key or tensor, expected, found).
class Model {
 public:
  static Model open(const std::string& path);  // of a split one: any of its parts
  // The same bytes a file of `spec` would hold, in memory. `threads` 0: one a core.
  static Model synthetic(const SyntheticSpec& spec, int threads = 0);

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const ModelConfig& config() const;
  // The one step whose tensors it has, where it is a part of a model: see core/model/part.hpp.
  const std::optional<Site>& part() const;
  const ModelView& view() const;
  const Architecture& architecture() const;
  // As the architecture names its tensors; -1: of no layer. Without data where a part of a model lacks it. The head of
  // a model whose output is tied is the embedding's table.
  const Weight& weight(std::string_view role, int layer = -1) const;
  const Weight* find_weight(std::string_view role, int layer) const;  // null: the model has none

  const std::string& source() const;                 // path as given, or "synthetic: tiny, seed 7, ..."
  std::vector<std::string> files() const;            // all parts, where it is split; none: it is in memory
  std::uint64_t bytes() const;                       // of all files, or of the image
  Vocabulary vocabulary() const;                     // read anew at each call; empty when the file has none
  WeightPlace place_of(const Weight& weight) const;  // of one of its own

  // Of header, tensor table and every byte of every tensor, see core/model/digest_work.hpp: 16 hexadecimal digits.
  // Recalled where an earlier run remembered it (core/model/digest_memory.hpp), else computed, which takes as long as
  // reading the file. Any thread may ask. Throws Error (environment) when interrupted; the next call goes on.
  const std::string& digest(const Interrupted& interrupted = {}, const DigestProgress& progress = {}) const;
  void begin_digest() const;           // computes it behind whatever comes next; digest() waits for the rest
  bool digest_was_remembered() const;  // once digest() has returned
  std::string digest_so_far() const;   // that of every byte when it is known, else the one below
  const std::string& sampled() const;  // "sampled 0123456789abcdef": of header, tensor table, 4 KiB of each tensor

 private:
  struct Impl;
  explicit Model(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe_diag
