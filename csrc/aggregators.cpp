#include "aggregators.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "sites.hpp"

namespace pairformer {
namespace {

// Two layers with a GELU between, a map of single rows.
struct FeedForward {
  Affine first, second;

  FeedForward(const Weights& weights, const std::string& name, const ModelShape& shape)
      : first(Affine::linear(weights, name + ".0", shape.width, shape.hidden)),
        second(Affine::linear(weights, name + ".3", shape.hidden, shape.width)) {}

  void operator()(const Kernels& kernels, const float* x, int64_t rows, float* out, bool add) const {
    Scratch scratch;
    float* hidden = scratch.take(rows * first.ld());
    first(kernels, x, second.ld(), rows, hidden, first.ld());
    kernels.gelu(hidden, rows * first.ld());
    second(kernels, hidden, first.ld(), rows, out, second.ld(), false, add);
  }
};

// H = LN(X + Att(X, Y)); X = LN(H + FF(H)). Set Transformer eq. 6.
class Mab {
 public:
  Mab(const Weights& weights, const std::string& name, const ModelShape& shape)
      : heads_(shape.heads),
        head_width_(shape.width / shape.heads),
        query_(Affine::linear(weights, name + ".query", shape.width, shape.width)),
        key_(Affine::linear(weights, name + ".key", shape.width, shape.width)),
        value_(Affine::linear(weights, name + ".value", shape.width, shape.width)),
        out_(Affine::linear(weights, name + ".out", shape.width, shape.width)),
        norm1_(weights, name + ".norm1", shape.width),
        norm2_(weights, name + ".norm2", shape.width),
        feed_forward_(weights, name + ".feed_forward", shape) {}

  // x (queries, ld) is overwritten; y (keys, ld), keys >= 1, may be x.
  void operator()(const Kernels& kernels, float* x, int64_t queries, const float* y, int64_t keys) const {
    Scratch scratch;
    // A head's product writes whole lanes, past the last head's columns too.
    const int64_t ld = query_.ld(), wide = ld + kLane, columns = padded(keys);
    float* query = scratch.take(queries * ld);
    float* key = scratch.take(keys * ld);
    float* value = scratch.take(keys * ld);
    query_(kernels, x, ld, queries, query, ld);
    key_(kernels, y, ld, keys, key, ld);
    value_(kernels, y, ld, keys, value, ld);
    constexpr int64_t kQueries = 256;  // whose scores exist at once: memory grows with keys, not their square
    float* score = scratch.take(std::min(queries, kQueries) * columns);
    float* attended = scratch.take(queries * wide);
    float* key_panels = scratch.take(head_width_ * columns);
    float* value_panels = scratch.take(keys * padded(head_width_));
    const float scale = 1 / std::sqrt(static_cast<float>(head_width_));
    const int n = static_cast<int>(keys), width = static_cast<int>(head_width_);
    for (int64_t h = 0; h < heads_; ++h) {
      const int64_t at = h * head_width_;
      kernels.pack(key + at, 1, ld, width, n, key_panels);
      kernels.pack(value + at, ld, 1, n, width, value_panels);
      for (int64_t first = 0; first < queries; first += kQueries) {
        const int rows = static_cast<int>(std::min(kQueries, queries - first));
        kernels.gemm({query + first * ld + at, ld, key_panels, nullptr, score, columns, rows,
                      static_cast<int>(columns), width});
        kernels.softmax(score, rows, n, columns, scale);
        kernels.gemm({score, columns, value_panels, nullptr, attended + first * wide + at, wide, rows,
                      static_cast<int>(padded(head_width_)), n});
      }
    }
    out_(kernels, attended, wide, queries, x, ld, false, true);
    norm1_(kernels, x, queries, ld);
    feed_forward_(kernels, x, queries, x, true);
    norm2_(kernels, x, queries, ld);
  }

 private:
  int64_t heads_, head_width_;
  Affine query_, key_, value_, out_;
  LayerNorm norm1_, norm2_;
  FeedForward feed_forward_;
};

// Learned rows of a set, in whole lanes.
struct Points {
  int64_t count, ld;
  Floats rows;

  Points(const Weights& weights, const std::string& name, int64_t count_, int64_t width)
      : count(count_), ld(padded(width)) {
    const float* source = weights.at(name, {count, width});
    rows = Floats(count * ld, 0.0f);
    for (int64_t i = 0; i < count; ++i) std::copy_n(source + i * width, width, rows + i * ld);
  }
  float* copy(Scratch& scratch) const {
    float* mine = scratch.take(count * ld);
    std::copy_n(static_cast<const float*>(rows), count * ld, mine);
    return mine;
  }
};

// SAB: MAB(X, X). ISAB: MAB(X, MAB(I, X)).
struct Layer {
  Mab attend;
  std::unique_ptr<Mab> gather;
  std::unique_ptr<Points> points;

  Layer(const Weights& weights, const std::string& name, const ModelShape& shape)
      : attend(weights, name + (shape.inducing_points ? ".spread" : ".attend"), shape) {
    if (!shape.inducing_points) return;
    gather = std::make_unique<Mab>(weights, name + ".gather", shape);
    points = std::make_unique<Points>(weights, name + ".points", shape.inducing_points, shape.width);
  }

  void operator()(const Kernels& kernels, float* x, int64_t n) const {
    if (!points) return attend(kernels, x, n, x, n);
    Scratch scratch;
    float* summary = points->copy(scratch);
    (*gather)(kernels, summary, points->count, x, n);
    attend(kernels, x, n, summary, points->count);
  }
};

class SetTransformer : public Aggregator {
 public:
  SetTransformer(const Weights& weights, const std::string& name, const ModelShape& shape)
      : Aggregator(weights, name, shape, shape.width, false),
        seeds_(weights, name + ".pool.seeds", shape.pool_seeds, shape.width),
        feed_forward_(weights, name + ".pool.feed_forward", shape),
        pool_(weights, name + ".pool.attend", shape) {
    for (int64_t i = 0; i < shape.layers; ++i)
      layers_.emplace_back(weights, name + ".layers." + std::to_string(i), shape);
  }

  float logit(const Kernels& kernels, const float* projected, int64_t n) const override {
    Scratch scratch;
    float* x = scratch.take(n * ld());
    std::copy_n(projected, n * ld(), x);
    for (const Layer& layer : layers_) layer(kernels, x, n);
    float* each = scratch.take(n * ld());
    feed_forward_(kernels, x, n, each, false);
    float* seeds = seeds_.copy(scratch);
    pool_(kernels, seeds, seeds_.count, each, n);
    float* bag = scratch.take(ld());
    kernels.sum_rows(seeds, static_cast<int>(seeds_.count), ld(), ld(), nullptr, bag);
    for (int64_t i = 0; i < ld(); ++i) bag[i] /= static_cast<float>(seeds_.count);
    return head(kernels, bag);
  }

 private:
  std::vector<Layer> layers_;
  Points seeds_;
  FeedForward feed_forward_;
  Mab pool_;
};

// logit = rho(sum of phi(t)). Zaheer et al., theorem 2.
class DeepSets : public Aggregator {
 public:
  DeepSets(const Weights& weights, const std::string& name, const ModelShape& shape)
      : Aggregator(weights, name, shape, shape.hidden, true),
        phi_(Affine::linear(weights, name + ".phi.2", shape.hidden, shape.width)) {}

  float logit(const Kernels& kernels, const float* projected, int64_t n) const override {
    Scratch scratch;
    float* each = scratch.take(n * phi_.ld());
    phi_(kernels, projected, ld(), n, each, phi_.ld());
    float* bag = scratch.take(phi_.ld());
    kernels.sum_rows(each, static_cast<int>(n), phi_.ld(), phi_.ld(), nullptr, bag);
    return head(kernels, bag);
  }

 private:
  Affine phi_;
};

// logit = head(sum of a x), a = softmax(w (tanh(V x) * sigmoid(U x))). Ilse et al., eq. 9.
class GatedAttention : public Aggregator {
 public:
  GatedAttention(const Weights& weights, const std::string& name, const ModelShape& shape)
      : Aggregator(weights, name, shape, shape.width, true),
        value_(Affine::linear(weights, name + ".value", shape.width, shape.hidden)),
        gate_(Affine::linear(weights, name + ".gate", shape.width, shape.hidden)),
        weight_(Affine::linear(weights, name + ".weight", shape.hidden, 1, false)) {}

  float logit(const Kernels& kernels, const float* projected, int64_t n) const override {
    Scratch scratch;
    const int64_t size = n * value_.ld();
    float* value = scratch.take(size);
    float* gate = scratch.take(size);
    value_(kernels, projected, ld(), n, value, value_.ld());
    gate_(kernels, projected, ld(), n, gate, value_.ld());
    kernels.tanh(value, size);
    kernels.sigmoid(gate, size);
    for (int64_t i = 0; i < size; ++i) value[i] *= gate[i];
    float* score = scratch.take(n * weight_.ld());
    weight_(kernels, value, value_.ld(), n, score, weight_.ld());
    float* attention = scratch.take(padded(n));
    for (int64_t i = 0; i < n; ++i) attention[i] = score[i * weight_.ld()];
    kernels.softmax(attention, 1, static_cast<int>(n), padded(n), 1.0f);
    float* bag = scratch.take(ld());
    kernels.sum_rows(projected, static_cast<int>(n), ld(), ld(), attention, bag);
    return head(kernels, bag);
  }

 private:
  Affine value_, gate_, weight_;
};

float softplus(float x) {
  return std::max(x, 0.0f) + std::log1p(std::exp(-std::abs(x)));
}

}  // namespace

std::unique_ptr<Aggregator> Aggregator::make(const Weights& weights, const std::string& name,
                                             const ModelShape& shape) {
  if (shape.kind == "set_transformer") return std::make_unique<SetTransformer>(weights, name, shape);
  if (shape.kind == "deep_sets") return std::make_unique<DeepSets>(weights, name, shape);
  if (shape.kind == "gated_attention") return std::make_unique<GatedAttention>(weights, name, shape);
  throw std::invalid_argument(
      "kind must be set_transformer, deep_sets or gated_attention, or none with additive above 0, got " +
      shape.kind);
}

Aggregator::Aggregator(const Weights& weights, const std::string& name, const ModelShape& shape,
                       int64_t projected, bool rectified)
    : width_(shape.width),
      project_(Affine::linear(weights, name + ".project", shape.token_width, projected)),
      rectified_(rectified),
      norm_(weights, name + ".head.0", shape.width),
      hidden_(Affine::linear(weights, name + ".head.1", shape.width, shape.width)),
      last_(padded_copy(weights.at(name + ".head.4.weight", {1, shape.width}), shape.width)),
      last_bias_(*weights.at(name + ".head.4.bias", {1})) {}

void Aggregator::project(const Kernels& kernels, const float* tokens, int64_t n, int64_t ld,
                         float* out) const {
  project_(kernels, tokens, ld, n, out, project_.ld(), rectified_);
}

float Aggregator::head(const Kernels& kernels, float* bag) const {
  Scratch scratch;
  const int64_t ld = padded(width_);
  norm_(kernels, bag, 1, ld);
  float* hidden = scratch.take(ld);
  hidden_(kernels, bag, ld, 1, hidden, ld, true);
  return kernels.dot(hidden, last_, ld) + last_bias_;
}

AdditiveHead::AdditiveHead(const Weights& weights, const std::string& name, int64_t width)
    : site1_(Affine::linear(weights, name + ".site.0", kSiteFeatures + kContextFeatures, width)),
      site2_(Affine::linear(weights, name + ".site.3", width, width)),
      bag1_(Affine::linear(weights, name + ".bag.0", kBagFeatures, width)),
      site3_(padded_copy(weights.at(name + ".site.5.weight", {1, width}), width)),
      bag2_(padded_copy(weights.at(name + ".bag.3.weight", {1, width}), width)),
      site3_bias_(*weights.at(name + ".site.5.bias", {1})),
      bag2_bias_(*weights.at(name + ".bag.3.bias", {1})),
      gain_(*weights.at(name + ".gain", {})) {}

LengthGate::LengthGate(const Weights& weights, const std::string& name)
    : bias_(*weights.at(name + ".bias", {})), slope_(*weights.at(name + ".slope", {})) {}

float LengthGate::operator()(const float* bag) const {
  static const float window = 7 - std::log(51.0f);
  const float share = 1 / (1 + std::exp(-10 * (bias_ - slope_ * (bag[0] + window))));
  return share < kLeastShare ? 0 : share;
}

float AdditiveHead::operator()(const Kernels& kernels, const float* site, int64_t n, int64_t ld,
                               const float* bag, float* contribution) const {
  Scratch scratch;
  const int64_t wide = site1_.ld();
  float* first = scratch.take(std::max<int64_t>(1, n) * wide);
  float* second = scratch.take(n * wide);
  site1_(kernels, site, ld, n, first, wide, true);
  site2_(kernels, first, wide, n, second, wide, true);
  float repression = 0;
  for (int64_t i = 0; i < n; ++i) {
    contribution[i] = softplus(kernels.dot(second + i * wide, site3_, wide) + site3_bias_);
    repression += contribution[i];
  }
  bag1_(kernels, bag, kBagFeatures, 1, first, wide, true);
  return repression + kernels.dot(first, bag2_, wide) + bag2_bias_;
}

}  // namespace pairformer
