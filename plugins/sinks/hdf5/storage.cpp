// SPDX-License-Identifier: MIT
#include "plugins/sinks/hdf5/storage.hpp"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/api/output_file.hpp"

namespace moe_diag {
namespace {

constexpr std::uint64_t left_free = 64 << 20;  // bytes of a disk that nothing is set aside of: structure must find room

// HDF5's view of an open file; its own fields come first.
struct Driver {
  H5FD_t base;
  Storage* storage;
  haddr_t allocated;  // end of what HDF5 has given away, which may be behind the end of the file
};

Driver& driver(H5FD_t* file) { return *reinterpret_cast<Driver*>(file); }
const Driver& driver(const H5FD_t* file) { return *reinterpret_cast<const Driver*>(file); }

H5FD_t* open_driver(const char* /*name*/, unsigned /*flags*/, hid_t access, haddr_t /*max_address*/) {
  const auto* storage = static_cast<Storage* const*>(H5Pget_driver_info(access));
  return storage ? &(new Driver{{}, *storage, 0})->base : nullptr;
}

herr_t close_driver(H5FD_t* file) {
  delete &driver(file);
  return 0;
}

herr_t query(const H5FD_t* /*file*/, unsigned long* features) {
  *features = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
              H5FD_FEAT_AGGREGATE_SMALLDATA;
  return 0;
}

haddr_t get_allocated(const H5FD_t* file, H5FD_mem_t /*type*/) { return driver(file).allocated; }

herr_t set_allocated(H5FD_t* file, H5FD_mem_t /*type*/, haddr_t end) {
  driver(file).allocated = end;
  return 0;
}

haddr_t get_end(const H5FD_t* file, H5FD_mem_t /*type*/) { return driver(file).storage->end(); }

herr_t read(H5FD_t* file, H5FD_mem_t /*type*/, hid_t /*transfer*/, haddr_t at, std::size_t bytes, void* data) {
  driver(file).storage->read_at(at, data, bytes);
  return 0;
}

herr_t write(H5FD_t* file, H5FD_mem_t type, hid_t /*transfer*/, haddr_t at, std::size_t bytes, const void* data) {
  driver(file).storage->write_at(at, data, bytes, type != H5FD_MEM_DRAW);
  return 0;
}

// A file that is shorter than what was given away could not be opened again.
herr_t truncate(H5FD_t* file, hid_t /*transfer*/, hbool_t /*closing*/) {
  driver(file).storage->truncate(driver(file).allocated);
  return 0;
}

hid_t register_driver() {
  H5FD_class_t driver_class{};
#ifdef H5FD_CLASS_VERSION
  driver_class.version = H5FD_CLASS_VERSION;
  driver_class.value = static_cast<H5FD_class_value_t>(600);  // of those that HDF5 leaves to private drivers
#endif
  driver_class.name = "moe-diag";
  driver_class.maxaddr = HADDR_MAX - 1;
  driver_class.fc_degree = H5F_CLOSE_STRONG;
  driver_class.fapl_size = sizeof(void*);  // a Storage*
  driver_class.open = open_driver;
  driver_class.close = close_driver;
  driver_class.query = query;
  driver_class.get_eoa = get_allocated;
  driver_class.set_eoa = set_allocated;
  driver_class.get_eof = get_end;
  driver_class.read = read;
  driver_class.write = write;
  driver_class.truncate = truncate;
  const H5FD_mem_t kinds[] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(kinds), std::end(kinds), std::begin(driver_class.fl_map));
  return H5FDregister(&driver_class);
}

}  // namespace

Storage::Storage(std::string path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd_ < 0) throw output_error(path_, "cannot open for writing", errno);
}

Storage::~Storage() { close(); }

hid_t Storage::access() {
  static const hid_t driver_id = register_driver();
  const hid_t list = H5Pcreate(H5P_FILE_ACCESS);
  Storage* const self = this;
  H5Pset_driver(list, driver_id, &self);
  H5Pset_fclose_degree(list, H5F_CLOSE_STRONG);
  // What HDF5 keeps about arrays lies together, in few places.
  H5Pset_meta_block_size(list, structure_block);
  // Attributes beyond 64 KiB (positions, tokens) need the format of 1.8, which every reader of today has.
  H5Pset_libver_bounds(list, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
  return list;
}

void Storage::fail(int error_number, bool structure) {
  if (error_number_ == 0) error_number_ = error_number;
  structure_lost_ = structure_lost_ || structure;
}

bool Storage::go_on() {
  if (!structure_lost_) error_number_ = 0;
  return !structure_lost_;
}

void Storage::write_at(std::uint64_t offset, const void* data, std::size_t bytes, bool structure) {
  if (failed()) {
    structure_lost_ = structure_lost_ || structure;
    return;
  }
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd_, from, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(n < 0 ? errno : ENOSPC, structure);
    from += n;
    offset += static_cast<std::uint64_t>(n);
    bytes -= static_cast<std::size_t>(n);
    end_ = std::max(end_, offset);
  }
}

// What lies behind the end of the file reads as zeros, as a hole in it does.
void Storage::read_at(std::uint64_t offset, void* data, std::size_t bytes) {
  char* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pread(fd_, to, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(errno, false);
    if (n <= 0) {
      std::memset(to, 0, bytes);
      return;
    }
    to += n;
    offset += static_cast<std::uint64_t>(n);
    bytes -= static_cast<std::size_t>(n);
  }
}

void Storage::expect(std::uint64_t offset, std::uint64_t bytes) {
  struct statvfs disk {};
  if (::fstatvfs(fd_, &disk) != 0 || disk.f_bavail * disk.f_frsize < bytes + left_free) return;
  ::fallocate(fd_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(bytes));
}

void Storage::give_back(std::uint64_t offset, std::uint64_t bytes) {
  ::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(bytes));
}

void Storage::truncate(std::uint64_t bytes) {
  if (failed()) return;
  if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) return fail(errno, true);
  end_ = bytes;
}

void Storage::close() {
  const int fd = std::exchange(fd_, -1);
  if (fd >= 0 && ::close(fd) != 0) fail(errno, true);
}

Error Storage::error() const { return output_error(path_, "cannot write", error_number_); }

}  // namespace moe_diag
