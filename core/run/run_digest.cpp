// SPDX-License-Identifier: MIT
#include "core/run/run_digest.hpp"

namespace moe_diag {

const std::string& RunDigest::wait() const {
  DigestProgress progress;
  if (options_.progress && !quiet_)
    progress = [this](std::uint64_t done, std::uint64_t total) {
      options_.progress({"digest of the model", static_cast<std::int64_t>(done >> 20),
                         static_cast<std::int64_t>(total >> 20), "MiB"});
    };
  return model_.digest(options_.interrupted, progress);
}

}  // namespace moe_diag
