// SPDX-License-Identifier: MIT
#include "plugins/sinks/hdf5/hdf5_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

namespace moe_diag {
namespace {

constexpr std::size_t largest_chunk = std::numeric_limits<std::uint32_t>::max();  // bytes, HDF5's own limit

// A floating-point type of 16 bits, of which so many are the exponent and the mantissa.
hid_t type_of_16_bits(std::size_t exponent, std::size_t mantissa) {
  const hid_t type = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(type, 15, mantissa, exponent, 0, mantissa);
  H5Tset_offset(type, 0);
  H5Tset_precision(type, 16);
  H5Tset_size(type, 2);
  H5Tset_ebias(type, (std::size_t{1} << (exponent - 1)) - 1);
  return type;
}

hid_t stored_type(DType dtype) {
  static const hid_t f16 = type_of_16_bits(5, 10), bf16 = type_of_16_bits(8, 7);
  switch (dtype) {
    case DType::f16: return f16;
    case DType::bf16: return bf16;
    case DType::f32: return H5T_IEEE_F32LE;
    case DType::f64: return H5T_IEEE_F64LE;
    case DType::i32: return H5T_STD_I32LE;
  }
  return H5I_INVALID_HID;
}

using Extents = std::array<hsize_t, 4>;

Extents extents_of(const Shape& shape) {
  Extents extents{};
  for (int i = 0; i < shape.rank; ++i) extents[static_cast<std::size_t>(i)] = static_cast<hsize_t>(shape[i]);
  return extents;
}

Handle space_of(const Shape& shape) {
  return {H5Screate_simple(shape.rank, extents_of(shape).data(), nullptr), H5Sclose};
}

// Without times, so that the same capture gives the same bytes.
Handle timeless(hid_t kind) {
  Handle list(H5Pcreate(kind), H5Pclose);
  H5Pset_obj_track_times(list, false);
  return list;
}

// Chunks of at most so many rows. An array without rows has no chunks.
Handle creation_of(const Shape& shape, DType dtype, const ArrayStorage& how) {
  Handle list = timeless(H5P_DATASET_CREATE);
  H5Pset_fill_time(list, H5D_FILL_TIME_NEVER);
  if (how.chunk == 0 || shape.count() == 0) {
    H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY);
    return list;
  }
  const std::size_t row = static_cast<std::size_t>(shape.row()) * size_of(dtype);
  const std::size_t most = std::max<std::size_t>(1, largest_chunk / row);
  Extents chunk = extents_of(shape);
  chunk[0] = std::min({static_cast<hsize_t>(how.chunk), chunk[0], static_cast<hsize_t>(most)});
  H5Pset_chunk(list, shape.rank, chunk.data());
  if (how.compress == 0) return list;
  H5Pset_shuffle(list);
  H5Pset_deflate(list, how.compress);
  return list;
}

// Without a cache of chunks: what cannot be written is told by the write, not when something is closed.
Handle uncached() {
  Handle list(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  H5Pset_chunk_cache(list, 0, 0, 1);
  return list;
}

// What HDF5 says of the innermost failure.
std::string reason() {
  std::string text = "HDF5 gives no reason";
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* error, void* to) -> herr_t {
        if (n == 0) *static_cast<std::string*>(to) = error->desc ? error->desc : "";
        return 0;
      },
      &text);
  return text;
}

}  // namespace

Hdf5File::Hdf5File(const std::string& path)
    : storage_(path), access_(uncached()), scalar_(H5Screate(H5S_SCALAR), H5Sclose) {
  const Quiet quiet;
  const Handle access(storage_.access(), H5Pclose);
  file_ = Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, timeless(H5P_FILE_CREATE), access), H5Fclose);
  check(file_ >= 0, "cannot create");
  flush();  // from here on the file can be told from any other
}

Hdf5File::~Hdf5File() {
  const Quiet quiet;
  group_.close();
  file_.close();
}

void Hdf5File::check_storage() const {
  if (storage_.failed()) throw storage_.error();
}

void Hdf5File::check(bool right, std::string_view what) const {
  check_storage();
  if (!right) throw Error(ErrorKind::environment, fmt::format("{}: {}: {}", path(), what, reason()));
}

bool Hdf5File::close_without(const std::string& path) {
  try {
    if (!storage_.go_on()) return false;
    give_back(open_array(path));
    remove(path);
    close();
    return true;
  } catch (const Error&) {
    return false;
  }
}

Handle Hdf5File::create_array(const std::string& path, DType dtype, const Shape& shape, const ArrayStorage& how) {
  const std::size_t slash = path.rfind('/');
  enter_group(path.substr(0, slash));
  Handle array(H5Dcreate2(group_, path.c_str() + slash + 1, stored_type(dtype), space_of(shape), H5P_DEFAULT,
                          creation_of(shape, dtype, how), access_),
               H5Dclose);
  check(array >= 0, "cannot create the array " + path);
  const std::uint64_t bytes = static_cast<std::uint64_t>(shape.count()) * size_of(dtype);
  if (how.chunk == 0 && bytes > piece_bytes) storage_.expect(address_of(array), bytes);
  return array;
}

// Made where it is not there, with all above it. It stays open, since the next array is mostly of the same group.
void Hdf5File::enter_group(const std::string& path) {
  if (path == group_path_) return;
  group_path_.clear();
  for (std::size_t slash = 0; slash != std::string::npos;) {
    slash = path.find('/', slash + 1);
    const std::string above = path.substr(0, slash);
    if (groups_.count(above) > 0) continue;
    const Handle group(H5Gcreate2(file_, above.c_str(), H5P_DEFAULT, timeless(H5P_GROUP_CREATE), H5P_DEFAULT),
                       H5Gclose);
    check(group >= 0, "cannot create the group " + above);
    groups_.insert(above);
  }
  group_ = Handle(H5Gopen2(file_, path.c_str(), H5P_DEFAULT), H5Gclose);
  check(group_ >= 0, "cannot open the group " + path);
  group_path_ = path;
}

Handle Hdf5File::open_array(const std::string& path) {
  Handle array(H5Dopen2(file_, path.c_str(), access_), H5Dclose);
  check(array >= 0, "cannot open the array " + path);
  return array;
}

std::uint64_t Hdf5File::address_of(hid_t array) const {
  const haddr_t address = H5Dget_offset(array);
  check(address != HADDR_UNDEF, "cannot find an array");
  return address;
}

void Hdf5File::write_piece(std::uint64_t at, const std::byte* from, std::size_t bytes) {
  storage_.write_at(at, from, bytes, false);
  check_storage();
}

void Hdf5File::write_hyperslab(hid_t array, std::int64_t first, const Tensor& tensor) {
  const Handle rows = space_of(tensor.shape), space(H5Dget_space(array), H5Sclose);
  Extents start{};
  start[0] = static_cast<hsize_t>(first);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, extents_of(tensor.shape).data(), nullptr);
  check(H5Dwrite(array, stored_type(tensor.dtype), rows, space, H5P_DEFAULT, tensor.data) >= 0, "cannot write");
}

// HDF5 shortens chunked arrays only; of others the rows are copied.
void Hdf5File::keep_rows(const std::string& path, DType dtype, const Shape& shape, const ArrayStorage& how) {
  Handle array = open_array(path);
  if (how.chunk > 0 && shape.row() > 0) {
    check(H5Dset_extent(array, extents_of(shape).data()) >= 0, "cannot shorten the array " + path);
    return;
  }
  const std::string shorter = path + ".shorter";
  const Handle copy = create_array(shorter, dtype, shape, how);
  std::vector<std::byte> row(static_cast<std::size_t>(shape.row()) * size_of(dtype));
  for (std::uint64_t at = 0; at < static_cast<std::uint64_t>(shape[0]) * row.size(); at += row.size()) {
    storage_.read_at(address_of(array) + at, row.data(), row.size());
    write_piece(address_of(copy) + at, row.data(), row.size());
  }
  give_back(array);
  array.close();
  remove(path);
  check(H5Lmove(file_, shorter.c_str(), file_, path.c_str(), H5P_DEFAULT, H5P_DEFAULT) >= 0, "cannot rename an array");
}

// Before it is removed: HDF5 keeps the place of a removed array, and the disk what was set aside for it.
void Hdf5File::give_back(hid_t array) {
  if (const haddr_t address = H5Dget_offset(array); address != HADDR_UNDEF)
    storage_.give_back(address, H5Dget_storage_size(array));
}

void Hdf5File::remove(const std::string& path) {
  check(H5Ldelete(file_, path.c_str(), H5P_DEFAULT) >= 0, "cannot remove the array " + path);
}

void Hdf5File::write_attribute(hid_t object, const char* name, hid_t type, hid_t space, const void* data) {
  const Handle attribute(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  check(attribute >= 0 && H5Awrite(attribute, type, data) >= 0, fmt::format("cannot write the attribute {}", name));
}

hid_t Hdf5File::text_type(std::size_t bytes) {
  Handle& type = text_types_[bytes];
  if (type >= 0) return type;
  type = Handle(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, std::max<std::size_t>(1, bytes));
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  H5Tset_cset(type, H5T_CSET_UTF8);
  return type;
}

void Hdf5File::set_attribute(hid_t object, const char* name, std::string_view text) {
  write_attribute(object, name, text_type(text.size()), scalar_, text.empty() ? "" : text.data());
}

void Hdf5File::set_attribute(hid_t object, const char* name, std::int64_t value) {
  write_attribute(object, name, H5T_STD_I64LE, scalar_, &value);
}

void Hdf5File::set_attribute(hid_t object, const char* name, std::span<const std::int32_t> values) {
  const std::int32_t none = 0;
  write_attribute(object, name, H5T_STD_I32LE, space_of({static_cast<std::int64_t>(values.size())}),
                  values.empty() ? &none : values.data());
}

void Hdf5File::flush() { check(H5Fflush(file_, H5F_SCOPE_GLOBAL) >= 0, "cannot write"); }

void Hdf5File::close() {
  group_.close();
  flush();
  check(file_.close(), "cannot close");
  storage_.close();
  check_storage();
}

bool has_root_attribute(const std::string& path, const char* name, std::string_view text) {
  const Quiet quiet;
  const Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  if (file < 0 || H5Aexists(file, name) <= 0) return false;
  const Handle attribute(H5Aopen(file, name, H5P_DEFAULT), H5Aclose);
  const Handle type(H5Aget_type(attribute), H5Tclose);
  if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) > 0 || H5Tget_size(type) != text.size())
    return false;
  std::string found(text.size(), '\0');
  return H5Aread(attribute, type, found.data()) >= 0 && found == text;
}

}  // namespace moe_diag
