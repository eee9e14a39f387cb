// Energies of two base pairs that follow each other, in tenths of a kcal/mol.
#pragma once

namespace pairformer {

enum PairKind { kCG, kGC, kGU, kUG, kAU, kUA, kNoPair };

// By the codes of two letters, 5' first.
constexpr int kPair[4][4] = {{kNoPair, kNoPair, kNoPair, kAU},
                             {kNoPair, kNoPair, kCG, kNoPair},
                             {kNoPair, kGC, kNoPair, kGU},
                             {kUA, kNoPair, kUG, kNoPair}};

// A pair, then the next read from the other strand. Xia et al., Biochemistry 1998; Mathews et al., PNAS 2004.
constexpr int kStack[6][6] = {{-24, -33, -21, -14, -21, -21}, {-33, -34, -25, -15, -22, -24},
                              {-21, -25, 13, -5, -14, -13},   {-14, -15, -5, 3, -6, -10},
                              {-21, -22, -14, -6, -11, -9},   {-21, -24, -13, -10, -9, -13}};

constexpr int kWeakEnd = 5;  // of a helix that ends with AU or GU

}  // namespace pairformer
