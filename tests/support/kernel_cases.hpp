// SPDX-License-Identifier: MIT
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/kernel/judge_kernel.hpp"
#include "core/kernel/judge_report.hpp"
#include "core/kernel/write_cases.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag::test {

// Cases of the second layer of a tiny model, in a folder of their own.
class Cases {
 public:
  explicit Cases(const std::string& numerics = "f32", std::vector<int> rows = {1, 7, 16, 64},
                 const std::string& span = "moe_ffn", std::vector<CaseRouting> routings = {CaseRouting::model},
                 const SyntheticSpec& spec = {.layers = 2})
      : host_({MOE_DIAG_PLUGINS}), model_(Model::synthetic(spec)) {
    CaseIndex source;
    source.synthetic = true;
    source.spec = spec;
    source.model_source = model_.source();
    CasesRequest request;
    request.span = span;
    request.layers = {1};
    request.rows = std::move(rows);
    request.routings = std::move(routings);
    request.numerics = numerics;
    request.out = folder();
    told = write_cases(model_, source, host_, request);
  }

  std::string folder() const { return temporary_ / "cases"; }
  std::string path(const std::string& name) const { return folder() + "/" + name; }
  JudgedKernel judged() const { return judge_kernel({.folder = folder()}); }
  std::string report() const { return judge_report(judged(), "cases"); }

  std::string told;

 private:
  TemporaryFolder temporary_;
  PluginHost host_;
  Model model_;
};

inline const JudgedCase& case_of(const JudgedKernel& judged, int rows, CaseRouting routing = CaseRouting::model) {
  for (const JudgedCase& c : judged.cases)
    if (c.of->rows == rows && c.of->routing == routing) return c;
  throw std::runtime_error("no such case");
}

inline bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace moe_diag::test
