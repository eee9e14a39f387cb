// The loops that are compiled once per instruction set, from kernels.cpp: the scan's, the network's and those
// of structures.
//
// A matrix has rows of floats `ld` apart, padded to whole lanes of kLane; kernels may write up to that
// padding. Right-hand sides of products lie in panels: columns 0-31 of all k rows, then columns 32-63, ...;
// a last panel of at most 16 columns is 16 wide. So one layout serves every vector width.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pairformer {

constexpr int kSeedPart = 10;    // letters of the extended seed, and of a window's seed part
constexpr int kSeedBegin = 25;   // a window's seed part, forward: start + 25 .. start + 34
constexpr int kScanBlock = 512;  // most windows of one call: their intermediate lanes stay in the cache

// One candidate's alignment in 20 bits: bit i, miRNA letter i is paired; bit 10 + j, letter j of the
// window's seed part, counted from its 3' end, is paired. The k-th paired letters pair with each other.
using Alignment = uint32_t;

constexpr int kLane = 16;
constexpr int kPanel = 32;

static constexpr int64_t padded(int64_t n) {
  return (n + kLane - 1) / kLane * kLane;
}

// c = a b + bias, (m, n) = (m, k) (k, n), then added to what c held, then rectified, as the flags say.
// Rows of a may overlap: that makes a convolution over rows of channels a product.
struct Gemm {
  const float* a;
  ptrdiff_t lda;
  const float* panels;
  const float* bias;  // (n) or null
  float* c;
  ptrdiff_t ldc;
  int m, n, k;  // n in whole lanes
  bool add = false;
  bool relu = false;
};

// A convolution of one-hot columns: each tap adds the table row of its symbol.
struct Lookup {
  const float* table;                            // (channels / kLane, symbols, taps, kLane)
  const float* bias;                             // (channels)
  int symbols, taps, stride, columns, channels;  // channels in whole lanes; columns of output
  bool relu;
};

struct Kernels {
  const char* name;

  // ESA of `windows` consecutive windows of valid letters, code their first letter: pairs[b] has the bits of
  // the n letters of the extended seed that pair with base b. How many score at least esa_min; and scores
  // and alignments of all.
  int (*count_windows)(const uint8_t* code, int windows, const uint16_t* pairs, int n, int esa_min);
  void (*align_windows)(const uint8_t* code, int windows, const uint16_t* pairs, int n, uint8_t* score,
                        Alignment* alignment);

  void (*gemm)(const Gemm&);
  // c (n): the mean over the m rows of relu(a b + bias).
  void (*gemm_mean)(const Gemm&);
  // Panels of the (k, n) matrix whose entry (p, j) is source[p * step_k + j * step_n]; zeros as padding.
  void (*pack)(const float* source, ptrdiff_t step_k, ptrdiff_t step_n, int k, int n, float* panels);
  // out (columns, channels) of the symbols at symbol[column * stride + tap].
  void (*lookup)(const Lookup&, const uint8_t* symbol, float* out);

  // Of n floats, n in whole lanes.
  void (*relu)(const float* x, int64_t n, float* out);
  void (*gelu)(float* x, int64_t n);
  void (*sigmoid)(float* x, int64_t n);
  void (*tanh)(float* x, int64_t n);
  float (*dot)(const float* a, const float* b, int64_t n);
  // bits (rows): bit j where x[row, j] > 0, of n <= 32 columns.
  void (*sign_bits)(const float* x, int64_t rows, int n, uint32_t* bits);

  // Row by row, of the first `width` columns. Padding is left as it is (softmax) or zeroed (layer_norm).
  void (*layer_norm)(float* x, int rows, int width, ptrdiff_t ld, const float* gain, const float* bias);
  void (*softmax)(float* x, int rows, int width, ptrdiff_t ld, float scale);
  // out (n): the sum of rows, each times its weight[row]; weight null for ones. n in whole lanes.
  void (*sum_rows)(const float* x, int rows, int64_t n, ptrdiff_t ld, const float* weight, float* out);

  // Of rows of n doubles: the sum of all products x w; and y + scale w as the new y.
  double (*dot_rows)(const double* x, ptrdiff_t ldx, const double* w, ptrdiff_t ldw, int rows, int n);
  void (*add_rows)(double scale, const double* w, ptrdiff_t ldw, int rows, int n, double* y, ptrdiff_t ldy);
};

const Kernels& kernels_avx512();
const Kernels& kernels_avx2();
const Kernels& kernels_baseline();
const Kernels& kernels_portable();

}  // namespace pairformer
