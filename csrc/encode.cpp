#include "encode.hpp"

#include <cstring>

namespace pairformer {
namespace {

constexpr uint8_t kGap = 4;

struct Columns {
  int length = 0;
  uint8_t mirna[kMaxAligned];
  uint8_t window[kMaxAligned];
};

// Between two paired columns the aligner puts the miRNA's unpaired letters first, then the window's.
Columns align(const uint8_t* mirna, int n, const uint8_t* window_end, Alignment alignment) {
  Columns columns;
  auto put = [&](uint8_t top, uint8_t bottom) {
    columns.mirna[columns.length] = top;
    columns.window[columns.length++] = bottom;
  };
  int i = 0, j = 0;
  while (i < n || j < kSeedPart) {
    while (i < n && !(alignment >> i & 1)) put(mirna[i++], kGap);
    while (j < kSeedPart && !(alignment >> (kSeedPart + j) & 1)) put(kGap, *(window_end - j++));
    if (i < n && j < kSeedPart) put(mirna[i++], *(window_end - j++));
  }
  return columns;
}

Columns align(const PairBatch& batch, const EncodeRow& row) {
  const int32_t mirna = batch.bag_mirna[row.bag];
  const int n = static_cast<int>(std::min<int64_t>(kSeedPart, batch.mirna.size(mirna)));
  const uint8_t* window = batch.utr.begin(batch.bag_utr[row.bag]) + row.start;
  return align(batch.mirna.begin(mirna), n, window + kSeedBegin + kSeedPart - 1, row.alignment);
}

}  // namespace

void encode_row(const PairBatch& batch, const EncodeRow& row, uint8_t* one_hot) {
  const Columns columns = align(batch, row);
  const int32_t id = batch.bag_mirna[row.bag];
  const uint8_t* mirna = batch.mirna.begin(id);
  const int mirna_length = static_cast<int>(batch.mirna.size(id));
  const uint8_t* reversed =
      batch.utr.begin(batch.bag_utr[row.bag]) + row.start + kWindow - 1;  // read backwards
  uint8_t* window_channels = one_hot + (kGap + 1) * kColumns;
  std::memset(one_hot, 0, kChannels * kColumns);
  for (int q = 0; q < 5; ++q) window_channels[reversed[-q] * kColumns + q] = 1;
  for (int k = 0; k < columns.length; ++k) {
    one_hot[columns.mirna[k] * kColumns + 5 + k] = 1;
    window_channels[columns.window[k] * kColumns + 5 + k] = 1;
  }
  for (int q = kSeedPart; q < mirna_length; ++q) {
    const int column = q + columns.length - 5;
    if (column < kColumns) one_hot[mirna[q] * kColumns + column] = 1;
  }
  for (int q = 15; q < kWindow; ++q) {
    const int column = q + columns.length - 10;
    if (column < kColumns) window_channels[reversed[-q] * kColumns + column] = 1;
  }
}

void aligned_row(const PairBatch& batch, const EncodeRow& row, char* mirna, char* window) {
  const Columns columns = align(batch, row);
  std::memset(mirna, 0, kMaxAligned);
  std::memset(window, 0, kMaxAligned);
  for (int k = 0; k < columns.length; ++k) {
    mirna[k] = "ACGU-"[columns.mirna[k]];
    window[k] = "ACGU-"[columns.window[k]];
  }
}

}  // namespace pairformer
