// STSelector: at most k_max candidates of every bag, best first and spread over the transcript.
// PAIR-Former sec. 4.4 and App. D, steps A-E.
#pragma once

#include <array>
#include <cstdint>

#include "ragged.hpp"

namespace pairformer {

// The fields of pairformer.config.SelectorConfig, which documents and checks them.
struct SelectorSettings {
  int64_t k_max;
  double rho;
  bool cover;        // S1, S2: position bins and quotas
  bool deduplicate;  // S2: at most key_cap candidates per bin and hash key
  bool sigmoid;
  int64_t pool_factor, pool_min, pool_max;
  std::array<int64_t, 2> pool_steps;
  std::array<int64_t, 3> n_bins, bin_size, hash_bits;  // one value per pool class
  int64_t key_cap;
  int64_t top_t;
  double tau_w;
  bool z_normalize;
  double z_eps;
  double exponent_clip;
  uint32_t rng_seed;
};

// Where the SimHash keys of step C come from: given, or computed from the rows that need one.
struct HashSource {
  const uint32_t* keys;    // (N,), or nullptr
  const float* embedding;  // (N, width), or nullptr
  int64_t width;
};

enum Reason : uint8_t { kTop = 0, kCoverage = 1, kFill = 2, kKept = 3 };

// A bag of n rows gets exactly min(k_max, n) of them, ascending, at out_offsets[b] of rows and reason.
// position may be nullptr unless settings.cover. Rows that `keep` marks (nullptr for none; 0: not) come
// first, those of the highest mark and then the best where they are more than k_max; steps A-E share out the
// places left among the others. Throws std::invalid_argument for the first row whose logit or position is not
// finite.
void select(const Ragged<float>& logit, const float* position, const uint8_t* keep, const HashSource& hash,
            const SelectorSettings& settings, const int64_t* out_offsets, int64_t* rows, uint8_t* reason,
            int threads);

}  // namespace pairformer
