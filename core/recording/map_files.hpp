// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/contract/dump_map.hpp"
#include "core/gguf/mapped_file.hpp"
#include "core/recording/element.hpp"
#include "core/recording/name_pattern.hpp"

namespace moe_diag {

// An array of a foreign dump. Points into a mapped file.
struct MapArray {
  std::string path, tensor;  // the name of the tensor is empty where the file is one array
  std::string name;          // below the dump's folder, with the tensor behind '#'
  Element element = Element::f32;
  std::vector<std::int64_t> shape;  // of a file without a header: all its values
  std::span<const std::byte> data;
  std::uint64_t offset = 0;  // of `data` in the file

  std::string where() const;  // for the beginning of a message
};

// An array whose name a pattern has, and what the variables stand for.
struct MapHit {
  NamePattern::Variables variables;
  const MapArray* array = nullptr;

  // 0 and up; -1: the pattern has no such variable. Throws Error(usage) for one that is too large.
  int number(const std::string& variable) const;
  std::string text(const std::string& variable) const;  // empty: there is none
};

// The files of a foreign dump, opened as they are asked for.
class MapFiles {
 public:
  // Lists the folder and those in it. Throws Error(environment).
  explicit MapFiles(const std::string& folder);

  // All arrays of that name, in the order of their files. `type` and `skip` are of files without a header. Throws
  // Error(usage) for a file that is no array, and for a mistake in the pattern, which stands at `where`.
  std::vector<MapHit> find(const std::string& pattern, const std::string& where, const std::string& type = "",
                           std::uint64_t skip = 0);

  const std::string& folder() const { return folder_; }
  std::string some_names() const;  // for messages

 private:
  struct Opened {
    std::unique_ptr<MappedFile> file;
    std::deque<MapArray> arrays;
  };
  const Opened& open(const std::string& name, const std::string& type, std::uint64_t skip);
  void open_npy(const std::string& name, Opened& opened) const;
  void open_safetensors(const std::string& name, Opened& opened) const;
  void open_raw(const std::string& name, const std::string& type, std::uint64_t skip, Opened& opened) const;

  std::string folder_;
  std::vector<std::string> names_;   // below the folder, sorted
  std::vector<std::string> others_;  // folders, links that lead nowhere, and whatever else is no file
  std::map<std::string, Opened> opened_;
};

}  // namespace moe_diag
