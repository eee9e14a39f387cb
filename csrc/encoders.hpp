// The two site encoders of models/encoders.py on the CPU, over symbols of aligned windows (encode.hpp).
#pragma once

#include "encode.hpp"
#include "layers.hpp"

namespace pairformer {

// The first convolution of an encoder: every tap adds the table row of its column's symbol.
class SymbolConvolution {
 public:
  SymbolConvolution(const Weights& weights, const std::string& name, int64_t out, int64_t taps,
                    int64_t stride, bool biased, bool relu);

  // Empty symbols wanted around the window's.
  int before() const { return (lookup_.taps - 1) / 2; }
  int span() const { return kColumns + lookup_.taps - 1; }
  int columns() const { return lookup_.columns; }
  // symbol (span()) -> out (columns, padded(out)).
  void operator()(const Kernels& kernels, const uint8_t* symbol, float* out) const {
    kernels.lookup(lookup_, symbol, out);
  }

 private:
  Floats table_, bias_;
  Lookup lookup_;
};

// Two strided convolutions and a mean; ESA score and position enter the logit only. PAIR-Former sec. 4.3.
class CheapEncoder {
 public:
  CheapEncoder(const Weights& weights, const ModelShape& shape);

  // Symbols of one window, which start before() of them in; the others are to be empty.
  int before() const { return conv1_.before(); }
  int span() const { return conv1_.span(); }

  // Of `rows` windows, symbol (rows, span()): logit (rows) and selector keys (rows).
  void score(const Kernels& kernels, int64_t rows, const uint8_t* symbol, const uint8_t* esa_score,
             const float* position, float* logit, uint32_t* key) const;

 private:
  int64_t first_, second_;
  SymbolConvolution conv1_;
  Affine conv2_, hash_, score1_;  // hash_: the dimensions of the embedding that make a key, in its order
  Floats score2_;
  float score2_bias_;
};

// Residual convolutions with channel attention, read once per selected window. PAIR-Former sec. 5.
class ExpensiveEncoder {
 public:
  ExpensiveEncoder(const Weights& weights, const ModelShape& shape);

  int before() const { return stem_.before(); }
  int span() const { return stem_.span(); }
  int64_t width() const { return channels_.back() * bins_; }

  // embedding (width()) of one window, symbol (span()); returns its logit.
  float encode(const Kernels& kernels, const uint8_t* symbol, Scratch& scratch, float* embedding) const;

 private:
  struct Block {
    Affine conv1, conv2, skip;
    bool widens;  // else skip is the identity
  };
  std::vector<int64_t> channels_;
  int64_t taps_, bins_;
  SymbolConvolution stem_;
  std::vector<Block> blocks_;
  Affine squeeze_, excite_;
  Floats head_;
  float head_bias_;
};

}  // namespace pairformer
