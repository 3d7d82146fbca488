// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>

#include "core/recording/row_source.hpp"

namespace moe_diag {

// manifest.json of a capture. Throws Error(usage).
class CaptureManifest {
 public:
  // `lane`: empty where it has but one.
  CaptureManifest(const std::string& folder, const ModelConfig& config, const std::string& lane);
  CaptureManifest(CaptureManifest&&) noexcept;
  ~CaptureManifest();

  const std::string& lane() const;
  const std::string& numerics() const;
  // The prompt in one call, then one for each token that was generated and computed.
  CallTable calls() const;
  // `table` is that of calls(), and outlives it.
  std::unique_ptr<RowSource> open(const CallTable& table, const RowRules& rules) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe_diag
