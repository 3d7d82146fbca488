// SPDX-License-Identifier: MIT
#pragma once

#include <hdf5.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/api/error.hpp"

namespace moe_diag {

inline constexpr std::uint64_t structure_block = 1 << 16;  // bytes that HDF5 takes at a time for its own use

// The bytes of one HDF5 file: what HDF5 reads and writes goes through here (a virtual file driver). HDF5 1.10 does not
// survive a write that fails: it forgets the system's reason, and may end the process when it tries again at exit. So
// writes succeed towards it, the first failure is kept for who asks, and all after it are dropped.
class Storage {
 public:
  // Creates or empties the file. Throws Error(environment).
  explicit Storage(std::string path);
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage();

  const std::string& path() const { return path_; }
  // A file access property list with which H5Fcreate writes here; the caller closes it.
  hid_t access();

  // Of rows; what HDF5 itself keeps about them is `structure`, without which nothing can be read.
  void write_at(std::uint64_t offset, const void* data, std::size_t bytes, bool structure);
  void read_at(std::uint64_t offset, void* data, std::size_t bytes);
  void truncate(std::uint64_t bytes);
  // Sets room aside for bytes that are going to be written, where the file system can and has plenty: they are written
  // faster than page by page. The file's end stays.
  void expect(std::uint64_t offset, std::uint64_t bytes);
  // Frees the disk's space below some bytes that are not needed any more, where the file system can.
  void give_back(std::uint64_t offset, std::uint64_t bytes);
  // Bytes behind the last that was written.
  std::uint64_t end() const { return end_; }
  void close();

  bool failed() const { return error_number_ != 0; }
  Error error() const;
  // Goes on after a failure, the rows concerned being given up; false when structure was lost, too.
  bool go_on();

 private:
  void fail(int error_number, bool structure);

  std::string path_;
  int fd_ = -1;
  std::uint64_t end_ = 0;
  int error_number_ = 0;  // of the first failure
  bool structure_lost_ = false;
};

}  // namespace moe_diag
