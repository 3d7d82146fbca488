// SPDX-License-Identifier: MIT
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/api/tensor.hpp"
#include "plugins/sinks/hdf5/storage.hpp"
#include "plugins/sinks/shared/xxh3.hpp"

namespace moe_diag {

// HDF5 prints its errors unless told otherwise, thread by thread: not while this lives. A thread that ends with errors
// on its stack would keep HDF5 from closing, about which it prints a line at exit.
class Quiet {
 public:
  Quiet() {
    H5Eget_auto2(H5E_DEFAULT, &print_, &data_);
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
  ~Quiet() {
    H5Eclear2(H5E_DEFAULT);
    H5Eset_auto2(H5E_DEFAULT, print_, data_);
  }

 private:
  H5E_auto2_t print_ = nullptr;
  void* data_ = nullptr;
};

// Something of HDF5's that is closed once.
class Handle {
 public:
  Handle() = default;
  Handle(hid_t id, herr_t (*closer)(hid_t)) : id_(id), close_(closer) {}
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor): it is used as one
  bool close() { return id_ < 0 || close_(std::exchange(id_, H5I_INVALID_HID)) >= 0; }

 private:
  hid_t id_ = H5I_INVALID_HID;
  herr_t (*close_)(hid_t) = nullptr;
};

// How arrays are stored.
struct ArrayStorage {
  std::int64_t chunk = 0;  // rows in a chunk; 0: contiguous
  unsigned compress = 0;   // gzip level of chunks; 0: none
};

// A file being written, and the few things that a capture needs of HDF5. What fails throws Error(environment) with the
// system's reason, or HDF5's.
class Hdf5File {
 public:
  explicit Hdf5File(const std::string& path);
  // Closes what is open: what was written so far can be read.
  ~Hdf5File();

  const std::string& path() const { return storage_.path(); }

  // An array of rows that are to come, with the groups of its path.
  Handle create_array(const std::string& path, DType dtype, const Shape& shape, const ArrayStorage& how);
  Handle open_array(const std::string& path);
  // Rows of `tensor` from row `first` on; `digest` is shown each piece before it is written.
  template <class Digest>
  void write_rows(hid_t array, std::int64_t first, const Tensor& tensor, const ArrayStorage& how, Digest&& digest);
  // Leaves an array only its first rows.
  void keep_rows(const std::string& path, DType dtype, const Shape& shape, const ArrayStorage& how);
  void remove(const std::string& path);

  void set_attribute(hid_t object, const char* name, std::string_view text);
  void set_attribute(hid_t object, const char* name, std::int64_t value);
  void set_attribute(hid_t object, const char* name, std::span<const std::int32_t> values);
  hid_t root() const { return file_; }

  void flush();
  // Throws what kept the file from being whole.
  void close();
  // After a failure: gives up the array that it was about, and closes with what is whole. False when that cannot be
  // read, either.
  bool close_without(const std::string& path);

 private:
  void check_storage() const;
  void check(bool right, std::string_view what) const;
  void enter_group(const std::string& path);
  void give_back(hid_t array);
  hid_t text_type(std::size_t bytes);
  void write_attribute(hid_t object, const char* name, hid_t type, hid_t space, const void* data);
  void write_hyperslab(hid_t array, std::int64_t first, const Tensor& tensor);
  std::uint64_t address_of(hid_t array) const;
  void write_piece(std::uint64_t at, const std::byte* from, std::size_t bytes);

  Storage storage_;
  Handle access_, scalar_;                    // of all arrays, of all attributes of one value
  std::map<std::size_t, Handle> text_types_;  // by length
  Handle file_;
  std::set<std::string> groups_;  // those that are there
  std::string group_path_;
  Handle group_;  // the one that the last array was created in
};

// True for an HDF5 file whose root attribute `name` is `text`.
bool has_root_attribute(const std::string& path, const char* name, std::string_view text);

template <class Digest>
void Hdf5File::write_rows(hid_t array, std::int64_t first, const Tensor& tensor, const ArrayStorage& how,
                          Digest&& digest) {
  if (tensor.bytes() == 0) return;
  if (how.chunk > 0) {
    digest(tensor.data, tensor.bytes());
    write_hyperslab(array, first, tensor);
    return;
  }
  // Contiguous rows lie at a known place.
  const std::size_t row = tensor.bytes() / static_cast<std::size_t>(tensor.shape[0]);
  in_pieces(address_of(array) + static_cast<std::uint64_t>(first) * row, tensor.data, tensor.bytes(),
            [&](std::uint64_t at, const std::byte* from, std::size_t bytes) {
              digest(from, bytes);
              write_piece(at, from, bytes);
            });
}

}  // namespace moe_diag
