// The order of candidates, as integers.
#pragma once

#include <cstdint>
#include <cstring>

namespace pairformer {

// Unsigned order of the result = order of finite floats, -0.0 equal to 0.0.
inline uint32_t ascending(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (bits == 0x80000000u) bits = 0;  // not by adding 0.0, which may flush subnormals
  return bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u);
}

inline bool not_finite(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return (bits & 0x7fffffffu) >= 0x7f800000u;
}

// A candidate in the one order every step uses: smaller is better. The key holds the falling score in
// its high half and the rising position in its low half; equal keys go to the smaller row.
struct Ranked {
  uint64_t key;
  int64_t row;  // within the bag

  bool operator<(const Ranked& other) const { return key != other.key ? key < other.key : row < other.row; }
  float logit() const {
    const uint32_t ordered = ~static_cast<uint32_t>(key >> 32);
    const uint32_t bits = ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered;
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
  }
};

}  // namespace pairformer
