// SPDX-License-Identifier: MIT
#include "core/gguf/mapped_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string_view>
#include <utility>

#include "core/api/error.hpp"
#include "core/gguf/signal_text.hpp"

namespace moe_diag {

struct MappedFile::Impl {
  std::string path;
  std::span<const std::byte> bytes;
  std::vector<NamedRange> ranges;
  FileState state;
};

namespace {

constexpr int environment_failed = 4;  // the exit code of a run whose environment failed

// Everything the signal handler reads. A slot is taken by storing its file last and freed by clearing it first.
struct Slot {
  std::atomic<const std::byte*> first = nullptr, last = nullptr;
  std::atomic<const std::string*> path = nullptr;
  std::atomic<const std::vector<NamedRange>*> ranges = nullptr;
};
std::array<Slot, 4096> slots;  // a split model has a file a part
std::mutex slots_mutex;
struct sigaction previous_action;

[[noreturn]] void end_with_message(const std::string& path, std::size_t offset, std::string_view range) {
  SignalText text;
  text.add("moe-diag: error: ");
  text.add(path);
  text.add(": byte ");
  text.add(offset);
  text.add(", in ");
  text.add(range);
  text.add(
      ", cannot be read any more: the file was cut short or its disk failed while it was in use. Restore the "
      "file and run again.\n");
  text.write_to_stderr();
  ::_exit(environment_failed);
}

// The mapped file that the address lies in, or null.
const Slot* slot_of(const std::byte* address) {
  for (const Slot& slot : slots)
    if (const std::byte* first = slot.first.load(); first && address >= first && address < slot.last.load())
      return &slot;
  return nullptr;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const auto* address = static_cast<const std::byte*>(info->si_addr);
  if (const Slot* slot = slot_of(address)) {
    const auto offset = static_cast<std::size_t>(address - slot->first.load());
    if (const std::vector<NamedRange>* ranges = slot->ranges.load())
      for (const NamedRange& range : *ranges)
        if (offset >= range.first && offset < range.last) end_with_message(*slot->path.load(), offset, range.name);
    end_with_message(*slot->path.load(), offset, "the header");
  }
  if ((previous_action.sa_flags & SA_SIGINFO) != 0) return previous_action.sa_sigaction(signal, info, context);
  if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN)
    return previous_action.sa_handler(signal);
  ::sigaction(SIGBUS, &previous_action,
              nullptr);  // not ours: the read is repeated and ends as it would have without us
}

void watch(const std::byte* first, std::size_t size, const std::string* path) {
  const std::lock_guard lock(slots_mutex);
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    ::sigemptyset(&action.sa_mask);
    return ::sigaction(SIGBUS, &action, &previous_action) == 0;
  }();
  static_cast<void>(installed);
  for (Slot& slot : slots) {
    if (slot.first.load() != nullptr) continue;
    slot.path = path;
    slot.ranges = nullptr;
    slot.last = first + size;
    slot.first = first;
    return;
  }
}

void name_watched(const std::byte* first, const std::vector<NamedRange>* ranges) {
  const std::lock_guard lock(slots_mutex);
  for (Slot& slot : slots)
    if (slot.first.load() == first) slot.ranges = ranges;
}

void unwatch(const std::byte* first) {
  const std::lock_guard lock(slots_mutex);
  for (Slot& slot : slots)
    if (slot.first.load() == first) slot.first = nullptr;
}

struct Descriptor {
  int fd;
  ~Descriptor() { ::close(fd); }
};

Error cannot_open(const std::string& path, int error) {
  if (error == ENOENT || error == ENOTDIR) return {ErrorKind::absent, fmt::format("{}: there is no such file", path)};
  return {ErrorKind::environment, fmt::format("{}: cannot be opened: {}", path, std::strerror(error))};
}

}  // namespace

bool lies_in_mapped_file(const void* address) { return slot_of(static_cast<const std::byte*>(address)) != nullptr; }

MappedFile::MappedFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MappedFile::MappedFile(MappedFile&&) noexcept = default;
MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(impl_, other.impl_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!impl_) return;
  unwatch(impl_->bytes.data());
  ::munmap(const_cast<std::byte*>(impl_->bytes.data()), impl_->bytes.size());
}

MappedFile MappedFile::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe without a writer must not hang
  if (fd < 0) throw cannot_open(path, errno);
  const Descriptor descriptor{fd};
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw cannot_open(path, errno);
  if (!S_ISREG(status.st_mode))
    throw Error(ErrorKind::environment, fmt::format("{}: is {}, expected a file", path,
                                                    S_ISDIR(status.st_mode) ? "a folder" : "not a regular file"));
  if (status.st_size == 0) throw Error(ErrorKind::environment, fmt::format("{}: the file is empty", path));
  const auto size = static_cast<std::size_t>(status.st_size);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED)
    throw Error(ErrorKind::environment,
                fmt::format("{}: its {} bytes cannot be mapped: {}", path, size, std::strerror(errno)));
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->state = state_of(status);
  impl->bytes = {static_cast<const std::byte*>(address), size};
  watch(impl->bytes.data(), size, &impl->path);
  return MappedFile(std::move(impl));
}

const std::string& MappedFile::path() const { return impl_->path; }
std::span<const std::byte> MappedFile::bytes() const { return impl_->bytes; }
const FileState& MappedFile::state() const { return impl_->state; }

void MappedFile::name_ranges(std::vector<NamedRange> ranges) {
  impl_->ranges = std::move(ranges);
  name_watched(impl_->bytes.data(), &impl_->ranges);
}

}  // namespace moe_diag
