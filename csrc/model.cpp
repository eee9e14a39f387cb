#include "model.hpp"

#include <algorithm>

#include "parallel.hpp"
#include "sites.hpp"
#include "variants.hpp"

namespace pairformer {
namespace {

constexpr int64_t kCheapRows = 128;    // candidates a thread scores at once
constexpr int64_t kExpensiveRows = 8;  // windows a thread encodes at once
constexpr int64_t kGroup = 256;        // bags whose tokens exist at once

// Rows first .. first + count - 1 of a bag.
struct Part {
  int64_t bag, first, count;
};

std::vector<Part> parts_of(const int64_t* offsets, int64_t begin, int64_t end, int64_t most) {
  std::vector<Part> parts;
  for (int64_t bag = begin; bag < end; ++bag)
    for (int64_t first = offsets[bag]; first < offsets[bag + 1]; first += most)
      parts.push_back({bag, first, std::min(most, offsets[bag + 1] - first)});
  return parts;
}

}  // namespace

int64_t Candidates::bag_of(int64_t row) const {
  return std::upper_bound(offsets, offsets + batch.bags + 1, row) - offsets - 1;
}

Model::Model(const Weights& weights, const ModelShape& shape, std::vector<TokenPart> token, float empty_logit,
             const std::string& variant)
    : kernels_(kernels_of(variant)),
      cheap_(weights, shape),
      expensive_(weights, shape),
      aggregator_(Aggregator::make(weights, shape)),
      token_(std::move(token)),
      token_width_(shape.token_width),
      empty_logit_(empty_logit) {
  weights.check_all_used();
}

void Model::cheap_scan(const Candidates& candidates, int threads, float* logit, uint32_t* key,
                       float* embedding) const {
  const auto parts = parts_of(candidates.offsets, 0, candidates.batch.bags, kCheapRows);
  const int before = cheap_.before(), span = cheap_.span();
  parallel_for(static_cast<int64_t>(parts.size()), threads, [&](int64_t task) {
    const Part& part = parts[task];
    RowSymbols symbols(candidates.batch);
    std::vector<uint8_t> symbol(part.count * span, kEmptySymbol);
    for (int64_t i = 0; i < part.count; ++i) {
      const EncodeRow row = candidates.row(part.bag, part.first + i);
      check_row(candidates.batch, row);
      symbols(row, symbol.data() + i * span + before);
    }
    const int64_t first = part.first;
    cheap_.score(kernels_, part.count, symbol.data(), candidates.esa_score + first,
                 candidates.position + first, logit + first, key + first,
                 embedding ? embedding + first * cheap_width() : nullptr);
  });
}

// The expensive encoder over a task's rows.
class Model::RowEncoder {
 public:
  RowEncoder(const Model& model, const PairBatch& batch)
      : model_(model), batch_(batch), symbols_(batch), symbol_(model.expensive_.span(), kEmptySymbol) {}

  // Writes the embedding (expensive_width()) and returns the logit.
  float operator()(const EncodeRow& row, float* embedding) {
    check_row(batch_, row);
    symbols_(row, symbol_.data() + model_.expensive_.before());
    return model_.expensive_.encode(model_.kernels_, symbol_.data(), scratch_, embedding);
  }

 private:
  const Model& model_;
  const PairBatch& batch_;
  RowSymbols symbols_;
  std::vector<uint8_t> symbol_;
  Scratch scratch_;
};

void Model::encode(const Candidates& candidates, const int64_t* rows, int64_t n, int threads,
                   float* embedding, float* logit) const {
  parallel_for((n + kExpensiveRows - 1) / kExpensiveRows, threads, [&](int64_t task) {
    RowEncoder encoder(*this, candidates.batch);
    for (int64_t i = task * kExpensiveRows; i < std::min(n, (task + 1) * kExpensiveRows); ++i)
      logit[i] =
          encoder(candidates.row(candidates.bag_of(rows[i]), rows[i]), embedding + i * expensive_.width());
  });
}

void Model::write_token(const Candidates& candidates, int64_t bag, int64_t row, const float* embedding,
                        float logit, float* token) const {
  for (const TokenPart part : token_) {
    switch (part) {
      case TokenPart::embedding:
        token = std::copy_n(embedding, expensive_.width(), token);
        break;
      case TokenPart::logit:
        *token++ = logit;
        break;
      case TokenPart::esa:
        *token++ = candidates.esa_score[row];
        break;
      case TokenPart::position:
        *token++ = candidates.position[row];
        break;
      case TokenPart::site:
        site_features(SitePair(candidates.batch, bag), candidates.start[row], token);
        token += kSiteFeatures;
        break;
    }
  }
}

void Model::aggregate(const Candidates& candidates, const ChosenRows& chosen, int threads, float* site_logit,
                      float* pair_logit, float* weight) const {
  const int64_t ld = padded(token_width_), wide = aggregator_->ld();
  for (int64_t begin = 0; begin < candidates.batch.bags; begin += kGroup) {
    const int64_t end = std::min(candidates.batch.bags, begin + kGroup), first = chosen.offsets[begin];
    const Floats token((chosen.offsets[end] - first) * ld);
    const auto parts = parts_of(chosen.offsets, begin, end, kExpensiveRows);
    parallel_for(static_cast<int64_t>(parts.size()), threads, [&](int64_t task) {
      const Part& part = parts[task];
      RowEncoder encoder(*this, candidates.batch);
      const Floats embedding(expensive_.width());
      for (int64_t i = part.first; i < part.first + part.count; ++i) {
        site_logit[i] = encoder(candidates.row(part.bag, chosen.rows[i]), embedding);
        write_token(candidates, part.bag, chosen.rows[i], embedding, site_logit[i], token + (i - first) * ld);
      }
    });
    const auto size = [&](int64_t bag) {
      return chosen.offsets[begin + bag + 1] - chosen.offsets[begin + bag];
    };
    const auto order = largest_first(end - begin, size);
    const Floats projected((chosen.offsets[end] - first) * wide);
    parallel_for(end - begin, threads, [&](int64_t task) {
      const int64_t bag = begin + order[task], at = chosen.offsets[bag] - first, n = size(order[task]);
      aggregator_->project(kernels_, token + at * ld, n, ld, projected + at * wide);
      pair_logit[bag] = n > 0 ? aggregator_->logit(kernels_, projected + at * wide, n) : empty_logit_;
    });
    if (!weight) continue;
    const auto rows = parts_of(chosen.offsets, begin, end, 1);
    parallel_for(static_cast<int64_t>(rows.size()), threads, [&](int64_t task) {
      const Part& row = rows[task];
      const int64_t n = size(row.bag - begin) - 1, left = row.first - chosen.offsets[row.bag];
      const float* all = projected + (chosen.offsets[row.bag] - first) * wide;
      const Floats others(n * wide);
      std::copy_n(all, left * wide, static_cast<float*>(others));
      std::copy_n(all + (left + 1) * wide, (n - left) * wide, others + left * wide);
      const float without = n > 0 ? aggregator_->logit(kernels_, others, n) : empty_logit_;
      weight[row.first] = pair_logit[row.bag] - without;
    });
  }
}

}  // namespace pairformer
