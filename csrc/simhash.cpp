#include "simhash.hpp"

#include <algorithm>
#include <numeric>
#include <random>

#include "parallel.hpp"

namespace pairformer {

std::vector<int64_t> simhash_dims(uint32_t rng_seed, int64_t width) {
  std::vector<int64_t> order(width);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 raw(rng_seed);
  const int64_t used = std::min<int64_t>(32, width);
  for (int64_t i = 0; i < used; ++i) std::swap(order[i], order[i + raw() % (width - i)]);
  order.resize(used);
  return order;
}

std::vector<uint32_t> bit_of_dimension(uint32_t rng_seed, int64_t width) {
  std::vector<uint32_t> bit(width, 0);
  uint32_t next = 1;
  for (const int64_t dim : simhash_dims(rng_seed, width)) {
    bit[dim] = next;
    next <<= 1;
  }
  return bit;
}

void simhash_keys(const float* embedding, int64_t n, int64_t width, uint32_t rng_seed, uint32_t* keys,
                  int threads) {
  constexpr int64_t kRowsPerTask = 4096;
  const auto bit = bit_of_dimension(rng_seed, width);
  if (n < kRowsWorthThreads) threads = 1;
  parallel_rows(n, kRowsPerTask, threads, [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) keys[i] = simhash(embedding + i * width, bit);
  });
}

void centred_simhash_keys(const float* embedding, int64_t width, const int64_t* offsets, int64_t bags,
                          uint32_t rng_seed, uint32_t* keys, int threads) {
  const auto bit = bit_of_dimension(rng_seed, width);
  if (offsets[bags] < kRowsWorthThreads) threads = 1;
  parallel_for(bags, threads, [&](int64_t bag) {
    const int64_t begin = offsets[bag], end = offsets[bag + 1];
    std::vector<double> sum(width, 0.0);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t d = 0; d < width; ++d) sum[d] += embedding[i * width + d];
    std::vector<float> mean(width);
    for (int64_t d = 0; d < width; ++d)
      mean[d] = static_cast<float>(sum[d] / static_cast<double>(end - begin));
    for (int64_t i = begin; i < end; ++i) keys[i] = simhash(embedding + i * width, bit, mean.data());
  });
}

}  // namespace pairformer
