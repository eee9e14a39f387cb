// Energies of helices and loops at 37 degrees C, in tenths of a kcal/mol: Mathews et al., PNAS 2004.
#pragma once

#include <cstdint>

namespace pairformer {

enum PairKind { kCG, kGC, kGU, kUG, kAU, kUA, kNoPair };

// By the codes of two letters, 5' first.
constexpr int kPair[4][4] = {{kNoPair, kNoPair, kNoPair, kAU},
                             {kNoPair, kNoPair, kCG, kNoPair},
                             {kNoPair, kGC, kNoPair, kGU},
                             {kUA, kNoPair, kUG, kNoPair}};

// A pair, then the next read from the other strand. Xia et al., Biochemistry 1998.
constexpr int8_t kStack[6][6] = {{-24, -33, -21, -14, -21, -21}, {-33, -34, -25, -15, -22, -24},
                                 {-21, -25, 13, -5, -14, -13},   {-14, -15, -5, 3, -6, -10},
                                 {-21, -22, -14, -6, -11, -9},   {-21, -24, -13, -10, -9, -13}};

constexpr int kWeakEnd = 5;  // of a helix that ends with AU or GU

// Of loops by their length; longer ones by its logarithm. Internal loops of 2 and 3 letters, which have
// values of their own for all their letters there, by what those have in common.
constexpr int kHairpin[] = {0, 0, 0, 54, 56, 57, 54, 60, 55, 64};
constexpr int kBulge[] = {0, 38, 28, 32, 36, 40, 44};
constexpr int kInternal[] = {0, 0, 5, 17, 11, 20, 20};
constexpr double kLogarithm = 10.7856;
constexpr int kLeastHairpin = 3;  // letters
constexpr int kWeakInternal = 7;  // an internal loop beside AU or GU
constexpr int kAsymmetry = 6, kMostAsymmetry = 30;
constexpr int kBothG = -19;                // an internal loop of G and G
constexpr int kClosing = 93, kHelix = -9;  // a loop of three helices and more, and each of them

// By the pair and the letters after its 5' and before its 3' letter, inside.
constexpr int8_t kHairpinMismatch[6][4][4] = {
    {{-15, -15, -14, -15}, {-10, -11, -10, -8}, {-23, -15, -24, -15}, {-10, -14, -10, -21}},
    {{-11, -15, -13, -15}, {-11, -7, -11, -5}, {-25, -15, -22, -15}, {-11, -10, -11, -16}},
    {{2, -5, -3, -5}, {-1, -2, -1, -2}, {-10, -5, -11, -5}, {-1, -3, -1, -10}},
    {{-5, -3, -6, -3}, {-2, -1, -2, 0}, {-9, -3, -11, -3}, {-2, -1, -2, -9}},
    {{-3, -5, -3, -5}, {-1, -2, -1, -2}, {-12, -5, -11, -5}, {-1, -3, -1, -12}},
    {{-5, -3, -5, -3}, {-2, -1, -2, 0}, {-15, -3, -15, -3}, {-2, -1, -2, -9}}};
// By those letters alone.
constexpr int8_t kInternalMismatch[4][4] = {{0, 0, -8, 0}, {0, 0, 0, 0}, {-10, 0, -10, 0}, {0, 0, 0, -6}};
// By the pair and the letter outside, before its 5' and after its 3' letter.
constexpr int8_t kDangleBefore[6][4] = {{-5, -3, -2, -1}, {-2, -3, 0, 0},   {-3, -3, -4, -2},
                                        {-3, -1, -2, -2}, {-3, -3, -4, -2}, {-3, -1, -2, -2}};
constexpr int8_t kDangleAfter[6][4] = {{-11, -4, -13, -6}, {-17, -8, -17, -12}, {-7, -1, -7, -1},
                                       {-8, -5, -8, -6},   {-7, -1, -7, -1},    {-8, -5, -8, -6}};

}  // namespace pairformer
