#include "ensemble.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <utility>

#include "energies.hpp"

namespace pairformer {
namespace {

constexpr double kThermal = 6.1632;                  // kT at 37 degrees C
constexpr int kLeastEnergy = 50, kMostEnergy = 200;  // more than any sum has

template <int N>
int of_length(const int (&table)[N], int length) {
  if (length < N) return table[length];
  return table[N - 1] + static_cast<int>(std::lround(kLogarithm * std::log(length / (N - 1.0))));
}

int weak(int kind, int cost) {
  return kind >= kGU ? cost : 0;
}

int mismatch(const int8_t (&table)[4][4], int a, int b) {
  return a < 4 && b < 4 ? table[a][b] : 0;
}

struct Weights {
  double of[kLeastEnergy + kMostEnergy];
  Weights() {
    for (int energy = -kLeastEnergy; energy < kMostEnergy; ++energy)
      of[energy + kLeastEnergy] = std::exp(-energy / kThermal);
  }
};

double weight(int energy) {
  static const Weights weights;
  return weights.of[energy + kLeastEnergy];
}

}  // namespace

int Ensemble::kind(int i, int j) const {
  return letter_[i] < 4 && letter_[j] < 4 ? kPair[letter_[i]][letter_[j]] : int{kNoPair};
}

double Ensemble::hairpin(int i, int j) const {
  const int length = j - i - 1, pair = kind(i, j);
  return hairpin_[length] * weight(length == kLeastHairpin
                                       ? weak(pair, kWeakEnd)
                                       : mismatch(kHairpinMismatch[pair], letter_[i + 1], letter_[j - 1]));
}

// What the pair (i, j) costs a loop of two helices that begins after i and ends before j: its outer pair, or
// its inner one read from the other strand.
int Ensemble::side(Rule rule, int i, int j) const {
  const int pair = kind(i, j);
  if (rule == kBulgeEnds) return weak(pair, kWeakEnd);
  return weak(pair, kWeakInternal) +
         (rule == kMismatches ? mismatch(kInternalMismatch, letter_[i + 1], letter_[j - 1]) : 0);
}

// Of a helix that ends with (i, j), seen from outside.
int Ensemble::stem(int i, int j) const {
  const int pair = kind(i, j);
  return weak(pair, kWeakEnd) + (i > 0 && letter_[i - 1] < 4 ? kDangleBefore[pair][letter_[i - 1]] : 0) +
         (j + 1 < length_ && letter_[j + 1] < 4 ? kDangleAfter[pair][letter_[j + 1]] : 0);
}

// Of a loop of three helices and more that (i, j) closes, but for the others' share.
int Ensemble::closing(int i, int j) const {
  const int pair = kind(j, i), after = letter_[i + 1], before = letter_[j - 1];
  return kClosing + kHelix + weak(pair, kWeakEnd) + (before < 4 ? kDangleBefore[pair][before] : 0) +
         (after < 4 ? kDangleAfter[pair][after] : 0);
}

template <class Visit>
void Ensemble::inner_pairs(int i, int j, Visit visit) const {
  const auto one_pair = [&](Rule rule, int k, int l, double factor) {
    static constexpr double kOne = 1;
    visit(Loops{rule, k, l, factor, &kOne, 0, 1, 1});
  };
  for (int k = i + 1; k <= i + 2; ++k)  // a stack, bulges of one letter
    for (int l = j - 1; l >= j - 3 + k - i; --l) {
      if (kind(l, k) == kNoPair) continue;
      const int letters = k - i + j - l - 2;
      const int energy = kBulge[letters] + kStack[kind(i, j)][kind(l, k)] - side(kBulgeEnds, l, k);
      one_pair(kBulgeEnds, k, l, weight(energy) * scale_[letters + 2]);
    }
  const double ends = weight(side(kBulgeEnds, i, j)), one_letter = weight(side(kOneLetter, i, j));
  const double two_letters = weight(kInternal[2] + (letter_[i + 1] == 2 && letter_[j - 1] == 2 ? kBothG : 0));
  one_pair(kOneLetter, i + 2, j - 2, one_letter * two_letters * scale_[4]);

  const double* const rows = rows_.data();
  visit(Loops{kBulgeEnds, i + 1, j - kBeforeRow, ends, rows, 0, 1, kRow});
  visit(Loops{kOneLetter, i + 2, j - kBeforeRow, one_letter, rows + kRow, 0, 1, kRow});
  const int room = j - i - 5 - kLeastHairpin;  // rows from i + 3 on that hold pairs up to j - 2
  const double* const columns = columns_.data();
  visit(Loops{kBulgeEnds, i + 3, j - 1, ends, columns, 1, std::min(kLargestLoop - 1, room + 1), 1});
  visit(Loops{kOneLetter, i + 3, j - 2, one_letter, columns + kLargestLoop, 1,
              std::min(kLargestLoop - 2, room), 1});
  const double mismatches = weight(side(kMismatches, i, j));
  const int end = std::min(kLargestLoop - 3, room - 1);
  constexpr int kBlock = 8;  // a row's weights begin with one 0 more than those of the row before
  for (int row = 0; row < end; row += kBlock)
    visit(Loops{kMismatches, i + 3 + row, j - kBeforeRow + row, mismatches, rows + (2 + row) * kRow + row,
                kRow, std::min(kBlock, end - row), kRow - row});
}

Ensemble::Ensemble(const uint8_t* letter, int length, const Kernels& kernels)
    : kernels_(kernels), letter_(letter), length_(length), stride_(length + kBeforeRow) {
  const size_t cells = static_cast<size_t>(length) * length;
  for (Square* square : {&pair_, &one_, &some_}) square->resize(cells);
  for (std::vector<double>& inner : inner_) inner.resize(length * stride_);
  exterior_.resize(length + 1);
  // What letters weigh on average, so that sums of long RNAs are not too large; the second is for those that
  // hold hardly anything but G and C in long helices.
  for (const double share : {0.6, 1.4}) {
    set_scale(share);
    if (inside()) break;
  }
  outside();
}

void Ensemble::set_scale(double share) {
  scale_.resize(std::max(length_, kLargestLoop) + 3);
  for (size_t n = 0; n < scale_.size(); ++n) scale_[n] = std::exp(-share * static_cast<double>(n));
  hairpin_.assign(length_ + 1, 0);
  for (int n = kLeastHairpin; n < length_; ++n) hairpin_[n] = weight(of_length(kHairpin, n)) * scale_[n + 2];
  const auto loop = [this](int before, int after) {
    const int length = before + after;
    const int energy =
        std::min(before, after) == 0
            ? of_length(kBulge, length)
            : of_length(kInternal, length) + std::min(kMostAsymmetry, kAsymmetry * std::abs(before - after));
    return weight(energy) * scale_[length + 2];
  };
  rows_.assign((kLargestLoop - 1) * kRow, 0);
  columns_.assign(2 * kLargestLoop, 0);
  for (int before = 0; before <= kLargestLoop - 2; ++before)
    for (int after = 2; before + after <= kLargestLoop; ++after)
      rows_[before * kRow + kRow + 1 - after] = loop(before, after);
  for (const int after : {0, 1})
    for (int before = 2; before + after <= kLargestLoop; ++before)
      columns_[after * kLargestLoop + before - 2] = loop(before, after);
}

bool Ensemble::inside() {
  const double unpaired = scale_[1];
  std::vector<double> single(length_), several(length_);  // of one helix from i to j; of two and more
  for (int i = length_ - 1; i >= 0; --i) {
    double enclosed = 0;  // of two and more from i + 1 to j - 1
    for (int j = i; j < length_; ++j) {
      double sum = 0;
      if (j - i > kLeastHairpin && kind(i, j) != kNoPair) {
        sum = hairpin(i, j) + weight(closing(i, j)) * scale_[2] * enclosed;
        inner_pairs(i, j, [&](const Loops& to) {
          sum += to.factor *
                 kernels_.dot_rows(inner(to.rule, to.k, to.l), stride_, to.weight, to.step, to.rows, to.n);
        });
        if (i > 0 && j + 1 < length_)
          for (const Rule rule : {kBulgeEnds, kOneLetter, kMismatches})
            *inner(rule, i, j) = sum * weight(side(rule, j, i));
      }
      at(pair_, i, j) = sum;
      const double helix = sum > 0 ? sum * weight(stem(i, j) + kHelix) : 0;
      at(one_, j, i) = helix + (j > i ? unpaired * at(one_, j - 1, i) : 0);
      single[j] = at(one_, j, i) + unpaired * single[j];
      enclosed = several[j];
      several[j] = kernels_.dot_rows(&at(some_, i, i), 0, &at(one_, j, i) + 1, 0, 1, j - i);
      at(some_, i, j) = single[j] + several[j];
    }
  }
  exterior_[0] = 1;
  for (int j = 0; j < length_; ++j) {
    exterior_[j + 1] = unpaired * exterior_[j];
    for (int i = 0; i < j; ++i)
      if (at(pair_, i, j) > 0) exterior_[j + 1] += exterior_[i] * at(pair_, i, j) * weight(stem(i, j));
  }
  const auto finite = [](double x) { return std::isfinite(x); };  // all else is a part of these
  return finite(exterior_[length_]) && std::all_of(some_.begin(), some_.end(), finite);
}

// Derivatives of the logarithm of the sum over all structures: what inside() does, backwards. Leaves the
// probability of each pair in place of its sum.
void Ensemble::outside() {
  Square one(pair_.size()), some(pair_.size());
  for (std::vector<double>& inner : inner_) std::fill(inner.begin(), inner.end(), 0.0);
  std::vector<double> exterior(length_ + 1), single(length_), closed(length_);
  const double unpaired = scale_[1];
  exterior[length_] = 1 / exterior_[length_];
  for (int j = length_ - 1; j >= 0; --j) {
    exterior[j] += unpaired * exterior[j + 1];
    for (int i = 0; i < j; ++i)
      if (at(pair_, i, j) > 0) exterior[i] += exterior[j + 1] * at(pair_, i, j) * weight(stem(i, j));
  }
  for (int i = 0; i < length_; ++i) {
    double enclosing = 0;  // by the pair (i - 1, j + 1)
    for (int j = length_ - 1; j >= i; --j) {
      const double several = at(some, i, j) + enclosing;
      kernels_.add_rows(several, &at(one_, j, i) + 1, 0, 1, j - i, &at(some, i, i), 0);
      kernels_.add_rows(several, &at(some_, i, i), 0, 1, j - i, &at(one, j, i) + 1, 0);
      single[j] = at(some, i, j) + unpaired * single[j];
      at(one, j, i) += single[j];
      if (j > i) at(one, j - 1, i) += unpaired * at(one, j, i);
      enclosing = closed[j];
      closed[j] = 0;
      if (at(pair_, i, j) == 0) continue;
      double mine =
          exterior[j + 1] * exterior_[i] * weight(stem(i, j)) + at(one, j, i) * weight(stem(i, j) + kHelix);
      if (i > 0 && j + 1 < length_)
        for (const Rule rule : {kBulgeEnds, kOneLetter, kMismatches})
          mine += *inner(rule, i, j) * weight(side(rule, j, i));
      inner_pairs(i, j, [&](const Loops& to) {
        kernels_.add_rows(mine * to.factor, to.weight, to.step, to.rows, to.n, inner(to.rule, to.k, to.l),
                          stride_);
      });
      closed[j] = mine * weight(closing(i, j)) * scale_[2];
      at(pair_, i, j) *= mine;
    }
  }
}

void Ensemble::write(float* probability, int64_t stride) const {
  for (int i = 0; i < length_; ++i)
    for (int j = i; j < length_; ++j)
      probability[i * stride + j] = probability[j * stride + i] = static_cast<float>(at(pair_, i, j));
}

}  // namespace pairformer
