// Extended seed alignment (ESA) of every 40-nt window of a 3'UTR against one miRNA.
//
// The ESA score is the length of a longest common subsequence, under the pairing relation
// {A-U, C-G, G-U}, of the first n = min(10, length) miRNA letters and letters 6-15 of the reversed
// window.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.hpp"
#include "ragged.hpp"

namespace pairformer {

constexpr int kWindow = 40;     // nt of one window
constexpr int kMaxMirna = 35;   // longest miRNA whose encoding fits 50 columns
constexpr uint8_t kNoBase = 4;  // code of a letter outside ACGU

struct Text {
  const uint8_t* letters;  // one byte a letter
  int64_t length;
};

// Codes of all texts, one after the other: A0 C1 G2 U3 (T is U, any case), anything else kNoBase. Says of
// each text whether it has a letter that is kNoBase.
std::vector<bool> encode_texts(const std::vector<Text>& texts, uint8_t* code, int threads);

// Pairs to scan: bag b is mirna bag_mirna[b] against utr bag_utr[b]. Sequences are codes, 5' to 3'.
struct PairBatch {
  Ragged<uint8_t> mirna;
  Ragged<uint8_t> utr;
  const int32_t* bag_mirna;
  const int32_t* bag_utr;
  int64_t bags;
  std::vector<bool> utr_has_other;  // a letter outside ACGU
};

// Pairs of an alignment: set bits of its miRNA half.
inline int paired_letters(Alignment alignment) {
  uint32_t x = alignment & 0x3FF;
  x -= x >> 1 & 0x155;
  x = (x & 0x333) + (x >> 2 & 0x333);
  return static_cast<int>((x + (x >> 4) + (x >> 8)) & 0xF);
}

// Rows of all bags, bag by bag, ascending start.
struct CandidateRows {
  int32_t* start;
  uint8_t* esa_score;
  float* position;  // (start + 19.5) / (utr length - 1)
  Alignment* alignment;
};

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

  const PairBatch& batch_;
  int esa_min_;
  const Kernels& kernels_;
  std::vector<Task> tasks_;
};

}  // namespace pairformer
