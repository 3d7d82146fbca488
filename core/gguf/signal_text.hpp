// SPDX-License-Identifier: MIT
#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace moe_diag {

// Text in a fixed buffer: a signal handler may neither allocate nor use stdio.
class SignalText {
 public:
  void add(std::string_view text) {
    const std::size_t n = std::min(text.size(), buffer_.size() - used_);
    std::memcpy(buffer_.data() + used_, text.data(), n);
    used_ += n;
  }
  void add(std::uint64_t number, unsigned base = 10) {
    std::array<char, 64> digits;
    std::size_t at = digits.size();
    do digits[--at] = "0123456789abcdef"[number % base];
    while ((number /= base) != 0);
    add(std::string_view(digits.data() + at, digits.size() - at));
  }
  std::string_view text() const { return {buffer_.data(), used_}; }

  void write_to_stderr() const {
    std::size_t done = 0;
    while (done < used_) {
      const ssize_t n = ::write(STDERR_FILENO, buffer_.data() + done, used_ - done);
      if (n <= 0) return;
      done += static_cast<std::size_t>(n);
    }
  }

 private:
  std::array<char, 2048> buffer_;
  std::size_t used_ = 0;
};

}  // namespace moe_diag
