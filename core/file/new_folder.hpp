// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace moe_diag {

// The content of a folder that a command writes whole.
struct FolderContent {
  std::string nouns;  // "cases"
  std::string last;   // the file that comes last when an empty folder is filled: without it there is nothing
  // The reason why a folder that is there may not be replaced: it holds another content, or something besides. Empty:
  // it may.
  std::function<std::string(const std::string& folder)> why_kept;
};

// A folder that is filled beside the place it is for, and is gone unless it is put there.
class NewFolder {
 public:
  // Refuses a place where something is, unless it is an empty folder or such a content that may be replaced, with
  // nothing else in it. Throws Error: usage, or environment when the folder cannot be made.
  NewFolder(const std::string& place, bool overwrite, FolderContent content);
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  ~NewFolder();

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + '/' + std::string(name); }
  // Removes what is in it.
  void empty() const;
  // Makes the folder that the file of that name is in, and returns the file's path.
  std::string make_room(const std::string& name) const;
  void write(const std::string& name, std::string_view text) const;
  std::uint64_t bytes() const;

  void put_in_place();

 private:
  void refuse_to_replace(bool overwrite);
  void fill();

  const std::string place_;  // as it was named
  const FolderContent content_;
  std::string target_;  // at the end of symbolic links
  std::string path_;
  bool replaces_ = false, fills_ = false;
};

}  // namespace moe_diag
