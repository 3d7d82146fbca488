// SPDX-License-Identifier: MIT
#include "core/compare/part_gains.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <utility>

namespace moe_diag {
namespace {

constexpr double normal_spread = 1.4826;  // of a normal distribution: standard deviation over median distance
constexpr double tiny = 1e-300;
constexpr double most_independent = 16;  // rows: wrongly guessed numerics do not average out over more

// A gain is too much when it is at least `size`, and larger than so many of its standard errors.
struct Limit {
  double errors, size;
};
constexpr Limit of_expert{6, 0.1}, of_columns{10, 0.01}, of_division{8, 0.5}, of_calls{5, 0.08};
constexpr double least_contributions = 4, least_rows = 3;  // that count

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// A gain seen in one row, and what it rests on: its variance is the row's scatter over `information`.
struct Term {
  double gain = 0, information = 0;
  std::size_t row = 0;  // ascending
};

struct Mean {
  double gain = 0, error = 0, count = 0;  // its standard error; how many terms count
  double errors() const { return error > 0 ? std::fabs(gain) / error : 0; }
};

// The larger of two standard errors: what terms scatter, and what their weights say. No more than `most_independent` of
// the terms are taken to be independent.
double error_of(double seen, double modelled, double count) {
  return std::sqrt(std::pow(std::max(seen, modelled), 2) + modelled * modelled * count / most_independent);
}

// The weighted mean. Its standard error takes the terms of a row together.
Mean mean_of(const std::vector<Term>& terms, double scatter, double spread) {
  double sum = 0, gains = 0, squares = 0;
  const auto weight = [&](const Term& t) { return 1 / (scatter / std::max(t.information, tiny) + spread * spread); };
  for (const Term& t : terms) {
    const double w = weight(t);
    sum += w;
    gains += w * t.gain;
    squares += w * w;
  }
  if (!(sum > 0)) return {};
  Mean mean{gains / sum, 0, sum * sum / squares};
  double between = 0, of_row = 0;
  std::size_t rows = 0;
  for (std::size_t i = 0; i < terms.size(); ++i) {
    of_row += weight(terms[i]) * (terms[i].gain - mean.gain);
    if (i + 1 < terms.size() && terms[i + 1].row == terms[i].row) continue;
    between += of_row * of_row;
    of_row = 0;
    ++rows;
  }
  const double count = static_cast<double>(rows);
  const double seen = std::sqrt(between * count / std::max(count - 1, 1.0)) / sum, modelled = 1 / std::sqrt(sum);
  mean.error = error_of(seen, modelled, mean.count);
  return mean;
}

using Layer = PartGains::Layer;
using Contribution = PartGains::Contribution;

std::string text_of(double gain) {
  return gain < -0.9 && gain > -1.1
             ? "missing"
             : fmt::format("{:.2g} % too {}", 100 * std::fabs(gain), gain < 0 ? "small" : "large");
}

std::string text_of(const Mean& mean, std::size_t rows) {
  return fmt::format("({:.2g} standard errors, {} row{})", mean.errors(), rows, rows == 1 ? "" : "s");
}

// First column and end of a block.
std::pair<std::int64_t, std::int64_t> columns_of(std::size_t block, std::int64_t columns) {
  const std::size_t parts = block < 2 ? 2 : block < 6 ? 4 : 8, index = block - (parts - 2);
  const auto border = [&](std::size_t i) {
    const auto all = static_cast<std::int64_t>(parts);
    return (static_cast<std::int64_t>(i) * columns + all - 1) / all;
  };
  return {border(index), border(index + 1)};
}

// The tests of one layer.
class LayerTests {
 public:
  LayerTests(Site site, const Layer& layer) : site_(site), layer_(layer) {
    std::vector<double> parts, sums, scatters;
    for (const Contribution& c : layer.contributions)
      parts.push_back(std::fabs(c.of_floor / std::max<double>(c.sums.squares[0], tiny)));
    for (const PartGains::Row& row : layer.rows) {
      sums.push_back(std::fabs(row.of_floor / std::max(row.squares, tiny)));
      scatters.push_back(row.scatter);
    }
    part_spread_ = normal_spread * median(parts);
    sum_spread_ = normal_spread * median(sums);
    scatter_ = std::max(median(scatters), 1e-12);
    for (const Contribution& c : layer.contributions) experts_.insert(c.expert);
  }

  // The gain of each expert's part that enough contributions were seen of.
  std::map<int, Mean> gains() const {
    std::map<int, Mean> gains;
    for (const int expert : experts_) {
      const Mean mean = gain_of(expert, 0);
      if (mean.count >= least_contributions) gains[expert] = mean;
    }
    return gains;
  }

  // `common`: the gain of all parts, which biased rounding makes. What is wrong with all experts makes each of them
  // stand out, so it is looked for first.
  std::optional<PartGain> found(double common) {
    test_division();
    if (!is_found()) test_calls();
    if (is_found()) return best_;
    std::size_t wrong = 0, tested = 0;
    for (const int expert : experts_) {
      const Mean mean = gain_of(expert, common);
      if (mean.count < least_contributions) continue;
      ++tested;
      wrong += is_beyond(mean, of_expert);
    }
    if (wrong > 1 && 2 * wrong > tested)
      test_all();
    else
      for (const int expert : experts_) {
        test_expert(expert, common);
        test_columns(expert);
      }
    return is_found() ? std::optional(best_) : std::nullopt;
  }

 private:
  bool is_found() const { return best_.times > 1; }
  static bool is_beyond(const Mean& mean, const Limit& limit) {
    return std::fabs(mean.gain) >= limit.size && mean.errors() > limit.errors;
  }

  Mean gain_of(int expert, double common) const {
    Mean mean = mean_of(terms_of(expert, std::nullopt), scatter_of(expert), part_spread_);
    mean.gain -= common;
    return mean;
  }

  std::vector<Term> terms_of(int expert, std::optional<std::size_t> block) const {
    std::vector<Term> terms;
    for (const Contribution& c : layer_.contributions) {
      if (c.expert != expert) continue;
      const double squares = c.sums.squares[0], of_error = c.sums.of_error[0];
      if (!block) {
        terms.push_back({of_error / std::max(squares, tiny), squares, c.row});
        continue;
      }
      const double in = std::max<double>(c.sums.squares[*block + 1], tiny), out = std::max(squares - in, tiny);
      const double of_block = c.sums.of_error[*block + 1];
      terms.push_back({of_block / in - (of_error - of_block) / out, 1 / (1 / in + 1 / out), c.row});
    }
    return terms;
  }

  double scatter_of(int expert) const {
    std::vector<double> scatters;
    for (const Contribution& c : layer_.contributions)
      if (c.expert == expert) scatters.push_back(layer_.rows[c.row].scatter);
    return std::max(median(scatters), 1e-12);
  }

  void test_expert(int expert, double common) {
    const Mean mean = gain_of(expert, common);
    if (mean.count < least_contributions) return;
    note(mean, of_expert, expert, terms_of(expert, std::nullopt),
         fmt::format("expert {}'s part of the update is {}", expert, text_of(mean.gain)));
  }

  // The gain of all experts' parts together in a row.
  Term term_of(std::size_t row) const {
    const PartGains::Row& of = layer_.rows[row];
    return {of.of_error / std::max(of.squares, tiny), of.squares, row};
  }

  void test_all() {
    std::vector<Term> terms;
    for (std::size_t r = 0; r < layer_.rows.size(); ++r) terms.push_back(term_of(r));
    const Mean mean = mean_of(terms, scatter_, sum_spread_);
    note(mean, of_expert, -1, terms,
         fmt::format("the experts' part of the update is {}, most of them alike", text_of(mean.gain)));
  }

  void test_columns(int expert) {
    for (std::size_t block = 0; block < PartGains::blocks; ++block) {
      const std::vector<Term> terms = terms_of(expert, block);
      const Mean mean = mean_of(terms, scatter_of(expert), 0);
      if (mean.count < least_contributions) return;
      const auto [first, end] = columns_of(block, layer_.columns);
      note(mean, of_columns, expert, terms,
           fmt::format("expert {}'s part of the update is {} in columns {} to {} of {}, held against the others",
                       expert, text_of(mean.gain), first, end - 1, layer_.columns));
    }
  }

  // A regression of each row's gain on a constant and on the sum of its chosen probabilities less 1: weights that were
  // not divided by that sum have 1 there.
  void test_division() {
    std::vector<Term> terms;
    double s00 = 0, s01 = 0, s11 = 0, y0 = 0, y1 = 0;
    const auto weight = [&](const Term& t) {
      return 1 / (scatter_ / std::max(t.information, tiny) + sum_spread_ * sum_spread_);
    };
    std::vector<double> lacking;
    for (std::size_t r = 0; r < layer_.rows.size(); ++r) {
      const PartGains::Row& row = layer_.rows[r];
      if (!(row.chosen > 0)) return;
      terms.push_back(term_of(r));
      lacking.push_back(row.chosen - 1);
      const double w = weight(terms.back()), x = lacking.back();
      s00 += w, s01 += w * x, s11 += w * x * x;
      y0 += w * terms.back().gain, y1 += w * x * terms.back().gain;
    }
    const double det = s00 * s11 - s01 * s01;
    if (terms.size() < 4 || !(det > 1e-10 * s00 * s11)) return;  // all sums are alike
    const double share = (s00 * y1 - s01 * y0) / det, constant = (s11 * y0 - s01 * y1) / det;
    double scattered = 0;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      const double slope = (s00 * lacking[i] - s01) / det;  // of the share on this row
      const double left = weight(terms[i]) * (terms[i].gain - constant - share * lacking[i]);
      scattered += slope * slope * left * left;
    }
    const double modelled = std::sqrt(s00 / det), count = s00 * s00 / std::max(sum_of_squares(terms, weight), tiny);
    const double seen =
        std::sqrt(scattered * static_cast<double>(terms.size()) / static_cast<double>(terms.size() - 2));
    const double error = error_of(seen, modelled, count);
    const Mean mean{share, error, count};
    const bool fits = share > 0.75 && share < 1.25;
    note(mean, of_division, -1, terms,
         fits
             ? fmt::format("the update fits weights of experts that were not divided by their sum: {:.2f} +- {:.2f} of "
                           "that difference",
                           share, error)
             : std::string("the update grows with the sum of the chosen probabilities, as weights do that were divided "
                           "by something else"));
  }

  template <class Weight>
  static double sum_of_squares(const std::vector<Term>& terms, Weight weight) {
    double sum = 0;
    for (const Term& t : terms) sum += weight(t) * weight(t);
    return sum;
  }

  // Rows of small calls held against those of large ones.
  void test_calls() {
    for (const int size : {2, 4, 8, 16, 32, 64, 128}) {
      std::vector<Term> small, large;
      for (std::size_t r = 0; r < layer_.rows.size(); ++r)
        (layer_.rows[r].call_rows < size ? small : large).push_back(term_of(r));
      const Mean of_small = mean_of(small, scatter_, sum_spread_), of_large = mean_of(large, scatter_, sum_spread_);
      if (of_small.count < least_rows || of_large.count < least_rows) continue;
      const bool is_small = std::fabs(of_small.gain) >= std::fabs(of_large.gain);
      const Mean difference{is_small ? of_small.gain - of_large.gain : of_large.gain - of_small.gain,
                            std::hypot(of_small.error, of_large.error), of_small.count};
      note(difference, of_calls, -1, is_small ? small : large,
           fmt::format("in calls of {} than {} rows the experts' part of the update is {}, held against the others",
                       is_small ? "fewer" : "no fewer", size, text_of(difference.gain)));
    }
  }

  void note(const Mean& mean, const Limit& limit, int expert, const std::vector<Term>& terms, const std::string& text) {
    const double times = mean.errors() / limit.errors;
    if (!is_beyond(mean, limit) || !(times > best_.times)) return;
    std::set<std::pair<int, int>> rows;
    for (const Term& t : terms) rows.insert({layer_.rows[t.row].prompt, layer_.rows[t.row].position});
    const PartGains::Row& first = layer_.rows[terms.front().row];
    const std::string whole = text + ' ' + text_of(mean, rows.size());
    best_ = {site_, first.prompt, first.position, expert, times, whole, std::move(rows)};
  }

  Site site_;
  const Layer& layer_;
  std::set<int> experts_;
  double part_spread_ = 0, sum_spread_ = 0;  // of the floor's gains: what the noise of the router's weights makes
  double scatter_ = 1;
  PartGain best_;
};

}  // namespace

// 1 over the expected standard deviation of each column's error: that of the floor's row, more where the floor errs
// more in that column in all rows, and the rounding of the value, which is coarse where it is large.
std::vector<double> PartGains::weights_of(Layer& layer, const PartRow& row) const {
  const std::size_t columns = row.floor.size();
  std::vector<double> distances(columns), weights(columns);
  double squares = 0;
  for (std::size_t d = 0; d < columns; ++d) {
    distances[d] = std::fabs(row.floor[d]);
    squares += row.floor[d] * row.floor[d];
  }
  const double rms = std::sqrt(squares / static_cast<double>(columns));
  const double spread = std::max({normal_spread * median(distances), 1e-3 * rms, tiny});
  const double rows = static_cast<double>(layer.rows.size() + 1);
  for (std::size_t d = 0; d < columns; ++d) {
    layer.floor_squares[d] += std::pow(row.floor[d] / spread, 2);
    const double of_column = std::max(std::sqrt(layer.floor_squares[d] / rows), 1.0) * spread;
    const double rounding = unit_ * row.values[d];
    weights[d] = 1 / std::sqrt(of_column * of_column + rounding * rounding / 3);
  }
  return weights;
}

void PartGains::add(Site site, const PartRow& row) {
  Layer& layer = layers_[site];
  const std::size_t columns = row.values.size();
  if (layer.rows.empty()) {
    layer.columns = static_cast<std::int64_t>(columns);
    layer.floor_squares.assign(columns, 0.0);
  }
  const std::vector<double> weights = weights_of(layer, row);
  Row sums{row.prompt, row.position, row.call_rows, 0, 0, 0, 0, row.chosen};
  std::vector<double> error(columns), floor(columns), all(columns);
  for (std::size_t d = 0; d < columns; ++d) {
    error[d] = row.error[d] * weights[d];
    floor[d] = row.floor[d] * weights[d];
    sums.scatter += error[d] * error[d] / static_cast<double>(columns);
  }
  for (std::size_t e = 0; e < row.experts.size(); ++e) {
    std::array<double, 8> of_error{}, squares{};  // by eighth
    double of_floor = 0;
    for (std::size_t d = 0; d < columns; ++d) {
      const double part = row.parts[e * columns + d] * weights[d];
      const std::size_t eighth = d * 8 / columns;
      of_error[eighth] += part * error[d];
      squares[eighth] += part * part;
      of_floor += part * floor[d];
      all[d] += part;
    }
    Contribution c{layer.rows.size(), row.experts[e], {}, static_cast<float>(of_floor)};
    for (std::size_t i = 0; i < 8; ++i)
      for (const std::size_t place : {std::size_t{0}, 1 + i / 4, 3 + i / 2, 7 + i}) {
        c.sums.of_error[place] += static_cast<float>(of_error[i]);
        c.sums.squares[place] += static_cast<float>(squares[i]);
      }
    layer.contributions.push_back(c);
  }
  for (std::size_t d = 0; d < columns; ++d) {
    sums.of_error += all[d] * error[d];
    sums.of_floor += all[d] * floor[d];
    sums.squares += all[d] * all[d];
  }
  layer.rows.push_back(sums);
}

std::vector<PartGain> PartGains::found() const {
  std::vector<double> gains;  // of all experts of all layers
  for (const auto& [site, layer] : layers_)
    for (const auto& [expert, mean] : LayerTests(site, layer).gains()) gains.push_back(mean.gain);
  const double common = median(gains);
  std::vector<PartGain> found;
  for (const auto& [site, layer] : layers_)
    if (auto part = LayerTests(site, layer).found(common)) found.push_back(std::move(*part));
  return found;
}

}  // namespace moe_diag
