// The structures one RNA can have, each as often as its energy allows.
#pragma once

#include <cstdint>
#include <vector>

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
  Ensemble(const uint8_t* letter, int length);

  // Writes (length, stride): at [i][j] the probability that i and j pair, symmetric.
  void write(float* probability, int64_t stride) const;

 private:
  using Square = std::vector<double>;  // [i][j], of the letters from i to j

  int kind(int i, int j) const;
  int hairpin(int i, int j) const;
  int loop(int i, int j, int k, int l) const;
  int stem(int i, int j) const;
  int closing(int i, int j) const;
  double& at(Square& x, int i, int j) const { return x[static_cast<int64_t>(i) * length_ + j]; }
  double at(const Square& x, int i, int j) const { return x[static_cast<int64_t>(i) * length_ + j]; }
  template <class Visit>
  void inner_pairs(int i, int j, Visit visit) const;
  bool inside();
  void outside();

  static constexpr int kLargestLoop = 30;

  const uint8_t* letter_;
  int length_;
  std::vector<double> scale_;     // what so many letters are divided by, which keeps sums in range
  std::vector<double> exterior_;  // sums over all structures of the first letters
  // Sums over all structures: of a pair and what it encloses; of one helix that begins with i, as [j][i]; of
  // one helix anywhere; of two and more; of one and more.
  Square pair_, one_, single_, several_, some_;
  Square probability_;
};

}  // namespace pairformer
