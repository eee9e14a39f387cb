#include "selector.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.hpp"
#include "quotas.hpp"
#include "ranked.hpp"
#include "simhash.hpp"

namespace pairformer {
namespace {

constexpr int64_t kBagsPerTask = 16;

// What depends on the pool size L and so on K.
struct PoolClass {
  int64_t n_bins, bin_size;
  uint32_t hash_mask;
};

PoolClass pool_class(const SelectorSettings& s, int64_t k) {
  const int64_t pool = std::min(std::max(s.pool_factor * k, s.pool_min), s.pool_max);
  const int i = pool <= s.pool_steps[0] ? 0 : pool <= s.pool_steps[1] ? 1 : 2;
  return {s.n_bins[i], s.bin_size[i], static_cast<uint32_t>((uint64_t{1} << s.hash_bits[i]) - 1)};
}

// Throws std::invalid_argument for the first row that is not finite, whichever thread met it.
void refuse_first_fault(const Ragged<float>& logit, const float* position) {
  for (int64_t row = 0; row < logit.offsets[logit.bags]; ++row) {
    const bool is_position = !not_finite(logit.data[row]);
    if (is_position && !(position && not_finite(position[row]))) continue;
    const float value = (is_position ? position : logit.data)[row];
    throw std::invalid_argument(std::string(is_position ? "position" : "cheap_logit") +
                                " must be finite, got " +
                                (std::isnan(value) ? "nan" : std::to_string(value)) + " at row " +
                                std::to_string(row) + "; drop such rows before selecting");
  }
}

// Selects from one bag at a time; keeps its buffers between bags.
class BagSelector {
 public:
  BagSelector(const SelectorSettings& settings, const HashSource& hash, const std::vector<uint32_t>& bit)
      : settings_(settings), hash_(hash), bit_(bit) {}

  // Rows first_row .. first_row + n - 1 of the inputs; writes min(k_max, n) rows. False, and nothing
  // written, if a logit or position is not finite.
  bool select(const float* logit, const float* position, const uint8_t* keep, int64_t first_row, int64_t n,
              int64_t* rows, uint8_t* reason) {
    n_ = n;
    k_ = std::min(settings_.k_max, n);
    position_ = position;
    first_row_ = first_row;
    if (!rank(logit)) return false;
    if (n <= k_) {
      std::iota(rows, rows + n, first_row);
      std::fill_n(reason, n, kTop);
      return true;
    }
    chosen_.clear();
    if (keep) take_kept(keep);
    const auto k1 = settings_.cover ? static_cast<int64_t>(std::floor(settings_.rho * k_)) : k_;
    take_top(k1);
    if (k1 < k_) {
      split_rest();
      take_coverage(k_ - k1);
    }
    merge(rows, reason);
    return true;
  }

 private:
  static constexpr uint64_t kTaken =
      UINT64_MAX;  // the key of a row that step A is not to see; no score has it

  // Before step A. The rows marked, those of the highest mark and then the best if they are more than k_; k_
  // becomes the places left.
  void take_kept(const uint8_t* keep) {
    best_.clear();
    for (int64_t i = 0; i < n_; ++i)
      if (keep[i]) best_.push_back({keys_[i], i});
    const auto kept = std::min(k_, static_cast<int64_t>(best_.size()));
    std::partial_sort(best_.begin(), best_.begin() + kept, best_.end(),
                      [&](const Ranked& a, const Ranked& b) {
                        return keep[a.row] != keep[b.row] ? keep[a.row] > keep[b.row] : a < b;
                      });
    for (int64_t i = 0; i < kept; ++i) {
      take(best_[i], kKept);
      keys_[best_[i].row] = kTaken;
    }
    k_ -= kept;
  }

  void take(const Ranked& candidate, Reason why) { chosen_.push_back(candidate.row << 2 | why); }

  // The keys of all rows; false if a value is not finite.
  bool rank(const float* logit) {
    keys_.resize(n_);
    bool bad = false;
    for (int64_t i = 0; i < n_; ++i) {
      const float position = position_ ? position_[i] : 0;
      bad |= not_finite(logit[i]);
      bad |= not_finite(position);
      keys_[i] = static_cast<uint64_t>(~ascending(logit[i])) << 32 | ascending(position);
    }
    return !bad;
  }

  // Step A. The k best rows: one pass over the keys with a bound that tightens whenever 3 k rows are held.
  void take_top(int64_t k) {
    worst_top_ = {0, -1};
    if (k == 0) return;
    const int64_t room = 3 * k;
    best_.resize(room);
    int64_t held = 0;
    uint64_t bound = UINT64_MAX;
    const auto keep_best = [&] {
      std::nth_element(best_.begin(), best_.begin() + (k - 1), best_.begin() + held);
      held = k;
      bound = best_[k - 1].key;
    };
    for (int64_t i = 0; i < n_; ++i) {
      // A later row of the same key loses the tie, so a smaller key is the whole test.
      best_[held] = {keys_[i], i};
      held += keys_[i] < bound;
      if (held == room) keep_best();
    }
    if (held > k) keep_best();
    for (int64_t i = 0; i < k; ++i) take(best_[i], kTop);
    worst_top_ = best_[k - 1];
  }

  // The rows that step A left, and how many of them each bin has.
  void split_rest() {
    pool_ = pool_class(settings_, k_);
    bin_.resize(n_);
    const auto n_bins = static_cast<double>(pool_.n_bins);
    for (int64_t i = 0; i < n_; ++i) {
      bin_[i] = static_cast<int32_t>(std::min(std::max(0.0, position_[i] * n_bins), n_bins - 1));
    }
    rest_.resize(n_);
    bin_count_.assign(pool_.n_bins, 0);
    int64_t held = 0;
    for (int64_t i = 0; i < n_; ++i) {
      const Ranked candidate{keys_[i], i};
      const bool left = worst_top_ < candidate && candidate.key != kTaken;
      rest_[held] = candidate;
      held += left;
      bin_count_[bin_[i]] += left;
    }
    rest_.resize(held);
  }

  // Steps B-E for the k2 places that step A left free.
  void take_coverage(int64_t k2) {
    if (pool_.n_bins - std::count(bin_count_.begin(), bin_count_.end(), 0) == k2) {
      // One place for each bin: neither duplicates nor weights can change who gets it.
      take_best_of_bins();
      return;
    }
    sort_rest();
    fill_bins();
    if (settings_.deduplicate) drop_duplicates();
    weigh_bins();
    quota_ = bin_quotas(weight_, bin_count_, k2);
    int64_t missing = k2;
    for (int64_t b = 0; b < pool_.n_bins; ++b) {
      for (int64_t i = 0; i < quota_[b]; ++i) take(binned_[bin_start_[b] + i], kCoverage);
      missing -= quota_[b];
    }
    if (missing > 0) fill(missing);
  }

  void take_best_of_bins() {
    best_.assign(pool_.n_bins, {UINT64_MAX, 0});
    for (const Ranked& candidate : rest_) {
      Ranked& best = best_[bin_[candidate.row]];
      // Rows rise, so the first of equal keys stays.
      if (candidate.key < best.key) best = candidate;
    }
    for (int64_t b = 0; b < pool_.n_bins; ++b) {
      if (bin_count_[b] > 0) take(best_[b], kCoverage);
    }
  }

  // Sorts rest_: counting sort by a falling linear function of the score, then each bucket by comparison.
  void sort_rest() {
    const auto by_key = [](const Ranked& a, const Ranked& b) { return a.key < b.key; };
    const auto ends = std::minmax_element(rest_.begin(), rest_.end(), by_key);
    const double highest = ends.first->logit();
    const double range = highest - ends.second->logit();
    const auto n_buckets = static_cast<int64_t>(rest_.size()) * 2;
    const double scale = range > 0 ? (n_buckets - 1) / range : 0.0;
    bucket_.resize(rest_.size());
    bucket_end_.assign(n_buckets + 1, 0);
    for (size_t i = 0; i < rest_.size(); ++i) {
      bucket_[i] = static_cast<int32_t>((highest - rest_[i].logit()) * scale);
      ++bucket_end_[bucket_[i] + 1];
    }
    std::partial_sum(bucket_end_.begin(), bucket_end_.end(), bucket_end_.begin());
    sorted_.resize(rest_.size());
    for (size_t i = 0; i < rest_.size(); ++i) sorted_[bucket_end_[bucket_[i]]++] = rest_[i];
    for (int64_t b = 0, begin = 0; b < n_buckets; begin = bucket_end_[b++]) {
      if (bucket_end_[b] - begin > 8) std::sort(sorted_.begin() + begin, sorted_.begin() + bucket_end_[b]);
    }
    for (size_t i = 1; i < sorted_.size(); ++i) {
      const Ranked candidate = sorted_[i];
      size_t place = i;
      for (; place > 0 && candidate < sorted_[place - 1]; --place) sorted_[place] = sorted_[place - 1];
      sorted_[place] = candidate;
    }
    rest_.swap(sorted_);
  }

  // Step B. The bin_size best of each bin, best first, at bin_start_[b] of binned_.
  void fill_bins() {
    bin_start_.resize(pool_.n_bins);
    int64_t total = 0;
    for (int64_t b = 0; b < pool_.n_bins; ++b) {
      bin_start_[b] = total;
      total += std::min(bin_count_[b], pool_.bin_size);
    }
    binned_.resize(total);
    bin_count_.assign(pool_.n_bins, 0);
    for (const Ranked& candidate : rest_) {
      const int32_t b = bin_[candidate.row];
      if (bin_count_[b] < pool_.bin_size) binned_[bin_start_[b] + bin_count_[b]++] = candidate;
    }
  }

  // Step C. Keeps the key_cap best of each bin and hash key; a bin's survivors stay best first.
  void drop_duplicates() {
    const uint32_t* hash = hash_.keys ? hash_.keys + first_row_ : hash_binned();
    for (int64_t b = 0; b < pool_.n_bins; ++b) {
      int shift = 31;  // the table has 2^(32 - shift) >= 2 bin_count_[b] entries
      while ((int64_t{1} << (32 - shift)) < 2 * bin_count_[b]) --shift;
      const size_t wrap = (size_t{1} << (32 - shift)) - 1;
      seen_.assign(wrap + 1, {0, 0});
      Ranked* bin = binned_.data() + bin_start_[b];
      int64_t held = 0;
      for (int64_t i = 0; i < bin_count_[b]; ++i) {
        const uint32_t key = hash[bin[i].row] & pool_.hash_mask;
        size_t slot = (key * 0x9e3779b1u) >> shift;
        while (seen_[slot].count > 0 && seen_[slot].key != key) slot = (slot + 1) & wrap;
        seen_[slot].key = key;
        if (++seen_[slot].count <= settings_.key_cap) bin[held++] = bin[i];
      }
      bin_count_[b] = held;
    }
  }

  // Hash keys of the binned rows, in ascending order and with the rows to come on their way: the wait
  // for memory is most of this step.
  const uint32_t* hash_binned() {
    constexpr size_t kAhead = 16;
    marked_.assign(n_, 0);
    for (const Ranked& candidate : binned_) marked_[candidate.row] = 1;
    binned_rows_.clear();
    for (int64_t i = 0; i < n_; ++i) {
      if (marked_[i]) binned_rows_.push_back(i);
    }
    hash_keys_.resize(n_);
    const float* embedding = hash_.embedding + first_row_ * hash_.width;
    for (size_t i = 0; i < binned_rows_.size(); ++i) {
      const int64_t ahead = binned_rows_[std::min(i + kAhead, binned_rows_.size() - 1)];
      prefetch(embedding + ahead * hash_.width, hash_.width);
      hash_keys_[binned_rows_[i]] = simhash(embedding + binned_rows_[i] * hash_.width, bit_);
    }
    return hash_keys_.data();
  }

  double score(const Ranked& candidate) const {
    const double logit = candidate.logit();
    return settings_.sigmoid ? 1 / (1 + std::exp(-logit)) : logit;
  }

  // Step D. The weights w_b, the sum over the top_t best survivors of exp(score / tau_w). Sums run bin by
  // bin, best first, in double, so equal bins get equal weights and the twin can repeat them to the last bit.
  void weigh_bins() {
    double mean = 0, scale = 1;
    if (settings_.z_normalize) {
      scores_.clear();
      for (int64_t b = 0; b < pool_.n_bins; ++b) {
        for (int64_t i = 0; i < bin_count_[b]; ++i) scores_.push_back(score(binned_[bin_start_[b] + i]));
      }
      const auto count = static_cast<double>(scores_.size());
      mean = std::accumulate(scores_.begin(), scores_.end(), 0.0) / count;
      double squares = 0;
      for (const double x : scores_) squares += (x - mean) * (x - mean);
      scale = std::sqrt(squares / count) + settings_.z_eps;
    }
    weight_.assign(pool_.n_bins, 0);
    for (int64_t b = 0; b < pool_.n_bins; ++b) {
      for (int64_t i = 0; i < std::min(bin_count_[b], settings_.top_t); ++i) {
        const double exponent = (score(binned_[bin_start_[b] + i]) - mean) / scale / settings_.tau_w;
        weight_[b] +=
            std::exp(std::min(std::max(exponent, -settings_.exponent_clip), settings_.exponent_clip));
      }
    }
  }

  // Step E. The best rows that nothing took so far.
  void fill(int64_t missing) {
    marked_.assign(n_, 0);
    for (int64_t row : chosen_) marked_[row >> 2] = 1;
    for (const Ranked& candidate : rest_) {
      if (marked_[candidate.row]) continue;
      take(candidate, kFill);
      if (--missing == 0) return;
    }
  }

  // Step E. All taken rows, ascending.
  void merge(int64_t* rows, uint8_t* reason) {
    std::sort(chosen_.begin(), chosen_.end());
    for (size_t i = 0; i < chosen_.size(); ++i) {
      rows[i] = first_row_ + (chosen_[i] >> 2);
      reason[i] = static_cast<uint8_t>(chosen_[i] & 3);
    }
  }

  struct Seen {
    uint32_t key;
    int32_t count;
  };

  const SelectorSettings& settings_;
  const HashSource& hash_;
  const std::vector<uint32_t>& bit_;
  int64_t n_ = 0, k_ = 0, first_row_ = 0;
  const float* position_ = nullptr;
  PoolClass pool_{};
  Ranked worst_top_{};
  std::vector<uint64_t> keys_;                          // (n,)
  std::vector<int32_t> bin_, bucket_;                   // (n,)
  std::vector<int32_t> bucket_end_;                     // (buckets + 1,)
  std::vector<Ranked> best_, rest_, sorted_;            // rows of step A; rows it left
  std::vector<Ranked> binned_;                          // survivors, bin by bin
  std::vector<int64_t> bin_start_, bin_count_, quota_;  // (n_bins,)
  std::vector<double> weight_, scores_;
  std::vector<Seen> seen_;
  std::vector<uint8_t> marked_;       // (n,)
  std::vector<int64_t> binned_rows_;  // ascending
  std::vector<uint32_t> hash_keys_;
  std::vector<int64_t> chosen_;  // row << 2 | reason
};

}  // namespace

void select(const Ragged<float>& logit, const float* position, const uint8_t* keep, const HashSource& hash,
            const SelectorSettings& settings, const int64_t* out_offsets, int64_t* rows, uint8_t* reason,
            int threads) {
  const auto bit = bit_of_dimension(settings.rng_seed, hash.width);
  std::atomic<bool> faulty{false};
  if (logit.offsets[logit.bags] < kRowsWorthThreads) threads = 1;
  const int64_t per_task = threads == 1 ? std::max<int64_t>(1, logit.bags)
                                        : std::clamp<int64_t>(logit.bags / (4 * threads), 1, kBagsPerTask);
  parallel_rows(logit.bags, per_task, threads, [&](int64_t begin, int64_t end) {
    BagSelector selector(settings, hash, bit);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = logit.offsets[b], n = logit.size(b);
      const float* bag_position = position ? position + first : nullptr;
      if (!selector.select(logit.begin(b), bag_position, keep ? keep + first : nullptr, first, n,
                           rows + out_offsets[b], reason + out_offsets[b]))
        faulty = true;
    }
  });
  if (faulty) refuse_first_fault(logit, position);
}

}  // namespace pairformer
