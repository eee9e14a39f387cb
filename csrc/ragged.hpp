// Ragged batches.
#pragma once

#include <cstdint>

namespace pairformer {

// B bags over one flat array: bag b owns rows offsets[b] .. offsets[b + 1] - 1.
template <class T>
struct Ragged {
  const T* data;
  const int64_t* offsets;  // (bags + 1)
  int64_t bags;

  const T* begin(int64_t b) const { return data + offsets[b]; }
  int64_t size(int64_t b) const { return offsets[b + 1] - offsets[b]; }
};

}  // namespace pairformer
