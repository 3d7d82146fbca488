// SPDX-License-Identifier: MIT
#include "core/plan/memory.hpp"
#include "core/run/explaining.hpp"
#include "core/run/forecast.hpp"
#include "core/run/outputs.hpp"
#include "core/run/run.hpp"
#include "core/run/runner.hpp"

namespace moe_diag {
namespace {

// Of the lanes, which are opened when they fit, to be measured.
void report_lanes(PlanReport& report, Runner& runner) {
  Lanes& lanes = runner.lanes();
  const std::vector<bool> opened = runner.lanes_to_open();
  report.host_bytes = runner.host_bytes();
  report.host_available = available_memory();
  if (const std::unique_ptr<KeptOracle> record = record_of_oracle(runner)) report.kept_bytes = record->bytes();
  if (report.fits())
    lanes.open(opened);
  else
    report.seconds.unknown = "the lanes' buffers do not fit into the memory that is available";
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const RunningLane& lane = lanes[i];
    const Description& d = lane.description;
    const DeviceMemory memory = lane.runs() ? lane.device_memory() : DeviceMemory{};
    report.lanes.push_back(
        {runner.lane_report(i), opened[i], d.asynchronous, d.kernels, d.lane_bytes, d.weight_bytes, memory.total});
  }
}

}  // namespace

PlanReport plan_contract(const Contract& contract, PluginHost& host, const RunOptions& options) {
  Runner runner(contract, host, options);
  PlanReport report;
  report.contract = &contract;
  const bool has_model = runner.open_model();
  report.model = runner.model_report();
  if (!has_model) return report;
  runner.plan();
  runner.describe_lanes();
  const Outputs outputs(runner);
  runner.check_faults();
  report_lanes(report, runner);
  report.seconds.open = runner.seconds();
  report.work = workload_of(contract, runner.planned(), runner.program(), runner.lanes());
  report.outputs = outputs.all();
  report.over_budget = outputs.over_budget();
  if (contract.step) report.seconds.unknown = "one step alone takes less than what is around it";
  if (report.fits() && !contract.step) forecast(report, runner.planned(), runner.program(), runner.lanes());
  return report;
}

}  // namespace moe_diag
