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

int Ensemble::hairpin(int i, int j) const {
  const int length = j - i - 1, pair = kind(i, j);
  return of_length(kHairpin, length) +
         (length == kLeastHairpin ? weak(pair, kWeakEnd)
                                  : mismatch(kHairpinMismatch[pair], letter_[i + 1], letter_[j - 1]));
}

// Of the pair (i, j) and the next one inside, (k, l).
int Ensemble::loop(int i, int j, int k, int l) const {
  const int before = k - i - 1, after = j - l - 1, length = before + after;
  const int outer = kind(i, j), inner = kind(l, k);
  if (length == 0) return kStack[outer][inner];
  if (before == 0 || after == 0)
    return of_length(kBulge, length) +
           (length == 1 ? kStack[outer][inner] : weak(outer, kWeakEnd) + weak(inner, kWeakEnd));
  const int energy = of_length(kInternal, length) + weak(outer, kWeakInternal) + weak(inner, kWeakInternal) +
                     std::min(kMostAsymmetry, kAsymmetry * std::abs(before - after));
  if (length == 2) return energy + (letter_[i + 1] == 2 && letter_[j - 1] == 2 ? kBothG : 0);
  if (before == 1 || after == 1) return energy;
  return energy + mismatch(kInternalMismatch, letter_[i + 1], letter_[j - 1]) +
         mismatch(kInternalMismatch, letter_[l + 1], letter_[k - 1]);
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

// visit(k, l, weight of the loop) for each pair that can be the next inside (i, j).
template <class Visit>
void Ensemble::inner_pairs(int i, int j, Visit visit) const {
  for (int k = i + 1; k <= i + 1 + kLargestLoop && k + kLeastHairpin < j; ++k)
    for (int l = j - 1; l > k + kLeastHairpin && k - i + j - l - 2 <= kLargestLoop; --l)
      if (at(pair_, k, l) > 0) visit(k, l, weight(loop(i, j, k, l)) * scale_[k - i + j - l]);
}

Ensemble::Ensemble(const uint8_t* letter, int length) : letter_(letter), length_(length) {
  const size_t cells = static_cast<size_t>(length) * length;
  for (Square* square : {&pair_, &one_, &single_, &several_, &some_}) square->resize(cells);
  exterior_.resize(length + 1);
  scale_.resize(length + 2);
  // What letters weigh on average, so that sums of long RNAs are not too large; the second is for those that
  // hold hardly anything but G and C in long helices.
  for (const double share : {0.6, 1.4}) {
    for (int n = 0; n <= length + 1; ++n) scale_[n] = std::exp(-share * n);
    if (inside()) break;
  }
  outside();
}

bool Ensemble::inside() {
  const double unpaired = scale_[1];
  for (int i = length_ - 1; i >= 0; --i) {
    for (int j = i; j < length_; ++j) {
      double sum = 0;
      if (j - i > kLeastHairpin && kind(i, j) != kNoPair) {
        sum = weight(hairpin(i, j)) * scale_[j - i + 1];
        inner_pairs(i, j, [&](int k, int l, double w) { sum += w * at(pair_, k, l); });
        sum += weight(closing(i, j)) * scale_[2] * at(several_, i + 1, j - 1);
      }
      at(pair_, i, j) = sum;
      const double helix = sum > 0 ? sum * weight(stem(i, j) + kHelix) : 0;
      at(one_, j, i) = helix + (j > i ? unpaired * at(one_, j - 1, i) : 0);
      at(single_, i, j) = at(one_, j, i) + (j > i ? unpaired * at(single_, i + 1, j) : 0);
      double several = 0;
      for (int u = i + 1; u <= j; ++u) several += at(some_, i, u - 1) * at(one_, j, u);
      at(several_, i, j) = several;
      at(some_, i, j) = at(single_, i, j) + several;
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

// Derivatives of the logarithm of the sum over all structures: what inside() does, backwards.
void Ensemble::outside() {
  const size_t cells = pair_.size();
  Square pair(cells), one(cells), single(cells), several(cells), some(cells);
  std::vector<double> exterior(length_ + 1);
  const double unpaired = scale_[1];
  exterior[length_] = 1 / exterior_[length_];
  for (int j = length_ - 1; j >= 0; --j) {
    exterior[j] += unpaired * exterior[j + 1];
    for (int i = 0; i < j; ++i) {
      if (at(pair_, i, j) == 0) continue;
      const double helix = exterior[j + 1] * weight(stem(i, j));
      exterior[i] += helix * at(pair_, i, j);
      at(pair, i, j) = helix * exterior_[i];
    }
  }
  for (int i = 0; i < length_; ++i) {
    for (int j = length_ - 1; j >= i; --j) {
      at(single, i, j) += at(some, i, j);
      at(several, i, j) += at(some, i, j);
      for (int u = i + 1; u <= j; ++u) {
        at(some, i, u - 1) += at(several, i, j) * at(one_, j, u);
        at(one, j, u) += at(several, i, j) * at(some_, i, u - 1);
      }
      at(one, j, i) += at(single, i, j);
      if (j > i) {
        at(single, i + 1, j) += unpaired * at(single, i, j);
        at(one, j - 1, i) += unpaired * at(one, j, i);
      }
      if (at(pair_, i, j) == 0) continue;
      const double mine = at(pair, i, j) += at(one, j, i) * weight(stem(i, j) + kHelix);
      inner_pairs(i, j, [&](int k, int l, double w) { at(pair, k, l) += w * mine; });
      at(several, i + 1, j - 1) += mine * weight(closing(i, j)) * scale_[2];
      at(pair, i, j) *= at(pair_, i, j);
    }
  }
  probability_ = std::move(pair);
}

void Ensemble::write(float* probability, int64_t stride) const {
  for (int i = 0; i < length_; ++i)
    for (int j = 0; j < length_; ++j)
      probability[i * stride + j] = static_cast<float>(at(probability_, std::min(i, j), std::max(i, j)));
}

}  // namespace pairformer
