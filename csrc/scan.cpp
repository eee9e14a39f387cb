#include "scan.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "parallel.hpp"
#include "variants.hpp"

namespace pairformer {
namespace {

constexpr int kTaskWindows =
    32 * kScanBlock;  // windows a thread takes at once; one bit a block in hit_blocks
constexpr int64_t kWorthThreads = 1 << 16;

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

std::vector<bool> encode_texts(const std::vector<Text>& texts, uint8_t* code, int threads) {
  constexpr int64_t kPart = 1 << 20;
  struct Part {
    size_t text;
    Text letters;
    uint8_t* code;
    bool has_other;
  };
  std::vector<Part> parts;
  int64_t total = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const Text& text = texts[i];
    for (int64_t begin = 0; begin < text.length; begin += kPart)
      parts.push_back({i, {text.letters + begin, std::min(kPart, text.length - begin)}, code + begin, false});
    code += text.length;
    total += text.length;
  }
  parallel_for(static_cast<int64_t>(parts.size()), total >= kPart ? threads : 1, [&](int64_t i) {
    Part& part = parts[i];
    encode_letters(part.letters.letters, part.letters.length, part.code);
    part.has_other = std::memchr(part.code, kNoBase, static_cast<size_t>(part.letters.length)) != nullptr;
  });
  std::vector<bool> has_other(texts.size());
  for (const Part& part : parts)
    if (part.has_other) has_other[part.text] = true;
  return has_other;
}

Scanner::Scanner(const PairBatch& batch, int esa_min, const std::string& variant)
    : batch_(batch), esa_min_(esa_min), kernels_(kernels_of(variant)) {}

void Scanner::count(int threads, int64_t* offsets, int64_t* n_dropped) {
  int64_t total_windows = 0;
  tasks_.clear();
  for (int64_t bag = 0; bag < batch_.bags; ++bag) {
    const int32_t utr = batch_.bag_utr[bag];
    const int64_t length = batch_.utr.size(utr);
    const uint8_t* code = batch_.utr.begin(utr);
    const bool has_other = batch_.utr_has_other[utr];
    n_dropped[bag] = std::max<int64_t>(0, length - kWindow + 1);
    // Maximal runs of valid letters; only windows inside one are scanned.
    for (int64_t begin = 0; begin < length;) {
      const void* other =
          has_other ? std::memchr(code + begin, kNoBase, static_cast<size_t>(length - begin)) : nullptr;
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
  parallel_for(static_cast<int64_t>(tasks_.size()), total_windows < kWorthThreads ? 1 : threads,
               [&](int64_t t) {
                 Task& task = tasks_[t];
                 const int32_t mirna = batch_.bag_mirna[task.bag];
                 const int n = static_cast<int>(std::min<int64_t>(kSeedPart, batch_.mirna.size(mirna)));
                 const auto pairs = pairing_bits(batch_.mirna.begin(mirna), n);
                 const uint8_t* code = batch_.utr.begin(batch_.bag_utr[task.bag]) + task.start;
                 for (int w = 0; w < task.windows; w += kScanBlock) {
                   const int found = kernels_.count_windows(code + w, std::min(kScanBlock, task.windows - w),
                                                            pairs.data(), n, esa_min_);
                   task.rows += found;
                   task.hit_blocks |= static_cast<uint32_t>(found > 0) << (w / kScanBlock);
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
        uint8_t score[kScanBlock];
        Alignment alignment[kScanBlock];
        uint16_t hit[kScanBlock + 1];  // one past the end: the branchless loop below writes before it knows
        int64_t row = task.row;
        for (int begin = 0; begin < task.windows; begin += kScanBlock) {
          if (!(task.hit_blocks >> (begin / kScanBlock) & 1)) continue;
          const int windows = std::min(kScanBlock, task.windows - begin);
          const int32_t start = task.start + begin;
          kernels_.align_windows(batch_.utr.begin(utr) + start, windows, pairs.data(), n, score, alignment);
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
