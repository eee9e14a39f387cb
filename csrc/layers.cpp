#include "layers.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>

namespace pairformer {
namespace {

constexpr std::align_val_t kLine{64};

std::string text(const std::vector<int64_t>& shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + ")";
}

}  // namespace

Floats::Floats(int64_t n)
    : data_(static_cast<float*>(::operator new(static_cast<size_t>(n) * sizeof(float), kLine))) {}

Floats::Floats(int64_t n, float value) : Floats(n) {
  std::fill_n(data_.get(), n, value);
}

void Floats::Free::operator()(float* data) const {
  ::operator delete(data, kLine);
}

Floats padded_copy(const float* source, int64_t n) {
  Floats copy(padded(n), 0.0f);
  std::copy_n(source, n, static_cast<float*>(copy));
  return copy;
}

float* Scratch::take(int64_t n) {
  if (next_ == buffers_.size()) buffers_.push_back({0, {}});
  Buffer& buffer = buffers_[next_++];
  if (buffer.size < n) buffer = {n, Floats(n)};
  return buffer.floats;
}

const float* Weights::at(const std::string& name, const std::vector<int64_t>& shape) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end() || found->second.shape != shape)
    throw std::invalid_argument("weights must hold " + name + " " + text(shape) +
                                " as config.json says, got " +
                                (found == arrays_.end() ? "no such array" : text(found->second.shape)));
  used_.insert(name);
  return found->second.data;
}

void Weights::check_all_used() const {
  for (const auto& [name, array] : arrays_)
    if (!used_.count(name))
      throw std::invalid_argument("weights must be those of config.json, got " + name + " " +
                                  text(array.shape) + " too");
}

Affine::Affine(const float* weight, const float* bias, int64_t k, int64_t n)
    : k_(k), n_(n), panels_(k * padded(n)), bias_(bias ? padded_copy(bias, n) : Floats(padded(n), 0.0f)) {
  kernels_portable().pack(weight, 1, k, static_cast<int>(k), static_cast<int>(n), panels_);
}

Affine Affine::linear(const Weights& weights, const std::string& name, int64_t in, int64_t out, bool biased) {
  return {weights.at(name + ".weight", {out, in}), biased ? weights.at(name + ".bias", {out}) : nullptr, in,
          out};
}

Affine Affine::convolution(const Weights& weights, const std::string& name, int64_t in, int64_t out,
                           int64_t taps, bool biased) {
  const float* weight = weights.at(name + ".weight", {out, in, taps});
  const int64_t k = taps * padded(in);
  const Floats rows(out * k, 0.0f);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i)
      for (int64_t tap = 0; tap < taps; ++tap)
        rows[o * k + tap * padded(in) + i] = weight[(o * in + i) * taps + tap];
  return {rows, biased ? weights.at(name + ".bias", {out}) : nullptr, k, out};
}

Gemm Affine::of(const float* a, int64_t lda, int64_t m, float* c, int64_t ldc) const {
  return {a, lda, panels_, bias_, c, ldc, static_cast<int>(m), static_cast<int>(ld()), static_cast<int>(k_)};
}

void Affine::operator()(const Kernels& kernels, const float* a, int64_t lda, int64_t m, float* c, int64_t ldc,
                        bool relu, bool add) const {
  Gemm product = of(a, lda, m, c, ldc);
  product.relu = relu;
  product.add = add;
  kernels.gemm(product);
}

LayerNorm::LayerNorm(const Weights& weights, const std::string& name, int64_t width)
    : width_(width),
      gain_(padded_copy(weights.at(name + ".weight", {width}), width)),
      bias_(padded_copy(weights.at(name + ".bias", {width}), width)) {}

void LayerNorm::operator()(const Kernels& kernels, float* x, int64_t rows, int64_t ld) const {
  kernels.layer_norm(x, static_cast<int>(rows), static_cast<int>(width_), ld, gain_, bias_);
}

}  // namespace pairformer
