// Candidate rows in the layouts other tools read: the 10 x 50 one-hot window and the gapped strings.
#pragma once

#include "scan.hpp"

namespace pairformer {

constexpr int kChannels = 10;  // miRNA A C G U gap, window A C G U gap
constexpr int kColumns = 50;
constexpr int kMaxAligned = 2 * kSeedPart;

// A row to write out: which bag it is of, where its window starts, how it aligns.
struct EncodeRow {
  int64_t bag;
  int32_t start;
  Alignment alignment;
};

// one_hot (10, 50) uint8: TargetNet's layout.
void encode_row(const PairBatch& batch, const EncodeRow& row, uint8_t* one_hot);

// Two rows of kMaxAligned letters, miRNA 5'->3' above the window 3'->5', '-' for a gap, zero padded.
void aligned_row(const PairBatch& batch, const EncodeRow& row, char* mirna, char* window);

}  // namespace pairformer
