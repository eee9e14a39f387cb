// What the encoders and the aggregators are made of: buffers, named arrays, affine maps.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"

namespace pairformer {

// n floats on a cache line, uninitialised.
class Floats {
 public:
  Floats() = default;
  explicit Floats(int64_t n);
  Floats(int64_t n, float value);
  operator float*() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const;
  };
  std::unique_ptr<float[], Free> data_;
};

// n floats and zeros to whole lanes.
Floats padded_copy(const float* source, int64_t n);

// Buffers of one task. After clear() the same calls of take() get the same buffers again.
class Scratch {
 public:
  float* take(int64_t n);
  void clear() { next_ = 0; }

 private:
  struct Buffer {
    int64_t size;
    Floats floats;
  };
  std::vector<Buffer> buffers_;
  size_t next_ = 0;
};

// The arrays of a saved model by name.
class Weights {
 public:
  struct Array {
    const float* data;
    std::vector<int64_t> shape;
  };
  explicit Weights(std::map<std::string, Array> arrays) : arrays_(std::move(arrays)) {}

  // Throws std::invalid_argument where there is no such array of this shape.
  const float* at(const std::string& name, const std::vector<int64_t>& shape) const;
  // Throws std::invalid_argument where an array was never asked for.
  void check_all_used() const;

 private:
  std::map<std::string, Array> arrays_;
  mutable std::set<std::string> used_;
};

// The numbers of ModelConfig that shape the arrays.
struct ModelShape {
  std::vector<int64_t> channels;  // of the expensive encoder
  int64_t stem_kernel, block_kernel, se_reduction, pooled_length;
  int64_t cheap_first, cheap_second, cheap_width, cheap_hidden;
  std::string kind;  // of the aggregator
  int64_t width, layers, heads, hidden, pool_seeds, inducing_points;
  int64_t members, additive;  // aggregators; hidden width of the additive heads, 0 for none
  bool length_gate;           // whether aggregators count by the UTR's length
  int64_t token_width;
  uint32_t rng_seed;  // of the selector's hash
};

// (m, k) -> (m, n), rows of n padded with zeros to whole lanes.
class Affine {
 public:
  Affine() = default;
  // weight (n, k), bias (n) or null.
  Affine(const float* weight, const float* bias, int64_t k, int64_t n);
  // The linear layer `name`.
  static Affine linear(const Weights& weights, const std::string& name, int64_t in, int64_t out,
                       bool biased = true);
  // The 1-D convolution `name`, as a map of `taps` rows of padded(in) channels one after the other.
  static Affine convolution(const Weights& weights, const std::string& name, int64_t in, int64_t out,
                            int64_t taps, bool biased);

  // c = the map of the m rows of a, lda apart; added to what c held, and rectified, as asked.
  void operator()(const Kernels& kernels, const float* a, int64_t lda, int64_t m, float* c, int64_t ldc,
                  bool relu = false, bool add = false) const;
  Gemm of(const float* a, int64_t lda, int64_t m, float* c, int64_t ldc) const;
  int64_t ld() const { return padded(n_); }

 private:
  int64_t k_ = 0, n_ = 0;
  Floats panels_, bias_;
};

class LayerNorm {
 public:
  LayerNorm(const Weights& weights, const std::string& name, int64_t width);
  void operator()(const Kernels& kernels, float* x, int64_t rows, int64_t ld) const;

 private:
  int64_t width_;
  Floats gain_, bias_;
};

}  // namespace pairformer
