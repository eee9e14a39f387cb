// Compiled once per instruction set: PAIRFORMER_LANES floats to a register, PAIRFORMER_TABLE the function
// that gives the table, PAIRFORMER_NAME what it is called.
// Nothing of the standard library may be used here: an inline function compiled for AVX-512 could be the
// copy that the linker keeps for everyone.
#include "kernels.hpp"

#include <math.h>  // as string.h for one plain C function
#include <string.h>

#ifdef __GNUC__
#define PAIRFORMER_INLINE inline __attribute__((always_inline))
#else
#define PAIRFORMER_INLINE inline
#endif

namespace pairformer {
namespace {

constexpr int kLanes = PAIRFORMER_LANES;
constexpr int kMostStride = 2;             // of a fast lookup
constexpr int kVectors = kPanel / kLanes;  // registers of a full panel's row
#ifdef __clang__
constexpr bool kReadsFromMemory = false;  // clang 14 keeps all of b in registers, and with 12 sums runs out
#else
constexpr bool kReadsFromMemory = true;
#endif
constexpr int kRegisters = kLanes == 16 ? 20 : kLanes == 8 && kReadsFromMemory ? 12 : 8;  // for sums

#if PAIRFORMER_LANES > 1
typedef float Vector __attribute__((vector_size(4 * PAIRFORMER_LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * PAIRFORMER_LANES)));
typedef float Unaligned __attribute__((vector_size(4 * PAIRFORMER_LANES), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(4 * PAIRFORMER_LANES)));
typedef double UnalignedDoubles __attribute__((vector_size(4 * PAIRFORMER_LANES), aligned(8), may_alias));
constexpr int kDoubles = PAIRFORMER_LANES / 2;

inline Vector load(const float* x) {
  return *reinterpret_cast<const Unaligned*>(x);
}
inline void store(float* x, Vector v) {
  *reinterpret_cast<Unaligned*>(x) = v;
}
inline Doubles load(const double* x) {
  return *reinterpret_cast<const UnalignedDoubles*>(x);
}
inline void store(double* x, Doubles v) {
  *reinterpret_cast<UnalignedDoubles*>(x) = v;
}
inline Bits where_positive(Vector v) {
  return reinterpret_cast<Bits>(v > 0.0f);
}
inline uint32_t any_of(Bits b) {
  uint32_t any = 0;
  for (int i = 0; i < PAIRFORMER_LANES; ++i) any |= b[i];
  return any;
}
inline float sum_of(Vector v) {
  float half[PAIRFORMER_LANES];
  store(half, v);
  for (int width = PAIRFORMER_LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) half[i] += half[i + width];
  return half[0];
}
inline double sum_of(Doubles v) {
  double sum = 0;
  for (int i = 0; i < kDoubles; ++i) sum += v[i];
  return sum;
}
inline float max_of(Vector v) {
  float most = v[0];
  for (int i = 1; i < PAIRFORMER_LANES; ++i) most = v[i] > most ? v[i] : most;
  return most;
}
#else
typedef float Vector;
typedef uint32_t Bits;
typedef double Doubles;
constexpr int kDoubles = 1;

inline Vector load(const float* x) {
  return *x;
}
inline void store(float* x, Vector v) {
  *x = v;
}
inline Doubles load(const double* x) {
  return *x;
}
inline void store(double* x, Doubles v) {
  *x = v;
}
inline Bits where_positive(Vector v) {
  return -static_cast<Bits>(v > 0.0f);
}
inline uint32_t any_of(Bits b) {
  return b;
}
inline float sum_of(Vector v) {
  return v;
}
inline double sum_of(Doubles v) {
  return v;
}
inline float max_of(Vector v) {
  return v;
}
#endif

template <class To, class From>
inline To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

inline Vector all(float x) {
  return Vector{} + x;
}
// b where either is NaN, here and below: so a NaN stays one.
inline Vector larger(Vector a, Vector b) {
  return a > b ? a : b;
}
inline Vector smaller(Vector a, Vector b) {
  return a < b ? a : b;
}

// The score matrix of ESA, bit-parallel: bit i of V tells that row i + 1 did not grow, and one window letter
// costs x = V & M, V = (V + x) | (V - x), with M the miRNA letters it pairs with. The carries of V + x are
// the horizontal growth of the matrix, which is all the traceback needs, so 16-bit lanes score and align as
// many windows at once as a register holds.

// V after the ten letters of one window, and the carries of every step. mask[9 - j] belongs to letter j of
// the seed part counted from its 3' end, which is read first.
PAIRFORMER_INLINE uint16_t lcs_rows(const uint16_t* mask, uint16_t* carry) {
  uint16_t v = 0xFFFF;
#pragma GCC unroll 10
  for (int j = 0; j < kSeedPart; ++j) {
    const uint16_t x = v & mask[kSeedPart - 1 - j];
    const uint16_t sum = static_cast<uint16_t>(v + x);
    carry[j] = sum ^ v ^ x;
    v = sum | static_cast<uint16_t>(v - x);
  }
  return v;
}

PAIRFORMER_INLINE uint8_t zero_bits(uint16_t v, uint16_t rows) {
  uint16_t x = static_cast<uint16_t>(~v) & rows;
  x = static_cast<uint16_t>(x - ((x >> 1) & 0x5555));
  x = static_cast<uint16_t>((x & 0x3333) + ((x >> 2) & 0x3333));
  x = static_cast<uint16_t>((x + (x >> 4)) & 0x0F0F);
  return static_cast<uint8_t>((x + (x >> 8)) & 0x1F);
}

// The aligner's first traceback from the last cell. Letter j is paired iff the score grew there, and
// then with the last miRNA letter it pairs with among those left (`below` has their bits).
PAIRFORMER_INLINE Alignment trace(const uint16_t* mask, const uint16_t* carry, uint16_t rows) {
  uint16_t below = rows, mirna = 0, window = 0;
#pragma GCC unroll 10
  for (int j = kSeedPart - 1; j >= 0; --j) {
    const uint16_t grew = (carry[j] & static_cast<uint16_t>(below + 1)) != 0 ? 0xFFFF : 0;
    uint16_t last = mask[kSeedPart - 1 - j] & below;
    last |= last >> 1;
    last |= last >> 2;
    last |= last >> 4;
    last |= last >> 8;
    const uint16_t rest = last >> 1;
    mirna |= grew & (last ^ rest);
    window |= grew & static_cast<uint16_t>(1u << j);
    below = (grew & rest) | (static_cast<uint16_t>(~grew) & below);
  }
  return static_cast<Alignment>(mirna) | static_cast<Alignment>(window) << kSeedPart;
}

PAIRFORMER_INLINE void pair_masks(const uint8_t* code, int letters, const uint16_t* pairs, uint16_t* mask) {
  const uint16_t a = pairs[0], c = pairs[1], g = pairs[2], u = pairs[3];
  for (int i = 0; i < letters; ++i) {
    const uint16_t low = code[i] & 1 ? c : a, high = code[i] & 1 ? u : g;
    mask[i] = code[i] & 2 ? high : low;
  }
}

int count_windows(const uint8_t* code, int windows, const uint16_t* pairs, int n, int esa_min) {
  uint16_t mask[kScanBlock + kSeedPart];
  pair_masks(code + kSeedBegin, windows + kSeedPart - 1, pairs, mask);
  const uint16_t rows = static_cast<uint16_t>((1u << n) - 1);
  const uint8_t least = static_cast<uint8_t>(esa_min);
  uint16_t found = 0;  // a block has fewer windows than a lane can count
  for (int w = 0; w < windows; ++w) {
    uint16_t unused[kSeedPart];
    found = static_cast<uint16_t>(found + (zero_bits(lcs_rows(mask + w, unused), rows) >= least));
  }
  return found;
}

void align_windows(const uint8_t* code, int windows, const uint16_t* pairs, int n, uint8_t* score,
                   Alignment* alignment) {
  uint16_t mask[kScanBlock + kSeedPart];
  pair_masks(code + kSeedBegin, windows + kSeedPart - 1, pairs, mask);
  const uint16_t rows = static_cast<uint16_t>((1u << n) - 1);
  for (int w = 0; w < windows; ++w) {
    uint16_t carry[kSeedPart];
    score[w] = zero_bits(lcs_rows(mask + w, carry), rows);
    alignment[w] = trace(mask + w, carry, rows);
  }
}

// The sums of MR rows by NV registers. Each is one chain over p = 0 .. k - 1 whatever MR is, so a row's
// result does not depend on the rows computed beside it.
template <int MR, int NV>
struct Tile {
  Vector sum[MR][NV];

  inline void multiply(const float* a, ptrdiff_t lda, const float* panel, const float* bias, int k) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) sum[r][v] = bias ? load(bias + v * kLanes) : Vector{};
    for (int p = 0; p < k; ++p) {
      Vector b[NV];
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) b[v] = load(panel + (static_cast<ptrdiff_t>(p) * NV + v) * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const float x = a[r * lda + p];
#pragma GCC unroll 32
        for (int v = 0; v < NV; ++v) sum[r][v] += x * b[v];
      }
    }
  }
};

// Calls body with a tile of `rows` rows.
template <int NV, int MR, class Body>
inline void with_rows(int rows, Body&& body) {
  if constexpr (MR > 1) {
    if (rows < MR) return with_rows<NV, MR - 1>(rows, body);
  }
  Tile<MR, NV> tile;
  body(tile);
}

// Calls body(tile, first row) for all m rows, in tiles as even as can be.
template <int NV, class Body>
inline void tiles(int m, Body&& body) {
  constexpr int kMost = kRegisters / NV > 10 ? 10 : kRegisters / NV < 1 ? 1 : kRegisters / NV;
  const int count = (m + kMost - 1) / kMost;
  for (int t = 0; t < count; ++t) {
    const int first = static_cast<int>(static_cast<int64_t>(m) * t / count);
    const int rows = static_cast<int>(static_cast<int64_t>(m) * (t + 1) / count) - first;
    with_rows<NV, kMost>(rows, [&](auto& tile) { body(tile, first); });
  }
}

template <int NV>
void gemm_panel(const Gemm& g, const float* panel, int column) {
  tiles<NV>(g.m, [&](auto& tile, int first) {
    tile.multiply(g.a + first * g.lda, g.lda, panel, g.bias ? g.bias + column : nullptr, g.k);
    constexpr int kRows = sizeof(tile.sum) / sizeof(tile.sum[0]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      float* c = g.c + (first + r) * g.ldc + column;
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) {
        Vector x = tile.sum[r][v];
        if (g.add) x = load(c + v * kLanes) + x;
        if (g.relu) x = larger(Vector{}, x);
        store(c + v * kLanes, x);
      }
    }
  });
}

template <int NV>
void gemm_mean_panel(const Gemm& g, const float* panel, int column) {
  Vector total[NV];
#pragma GCC unroll 32
  for (int v = 0; v < NV; ++v) total[v] = Vector{};
  tiles<NV>(g.m, [&](auto& tile, int first) {
    tile.multiply(g.a + first * g.lda, g.lda, panel, g.bias ? g.bias + column : nullptr, g.k);
    constexpr int kRows = sizeof(tile.sum) / sizeof(tile.sum[0]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 32
      for (int v = 0; v < NV; ++v) total[v] += larger(Vector{}, tile.sum[r][v]);
  });
#pragma GCC unroll 32
  for (int v = 0; v < NV; ++v) store(g.c + column + v * kLanes, total[v] / static_cast<float>(g.m));
}

void gemm(const Gemm& g) {
  int column = 0;
  for (; column + kPanel <= g.n; column += kPanel)
    gemm_panel<kVectors>(g, g.panels + static_cast<ptrdiff_t>(column) * g.k, column);
  if (column < g.n) gemm_panel<kVectors / 2>(g, g.panels + static_cast<ptrdiff_t>(column) * g.k, column);
}

void gemm_mean(const Gemm& g) {
  int column = 0;
  for (; column + kPanel <= g.n; column += kPanel)
    gemm_mean_panel<kVectors>(g, g.panels + static_cast<ptrdiff_t>(column) * g.k, column);
  if (column < g.n) gemm_mean_panel<kVectors / 2>(g, g.panels + static_cast<ptrdiff_t>(column) * g.k, column);
}

void pack(const float* source, ptrdiff_t step_k, ptrdiff_t step_n, int k, int n, float* panels) {
  for (int column = 0; column < n; column += kPanel) {
    const int width = n - column > kLane ? kPanel : kLane;
    const int real = n - column < width ? n - column : width;
    const float* from = source + column * step_n;
    for (int p = 0; p < k; ++p, panels += width) {
      for (int j = 0; j < real; ++j) panels[j] = from[p * step_k + j * step_n];
      for (int j = real; j < width; ++j) panels[j] = 0;
    }
  }
}

// Sixteen channels of a lookup whose taps are known to the compiler (0: they are not).
template <int Taps>
void lookup_lane(const Lookup& conv, const uint8_t* symbol, int lane, float* out) {
  constexpr int kParts = kLane / kLanes;
  const int taps = Taps ? Taps : conv.taps, stride = conv.stride, channels = conv.channels;
  const float* table = conv.table + static_cast<ptrdiff_t>(lane) * conv.symbols * taps;
  Vector bias[kParts];
#pragma GCC unroll 16
  for (int v = 0; v < kParts; ++v) bias[v] = load(conv.bias + lane + v * kLanes);
  const Vector least = all(conv.relu ? 0.0f : -3.4e38f);
  constexpr int kBlock = 16;  // columns whose rows are found at once
  int row[(kBlock - 1) * kMostStride + (Taps ? Taps : 1)];
  for (int begin = 0; begin < conv.columns; begin += kBlock) {
    const int end = conv.columns - begin < kBlock ? conv.columns : begin + kBlock;
    const uint8_t* first = symbol + begin * stride;
    if constexpr (Taps > 0) {
      for (int i = 0; i < (end - begin - 1) * stride + taps; ++i) row[i] = first[i] * (Taps * kLane);
    }
    for (int column = begin; column < end; ++column, first += stride) {
      Vector sum[kParts];
#pragma GCC unroll 16
      for (int v = 0; v < kParts; ++v) sum[v] = bias[v];
#pragma GCC unroll 8
      for (int tap = 0; tap < taps; ++tap) {
        const int at = Taps ? row[(column - begin) * stride + tap] : first[tap] * (taps * kLane);
#pragma GCC unroll 16
        for (int v = 0; v < kParts; ++v) sum[v] += load(table + at + tap * kLane + v * kLanes);
      }
#pragma GCC unroll 16
      for (int v = 0; v < kParts; ++v)
        store(out + static_cast<ptrdiff_t>(column) * channels + lane + v * kLanes, larger(least, sum[v]));
    }
  }
}

void lookup(const Lookup& conv, const uint8_t* symbol, float* out) {
  for (int lane = 0; lane < conv.channels; lane += kLane) {
    if (conv.taps == 5 && conv.stride <= kMostStride)
      lookup_lane<5>(conv, symbol, lane, out);
    else
      lookup_lane<0>(conv, symbol, lane, out);
  }
}

// exp x = 2^n exp r, |r| <= ln 2 / 2, the latter by its series: relative error below 2e-7.
inline Vector exp_of(Vector x) {
  x = smaller(all(88.0f), larger(all(-87.0f), x));
  const Vector shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits
  const Vector shifted = x * 1.44269504f + shift;
  const Vector n = shifted - shift;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector series = all(1.0f / 5040);
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  return same_bits<Vector>(same_bits<Bits>(series) + (same_bits<Bits>(shifted) << 23));
}

inline Vector sigmoid_of(Vector x) {
  return 1.0f / (1.0f + exp_of(-x));
}

// x (1 + erf(x / sqrt 2)) / 2, erf to 1.5e-7 (Abramowitz and Stegun 7.1.26).
inline Vector gelu_of(Vector x) {
  const Vector z = larger(x, -x) * 0.70710678f;
  const Vector t = 1.0f / (1.0f + 0.3275911f * z);
  Vector series = all(1.061405429f);
  series = series * t - 1.453152027f;
  series = series * t + 1.421413741f;
  series = series * t - 0.284496736f;
  series = series * t + 0.254829592f;
  const Vector tail = series * t * exp_of(-z * z) * 0.5f;  // (1 - erf |z|) / 2
  return x * (x > 0.0f ? 1.0f - tail : tail);
}

template <class Function>
inline void each(float* x, int64_t n, Function&& function) {
  for (int64_t i = 0; i < n; i += kLanes) store(x + i, function(load(x + i)));
}

void relu(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, larger(Vector{}, load(x + i)));
}
void gelu(float* x, int64_t n) {
  each(x, n, gelu_of);
}
void sigmoid(float* x, int64_t n) {
  each(x, n, sigmoid_of);
}
void tanh(float* x, int64_t n) {
  each(x, n, [](Vector v) { return 2.0f * sigmoid_of(2.0f * v) - 1.0f; });
}

float dot(const float* a, const float* b, int64_t n) {
  Vector sum{};
  for (int64_t i = 0; i < n; i += kLanes) sum += load(a + i) * load(b + i);
  return sum_of(sum);
}

void sign_bits(const float* x, int64_t rows, int n, uint32_t* bits) {
  static constexpr uint32_t kBit[kLane] = {1,       1 << 1,  1 << 2,  1 << 3, 1 << 4,  1 << 5,
                                           1 << 6,  1 << 7,  1 << 8,  1 << 9, 1 << 10, 1 << 11,
                                           1 << 12, 1 << 13, 1 << 14, 1 << 15};
  for (int64_t row = 0; row < rows; ++row, x += n) {
    uint32_t found = 0;
    for (int lane = 0; lane < n; lane += kLane) {
      Bits some{};
      for (int i = 0; i < kLane; i += kLanes) {
        Bits bit;
        memcpy(&bit, kBit + i, sizeof(bit));
        some |= where_positive(load(x + lane + i)) & bit;
      }
      found |= any_of(some) << lane;
    }
    bits[row] = found;
  }
}

// The whole steps of `width` columns by body(i), the columns left by last(i).
template <int kStep = kLanes, class Body, class Last>
inline void columns(int width, Body&& body, Last&& last) {
  int i = 0;
  for (; i + kStep <= width; i += kStep) body(i);
  for (; i < width; ++i) last(i);
}

void layer_norm(float* x, int rows, int width, ptrdiff_t ld, const float* gain, const float* bias) {
  const float share = 1.0f / static_cast<float>(width);
  for (int row = 0; row < rows; ++row, x += ld) {
    Vector sums{};
    float rest = 0;
    columns(width, [&](int i) { sums += load(x + i); }, [&](int i) { rest += x[i]; });
    const float mean = (sum_of(sums) + rest) * share;
    sums = Vector{};
    rest = 0;
    columns(
        width,
        [&](int i) {
          const Vector d = load(x + i) - mean;
          sums += d * d;
        },
        [&](int i) { rest += (x[i] - mean) * (x[i] - mean); });
    const float scale = 1.0f / sqrtf((sum_of(sums) + rest) * share + 1e-5f);
    columns(
        width, [&](int i) { store(x + i, (load(x + i) - mean) * scale * load(gain + i) + load(bias + i)); },
        [&](int i) { x[i] = (x[i] - mean) * scale * gain[i] + bias[i]; });
    for (int i = width; i < padded(width); ++i) x[i] = 0;
  }
}

void softmax(float* x, int rows, int width, ptrdiff_t ld, float scale) {
  for (int row = 0; row < rows; ++row, x += ld) {
    Vector most = all(x[0]);
    float top = x[0];
    columns(
        width, [&](int i) { most = larger(most, load(x + i)); },
        [&](int i) { top = x[i] > top ? x[i] : top; });
    const float lane_top = max_of(most);
    top = lane_top > top ? lane_top : top;
    Vector sums{};
    float rest = 0;
    columns(
        width,
        [&](int i) {
          const Vector e = exp_of((load(x + i) - top) * scale);
          sums += e;
          store(x + i, e);
        },
        [&](int i) {
          const Vector e = exp_of(all((x[i] - top) * scale));
          float lanes[kLanes];
          store(lanes, e);
          x[i] = lanes[0];
          rest += x[i];
        });
    const float share = 1.0f / (sum_of(sums) + rest);
    columns(width, [&](int i) { store(x + i, load(x + i) * share); }, [&](int i) { x[i] *= share; });
  }
}

void sum_rows(const float* x, int rows, int64_t n, ptrdiff_t ld, const float* weight, float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    Vector sum{};
    for (int row = 0; row < rows; ++row) {
      const Vector v = load(x + row * ld + i);
      sum += weight ? v * weight[row] : v;
    }
    store(out + i, sum);
  }
}

double dot_rows(const double* x, ptrdiff_t ldx, const double* w, ptrdiff_t ldw, int rows, int n) {
  Doubles even{}, odd{};
  double rest = 0;
  for (int row = 0; row < rows; ++row, x += ldx, w += ldw)
    columns<2 * kDoubles>(
        n,
        [&](int i) {
          even += load(x + i) * load(w + i);
          odd += load(x + i + kDoubles) * load(w + i + kDoubles);
        },
        [&](int i) { rest += x[i] * w[i]; });
  return sum_of(even + odd) + rest;
}

void add_rows(double scale, const double* w, ptrdiff_t ldw, int rows, int n, double* y, ptrdiff_t ldy) {
  for (int row = 0; row < rows; ++row, w += ldw, y += ldy)
    columns<kDoubles>(
        n, [&](int i) { store(y + i, load(y + i) + load(w + i) * scale); },
        [&](int i) { y[i] += w[i] * scale; });
}

constexpr Kernels kTable = {PAIRFORMER_NAME, count_windows, align_windows, gemm,     gemm_mean, pack,
                            lookup,          relu,          gelu,          sigmoid,  tanh,      dot,
                            sign_bits,       layer_norm,    softmax,       sum_rows, dot_rows,  add_rows};

}  // namespace

const Kernels& PAIRFORMER_TABLE() {
  return kTable;
}

}  // namespace pairformer
