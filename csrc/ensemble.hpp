// The structures one RNA can have, each as often as its energy allows.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace pairformer {

// Probabilities of base pairs in thermal equilibrium at 37 degrees C. McCaskill, Biopolymers 1990.
//
// Energies as Turner 2004 (Mathews et al., PNAS 2004), except that no loop has a value of its own: stacks;
// hairpins by length and first mismatch; bulges and internal loops, of 30 letters at most, by length,
// asymmetry and first mismatches; loops of three helices and more by their number; both dangling ends of
// every helix there and outside all loops.
class Ensemble {
 public:
  static constexpr int kLongest = 500;  // letters: more would not fit a double

  // Codes A0 C1 G2 U3, anything else pairs with nothing; length is at most kLongest.
  Ensemble(const uint8_t* letter, int length, const Kernels& kernels);

  // Writes (length, stride): at [i][j] the probability that i and j pair, symmetric.
  void write(float* probability, int64_t stride) const;

 private:
  using Square = std::vector<double>;  // [i][j], of the letters from i to j

  // What a loop of two helices weighs is a product: of its lengths, of its outer and of its inner pair. How a
  // pair weighs depends on the loop: a bulge, an internal loop with one letter on a side, or with more on
  // both.
  enum Rule { kBulgeEnds, kOneLetter, kMismatches, kRules };
  // Loops that lead from one outer pair to the pairs (k, l), (k, l + 1), ..., n of them, and to those of the
  // next rows, (k + 1, l), ...: each weighs factor * weight[row * step + column], but for its inner pair.
  // What is no pair has a sum of 0, so it may have a weight.
  struct Loops {
    Rule rule;
    int k, l;
    double factor;
    const double* weight;
    int step, rows, n;
  };
  static constexpr int kLargestLoop = 30;  // letters
  static constexpr int kRow = 32;          // weights of loops with 30, 29, ..., 2 letters behind l, after 0s
  static constexpr int kBeforeRow = kRow + 2;  // the first of them is so far before the outer pair's j

  int kind(int i, int j) const;
  double hairpin(int i, int j) const;
  int side(Rule rule, int i, int j) const;
  int stem(int i, int j) const;
  int closing(int i, int j) const;
  double& at(Square& x, int i, int j) const { return x[static_cast<int64_t>(i) * length_ + j]; }
  double at(const Square& x, int i, int j) const { return x[static_cast<int64_t>(i) * length_ + j]; }
  double* inner(Rule rule, int i, int j) {
    return inner_[rule].data() + static_cast<int64_t>(i) * stride_ + j + kBeforeRow;
  }
  template <class Visit>  // of Loops, all that (i, j) can close
  void inner_pairs(int i, int j, Visit visit) const;
  void set_scale(double share);
  bool inside();
  void outside();

  const Kernels& kernels_;
  const uint8_t* letter_;
  int length_;
  int64_t stride_;             // of inner_, whose rows begin before the first letter, with 0s
  std::vector<double> scale_;  // what so many letters are divided by, which keeps sums in range
  // Weights of loops by their lengths: of hairpins; of loops of two helices with so many letters before k, as
  // rows of kRow; of those with none and with one behind l, by what is before k, from 2 on.
  std::vector<double> hairpin_, rows_, columns_;
  std::vector<double> exterior_;  // sums over all structures of the first letters
  // Sums over all structures: of a pair and what it encloses; of one helix that begins with i, as [j][i]; of
  // one helix and more.
  Square pair_, one_, some_;
  std::vector<double> inner_[kRules];  // pair_ weighed as an inner pair; then the derivative by that
};

}  // namespace pairformer
