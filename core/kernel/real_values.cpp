// SPDX-License-Identifier: MIT
#include "core/kernel/real_values.hpp"

#include <algorithm>
#include <random>
#include <string>

#include "core/api/error.hpp"
#include "core/bus/bus.hpp"
#include "core/contract/contract.hpp"
#include "core/forward/forward.hpp"
#include "core/lane/lanes.hpp"
#include "core/plugin/oracle_backend.hpp"

namespace moe_diag {
namespace {

class SiteKeeper final : public Hook {
 public:
  explicit SiteKeeper(const std::vector<Site>& sites) : sites_(sites) {}

  bool wants(int, int, Site site) const override {
    return std::find(sites_.begin(), sites_.end(), site) != sites_.end();
  }
  void show(Sighting& sighting) override {
    const Tensor seen = sighting.tensor(0);
    if (!seen || !wants(0, 0, sighting.site)) return;
    StoredTensor& kept = kept_[sighting.site];
    kept = {std::string(name_of(sighting.site.stage)), seen.dtype, seen.shape, {}};
    kept.bytes.assign(seen.as<std::byte>(), seen.as<std::byte>() + seen.bytes());
  }
  std::map<Site, StoredTensor> take() { return std::move(kept_); }

 private:
  const std::vector<Site>& sites_;
  std::map<Site, StoredTensor> kept_;
};

Contract contract_with_oracle(PluginHost& host) {
  Contract contract;
  LaneSpec lane;
  lane.name = "truth";
  lane.backend = oracle_backend(host, "real activations are computed");
  lane.options = Options("lane 'truth'", "");
  lane.options.add("numerics", "f64", "");
  contract.lanes.push_back(std::move(lane));
  return contract;
}

}  // namespace

std::vector<std::int32_t> random_tokens(int count, int vocabulary, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i)
    tokens.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(vocabulary)));
  return tokens;
}

std::map<Site, StoredTensor> real_values(const Model& model, PluginHost& host, const std::vector<std::int32_t>& tokens,
                                         const std::vector<Site>& sites) {
  const Contract contract = contract_with_oracle(host);
  const int count = static_cast<int>(tokens.size());
  Lanes lanes(contract, model, host, Request{count, count});
  if (!lanes[0].absent.empty()) throw Error(ErrorKind::absent, lanes[0].absent);
  lanes.open({true});
  SiteKeeper keeper(sites);
  Bus bus;
  bus.add(keeper);
  Forward forward(lanes, bus, {}, {true});
  forward.end_after(*std::max_element(sites.begin(), sites.end()));
  forward.pass({tokens, 0, count, 0, 1}, 0);
  return keeper.take();
}

}  // namespace moe_diag
