#include "sites.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "encode.hpp"
#include "parallel.hpp"

namespace pairformer {
namespace {

constexpr int kFlank = 30;              // nt on either side in which A and U are counted
constexpr int kFirstSupplementary = 8;  // miRNA letter 9, the first outside the seed
constexpr int kMostOffset = 5;          // of the 3' part against the seed's register, either way
constexpr int64_t kFar = 10000;         // nt to another site, at most

bool watson_crick(uint8_t a, uint8_t b) {
  return a + b == 3;
}  // A0 C1 G2 U3

// Best run of Watson-Crick pairs of the miRNA's 3' part: a pair of letters 13-16 counts 1, any other 1/2, and
// each nt that the run is out of the seed's register beyond two costs 1/2. Grimson et al., Mol Cell 2007.
float supplementary(const SitePair& pair, int64_t anchor) {
  float best = 0;
  for (int offset = -kMostOffset; offset <= kMostOffset; ++offset) {
    const float cost = 0.5f * static_cast<float>(std::max(0, std::abs(offset) - 2));
    float run = 0;
    for (int64_t i = kFirstSupplementary; i < pair.mirna_length; ++i) {
      const int64_t at = anchor - i - offset;
      const bool paired = at >= 0 && watson_crick(pair.mirna[i], pair.utr[at]);  // the seed is after it
      run = paired ? run + (i >= 12 && i <= 15 ? 1.0f : 0.5f) : 0.0f;
      best = std::max(best, run - cost);
    }
  }
  return best;
}

float log_over_ten(int64_t n) {
  return std::log1p(static_cast<float>(n)) / 10;
}

// The seed match of a window; one without stands for its seed part.
SeedMatch match_or_seed_part(const SitePair& pair, int32_t window) {
  const SeedMatch match = seed_match(pair, window);
  if (match.kind != kNoSeed) return match;
  const int32_t start = window + kSeedBegin, end = start + kSeedPart;
  return {kNoSeed, start, end, end - 1};
}

float log_less_seven(int64_t n) {
  return static_cast<float>(std::log1p(static_cast<double>(n)) - 7);
}

// Writes `scale` times what the shares of A, C and G are above a quarter, 0 of no letter; returns the end.
float* write_shares(const uint8_t* letter, int64_t n, double scale, float* out) {
  int64_t count[kNoBase + 1] = {};
  for (int64_t i = 0; i < n; ++i) ++count[letter[i]];
  const auto known = static_cast<double>(n - count[kNoBase]);
  for (int base = 0; base < 3; ++base)
    *out++ = known > 0 ? static_cast<float>(scale * (static_cast<double>(count[base]) / known - 0.25)) : 0.0f;
  return out;
}

// Calls found() with each place, opposite miRNA letter 1, at which letters first..last pair.
template <class Found>
void for_each_place(const SitePair& pair, int first, int last, Found found) {
  if (pair.mirna_length < last) return;
  const uint32_t mask = (uint32_t{1} << 3 * (last - first + 1)) - 1;
  uint32_t word = 0, seen = mask;  // three bits a letter, those of no letter at first
  for (int letter = last; letter >= first; --letter) word = word << 3 | (3u - pair.mirna[letter - 1]);
  for (int64_t place = first - 1; place < pair.utr_length; ++place) {
    seen = (seen << 3 | pair.utr[place - first + 1]) & mask;
    if (seen == word) found(place);
  }
}

// Places of the UTR with an A opposite miRNA letter 1 and letters 2-6 paired.
int64_t count_weak(const SitePair& pair) {
  int64_t count = 0;
  for_each_place(pair, 2, 6, [&](int64_t place) { count += pair.utr[place] == 0; });
  return count;
}

}  // namespace

SeedMatch seed_match(const SitePair& pair, int32_t window) {
  SeedMatch best{kNoSeed, -1, -1, -1};
  const uint8_t* letter = pair.utr + window;
  // `place` is opposite miRNA letter 1. Letters paired with 2-8 must lie in the seed part, the A may lie
  // beside.
  for (int place = kSeedBegin + 6; place <= kSeedBegin + kSeedPart + 1; ++place) {
    const auto paired = [&](int k) {
      const int at = place - k;
      return k < pair.mirna_length && at >= kSeedBegin && at < kSeedBegin + kSeedPart &&
             watson_crick(pair.mirna[k], letter[at]);
    };
    if (!(paired(2) && paired(3) && paired(4) && paired(5) && paired(6))) continue;
    const bool two = paired(1), eight = paired(7), has_a = letter[place] == 0;
    const SeedKind kind = two && eight ? (has_a ? k8mer : k7merM8)
                          : two        ? (has_a ? k7merA1 : k6mer)
                          : eight      ? kOffset6mer
                                       : kNoSeed;
    if (kind == kNoSeed || kind < best.kind) continue;
    constexpr int kBefore[] = {0, 7, 6, 6, 7, 7}, kAfter[] = {0, -1, 0, 1, 0, 1};
    const int32_t anchor = window + place;
    best = {kind, anchor - kBefore[kind], anchor + kAfter[kind], anchor};
  }
  return best;
}

std::vector<Site> find_sites(const SitePair& pair, const int32_t* start, const float* logit, int64_t n,
                             SeedKind least) {
  std::vector<Site> sites;
  std::vector<int64_t> places;  // every match pairs letters 3-7
  for_each_place(pair, 3, 7, [&](int64_t place) { places.push_back(place); });
  auto place = places.begin();
  for (int64_t row = 0; row < n; ++row) {
    const int64_t first = start[row] + kSeedBegin + 6, last = start[row] + kSeedBegin + kSeedPart + 1;
    while (place != places.end() && *place < first) ++place;
    if (place == places.end() || *place > last) continue;
    const SeedMatch match = seed_match(pair, start[row]);
    if (match.kind < least) continue;
    // Windows of one site follow each other.
    if (sites.empty() || sites.back().anchor != match.anchor)
      sites.push_back({match.anchor, match.kind, row});
    else if (match.kind > sites.back().kind ||
             (logit && match.kind == sites.back().kind && logit[row] > logit[sites.back().row]))
      sites.back() = {match.anchor, match.kind, row};
  }
  return sites;
}

void mark_seed_windows(const PairBatch& batch, const int64_t* offsets, const int32_t* start,
                       const float* logit, SeedKind least, int threads, uint8_t* mark) {
  const auto order = largest_first(batch.bags, [&](int64_t bag) { return offsets[bag + 1] - offsets[bag]; });
  parallel_for(batch.bags, threads, [&](int64_t task) {
    const int64_t bag = order[task], first = offsets[bag], n = offsets[bag + 1] - first;
    for (int64_t row = first; row < first + n; ++row) check_window(batch, bag, start[row]);
    std::fill_n(mark + first, n, static_cast<uint8_t>(kNoSeed));
    for (const Site& site : find_sites(SitePair(batch, bag), start + first, logit + first, n, least))
      mark[first + site.row] = site.kind;
  });
}

void site_features(const SitePair& pair, int32_t window, float* feature) {
  const SeedMatch match = match_or_seed_part(pair, window);
  for (int kind = kOffset6mer; kind <= k8mer; ++kind) *feature++ = match.kind == kind;
  int rich = 0, letters = 0;
  const auto count = [&](int64_t begin, int64_t end) {
    for (int64_t i = std::max<int64_t>(0, begin); i < std::min(end, pair.utr_length); ++i) {
      rich += pair.utr[i] == 0 || pair.utr[i] == 3;
      ++letters;
    }
  };
  count(match.start - kFlank, match.start);
  count(match.end, int64_t{match.end} + kFlank);
  *feature++ = static_cast<float>(rich) / static_cast<float>(letters);
  *feature++ = supplementary(pair, match.anchor) / 4;
  *feature++ = log_over_ten(match.start);
  *feature++ = log_over_ten(pair.utr_length - match.end);
  *feature++ = log_over_ten(pair.utr_length);
}

void site_context(const SitePair& pair, const int32_t* start, int64_t n, float* feature, int64_t stride) {
  std::vector<Site> sites;
  std::vector<int32_t> anchors;
  for (int64_t i = 0; i < n; ++i) {
    const SeedMatch match = match_or_seed_part(pair, start[i]);
    anchors.push_back(match.anchor);
    if (match.kind != kNoSeed) sites.push_back({match.anchor, match.kind, i});
  }
  std::sort(sites.begin(), sites.end(), [](const Site& a, const Site& b) {
    return std::make_tuple(a.anchor, -a.kind, a.row) < std::make_tuple(b.anchor, -b.kind, b.row);
  });
  const auto same = [](const Site& a, const Site& b) { return a.anchor == b.anchor; };
  sites.erase(std::unique(sites.begin(), sites.end(), same), sites.end());
  for (int64_t i = 0; i < n; ++i) {
    const int64_t anchor = anchors[i];
    const auto at = std::lower_bound(sites.begin(), sites.end(), anchor,
                                     [](const Site& site, int64_t value) { return site.anchor < value; });
    const auto after = at != sites.end() && at->anchor == anchor ? at + 1 : at;
    float* const row = feature + i * stride;
    row[0] = 0;
    row[1] = log_over_ten(at == sites.begin() ? kFar : std::min(kFar, anchor - at[-1].anchor));
    row[2] = log_over_ten(after == sites.end() ? kFar : std::min(kFar, after->anchor - anchor));
  }
  for (const Site& site : sites) feature[site.row * stride] = 1;
}

void bag_features(const SitePair& pair, int64_t n_candidates, float* feature) {
  *feature++ = log_less_seven(pair.utr_length);
  feature = write_shares(pair.utr, pair.utr_length, 16, feature);
  *feature++ = log_less_seven(n_candidates);
  feature = write_shares(pair.mirna, pair.mirna_length, 8, feature);
  const int64_t seed = std::min<int64_t>(1, pair.mirna_length);
  feature = write_shares(pair.mirna + seed, std::min<int64_t>(7, pair.mirna_length - seed), 4, feature);
  *feature = static_cast<float>(std::log1p(static_cast<double>(count_weak(pair))));
}

}  // namespace pairformer
