// Candidate rows as columns of an aligned window: symbols for the encoders, and the layouts other tools
// read, the 10 x 50 one-hot window and the gapped strings.
#pragma once

#include "scan.hpp"

namespace pairformer {

constexpr int kChannels = 10;  // miRNA A C G U gap, window A C G U gap
constexpr int kColumns = 50;
constexpr int kMaxAligned = 2 * kSeedPart;

// A letter of a column: the codes of A C G U, kGap, or kEmpty. A column's symbol is the miRNA's letter times
// kLetters plus the window's.
constexpr uint8_t kGap = 4;
constexpr uint8_t kEmpty = 5;
constexpr uint8_t kLetters = 8;
constexpr int kSymbols = kLetters * (kEmpty + 1);
constexpr uint8_t kEmptySymbol = kLetters * kEmpty + kEmpty;

// A row to write out: which bag it is of, where its window starts, how it aligns.
struct EncodeRow {
  int64_t bag;
  int32_t start;
  Alignment alignment;
};

// One miRNA's letters where the columns need them, times kLetters.
class MirnaColumns {
 public:
  MirnaColumns() = default;
  MirnaColumns(const uint8_t* mirna, int64_t length);

  // symbol (kColumns) of the window (40 letters, 5' to 3'). Returns how many columns are aligned: those from
  // column 5 on.
  int symbols(const uint8_t* window, Alignment alignment, uint8_t* symbol) const;

 private:
  static constexpr int kTail = kWindow - 15;  // columns after the aligned ones that have a window letter
  int seed_ = 0;                              // letters of the extended seed
  uint8_t aligned_[kMaxAligned] = {};
  uint8_t tail_[kTail] = {};
};

// Throws std::invalid_argument where bag and start do not name 40 letters ACGU.
void check_window(const PairBatch& batch, int64_t bag, int32_t start);

// Throws std::invalid_argument where a row does not name a window and an alignment of its bag.
void check_row(const PairBatch& batch, const EncodeRow& row);

// Symbols of a batch's rows, fastest for rows bag by bag.
class RowSymbols {
 public:
  explicit RowSymbols(const PairBatch& batch);
  // As MirnaColumns::symbols.
  int operator()(const EncodeRow& row, uint8_t* symbol);

 private:
  const PairBatch& batch_;
  int64_t bag_ = -1;
  MirnaColumns mirna_;
  const uint8_t* utr_ = nullptr;
};

// one_hot (10, 50) uint8: TargetNet's layout.
void one_hot_columns(const uint8_t* symbol, uint8_t* one_hot);

// Two rows of kMaxAligned letters, miRNA 5'->3' above the window 3'->5', '-' for a gap, zero padded.
void aligned_text(const uint8_t* symbol, int length, char* mirna, char* window);

}  // namespace pairformer
