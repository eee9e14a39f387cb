#include "encoders.hpp"

#include <algorithm>

#include "simhash.hpp"

namespace pairformer {
namespace {

constexpr int kTaps = 3, kStride = 2;  // of the cheap encoder's second convolution

// The rows `dims` of the linear layer cheap.embed.
Affine hash_map(const Weights& weights, const ModelShape& shape) {
  const auto dims = simhash_dims(shape.rng_seed, shape.cheap_width);
  const float* weight = weights.at("cheap.embed.weight", {shape.cheap_width, shape.cheap_second});
  const float* bias = weights.at("cheap.embed.bias", {shape.cheap_width});
  const auto n = static_cast<int64_t>(dims.size());
  const Floats rows(n * shape.cheap_second), offsets(n);
  for (int64_t i = 0; i < n; ++i) {
    std::copy_n(weight + dims[i] * shape.cheap_second, shape.cheap_second, rows + i * shape.cheap_second);
    offsets[i] = bias[dims[i]];
  }
  return {rows, offsets, shape.cheap_second, n};
}

}  // namespace

SymbolConvolution::SymbolConvolution(const Weights& weights, const std::string& name, int64_t out,
                                     int64_t taps, int64_t stride, bool biased, bool relu) {
  const float* weight = weights.at(name + ".weight", {out, kChannels, taps});
  table_ = Floats(taps * kSymbols * padded(out), 0.0f);
  for (int64_t o = 0; o < out; ++o) {
    for (int symbol = 0; symbol < kSymbols; ++symbol) {
      const int top = symbol / kLetters, bottom = symbol % kLetters;
      float* row = table_ + (o / kLane * kSymbols + symbol) * taps * kLane + o % kLane;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const float* channels = weight + o * kChannels * taps + tap;
        if (top <= kGap) row[tap * kLane] += channels[top * taps];
        if (bottom <= kGap) row[tap * kLane] += channels[(kGap + 1 + bottom) * taps];
      }
    }
  }
  bias_ = biased ? padded_copy(weights.at(name + ".bias", {out}), out) : Floats(padded(out), 0.0f);
  lookup_ = {table_,
             bias_,
             kSymbols,
             static_cast<int>(taps),
             static_cast<int>(stride),
             static_cast<int>((kColumns - 1) / stride + 1),
             static_cast<int>(padded(out)),
             relu};
}

CheapEncoder::CheapEncoder(const Weights& weights, const ModelShape& shape)
    : first_(shape.cheap_first),
      second_(shape.cheap_second),
      conv1_(weights, "cheap.conv1", first_, 5, 2, true, true),
      conv2_(Affine::convolution(weights, "cheap.conv2", first_, second_, kTaps, true)),
      hash_(hash_map(weights, shape)),
      score1_(Affine::linear(weights, "cheap.score1", second_ + 2, shape.cheap_hidden)),
      score2_(padded_copy(weights.at("cheap.score2.weight", {1, shape.cheap_hidden}), shape.cheap_hidden)),
      score2_bias_(*weights.at("cheap.score2.bias", {1})) {}

void CheapEncoder::score(const Kernels& kernels, int64_t rows, const uint8_t* symbol,
                         const uint8_t* esa_score, const float* position, float* logit, uint32_t* key) const {
  Scratch scratch;
  // One empty row of channels before the first convolution's columns and one after.
  const int64_t row = padded(first_), columns = conv1_.columns();
  float* x = scratch.take((columns + 2) * row);
  std::fill_n(x, row, 0.0f);
  std::fill_n(x + (columns + 1) * row, row, 0.0f);
  const int64_t ld = padded(second_ + 2);
  float* content = scratch.take(rows * ld);  // and ESA score and position
  for (int64_t i = 0; i < rows; ++i) {
    conv1_(kernels, symbol + i * span(), x + row);
    float* mean = content + i * ld;
    kernels.gemm_mean(conv2_.of(x, kStride * row, (columns - 1) / kStride + 1, mean, ld));
    mean[second_] = esa_score[i];
    mean[second_ + 1] = position[i];
  }
  float* hidden = scratch.take(rows * score1_.ld());
  score1_(kernels, content, ld, rows, hidden, score1_.ld(), true);
  for (int64_t i = 0; i < rows; ++i)
    logit[i] = kernels.dot(hidden + i * score1_.ld(), score2_, score1_.ld()) + score2_bias_;
  float* signs = scratch.take(rows * hash_.ld());
  hash_(kernels, content, ld, rows, signs, hash_.ld());
  kernels.sign_bits(signs, rows, hash_.ld(), key);
}

ExpensiveEncoder::ExpensiveEncoder(const Weights& weights, const ModelShape& shape)
    : channels_(shape.channels),
      taps_(shape.block_kernel),
      bins_(shape.pooled_length),
      stem_(weights, "expensive.stem", channels_[0], shape.stem_kernel, 1, false, false) {
  for (size_t b = 0; b + 1 < channels_.size(); ++b) {
    const std::string name = "expensive.blocks." + std::to_string(b);
    const int64_t in = channels_[b], out = channels_[b + 1];
    blocks_.push_back({Affine::convolution(weights, name + ".conv1", in, out, taps_, false),
                       Affine::convolution(weights, name + ".conv2", out, out, taps_, false),
                       in == out ? Affine() : Affine::convolution(weights, name + ".skip", in, out, 1, false),
                       in != out});
  }
  const int64_t last = channels_.back(), squeezed = std::max<int64_t>(1, last / shape.se_reduction);
  squeeze_ = Affine::linear(weights, "expensive.squeeze", last, squeezed, false);
  excite_ = Affine::linear(weights, "expensive.excite", squeezed, last, false);
  head_ = padded_copy(weights.at("expensive.head.weight", {1, width()}), width());
  head_bias_ = *weights.at("expensive.head.bias", {1});
}

float ExpensiveEncoder::encode(const Kernels& kernels, const uint8_t* symbol, Scratch& scratch,
                               float* embedding) const {
  scratch.clear();
  const int64_t widest = padded(*std::max_element(channels_.begin(), channels_.end()));
  const int64_t before = (taps_ - 1) / 2, rows = kColumns + taps_ - 1;
  // Rectified columns with the empty rows a convolution reads beside them, of x and of what conv1 gives.
  float* x = scratch.take(kColumns * widest);
  float* wider = scratch.take(kColumns * widest);
  float* input = scratch.take(rows * widest);
  float* middle = scratch.take(rows * widest);
  stem_(kernels, symbol, x);
  const auto clear_edges = [&](float* buffer, int64_t ld) {
    std::fill_n(buffer, before * ld, 0.0f);
    std::fill_n(buffer + (before + kColumns) * ld, (taps_ - 1 - before) * ld, 0.0f);
  };
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const Block& block = blocks_[b];
    const int64_t in = padded(channels_[b]), out = padded(channels_[b + 1]);
    clear_edges(input, in);
    clear_edges(middle, out);
    kernels.relu(x, kColumns * in, input + before * in);
    block.conv1(kernels, input, in, kColumns, middle + before * out, out, true);
    if (block.widens) {
      block.skip(kernels, x, in, kColumns, wider, out);
      std::swap(x, wider);
    }
    block.conv2(kernels, middle, out, kColumns, x, out, false, true);
  }
  const int64_t last = channels_.back(), ld = padded(last);
  float* gate = scratch.take(ld);
  float* squeezed = scratch.take(squeeze_.ld());
  kernels.sum_rows(x, kColumns, ld, ld, nullptr, gate);
  for (int64_t c = 0; c < ld; ++c) gate[c] /= kColumns;
  squeeze_(kernels, gate, ld, 1, squeezed, squeeze_.ld(), true);
  excite_(kernels, squeezed, squeeze_.ld(), 1, gate, ld);
  kernels.sigmoid(gate, ld);
  for (int64_t t = 0; t < kColumns; ++t)
    for (int64_t c = 0; c < ld; ++c) x[t * ld + c] = std::max(x[t * ld + c] * (1 + gate[c]), 0.0f);
  float* bin = scratch.take(ld);
  for (int64_t t = 0; t < bins_; ++t) {
    const int64_t begin = kColumns * t / bins_, end = (kColumns * (t + 1) + bins_ - 1) / bins_;
    kernels.sum_rows(x + begin * ld, static_cast<int>(end - begin), ld, ld, nullptr, bin);
    for (int64_t c = 0; c < last; ++c) embedding[c * bins_ + t] = bin[c] / static_cast<float>(end - begin);
  }
  float* flat = scratch.take(padded(width()));
  std::fill(std::copy_n(embedding, width(), flat), flat + padded(width()), 0.0f);
  return kernels.dot(flat, head_, padded(width())) + head_bias_;
}

}  // namespace pairformer
