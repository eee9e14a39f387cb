// Extended seed alignment (ESA) of every 40-nt window of a 3'UTR against one miRNA.
//
// The ESA score is the length of a longest common subsequence, under the pairing relation
// {A-U, C-G, G-U}, of the first n = min(10, length) miRNA letters and letters 6-15 of the reversed
// window. It is computed bit-parallel: bit i of V tells that row i + 1 of the score matrix did not
// grow, and one window letter costs x = V & M, V = (V + x) | (V - x), with M the miRNA letters it pairs
// with. The carries of V + x are the horizontal growth of the matrix, which is all the traceback needs,
// so 16-bit lanes score and align as many windows at once as a register holds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ragged.hpp"

namespace pairformer {

constexpr int kWindow = 40;     // nt of one window
constexpr int kSeedPart = 10;   // letters of the extended seed, and of the window's seed part
constexpr int kSeedBegin = 25;  // the window's seed part, forward: start + 25 .. start + 34
constexpr int kMaxMirna = 35;   // longest miRNA whose encoding fits 50 columns
constexpr uint8_t kNoBase = 4;  // code of a letter outside ACGU

struct Text {
  const uint8_t* letters;  // one byte a letter
  int64_t length;
};

// Codes of all texts, one after the other: A0 C1 G2 U3 (T is U, any case), anything else kNoBase.
void encode_texts(const std::vector<Text>& texts, uint8_t* code, int threads);

// Pairs to scan: bag b is mirna bag_mirna[b] against utr bag_utr[b]. Sequences are codes, 5' to 3'.
struct PairBatch {
  Ragged<uint8_t> mirna;
  Ragged<uint8_t> utr;
  const int32_t* bag_mirna;
  const int32_t* bag_utr;
  int64_t bags;
};

// One candidate's alignment in 20 bits: bit i, miRNA letter i is paired; bit 10 + j, letter j of the
// window's seed part, counted from its 3' end, is paired. The k-th paired letters pair with each other.
using Alignment = uint32_t;

// Rows of all bags, bag by bag, ascending start.
struct CandidateRows {
  int32_t* start;
  uint8_t* esa_score;
  float* position;  // (start + 19.5) / (utr length - 1)
  Alignment* alignment;
};

// Names of the variants this processor can run, best first; "baseline" is always the last.
std::vector<std::string> scan_variants();

// Two passes over the same tasks: count() says how many rows each bag has, fill() writes them.
class Scanner {
 public:
  // Throws std::invalid_argument for an unknown variant or one the processor lacks.
  Scanner(const PairBatch& batch, int esa_min, const std::string& variant);

  // Writes offsets (bags + 1) and, per bag, the windows dropped for a letter outside ACGU.
  void count(int threads, int64_t* offsets, int64_t* n_dropped);
  void fill(int threads, const CandidateRows& rows) const;

 private:
  struct Task {
    int64_t bag;
    int32_t start;    // first window
    int32_t windows;  // consecutive windows, all of valid letters
    int64_t row;      // first output row
    int64_t rows;
    uint32_t hit_blocks;  // bit i: block i has a row; only those are aligned
  };
  using CountBlock = int (*)(const uint8_t* code, int windows, const uint16_t* pairs, int n, int esa_min);
  using AlignBlock = void (*)(const uint8_t* code, int windows, const uint16_t* pairs, int n, uint8_t* score,
                              Alignment* alignment);
  struct Kernels {
    const char* name;
    CountBlock count;
    AlignBlock align;
  };
  static std::vector<Kernels> kernels();
  friend std::vector<std::string> scan_variants();

  PairBatch batch_;
  int esa_min_;
  Kernels kernels_;
  std::vector<Task> tasks_;
};

}  // namespace pairformer
