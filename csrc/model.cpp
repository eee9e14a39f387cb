#include "model.hpp"

#include <algorithm>

#include "duplex.hpp"
#include "parallel.hpp"
#include "sites.hpp"
#include "variants.hpp"

namespace pairformer {
namespace {

constexpr int64_t kCheapRows = 128;    // candidates a thread scores at once
constexpr int64_t kExpensiveRows = 8;  // windows a thread encodes at once
constexpr int64_t kGroup = 256;        // bags whose tokens exist at once
// Of a site's row: features, context, duplex energy.
constexpr int64_t kEnergy = kSiteFeatures + kContextFeatures;
constexpr int64_t kSite = padded(kEnergy + 1);

// Features of a bag's windows and their context among each other -> site (n, kSite).
void write_sites(const SitePair& pair, const std::vector<int32_t>& start, float* site) {
  const auto n = static_cast<int64_t>(start.size());
  for (int64_t i = 0; i < n; ++i) site_features(pair, start[i], site + i * kSite);
  site_context(pair, start.data(), n, site + kSiteFeatures, kSite);
}

// Rows first .. first + count - 1 of a bag.
struct Part {
  int64_t bag, first, count;
};

std::vector<Part> parts_of(const int64_t* offsets, int64_t begin, int64_t end, int64_t most) {
  std::vector<Part> parts;
  for (int64_t bag = begin; bag < end; ++bag)
    for (int64_t first = offsets[bag]; first < offsets[bag + 1]; first += most)
      parts.push_back({bag, first, std::min(most, offsets[bag + 1] - first)});
  return parts;
}

}  // namespace

int64_t Candidates::bag_of(int64_t row) const {
  return std::upper_bound(offsets, offsets + batch.bags + 1, row) - offsets - 1;
}

Model::Model(const Weights& weights, const ModelShape& shape, std::vector<TokenPart> token, float empty_logit,
             const std::string& variant)
    : kernels_(kernels_of(variant)),
      cheap_(weights, shape),
      expensive_(weights, shape),
      token_(std::move(token)),
      token_width_(shape.token_width),
      members_(shape.members),
      empty_logit_(empty_logit) {
  for (int64_t i = 0; i < members_; ++i) {
    const std::string number = std::to_string(i);
    if (shape.kind != "none" || shape.additive == 0) {
      aggregators_.push_back(Aggregator::make(weights, "aggregators." + number, shape));
      if (shape.length_gate) gates_.emplace_back(weights, "gates." + number);
    }
    if (shape.additive > 0) heads_.emplace_back(weights, "additives." + number, shape.additive);
  }
  weights.check_all_used();
}

void Model::cheap_scan(const Candidates& candidates, int threads, float* logit, uint32_t* key) const {
  const auto parts = parts_of(candidates.offsets, 0, candidates.batch.bags, kCheapRows);
  const int before = cheap_.before(), span = cheap_.span();
  parallel_for(static_cast<int64_t>(parts.size()), threads, [&](int64_t task) {
    const Part& part = parts[task];
    RowSymbols symbols(candidates.batch);
    std::vector<uint8_t> symbol(part.count * span, kEmptySymbol);
    for (int64_t i = 0; i < part.count; ++i) {
      const EncodeRow row = candidates.row(part.bag, part.first + i);
      check_row(candidates.batch, row);
      symbols(row, symbol.data() + i * span + before);
    }
    const int64_t first = part.first;
    cheap_.score(kernels_, part.count, symbol.data(), candidates.esa_score + first,
                 candidates.position + first, logit + first, key + first);
  });
}

// The expensive encoder over a task's rows.
class Model::RowEncoder {
 public:
  RowEncoder(const Model& model, const PairBatch& batch)
      : model_(model), batch_(batch), symbols_(batch), symbol_(model.expensive_.span(), kEmptySymbol) {}

  // Writes the embedding (expensive_width()) and returns the logit.
  float operator()(const EncodeRow& row, float* embedding) {
    check_row(batch_, row);
    symbols_(row, symbol_.data() + model_.expensive_.before());
    return model_.expensive_.encode(model_.kernels_, symbol_.data(), scratch_, embedding);
  }

 private:
  const Model& model_;
  const PairBatch& batch_;
  RowSymbols symbols_;
  std::vector<uint8_t> symbol_;
  Scratch scratch_;
};

void Model::encode(const Candidates& candidates, const int64_t* rows, int64_t n, int threads,
                   float* embedding, float* logit) const {
  parallel_rows(n, kExpensiveRows, threads, [&](int64_t first, int64_t end) {
    RowEncoder encoder(*this, candidates.batch);
    for (int64_t i = first; i < end; ++i)
      logit[i] =
          encoder(candidates.row(candidates.bag_of(rows[i]), rows[i]), embedding + i * expensive_.width());
  });
}

void Model::write_token(const Candidates& candidates, int64_t row, const float* embedding, float logit,
                        const float* site, float* token) const {
  for (const TokenPart part : token_) {
    switch (part) {
      case TokenPart::embedding:
        token = std::copy_n(embedding, expensive_.width(), token);
        break;
      case TokenPart::logit:
        *token++ = logit;
        break;
      case TokenPart::esa:
        *token++ = candidates.esa_score[row];
        break;
      case TokenPart::position:
        *token++ = candidates.position[row];
        break;
      case TokenPart::site:
        token = std::copy_n(site, kSiteFeatures, token);
        break;
      case TokenPart::context:
        token = std::copy_n(site + kSiteFeatures, kContextFeatures, token);
        break;
      case TokenPart::duplex:
        *token++ = site[kEnergy];
        break;
    }
  }
}

Model::Said Model::add_up(const float* feature, const float* site, int64_t n, float* contribution,
                          float* weight) const {
  const Floats mine(n);
  const auto members = static_cast<float>(members_);
  Said said{0, 0};
  std::fill_n(contribution, n, 0.0f);
  if (weight) std::fill_n(weight, n, 0.0f);
  for (const AdditiveHead& head : heads_) {
    const float repression = head(kernels_, site, n, kSite, feature, mine);
    said.repression += repression;
    said.logit += head.gain() * repression;
    for (int64_t i = 0; i < n; ++i) {
      contribution[i] += mine[i];
      if (weight) weight[i] += head.gain() * mine[i];
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    contribution[i] /= members;
    if (weight) weight[i] /= members;
  }
  return {said.repression / members, said.logit / members};
}

void Model::add_sites(const ChosenRows& chosen, int64_t bag, const float* feature, const float* site,
                      const Aggregated& out) const {
  const int64_t begin = chosen.offsets[bag], end = chosen.offsets[bag + 1];
  std::vector<int64_t> rows;  // those that stand for their site
  const Floats standing((end - begin) * kSite);
  for (int64_t i = begin; i < end; ++i) {
    const float* mine = site + (i - begin) * kSite;
    out.contribution[i] = 0;
    if (mine[kSiteFeatures] == 0) continue;
    std::copy_n(mine, kSite, standing + static_cast<int64_t>(rows.size()) * kSite);
    rows.push_back(i);
  }
  const auto n = static_cast<int64_t>(rows.size());
  const Floats contribution(n), weight(n);
  const Said said =
      add_up(feature, standing, n, contribution, out.weight ? static_cast<float*>(weight) : nullptr);
  for (int64_t k = 0; k < n; ++k) {
    out.contribution[rows[k]] = contribution[k];
    if (out.weight) out.weight[rows[k]] = weight[k];
  }
  out.repression[bag] = said.repression;
  out.pair_logit[bag] += said.logit;
}

void Model::sum_sites(const Candidates& candidates, int64_t k_max, int threads, const Summed& out) const {
  const auto size = [&](int64_t bag) { return candidates.offsets[bag + 1] - candidates.offsets[bag]; };
  const auto order = largest_first(candidates.batch.bags, size);
  parallel_for(candidates.batch.bags, threads, [&](int64_t task) {
    const int64_t bag = order[task], n = size(bag);
    out.known[bag] = 1;
    out.repression[bag] = 0;
    out.contribution[bag] = 0;
    out.pair_logit[bag] = empty_logit_;
    if (n == 0) return;
    const SitePair pair(candidates.batch, bag);
    const int32_t* const start = candidates.start + candidates.offsets[bag];
    float feature[kBagFeatures];
    bag_features(pair, n, feature);
    for (size_t m = 0; m < aggregators_.size(); ++m)
      if (gates_.empty() || gates_[m](feature) != 0) out.known[bag] = 0;
    if (!out.known[bag]) return;
    for (int64_t i = 0; i < n; ++i) check_window(candidates.batch, bag, start[i]);
    const std::vector<Site> sites = find_sites(pair, start, nullptr, n, kOffset6mer);
    const auto count = static_cast<int64_t>(sites.size());
    if (count > k_max) {
      out.known[bag] = 0;
      return;
    }
    const Floats row(count * kSite), contribution(count);
    std::vector<int32_t> windows;
    for (const Site& site : sites) windows.push_back(start[site.row]);
    write_sites(pair, windows, row);
    const Said said = add_up(feature, row, count, contribution, nullptr);
    out.repression[bag] = said.repression;
    out.pair_logit[bag] = said.logit;
    for (int64_t i = 0; i < count; ++i) out.contribution[bag] += contribution[i];
  });
}

void Model::aggregate(const Candidates& candidates, const ChosenRows& chosen, int threads,
                      const Aggregated& out) const {
  const auto reads = [&](TokenPart part) {
    return std::find(token_.begin(), token_.end(), part) != token_.end();
  };
  const bool reads_energy = reads(TokenPart::duplex);
  const bool reads_site = additive() || reads(TokenPart::site) || reads(TokenPart::context) || reads_energy;
  const auto members = static_cast<float>(members_);
  const int64_t ld = padded(token_width_), wide = aggregators_.empty() ? 0 : aggregators_[0]->ld();
  for (int64_t begin = 0; begin < candidates.batch.bags; begin += kGroup) {
    const int64_t end = std::min(candidates.batch.bags, begin + kGroup), first = chosen.offsets[begin],
                  count = chosen.offsets[end] - first;
    const auto size = [&](int64_t bag) {
      return chosen.offsets[begin + bag + 1] - chosen.offsets[begin + bag];
    };
    const auto order = largest_first(end - begin, size);
    const Floats site(count * kSite);
    if (reads_site)
      parallel_for(end - begin, threads, [&](int64_t task) {
        const int64_t bag = begin + order[task];
        const SitePair pair(candidates.batch, bag);
        float* const mine = site + (chosen.offsets[bag] - first) * kSite;
        std::vector<int32_t> start;
        for (int64_t i = 0; i < size(order[task]); ++i) {
          start.push_back(candidates.start[chosen.rows[chosen.offsets[bag] + i]]);
          check_window(candidates.batch, bag, start[i]);
        }
        write_sites(pair, start, mine);
        if (!reads_energy) return;
        const Duplexes duplexes(pair);
        for (int64_t i = 0; i < size(order[task]); ++i)
          mine[i * kSite + kEnergy] = static_cast<float>(duplexes.energy(start[i])) / 100;
      });
    const Floats token(count * ld);
    const auto parts = parts_of(chosen.offsets, begin, end, kExpensiveRows);
    parallel_for(static_cast<int64_t>(parts.size()), threads, [&](int64_t task) {
      const Part& part = parts[task];
      RowEncoder encoder(*this, candidates.batch);
      const Floats embedding(expensive_.width());
      for (int64_t i = part.first; i < part.first + part.count; ++i) {
        out.site_logit[i] = encoder(candidates.row(part.bag, chosen.rows[i]), embedding);
        write_token(candidates, chosen.rows[i], embedding, out.site_logit[i], site + (i - first) * kSite,
                    token + (i - first) * ld);
      }
    });
    // Members one after the other: projected rows, and of the bags logits and what they count for.
    const int64_t aggregators = static_cast<int64_t>(aggregators_.size());
    const Floats projected(aggregators * count * wide), logit(aggregators * (end - begin)),
        share(aggregators * (end - begin));
    parallel_for(end - begin, threads, [&](int64_t task) {
      const int64_t bag = begin + order[task], at = chosen.offsets[bag] - first, n = size(order[task]);
      if (out.weight) std::fill_n(out.weight + chosen.offsets[bag], n, 0.0f);
      if (n == 0) {
        out.pair_logit[bag] = empty_logit_;
        if (additive()) out.repression[bag] = 0;
        return;
      }
      float feature[kBagFeatures];
      if (additive())
        bag_features(SitePair(candidates.batch, bag), candidates.offsets[bag + 1] - candidates.offsets[bag],
                     feature);
      float sum = 0;
      for (int64_t m = 0; m < aggregators; ++m) {
        float* const mine = projected + (m * count + at) * wide;
        const int64_t own = m * (end - begin) + order[task];
        share[own] = gates_.empty() ? 1 : gates_[m](feature);
        if (share[own] == 0) continue;  // as for most UTRs: whatever it would say
        aggregators_[m]->project(kernels_, token + at * ld, n, ld, mine);
        logit[own] = aggregators_[m]->logit(kernels_, mine, n);
        sum += share[own] * logit[own];
      }
      out.pair_logit[bag] = sum / members;
      if (additive()) add_sites(chosen, bag, feature, site + at * kSite, out);
    });
    if (!out.weight) continue;
    const auto rows = parts_of(chosen.offsets, begin, end, 1);
    parallel_for(static_cast<int64_t>(rows.size()), threads, [&](int64_t task) {
      const Part& row = rows[task];
      const int64_t n = size(row.bag - begin) - 1, left = row.first - chosen.offsets[row.bag];
      if (n == 0) {
        out.weight[row.first] = out.pair_logit[row.bag] - empty_logit_;
        return;
      }
      const Floats others(n * wide);
      float sum = 0;
      for (int64_t m = 0; m < aggregators; ++m) {
        const int64_t own = m * (end - begin) + row.bag - begin;
        if (share[own] == 0) continue;
        const float* all = projected + (m * count + chosen.offsets[row.bag] - first) * wide;
        std::copy_n(all, left * wide, static_cast<float*>(others));
        std::copy_n(all + (left + 1) * wide, (n - left) * wide, others + left * wide);
        sum += share[own] * (logit[own] - aggregators_[m]->logit(kernels_, others, n));
      }
      out.weight[row.first] += sum / members;
    });
  }
}

}  // namespace pairformer
