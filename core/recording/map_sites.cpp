// SPDX-License-Identifier: MIT
#include "core/recording/map_sites.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/recording/site_name.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

using Ranks = std::vector<const MapArray*>;

// Arrays that one entry of `from` finds, by rank, then by {n}.
using Numbered = std::map<int, std::map<int, const MapArray*>>;

// Layer, call and request of an array, as its name says.
struct Place {
  int layer = -1;
  MapKey key;

  friend auto operator<=>(const Place&, const Place&) = default;
};

class SiteFinder {
 public:
  SiteFinder(MapFiles& files, const DumpMap& map, const ModelConfig& config)
      : files_(files), map_(map), config_(config) {}

  std::vector<MappedSite> find() {
    for (const StageMap& stage : map_.stages) find_stage(stage);
    std::stable_sort(sites_.begin(), sites_.end(),
                     [](const MappedSite& a, const MappedSite& b) { return a.site < b.site; });
    return std::move(sites_);
  }

 private:
  void find_stage(const StageMap& stage) {
    const Stage named = stage_named(stage.stage, config_, map_.at(stage.where));
    check_keys(stage);
    std::size_t most_ranks = 0;
    std::map<Place, std::vector<Numbered>> places;
    for (std::size_t i = 0; i < stage.from.size(); ++i)
      for (const MapHit& hit : hits_of(stage, stage.from[i])) {
        std::vector<Numbered>& sources = places[{hit.number("layer"), MapKey::of(hit)}];
        sources.resize(stage.from.size());
        const int rank = std::max({hit.number("tp"), hit.number("ep"), 0});
        const auto [other, is_new] = sources[i][rank].try_emplace(hit.number("n"), hit.array);
        if (!is_new)
          refuse_recording(fmt::format("{}: {} and {} are both it: make the pattern say which", place_of(map_, stage),
                                       other->second->name, hit.array->name));
      }
    for (const auto& [place, sources] : places) {
      std::vector<Ranks> arrays;
      for (std::size_t i = 0; i < sources.size(); ++i) {
        arrays.push_back(chosen(stage, i, sources));
        const std::size_t ranks = arrays.back().size();
        if (most_ranks > 0 && ranks != most_ranks)
          refuse_recording(fmt::format("{}: {} is of {} ranks, others are of {}: a rank is missing",
                                       place_of(map_, stage), arrays.back().front()->name, ranks, most_ranks));
        most_ranks = ranks;
      }
      add_layers(stage, named, place, arrays);
    }
  }

  // Keys that would do nothing.
  void check_keys(const StageMap& stage) const {
    const auto has = [&](std::string_view variable) {
      return std::any_of(stage.from.begin(), stage.from.end(),
                         [&](const MapPattern& pattern) { return pattern.text.find(variable) != std::string::npos; });
    };
    const std::vector<MapAxis> axes = stage.axes.value_or(std::vector<MapAxis>());
    const bool has_layers =
        std::any_of(axes.begin(), axes.end(), [](const MapAxis& axis) { return axis.kind == MapAxis::Kind::layer; });
    const bool has_ranks =
        std::any_of(axes.begin(), axes.end(), [](const MapAxis& axis) { return axis.ranks != MapAxis::Ranks::none; });
    std::string what;
    if (stage.occurrence && !has("{n}")) what = "n chooses among {n}, which no pattern has";
    if ((!stage.layers.empty() || stage.at) && !has_layers)
      what = "layers and at are of the axis layer, which is not said";
    if (has_ranks && !has("{tp}") && !has("{ep}")) what = "the axes have ranks, and no pattern has {tp} or {ep}";
    if (has("{tp}") && has("{ep}")) what = "has {tp} and {ep}: ranks have one number";
    if (!what.empty()) refuse_recording(fmt::format("{}: {}", place_of(map_, stage), what));
  }

  std::vector<MapHit> hits_of(const StageMap& stage, const MapPattern& pattern) {
    std::vector<MapHit> hits = files_.find(pattern.text, map_.at(pattern.where), stage.type, stage.skip);
    if (hits.empty() && !stage.is_optional)
      refuse_recording(fmt::format("{}: nothing in {} is called '{}'; there is {}", place_of(map_, stage),
                                   files_.folder(), shown(pattern.text), files_.some_names()));
    return hits;
  }

  // The array of each rank; of several with the same name, the one that the map's `n` says.
  Ranks chosen(const StageMap& stage, std::size_t entry, const std::vector<Numbered>& sources) const {
    if (sources[entry].empty()) {
      const auto other = std::find_if(sources.begin(), sources.end(), [](const Numbered& n) { return !n.empty(); });
      refuse_recording(fmt::format("{}: {} is there, and nothing beside it is called '{}'", place_of(map_, stage),
                                   other->begin()->second.begin()->second->name, shown(stage.from[entry].text)));
    }
    Ranks ranks;
    for (const auto& [rank, of] : sources[entry]) {
      if (rank != static_cast<int>(ranks.size()))
        refuse_recording(fmt::format("{}: {} is of rank {}, and nothing is of rank {}", place_of(map_, stage),
                                     of.begin()->second->name, rank, ranks.size()));
      const auto count = static_cast<int>(of.size());
      if (count > 1 && !stage.occurrence)
        refuse_recording(fmt::format("{}: {} and {} are both it: say with 'n' which one, from 0; -1 is the last",
                                     place_of(map_, stage), of.begin()->second->name,
                                     std::next(of.begin())->second->name));
      const int n = stage.occurrence.value_or(0), index = n < 0 ? count + n : n;
      if (index < 0 || index >= count)
        refuse_recording(fmt::format("{}: n is {}, and there is 0 to {} of {}", place_of(map_, stage), n, count - 1,
                                     of.begin()->second->name));
      ranks.push_back(std::next(of.begin(), index)->second);
    }
    return ranks;
  }

  // One array may have all layers.
  void add_layers(const StageMap& stage, Stage named, const Place& place, const std::vector<Ranks>& arrays) {
    const MapArray& array = *arrays.front().front();
    const auto size = layers_of(array, stage);
    if (info(named).scope != Scope::layer) {
      if (place.layer >= 0 || (size && !stage.at))
        refuse_recording(fmt::format("{}: is of the whole model: {}", place_of(map_, stage),
                                     size ? "say its index on the axis layer with 'at'" : "it has no {layer}"));
      add_site(stage, {named, -1}, place.key, arrays, stage.at.value_or(0));
      return;
    }
    if (size) check_axis(stage, array, *size);
    if (!size && place.layer < 0)
      refuse_recording(fmt::format("{}: its pattern has no {{layer}}, and its axes no layer", place_of(map_, stage)));
    for (std::int64_t i = 0; i < size.value_or(1); ++i) {
      const int along = stage.layers.empty() ? static_cast<int>(i) : stage.layers[static_cast<std::size_t>(i)];
      add_layer(stage, named, size ? along : place.layer, place.key, arrays, i);
    }
  }

  void check_axis(const StageMap& stage, const MapArray& array, std::int64_t size) const {
    const std::int64_t expected =
        stage.layers.empty() ? config_.layers + std::max(stage.layer_offset, 0) : std::ssize(stage.layers);
    if (size != expected)
      refuse_recording(
          fmt::format("{}: its axis layer has {}, expected {}: say with 'layers' which ones these are ({})",
                      array.where(), size, expected, place_of(map_, stage)));
  }

  // A number before the model's first layer is the input of layer 0, which is no layer's output: it is left out.
  void add_layer(const StageMap& stage, Stage named, int number, const MapKey& key, const std::vector<Ranks>& arrays,
                 std::int64_t index) {
    const std::int64_t layer = std::int64_t{number} - stage.layer_offset;
    if (layer < 0) return;
    if (layer >= config_.layers)
      refuse_recording(
          fmt::format("{}: is of layer {}, the model has layers 0 to {}: is it a dump of another model? ({})",
                      arrays.front().front()->where(), layer, config_.layers - 1, place_of(map_, stage)));
    add_site(stage, {named, static_cast<int>(layer)}, key, arrays, index);
  }

  void add_site(const StageMap& stage, Site site, const MapKey& key, const std::vector<Ranks>& arrays,
                std::int64_t index) {
    MapShape as{stage,
                place_of(map_, stage),
                config_.shape_of(site, 1, 1).count(),
                info(site.stage).row[1].symbol.empty() ? std::size_t{1} : std::size_t{2},
                index,
                0};
    const auto count_of = [](const MapArray& array) {
      return std::ssize(array.data) / static_cast<std::int64_t>(size_of(array.element));
    };
    std::int64_t all = 0;
    for (const Ranks& ranks : arrays)
      for (const MapArray* array : ranks) all += count_of(*array);
    if (stage.order) {  // rows of slots
      as.width /= config_.used;
      as.dimensions = 1;
    }
    MappedSite& found = sites_.emplace_back(MappedSite{&stage, site, key, {}, nullptr});
    for (const Ranks& ranks : arrays) {
      found.sources.emplace_back();
      for (const MapArray* array : ranks) {
        if (const auto size = layers_of(*array, stage); size && index >= *size)
          refuse_recording(fmt::format("{}: its axis layer has {}, expected at least {} ({})", array->where(), *size,
                                       index + 1, as.where));
        as.together = stage.is_sum ? count_of(*array) : all;
        found.sources.back().push_back(view_of(*array, as));
      }
    }
    if (stage.order) found.order = &order_of(stage, site, key);
  }

  const MapArray& order_of(const StageMap& stage, Site site, const MapKey& key) {
    const std::string at = map_.at(stage.order->where);
    for (const MapHit& hit : files_.find(stage.order->text, at)) {
      const int layer = hit.number("layer");
      if ((layer < 0 || layer - stage.layer_offset == site.layer) && MapKey::of(hit).covers(key)) return *hit.array;
    }
    refuse_recording(
        fmt::format("{}: order: nothing of {} is called '{}'", at, text_of(site), shown(stage.order->text)));
  }

  MapFiles& files_;
  const DumpMap& map_;
  const ModelConfig& config_;
  std::vector<MappedSite> sites_;
};

}  // namespace

std::string place_of(const DumpMap& map, const StageMap& stage) {
  return fmt::format("{}: {}", map.at(stage.where), shown(stage.stage));
}

std::vector<MappedSite> find_sites(MapFiles& files, const DumpMap& map, const ModelConfig& config) {
  return SiteFinder(files, map, config).find();
}

}  // namespace moe_diag
