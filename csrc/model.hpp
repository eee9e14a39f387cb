// PAIR-Former on the CPU: the steps of models/pair_former.py over bags of candidates, in one pool of threads.
// No result depends on the number of threads or on the bags computed together.
#pragma once

#include "aggregators.hpp"
#include "encoders.hpp"
#include "ragged.hpp"

namespace pairformer {

// Candidates of all bags; rows are 13 bytes, and an aligned window is made where it is read.
struct Candidates {
  const PairBatch& batch;
  const int64_t* offsets;  // (bags + 1)
  const int32_t* start;
  const uint8_t* esa_score;
  const float* position;
  const Alignment* alignment;

  EncodeRow row(int64_t bag, int64_t i) const { return {bag, start[i], alignment[i]}; }
  int64_t bag_of(int64_t row) const;
};

// Rows chosen of each bag: bag b has rows offsets[b] .. offsets[b + 1] - 1 of `rows`.
struct ChosenRows {
  const int64_t* rows;
  const int64_t* offsets;
};

enum class TokenPart { embedding, logit, esa, position, site, context, duplex };

// Where aggregate() writes: M chosen rows, B bags.
struct Aggregated {
  float* site_logit;    // (M)
  float* pair_logit;    // (B)
  float* weight;        // (M) the pair logit minus that without the row's input; null unless wanted
  float* repression;    // (B) of the additive heads; null where there are none
  float* contribution;  // (M) the row's share of it; null likewise
};

// Where sum_sites() writes, of B bags.
struct Summed {
  uint8_t* known;  // (B) 1, or 0 where the encoders have to be asked: then the rest says nothing
  float* pair_logit;
  float* repression;
  double* contribution;  // of all sites together
};

class Model {
 public:
  // Throws std::invalid_argument for an array that is missing or of another shape, or an unknown variant.
  Model(const Weights& weights, const ModelShape& shape, std::vector<TokenPart> token, float empty_logit,
        const std::string& variant);

  // Cheap logit and selector key of every candidate.
  void cheap_scan(const Candidates& candidates, int threads, float* logit, uint32_t* key) const;

  // Expensive embedding (n, expensive width) and logit of n rows.
  void encode(const Candidates& candidates, const int64_t* rows, int64_t n, int threads, float* embedding,
              float* logit) const;

  void aggregate(const Candidates& candidates, const ChosenRows& chosen, int threads,
                 const Aggregated& out) const;

  // What aggregate() says of bags whose k_max chosen rows hold all seed sites, and to the last bit, where no
  // aggregator counts: then it follows from the sites, and no encoder is asked. Needs additive().
  void sum_sites(const Candidates& candidates, int64_t k_max, int threads, const Summed& out) const;

  const char* variant() const { return kernels_.name; }
  int64_t expensive_width() const { return expensive_.width(); }
  bool additive() const { return !heads_.empty(); }

 private:
  class RowEncoder;
  void write_token(const Candidates& candidates, int64_t row, const float* embedding, float logit,
                   const float* site, float* token) const;
  // What the additive heads say of a bag with these bag_features and n sites (n, kSite): repression and its
  // part of the logit, and what each site contributes to either (n; weight may be nullptr).
  struct Said {
    float repression, logit;
  };
  Said add_up(const float* feature, const float* site, int64_t n, float* contribution, float* weight) const;
  // The same of its chosen rows; weight holds the sites' part of it.
  void add_sites(const ChosenRows& chosen, int64_t bag, const float* feature, const float* site,
                 const Aggregated& out) const;

  const Kernels& kernels_;
  CheapEncoder cheap_;
  ExpensiveEncoder expensive_;
  std::vector<std::unique_ptr<Aggregator>> aggregators_;  // one for each member, or none
  std::vector<AdditiveHead> heads_;                       // likewise
  std::vector<LengthGate> gates_;                         // likewise
  std::vector<TokenPart> token_;
  int64_t token_width_, members_;
  float empty_logit_;
};

}  // namespace pairformer
