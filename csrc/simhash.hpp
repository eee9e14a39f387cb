// SimHash keys of cheap embeddings. PAIR-Former App. D, step C.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pairformer {

// Below this a call is not worth a second thread.
constexpr int64_t kRowsWorthThreads = 16384;

// The first min(32, width) entries of the seeded permutation of 0 .. width - 1.
std::vector<int64_t> simhash_dims(uint32_t rng_seed, int64_t width);

// For every dimension the key bit it sets, 0 for most: a key is then one pass without gathers.
std::vector<uint32_t> bit_of_dimension(uint32_t rng_seed, int64_t width);

// Bit t of keys[i] is set where embedding[i, dims[t]] > 0.
void simhash_keys(const float* embedding, int64_t n, int64_t width, uint32_t rng_seed, uint32_t* keys,
                  int threads);

// The same where it is above the mean of its bag, of which there are `bags` at `offsets`. Means are summed in
// double and rounded once: the order of a bag's rows shows only where values span more digits than that
// holds.
void centred_simhash_keys(const float* embedding, int64_t width, const int64_t* offsets, int64_t bags,
                          uint32_t rng_seed, uint32_t* keys, int threads);

// Asks for a row of floats ahead of its use, where the compiler can.
inline void prefetch(const float* row, int64_t width) {
#ifdef __GNUC__
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = 0; i < width; i += kLine) __builtin_prefetch(row + i);
#endif
}

// The key of one row; bit is bit_of_dimension.
inline uint32_t simhash(const float* embedding, const std::vector<uint32_t>& bit) {
  uint32_t key = 0;
  // Not a conditional: that form is not vectorised.
  for (size_t d = 0; d < bit.size(); ++d) key |= -static_cast<uint32_t>(embedding[d] > 0.0f) & bit[d];
  return key;
}

// The same with a level of its own for every dimension.
inline uint32_t simhash(const float* embedding, const std::vector<uint32_t>& bit, const float* level) {
  uint32_t key = 0;
  for (size_t d = 0; d < bit.size(); ++d) key |= -static_cast<uint32_t>(embedding[d] > level[d]) & bit[d];
  return key;
}

}  // namespace pairformer
