// Tokens of a bag -> one logit on the CPU: the Set Transformer of models/set_transformer.py and the two
// aggregators of models/pooling.py; and the additive head of models/additive.py. A bag has its own number of
// tokens; nothing is padded.
#pragma once

#include <memory>

#include "layers.hpp"

namespace pairformer {

class Aggregator {
 public:
  // Of the kind that shape names; throws std::invalid_argument for another.
  static std::unique_ptr<Aggregator> make(const Weights& weights, const std::string& name,
                                          const ModelShape& shape);
  virtual ~Aggregator() = default;

  // The map of single tokens that comes first: (n, ld) tokens -> out (n, ld()).
  void project(const Kernels& kernels, const float* tokens, int64_t n, int64_t ld, float* out) const;
  int64_t ld() const { return project_.ld(); }
  // Logit of n >= 1 projected tokens (n, ld()), which are left as they are.
  virtual float logit(const Kernels& kernels, const float* projected, int64_t n) const = 0;

 protected:
  Aggregator(const Weights& weights, const std::string& name, const ModelShape& shape, int64_t projected,
             bool rectified);
  // The layers after pooling, of one row (ld of `width`), which is overwritten.
  float head(const Kernels& kernels, float* bag) const;

 private:
  int64_t width_;
  Affine project_;
  bool rectified_;
  LayerNorm norm_;
  Affine hidden_;
  Floats last_;
  float last_bias_;
};

// Repression as a sum: what each seed site contributes, never less than 0, and what the bag does.
class AdditiveHead {
 public:
  AdditiveHead(const Weights& weights, const std::string& name, int64_t width);

  // contribution (n) of n sites, whose site_features and site_context are rows of `site`, ld apart; bag has
  // the bag_features. Returns the repression.
  float operator()(const Kernels& kernels, const float* site, int64_t n, int64_t ld, const float* bag,
                   float* contribution) const;
  // Of repression in the pair logit.
  float gain() const { return gain_; }

 private:
  Affine site1_, site2_, bag1_;
  Floats site3_, bag2_;
  float site3_bias_, bag2_bias_, gain_;
};

// Share of an aggregator's logit in the pair logit, by the UTR's length; 0 where it is under kLeastShare.
class LengthGate {
 public:
  static constexpr float kLeastShare = 1e-6f;

  LengthGate(const Weights& weights, const std::string& name);
  // bag has the bag_features.
  float operator()(const float* bag) const;

 private:
  float bias_, slope_;
};

}  // namespace pairformer
