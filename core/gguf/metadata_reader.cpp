// SPDX-License-Identifier: MIT
#include "core/gguf/metadata_reader.hpp"

#include <algorithm>
#include <cmath>

#include "core/text/quote.hpp"

namespace moe_diag {

int MetadataReader::size(std::string_view key) const {
  const auto value = file_.integer(full(key));
  if (!value) refuse_file(file_, "metadata key '{}' is missing", full(key));
  if (*value < 1 || *value > largest_size)
    refuse_file(file_, "metadata key '{}' is {}, expected 1 to {}", full(key), *value, largest_size);
  return static_cast<int>(*value);
}

float MetadataReader::positive(std::string_view key) const {
  const auto value = file_.real(full(key));
  if (!value) refuse_file(file_, "metadata key '{}' is missing", full(key));
  if (!std::isfinite(*value) || *value <= 0 || !std::isfinite(static_cast<float>(*value)))
    refuse_file(file_, "metadata key '{}' is {}, expected a positive number", full(key), *value);
  return static_cast<float>(*value);
}

void MetadataReader::refuse_switch(const GgufEntry& entry, const MetadataSwitch& s) const {
  const std::string key = full(s.key);
  if (entry.type == GgufType::array || entry.type == GgufType::text)
    refuse_file(file_, "metadata key '{}' is of type {}: {}: changes what is computed and is not supported", key,
                name_of(entry.type), s.what);
  const double value = entry.type == GgufType::boolean ? (*file_.boolean(key) ? 1.0 : 0.0) : *file_.real(key);
  if (value != s.off && value != s.also_off)
    refuse_file(file_, "metadata key '{}' is {}, expected {}: {}: changes what is computed and is not supported", key,
                value, s.off, s.what);
}

void MetadataReader::refuse_others(std::span<const std::string_view> known,
                                   std::span<const MetadataSwitch> switches) const {
  const std::string prefix = full("");
  for (const GgufEntry& entry : file_.metadata()) {
    if (!entry.key.starts_with(prefix)) continue;
    const std::string_view key = entry.key.substr(prefix.size());
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    if (key == "rope.scaling.type") {
      const std::string_view type = *file_.text(entry.key);
      if (type == "none") continue;
      refuse_file(
          file_, "metadata key '{}' is {}, expected 'none': RoPE scaling changes what is computed and is not supported",
          entry.key, quoted_bytes(type));
    }
    const auto found = std::find_if(switches.begin(), switches.end(), [&](auto& s) { return s.key == key; });
    if (found == switches.end())
      refuse_file(file_,
                  "metadata key {} is not known and may change what is computed; if it does not, remove it from the "
                  "file",
                  quoted_bytes(entry.key));
    refuse_switch(entry, *found);
  }
}

}  // namespace moe_diag
