// How strongly a miRNA can pair with a window, whatever the register.
#pragma once

#include "sites.hpp"

namespace pairformer {

// Energies of the best duplexes of a whole miRNA with windows of a UTR. Pairs follow each other, or a loop of
// any letters on either side lies between them: stacks as Turner 2004; a loop costs 2 kcal/mol and 0.3 for
// each letter in it, an end of a helix with AU or GU 0.5.
class Duplexes {
 public:
  explicit Duplexes(const SitePair& pair);

  // In tenths of a kcal/mol, 0 for no pair.
  int energy(int32_t window) const;

  // What a pair costs after the pair of the letters before it, less the end that those no longer are.
  static int stack(int mirna_before, int mirna, int window_before, int window);
  // What a pair costs as an end of a helix.
  static int end(int mirna, int window);
  static constexpr int kOpenLoop = 20, kLoopLetter = 3;
  // Of letters that do not pair: more than any energy, and four of them fit.
  static constexpr int kFar = 8000;

  static constexpr int kMostLanes = 40;  // miRNA letters, at most 35, in whole registers

 private:
  SitePair pair_;
  int lanes_;
  int16_t stack_[16]
                [kMostLanes];   // of a letter's pair after that of the letter before, by two window letters
  int16_t end_[4][kMostLanes];  // of a letter's pair as an end of a helix, by the window's letter
  int16_t place_[kMostLanes];   // 3 for each letter before
};

}  // namespace pairformer
