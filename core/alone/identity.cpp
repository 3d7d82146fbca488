// SPDX-License-Identifier: MIT
#include "core/alone/identity.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "core/forward/forward.hpp"
#include "core/forward/lane_alone.hpp"
#include "core/verdict/controls.hpp"
#include "core/verdict/judge.hpp"

namespace moe_diag {
namespace {

constexpr int other_threads[] = {1, 2, 7};
constexpr int small_chunk = 3;

// A lane of its own with that many threads.
Contract alone_with_threads(const LaneSpec& spec, int threads) {
  Contract contract;
  LaneSpec& lane = contract.lanes.emplace_back(spec);
  lane.options = Options(spec.options.owner(), spec.options.where());
  for (const Options::Entry& entry : spec.options.entries())
    if (entry.key != "threads") lane.options.add(entry.key, entry.value, entry.where);
  lane.options.add("threads", std::to_string(threads), spec.options.where());
  return contract;
}

float printed(F16 value) { return value; }
float printed(BF16 value) { return value; }
template <class T>
T printed(T value) {
  return value;
}

// A value so that it can be told from any other; NaN with its bits.
template <class T, class Bits>
std::string exact(const std::byte* at) {
  T value;
  Bits bits;
  std::memcpy(&value, at, sizeof value);
  std::memcpy(&bits, at, sizeof bits);
  return std::isnan(static_cast<double>(value)) ? fmt::format("nan (0x{:x})", bits) : fmt::format("{}", printed(value));
}

std::string exact(const SeenRow& row, std::size_t element) {
  const std::byte* at = row.bytes.data() + element * size_of(row.dtype);
  switch (row.dtype) {
    case DType::f64: return exact<double, std::uint64_t>(at);
    case DType::f32: return exact<float, std::uint32_t>(at);
    case DType::f16: return exact<F16, std::uint16_t>(at);
    case DType::bf16: return exact<BF16, std::uint16_t>(at);
    case DType::i32: break;
  }
  return exact<std::int32_t, std::uint32_t>(at);
}

}  // namespace

Identity::Identity(const AloneParts& parts, std::size_t falsifier)
    : parts_(parts), watched_(parts.plan.falsifiers[falsifier]), spec_(*watched_.spec) {}

std::unique_ptr<SeenRows> Identity::witness() const {
  if (!in_lockstep(spec_)) return nullptr;
  return std::make_unique<SeenRows>(watched_, watched_.lane,
                                    spec_.to == Twin::digest ? SeenRows::Keep::digests : SeenRows::Keep::bytes);
}

AloneJudgement Identity::judge(const SeenRows* seen, const FaultSpec* fault) const {
  AloneJudgement result;
  result.judgement.spec = &spec_;
  result.judgement.reason = why_not();
  if (!result.judgement.reason.empty()) return result;
  if (spec_.to == Twin::digest) {
    result.judgement = judge_digests(*seen);
    return result;
  }
  const std::vector<Circumstances> all = all_circumstances();
  const SeenRows base = record(all.front(), nullptr, result.changed);
  std::vector<SeenRows> others;
  for (std::size_t i = 1; i < all.size(); ++i) others.push_back(record(all[i], fault, result.changed));

  result.judgement = judge_rows([&](const RowKey& key) {
    const SeenRow* b = base.find(key);
    if (seen) return compare(key, seen->find(key), "the lockstep run", b, all[0].name);
    for (std::size_t i = 0; i < others.size(); ++i) {
      RowResult row = compare(key, others[i].find(key), all[i + 1].name, b, all[0].name);
      if (row.kind != RowResult::Kind::same) return row;
    }
    return RowResult();
  });
  return result;
}

// Why nothing can be compared, whatever is computed; empty: it can.
std::string Identity::why_not() const {
  const RunningLane& lane = parts_.lanes[static_cast<std::size_t>(watched_.lane)];
  const Options& options = parts_.contract.lanes[static_cast<std::size_t>(watched_.lane)].options;
  if (spec_.to == Twin::threads && !options.asked("threads"))
    return fmt::format("lane '{}': its backend '{}' has no option 'threads'", lane.name, lane.backend);
  if (spec_.to == Twin::chunks && all_circumstances().size() < 2)
    return "a sequence of one token can be cut one way only";
  if (spec_.to != Twin::digest) return "";
  const DigestFile& file = parts_.digests.at(spec_.digest);
  return file.absent.empty() ? why_no_digests(file.digests) : file.absent;
}

std::vector<Identity::Circumstances> Identity::all_circumstances() const {
  if (spec_.to == Twin::untraced) return {{"the lane alone"}};
  if (spec_.to == Twin::rerun) return {{"the first run"}, {"the second run"}};
  std::vector<Circumstances> all;
  if (spec_.to == Twin::threads) {
    for (int n : other_threads) all.push_back({fmt::format("{} thread{}", n, n == 1 ? "" : "s"), n, 0});
    return all;
  }
  int longest = 0;
  for (std::size_t p = 0; p < watched_.positions.size(); ++p)
    if (!watched_.positions[p].empty()) longest = std::max(longest, parts_.sequences.known(static_cast<int>(p)));
  all.push_back({"the whole sequence at once", 0, longest});
  for (int size : {(longest + 1) / 2, small_chunk, 1})
    if (size < all.back().chunk)
      all.push_back({size == 1 ? "token by token" : fmt::format("chunks of {}", size), 0, size});
  return all;
}

std::vector<Stretch> Identity::stretches(int prompt, const Circumstances& how) const {
  const int known = parts_.sequences.known(prompt);
  return how.chunk > 0 ? stretches_of(known, known, how.chunk) : parts_.sequences.stretches(prompt);
}

SeenRows Identity::record(const Circumstances& how, const FaultSpec* fault, std::int64_t& changed) const {
  if (how.threads == 0) {
    SeenRows rows(watched_, watched_.lane, SeenRows::Keep::bytes);
    record_on(parts_.lanes, watched_.lane, how, rows, fault, changed);
    return rows;
  }
  const Contract contract =
      alone_with_threads(parts_.contract.lanes[static_cast<std::size_t>(watched_.lane)], how.threads);
  Lanes lanes(contract, parts_.model, parts_.host, parts_.plan.request);
  lanes.open({true});
  SeenRows rows(watched_, 0, SeenRows::Keep::bytes);
  record_on(lanes, 0, how, rows, fault, changed);
  return rows;
}

// A lane with a fault stops where it is planted; one without is as it is in production.
void Identity::record_on(Lanes& lanes, int lane, const Circumstances& how, SeenRows& record, const FaultSpec* fault,
                         std::int64_t& changed) const {
  Bus bus;
  bus.add(record);
  std::vector<bool> active(lanes.size(), false);
  active[static_cast<std::size_t>(lane)] = true;
  std::optional<Forward> faulty;
  if (fault) faulty.emplace(lanes, bus, std::vector<PlantedFault>{{lane, *fault}}, active);
  LaneAlone alone(lanes, lane);
  for (std::size_t p = 0; p < watched_.positions.size(); ++p) {
    if (watched_.positions[p].empty()) continue;
    const auto prompt = static_cast<int>(p);
    for (const Stretch& stretch : stretches(prompt, how)) {
      const Pass pass = pass_over(parts_.sequences.sequence(prompt), stretch, parts_.plan.head_first[p]);
      if (faulty)
        faulty->pass(pass, prompt);
      else
        alone.pass(pass, prompt, &record);
    }
  }
  if (faulty) changed += faulty->changed().front();
}

// Judges every row the falsifier looks at.
template <class Compare>
Judgement Identity::judge_rows(const Compare& compare) const {
  Judgement judgement;
  judgement.spec = &spec_;
  std::string missing;
  const std::vector<Site> sites = watched_.sites.in_forward_order();
  for (std::size_t p = 0; p < watched_.positions.size(); ++p)
    for (Site site : sites)
      for (int position : watched_.positions[p]) {
        const RowKey key{static_cast<int>(p), site, position};
        const RowResult row = position < parts_.sequences.known(key.prompt)
                                  ? compare(key)
                                  : RowResult{RowResult::Kind::missing, parts_.sequences.stopped(key.prompt), {}};
        if (row.kind == RowResult::Kind::missing) {
          missing = row.text;
          continue;
        }
        const bool same = row.kind == RowResult::Kind::same;
        if (!same && judgement.remarks.empty()) judgement.remarks.push_back(row.text);
        add_sample(judgement,
                   {key.prompt, position, -1, site, same ? 1.0 : 0.0, watched_.bound_at(site), row.measure, {}});
      }
  settle(judgement, missing);
  return judgement;
}

Identity::RowResult Identity::compare(const RowKey& key, const SeenRow* a, const std::string& a_name, const SeenRow* b,
                                      const std::string& b_name) const {
  using Kind = RowResult::Kind;
  if (!a || !b) return {Kind::missing, fmt::format("{} has no {}", a ? b_name : a_name, name_of(key.site.stage)), {}};
  if (a->dtype == b->dtype && a->bytes == b->bytes) return {};
  RowResult row{Kind::other, "", {}};
  const std::size_t size = size_of(a->dtype), count = a->bytes.size() / size;
  if (a->dtype != b->dtype || a->bytes.size() != b->bytes.size()) {
    row.text = fmt::format("{}: {} gives another type or length than {}", place(key), a_name, b_name);
    return row;
  }
  std::size_t differing = 0, first = count;
  for (std::size_t i = 0; i < count; ++i) {
    if (std::memcmp(a->bytes.data() + i * size, b->bytes.data() + i * size, size) == 0) continue;
    first = std::min(first, i);
    ++differing;
  }
  row.text = fmt::format("{}, element {}: {} in {}, {} in {}; {} of {} values differ", place(key), first,
                         exact(*a, first), a_name, exact(*b, first), b_name, differing, count);
  row.measure.add(a->tensor(), 0, b->tensor(), 0, static_cast<std::int64_t>(count));
  return row;
}

std::string Identity::place(const RowKey& key) const {
  return fmt::format("prompt {}, position {}, {}", parts_.contract.prompts[static_cast<std::size_t>(key.prompt)].id,
                     key.position, text_of(key.site));
}

// Digests of something else say nothing, and are never taken for equal.
std::string Identity::why_no_digests(const Digests& file) const {
  const RunningLane& lane = parts_.lanes[static_cast<std::size_t>(watched_.lane)];
  if (file.model_digest != parts_.model.digest())
    return fmt::format("{}: holds digests of another model: {} ({}), this one is {} ({})", spec_.digest,
                       file.model_digest, file.model_source, parts_.model.digest(), parts_.model.source());
  const auto of_lane = file.lanes.find(lane.name);
  if (of_lane == file.lanes.end()) return fmt::format("{}: holds no digests of lane '{}'", spec_.digest, lane.name);
  if (of_lane->second.numerics != lane.numerics())
    return fmt::format("{}: holds digests of lane '{}' with numerics {}, it has {} now", spec_.digest, lane.name,
                       of_lane->second.numerics, lane.numerics());
  for (std::size_t p = 0; p < watched_.positions.size(); ++p) {
    if (watched_.positions[p].empty()) continue;
    const std::string& id = parts_.contract.prompts[p].id;
    const auto prompt = file.prompts.find(id);
    if (prompt == file.prompts.end()) return fmt::format("{}: holds no digests of prompt '{}'", spec_.digest, id);
    const auto tokens = parts_.sequences.tokens(static_cast<int>(p));
    const auto [mine, theirs] =
        std::mismatch(tokens.begin(), tokens.end(), prompt->second.begin(), prompt->second.end());
    if (mine != tokens.end() || theirs != prompt->second.end())
      return fmt::format("{}: holds digests of other tokens for prompt '{}', from position {} on", spec_.digest, id,
                         mine - tokens.begin());
  }
  return "";
}

Judgement Identity::judge_digests(const SeenRows& seen) const {
  const Digests& file = parts_.digests.at(spec_.digest).digests;
  const std::string& lane = parts_.lanes[static_cast<std::size_t>(watched_.lane)].name;
  Judgement judgement = judge_rows([&](const RowKey& key) -> RowResult {
    using Kind = RowResult::Kind;
    const std::string& prompt = parts_.contract.prompts[static_cast<std::size_t>(key.prompt)].id;
    const SeenRow* row = seen.find(key);
    const auto stored = file.rows.find({prompt, lane, key.site, key.position});
    if (!row) return {Kind::missing, fmt::format("lane '{}' has no {}", lane, name_of(key.site.stage)), {}};
    if (stored == file.rows.end())
      return {Kind::missing, fmt::format("{}: has no digest of {}", spec_.digest, place(key)), {}};
    if (row->digest == stored->second) return {};
    return {Kind::other,
            fmt::format("{}: digest {:016x}, {:016x} in {}", place(key), row->digest, stored->second, spec_.digest),
            {}};
  });
  if (!judgement.remarks.empty()) {
    const Digests::Lane& then = file.lanes.at(lane);
    judgement.remarks.push_back(fmt::format("the digests are of {} {} on {}, {}, by moe-diag {}", then.backend,
                                            then.numerics, then.device, then.instruction_set, file.tool_version));
  }
  return judgement;
}

void add_digests(const AloneParts& parts, std::size_t falsifier, const SeenRows& seen, Digests& digests) {
  const auto lane = static_cast<std::size_t>(parts.plan.falsifiers[falsifier].lane);
  const Description& d = parts.lanes[lane].description;
  digests.lanes[parts.lanes[lane].name] = {parts.lanes[lane].backend, parts.lanes[lane].numerics(), d.device,
                                           d.instruction_set};
  for (const auto& [key, row] : seen.rows()) {
    const std::string& prompt = parts.contract.prompts[static_cast<std::size_t>(key.prompt)].id;
    const auto tokens = parts.sequences.tokens(key.prompt);
    digests.prompts[prompt].assign(tokens.begin(), tokens.end());
    digests.rows[{prompt, parts.lanes[lane].name, key.site, key.position}] = row.digest;
  }
}

}  // namespace moe_diag
