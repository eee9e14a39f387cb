#include "encode.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pairformer {
namespace {

constexpr int kSeedColumn = 5;  // the first aligned column; before it stand the window's last letters

[[noreturn]] void fail(const std::string& rule, int64_t value) {
  throw std::invalid_argument(rule + std::to_string(value));
}

}  // namespace

MirnaColumns::MirnaColumns(const uint8_t* mirna, int64_t length)
    : seed_(static_cast<int>(std::min<int64_t>(kSeedPart, length))) {
  for (int i = 0; i < kMaxAligned; ++i) aligned_[i] = i < seed_ ? mirna[i] * kLetters : 0;
  for (int i = 0; i < kTail; ++i)
    tail_[i] = (kSeedPart + i < length ? mirna[kSeedPart + i] : kEmpty) * kLetters;
}

int MirnaColumns::symbols(const uint8_t* window, Alignment alignment, uint8_t* symbol) const {
  const uint8_t* last = window + kWindow - 1;  // columns read the window backwards
  for (int q = 0; q < kSeedColumn; ++q) symbol[q] = kEmpty * kLetters + last[-q];
  // Between two paired columns the aligner puts the miRNA's unpaired letters first, then the window's.
  Alignment open_mirna = ~alignment & ((1u << seed_) - 1);
  Alignment open_window = ~(alignment >> kSeedPart) & ((1u << kSeedPart) - 1);
  const uint8_t* bottom = last - kSeedColumn;
  const uint8_t* top = aligned_;
  uint8_t* column = symbol + kSeedColumn;
  for (int k = 0; k < kMaxAligned; ++k) {  // past the aligned columns what is written does not last
    const uint32_t alone_top = open_mirna & 1, alone_bottom = open_window & ~alone_top & 1;
    const uint32_t take_top = alone_bottom ^ 1, take_bottom = alone_top ^ 1;
    // Not conditionals: alignments are unpredictable, and a missed branch costs more than the loop.
    column[k] = static_cast<uint8_t>((kGap * kLetters ^ ((*top ^ kGap * kLetters) & -take_top)) |
                                     (kGap ^ ((*bottom ^ kGap) & -take_bottom)));
    top += take_top;
    bottom -= take_bottom;
    open_mirna >>= take_top;
    open_window >>= take_bottom;
  }
  const int length = seed_ + kSeedPart - paired_letters(alignment);
  uint8_t* rest = column + length;
  for (int i = 0; i < kTail; ++i) rest[i] = static_cast<uint8_t>(tail_[i] | window[kTail - 1 - i]);
  for (uint8_t* empty = rest + kTail; empty < symbol + kColumns; ++empty) *empty = kEmptySymbol;
  return length;
}

void check_window(const PairBatch& batch, int64_t bag, int32_t start) {
  if (bag < 0 || bag >= batch.bags) fail("bag must be in [0, " + std::to_string(batch.bags) + "), got ", bag);
  const int32_t utr = batch.bag_utr[bag];
  const bool inside = start >= 0 && start + int64_t{kWindow} <= batch.utr.size(utr);
  uint8_t codes = kNoBase;
  if (inside) {
    const uint8_t* window = batch.utr.begin(utr) + start;
    codes = 0;
    for (int i = 0; i < kWindow; ++i) codes |= window[i];
  }
  if (codes & kNoBase) fail("start must name a window of 40 letters ACGU, got ", start);
}

void check_row(const PairBatch& batch, const EncodeRow& row) {
  check_window(batch, row.bag, row.start);
  const int64_t n = std::min<int64_t>(kSeedPart, batch.mirna.size(batch.bag_mirna[row.bag]));
  const Alignment mirna = row.alignment & ((1u << kSeedPart) - 1);
  if (row.alignment >> (2 * kSeedPart) || mirna >> n ||
      paired_letters(mirna) != paired_letters(row.alignment >> kSeedPart))
    fail("alignment must pair as many miRNA as window letters, got ", row.alignment);
}

RowSymbols::RowSymbols(const PairBatch& batch) : batch_(batch) {}

int RowSymbols::operator()(const EncodeRow& row, uint8_t* symbol) {
  if (row.bag != bag_) {
    const int32_t mirna = batch_.bag_mirna[row.bag];
    mirna_ = MirnaColumns(batch_.mirna.begin(mirna), batch_.mirna.size(mirna));
    utr_ = batch_.utr.begin(batch_.bag_utr[row.bag]);
    bag_ = row.bag;
  }
  return mirna_.symbols(utr_ + row.start, row.alignment, symbol);
}

void one_hot_columns(const uint8_t* symbol, uint8_t* one_hot) {
  for (int letter = 0; letter <= kGap; ++letter) {
    uint8_t* top = one_hot + letter * kColumns;
    uint8_t* bottom = top + (kGap + 1) * kColumns;
    for (int k = 0; k < kColumns; ++k) top[k] = symbol[k] / kLetters == letter;
    for (int k = 0; k < kColumns; ++k) bottom[k] = symbol[k] % kLetters == letter;
  }
}

void aligned_text(const uint8_t* symbol, int length, char* mirna, char* window) {
  std::memset(mirna, 0, kMaxAligned);
  std::memset(window, 0, kMaxAligned);
  for (int k = 0; k < length; ++k) {
    mirna[k] = "ACGU-"[symbol[kSeedColumn + k] / kLetters];
    window[k] = "ACGU-"[symbol[kSeedColumn + k] % kLetters];
  }
}

}  // namespace pairformer
