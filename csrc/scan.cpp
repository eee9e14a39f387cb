#include "scan.hpp"

#include <array>
#include <cstring>
#include <stdexcept>
#include <utility>

#if defined(__x86_64__) && defined(__GNUC__)
#define PAIRFORMER_X86 1
#endif
#ifdef __GNUC__
#define PAIRFORMER_INLINE inline __attribute__((always_inline))
#else
#define PAIRFORMER_INLINE inline
#endif

namespace pairformer {
namespace {

constexpr int kBlock = 512;                // windows whose intermediate lanes stay in the first-level cache
constexpr int kTaskWindows = 32 * kBlock;  // windows a thread takes at once; one bit a block in hit_blocks
constexpr int64_t kWorthThreads = 1 << 16;

using Steps = std::make_index_sequence<kSeedPart>;
using Carries = std::array<uint16_t, kSeedPart>;

// V after the ten letters of one window, and the carries of every step. mask[9 - j] belongs to letter j of
// the seed part counted from its 3' end, which is read first.
template <size_t... J>
PAIRFORMER_INLINE uint16_t lcs_rows(const uint16_t* mask, Carries& carries, std::index_sequence<J...>) {
  uint16_t v = 0xFFFF;
  auto step = [&](uint16_t m, uint16_t& carry) {
    const uint16_t x = v & m;
    const uint16_t sum = static_cast<uint16_t>(v + x);
    carry = sum ^ v ^ x;
    v = sum | static_cast<uint16_t>(v - x);
  };
  (step(mask[kSeedPart - 1 - J], carries[J]), ...);
  return v;
}

PAIRFORMER_INLINE uint8_t zero_bits(uint16_t v, uint16_t rows) {
  uint16_t x = static_cast<uint16_t>(~v) & rows;
  x = static_cast<uint16_t>(x - ((x >> 1) & 0x5555));
  x = static_cast<uint16_t>((x & 0x3333) + ((x >> 2) & 0x3333));
  x = static_cast<uint16_t>((x + (x >> 4)) & 0x0F0F);
  return static_cast<uint8_t>((x + (x >> 8)) & 0x1F);
}

// The aligner's first traceback from the last cell. Letter j is paired iff the score grew there, and
// then with the last miRNA letter it pairs with among those left (`below` has their bits).
template <size_t... J>
PAIRFORMER_INLINE Alignment trace(const uint16_t* mask, const Carries& carries, uint16_t rows,
                                  std::index_sequence<J...>) {
  uint16_t below = rows, mirna = 0, window = 0;
  auto step = [&](size_t j, uint16_t m, uint16_t carry) {
    const uint16_t grew = (carry & static_cast<uint16_t>(below + 1)) != 0 ? 0xFFFF : 0;
    uint16_t last = m & below;
    last |= last >> 1;
    last |= last >> 2;
    last |= last >> 4;
    last |= last >> 8;
    const uint16_t rest = last >> 1;
    mirna |= grew & (last ^ rest);
    window |= grew & static_cast<uint16_t>(1u << j);
    below = (grew & rest) | (static_cast<uint16_t>(~grew) & below);
  };
  (step(kSeedPart - 1 - J, mask[J], carries[kSeedPart - 1 - J]), ...);
  return static_cast<Alignment>(mirna) | static_cast<Alignment>(window) << kSeedPart;
}

PAIRFORMER_INLINE void pair_masks(const uint8_t* code, int letters, const uint16_t* pairs, uint16_t* mask) {
  const uint16_t a = pairs[0], c = pairs[1], g = pairs[2], u = pairs[3];
  for (int i = 0; i < letters; ++i) {
    const uint16_t low = code[i] & 1 ? c : a, high = code[i] & 1 ? u : g;
    mask[i] = code[i] & 2 ? high : low;
  }
}

PAIRFORMER_INLINE int count_body(const uint8_t* code, int windows, const uint16_t* pairs, int n,
                                 int esa_min) {
  uint16_t mask[kBlock + kSeedPart];
  pair_masks(code + kSeedBegin, windows + kSeedPart - 1, pairs, mask);
  const uint16_t rows = static_cast<uint16_t>((1u << n) - 1);
  const uint8_t least = static_cast<uint8_t>(esa_min);
  uint16_t found = 0;  // a block has fewer windows than a lane can count
  for (int w = 0; w < windows; ++w) {
    Carries unused;
    found = static_cast<uint16_t>(found + (zero_bits(lcs_rows(mask + w, unused, Steps()), rows) >= least));
  }
  return found;
}

PAIRFORMER_INLINE void align_body(const uint8_t* code, int windows, const uint16_t* pairs, int n,
                                  uint8_t* score, Alignment* alignment) {
  uint16_t mask[kBlock + kSeedPart];
  pair_masks(code + kSeedBegin, windows + kSeedPart - 1, pairs, mask);
  const uint16_t rows = static_cast<uint16_t>((1u << n) - 1);
  for (int w = 0; w < windows; ++w) {
    Carries carries;
    score[w] = zero_bits(lcs_rows(mask + w, carries, Steps()), rows);
    alignment[w] = trace(mask + w, carries, rows, Steps());
  }
}

// The same two loops, compiled once per instruction set.
#define PAIRFORMER_VARIANT(name, attribute)                                                               \
  attribute int count_##name(const uint8_t* code, int windows, const uint16_t* pairs, int n, int least) { \
    return count_body(code, windows, pairs, n, least);                                                    \
  }                                                                                                       \
  attribute void align_##name(const uint8_t* code, int windows, const uint16_t* pairs, int n,             \
                              uint8_t* score, Alignment* alignment) {                                     \
    align_body(code, windows, pairs, n, score, alignment);                                                \
  }
PAIRFORMER_VARIANT(baseline, )
#ifdef PAIRFORMER_X86
PAIRFORMER_VARIANT(avx2, __attribute__((target("avx2"))))
#ifdef __clang__
PAIRFORMER_VARIANT(avx512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))))
#else
PAIRFORMER_VARIANT(avx512,
                   __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))))
#endif
#endif
#undef PAIRFORMER_VARIANT

void encode_letters(const uint8_t* __restrict text, int64_t length, uint8_t* __restrict code) {
  auto is = [](uint8_t letter, char c) { return static_cast<uint8_t>(letter == c ? 0xFF : 0); };
  for (int64_t i = 0; i < length; ++i) {
    const uint8_t upper = text[i] & 0xDF;
    const uint8_t a = is(upper, 'A'), c = is(upper, 'C'), g = is(upper, 'G'),
                  u = is(upper, 'U') | is(upper, 'T');
    const uint8_t other = static_cast<uint8_t>(~(a | c | g | u));
    code[i] = static_cast<uint8_t>((c & 1) | (g & 2) | (u & 3) | (other & kNoBase));
  }
}

// pairs[b]: bits of the extended seed's letters that pair with base b. A-U, C-G and the wobble G-U.
std::array<uint16_t, 4> pairing_bits(const uint8_t* mirna, int n) {
  constexpr uint8_t partners[4] = {1 << 3, 1 << 2, 1 << 1 | 1 << 3, 1 << 0 | 1 << 2};
  std::array<uint16_t, 4> pairs{};
  for (int i = 0; i < n; ++i)
    for (int base = 0; base < 4; ++base)
      if (partners[mirna[i]] >> base & 1) pairs[base] |= static_cast<uint16_t>(1u << i);
  return pairs;
}

}  // namespace

void encode_texts(const std::vector<Text>& texts, uint8_t* code, int threads) {
  constexpr int64_t kPart = 1 << 20;
  std::vector<std::pair<Text, uint8_t*>> parts;
  for (const Text& text : texts) {
    for (int64_t begin = 0; begin < text.length; begin += kPart)
      parts.push_back({{text.letters + begin, std::min(kPart, text.length - begin)}, code + begin});
    code += text.length;
  }
  const bool worth_threads = !parts.empty() && parts.back().second - parts.front().second >= kPart;
  parallel_for(static_cast<int64_t>(parts.size()), worth_threads ? threads : 1, [&](int64_t i) {
    encode_letters(parts[i].first.letters, parts[i].first.length, parts[i].second);
  });
}

std::vector<Scanner::Kernels> Scanner::kernels() {
  std::vector<Kernels> known;
#ifdef PAIRFORMER_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    known.push_back({"avx512", count_avx512, align_avx512});
  if (__builtin_cpu_supports("avx2")) known.push_back({"avx2", count_avx2, align_avx2});
#endif
  known.push_back({"baseline", count_baseline, align_baseline});
  return known;
}

std::vector<std::string> scan_variants() {
  std::vector<std::string> names;
  for (const auto& kernel : Scanner::kernels()) names.emplace_back(kernel.name);
  return names;
}

Scanner::Scanner(const PairBatch& batch, int esa_min, const std::string& variant)
    : batch_(batch), esa_min_(esa_min), kernels_{} {
  std::string names = "auto";
  for (const auto& known : kernels()) {
    if (!kernels_.count && (variant == "auto" || variant == known.name)) kernels_ = known;
    names += std::string(", ") + known.name;
  }
  if (!kernels_.count)
    throw std::invalid_argument("variant must be one of " + names + " on this processor, got " + variant);
}

void Scanner::count(int threads, int64_t* offsets, int64_t* n_dropped) {
  int64_t total_windows = 0;
  tasks_.clear();
  for (int64_t bag = 0; bag < batch_.bags; ++bag) {
    const int64_t length = batch_.utr.size(batch_.bag_utr[bag]);
    const uint8_t* code = batch_.utr.begin(batch_.bag_utr[bag]);
    n_dropped[bag] = std::max<int64_t>(0, length - kWindow + 1);
    // Maximal runs of valid letters; only windows inside one are scanned.
    for (int64_t begin = 0; begin < length;) {
      const void* other = std::memchr(code + begin, kNoBase, static_cast<size_t>(length - begin));
      const int64_t end = other ? static_cast<const uint8_t*>(other) - code : length;
      const int64_t windows = std::max<int64_t>(0, end - begin - kWindow + 1);
      n_dropped[bag] -= windows;
      total_windows += windows;
      for (int64_t first = 0; first < windows; first += kTaskWindows)
        tasks_.push_back({bag, static_cast<int32_t>(begin + first),
                          static_cast<int32_t>(std::min<int64_t>(kTaskWindows, windows - first)), 0, 0, 0});
      begin = end + 1;
    }
  }
  parallel_for(
      static_cast<int64_t>(tasks_.size()), total_windows < kWorthThreads ? 1 : threads, [&](int64_t t) {
        Task& task = tasks_[t];
        const int32_t mirna = batch_.bag_mirna[task.bag];
        const int n = static_cast<int>(std::min<int64_t>(kSeedPart, batch_.mirna.size(mirna)));
        const auto pairs = pairing_bits(batch_.mirna.begin(mirna), n);
        const uint8_t* code = batch_.utr.begin(batch_.bag_utr[task.bag]) + task.start;
        for (int w = 0; w < task.windows; w += kBlock) {
          const int found =
              kernels_.count(code + w, std::min(kBlock, task.windows - w), pairs.data(), n, esa_min_);
          task.rows += found;
          task.hit_blocks |= static_cast<uint32_t>(found > 0) << (w / kBlock);
        }
      });
  std::fill(offsets, offsets + batch_.bags + 1, 0);
  int64_t row = 0;
  for (Task& task : tasks_) {
    task.row = row;
    row += task.rows;
    offsets[task.bag + 1] += task.rows;
  }
  for (int64_t bag = 0; bag < batch_.bags; ++bag) offsets[bag + 1] += offsets[bag];
}

void Scanner::fill(int threads, const CandidateRows& rows) const {
  int64_t windows_left = 0;
  for (const Task& task : tasks_) windows_left += task.hit_blocks ? task.windows : 0;
  parallel_for(
      static_cast<int64_t>(tasks_.size()), windows_left < kWorthThreads ? 1 : threads, [&](int64_t t) {
        const Task& task = tasks_[t];
        if (task.rows == 0) return;
        const int32_t mirna = batch_.bag_mirna[task.bag];
        const int n = static_cast<int>(std::min<int64_t>(kSeedPart, batch_.mirna.size(mirna)));
        const auto pairs = pairing_bits(batch_.mirna.begin(mirna), n);
        const int32_t utr = batch_.bag_utr[task.bag];
        const double span = static_cast<double>(batch_.utr.size(utr) - 1);
        uint8_t score[kBlock];
        Alignment alignment[kBlock];
        uint16_t hit[kBlock + 1];  // one past the end: the branchless loop below writes before it knows
        int64_t row = task.row;
        for (int begin = 0; begin < task.windows; begin += kBlock) {
          if (!(task.hit_blocks >> (begin / kBlock) & 1)) continue;
          const int windows = std::min(kBlock, task.windows - begin);
          const int32_t start = task.start + begin;
          kernels_.align(batch_.utr.begin(utr) + start, windows, pairs.data(), n, score, alignment);
          int hits = 0;
          for (int w = 0; w < windows; ++w) {
            hit[hits] = static_cast<uint16_t>(w);
            hits += score[w] >= esa_min_;
          }
          for (int k = 0; k < hits; ++k) rows.start[row + k] = start + hit[k];
          for (int k = 0; k < hits; ++k) rows.esa_score[row + k] = score[hit[k]];
          for (int k = 0; k < hits; ++k) rows.alignment[row + k] = alignment[hit[k]];
          for (int k = 0; k < hits; ++k)
            rows.position[row + k] = static_cast<float>((rows.start[row + k] + 19.5) / span);
          row += hits;
        }
      });
}

}  // namespace pairformer
