// What is known of a candidate as a target site: its seed match and what surrounds it.
#pragma once

#include <vector>

#include "scan.hpp"

namespace pairformer {

enum SeedKind : int8_t { kNoSeed, kOffset6mer, k6mer, k7merA1, k7merM8, k8mer };

struct SeedMatch {
  SeedKind kind;
  int32_t start, end;  // of the matched letters in the UTR, half-open; -1 for none
  int32_t anchor;      // the UTR position opposite miRNA letter 1; -1 for none
};

constexpr int kSiteFeatures = 10;
constexpr int kContextFeatures = 3;
constexpr int kBagFeatures = 12;

// The miRNA and the UTR of one bag.
struct SitePair {
  const uint8_t* mirna;
  int64_t mirna_length;
  const uint8_t* utr;
  int64_t utr_length;

  SitePair(const PairBatch& batch, int64_t bag)
      : mirna(batch.mirna.begin(batch.bag_mirna[bag])),
        mirna_length(batch.mirna.size(batch.bag_mirna[bag])),
        utr(batch.utr.begin(batch.bag_utr[bag])),
        utr_length(batch.utr.size(batch.bag_utr[bag])) {}
};

// A seed match and the window that stands for it.
struct Site {
  int32_t anchor;
  SeedKind kind;
  int64_t row;  // of the bag's windows
};

// Sites of a bag whose match is `least` or longer, each with the window that sees most of the match, of those
// the one of the best logit (nullptr: all alike), of those the first. Windows ascend, and so do the anchors.
std::vector<Site> find_sites(const SitePair& pair, const int32_t* start, const float* logit, int64_t n,
                             SeedKind least);

// Marks the windows of these sites with their kind, the others with 0; start and logit are of rows bag by bag
// at offsets.
void mark_seed_windows(const PairBatch& batch, const int64_t* offsets, const int32_t* start,
                       const float* logit, SeedKind least, int threads, uint8_t* mark);

// Longest Watson-Crick seed match in the seed part of the window; see pairformer/sites.py.
SeedMatch seed_match(const SitePair& pair, int32_t window);

// feature (kSiteFeatures) of the window: one for each kind of match from offset 6mer to 8mer; the share of A
// and U in the 30 nt on either side of the matched letters; the 3'-supplementary pairing score over 4; and
// the logarithms over 10 of one plus the letters before it, one plus those after it, and the UTR's length. A
// window without a match stands for its seed part.
void site_features(const SitePair& pair, int32_t window, float* feature);

// feature (n rows of kContextFeatures, `stride` apart) of n windows of a bag among each other: whether this
// one stands for its seed site, as the one of the longest match does, of those the first; and the distance of
// its anchor to the nearest other seed site upstream and downstream, at most 10000 and that for none, as the
// logarithm over 10 of one plus it.
void site_context(const SitePair& pair, const int32_t* start, int64_t n, float* feature, int64_t stride);

// feature (kBagFeatures) of the pair: length of the UTR; its shares of A, C and G among its letters ACGU;
// n_candidates; these shares of the miRNA and of its letters 2-8; and the UTR's places with an A opposite
// letter 1 and letters 2-6 paired, among them sites too weak to be marked. Lengths are logarithms of one plus
// them less 7, shares are counted from a quarter and times 16, 8 and 4, and places are a logarithm of one
// plus them.
void bag_features(const SitePair& pair, int64_t n_candidates, float* feature);

}  // namespace pairformer
