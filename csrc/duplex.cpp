#include "duplex.hpp"

#include <algorithm>
#include <cstring>

#include "encode.hpp"
#include "energies.hpp"

namespace pairformer {
namespace {

constexpr int kBefore = 32;  // lanes left of the first, always far
constexpr int kChunk = 8;    // lanes worked on together

int end_of(int pair) {
  return pair == kNoPair ? Duplexes::kFar : pair >= kGU ? kWeakEnd : 0;
}

// Numbers of a few neighbouring miRNA letters: a register of any processor.
struct Lanes {
  int16_t value[kChunk];
};

Lanes at(const int16_t* lane) {
  Lanes x;
  std::memcpy(x.value, lane, sizeof x.value);
  return x;
}

void put(int16_t* lane, Lanes x) {
  std::memcpy(lane, x.value, sizeof x.value);
}

Lanes all(int value) {
  Lanes x;
  for (int16_t& lane : x.value) lane = static_cast<int16_t>(value);
  return x;
}

Lanes operator+(Lanes a, Lanes b) {
  for (int i = 0; i < kChunk; ++i) a.value[i] = static_cast<int16_t>(a.value[i] + b.value[i]);
  return a;
}

Lanes operator-(Lanes a, Lanes b) {
  for (int i = 0; i < kChunk; ++i) a.value[i] = static_cast<int16_t>(a.value[i] - b.value[i]);
  return a;
}

Lanes least(Lanes a, Lanes b) {
  for (int i = 0; i < kChunk; ++i) a.value[i] = b.value[i] < a.value[i] ? b.value[i] : a.value[i];
  return a;
}

// A number for each miRNA letter, and far ones before them.
struct Column {
  int16_t value[kBefore + Duplexes::kMostLanes];
  Column() { std::fill(std::begin(value), std::end(value), static_cast<int16_t>(Duplexes::kFar)); }
  int16_t* begin() { return value + kBefore; }
};

}  // namespace

int Duplexes::stack(int mirna_before, int mirna, int window_before, int window) {
  const int first = kPair[mirna_before][window_before], next = kPair[window][mirna];
  return first == kNoPair || next == kNoPair ? kFar : kStack[first][next] - end_of(first);
}

int Duplexes::end(int mirna, int window) {
  return end_of(kPair[mirna][window]);
}

Duplexes::Duplexes(const SitePair& pair) : pair_(pair) {
  const auto n = static_cast<int>(pair.mirna_length);
  lanes_ = (n + kChunk - 1) / kChunk * kChunk;
  for (int i = 0; i < lanes_; ++i) place_[i] = static_cast<int16_t>(kLoopLetter * i);
  for (int letter = 0; letter < 4; ++letter) {
    for (int i = 0; i < lanes_; ++i)
      end_[letter][i] = static_cast<int16_t>(i < n ? end(pair.mirna[i], letter) : kFar);
    for (int before = 0; before < 4; ++before)
      for (int i = 0; i < lanes_; ++i)
        stack_[4 * before + letter][i] = static_cast<int16_t>(
            i > 0 && i < n ? stack(pair.mirna[i - 1], pair.mirna[i], before, letter) : kFar);
  }
}

int Duplexes::energy(int32_t window) const {
  // Column by column of the window from its 3' end, the miRNA's letters side by side: the best duplex that
  // ends with a pair of this letter and this column, and one whose loop goes up to both, less 3 for each
  // letter before.
  Column columns[5];
  int16_t *helix = columns[0].begin(), *loop = columns[1].begin(), *longer = columns[2].begin();
  int16_t *helix_before = columns[3].begin(), *loop_before = columns[4].begin();
  int16_t best[kMostLanes] = {};
  const uint8_t* const last = pair_.utr + window + kWindow - 1;
  for (int column = 0; column < kWindow; ++column) {
    const int16_t* const end = end_[last[-column]];
    const int16_t* const stack = stack_[column ? 4 * last[1 - column] + last[-column] : 0];
    for (int i = 0; i < lanes_; i += kChunk) {
      const Lanes looped = at(loop_before + i - 1) + at(place_ + i) + all(-kLoopLetter);
      const Lanes fresh = least(all(0), looped) + at(end + i);
      const Lanes mine = least(fresh, at(helix_before + i - 1) + at(stack + i)) + at(end + i);
      put(helix + i, least(mine, all(kFar)));
      put(best + i, least(at(best + i), mine));
    }
    for (int i = 0; i < lanes_; i += kChunk) {
      const Lanes opened = least(at(helix_before + i), at(helix + i - 1)) + all(kOpenLoop);
      put(loop + i, least(at(loop_before + i), opened - at(place_ + i)) + all(kLoopLetter));
    }
    for (int step = 1; step < lanes_; step *= 2) {  // a loop of more miRNA letters
      for (int i = 0; i < lanes_; i += kChunk) put(longer + i, least(at(loop + i), at(loop + i - step)));
      std::swap(loop, longer);
    }
    std::swap(helix, helix_before);
    std::swap(loop, loop_before);
  }
  return *std::min_element(best, best + lanes_);
}

}  // namespace pairformer
