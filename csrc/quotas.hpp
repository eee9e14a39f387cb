// How many candidates each position bin gives. PAIR-Former App. D, step D.
#pragma once

#include <cstdint>
#include <vector>

namespace pairformer {

// Shares `places` out over the bins with survivors: one to each, or to the heaviest (then smallest) bins
// if there are fewer places; the others by largest remainder of the weights, in rounds. A place that a
// bin has no survivor for goes into the next round, over the bins that still have some. Equal remainders
// go to the larger weight, then to the smaller bin. Weights of bins with survivors are positive.
std::vector<int64_t> bin_quotas(const std::vector<double>& weight, const std::vector<int64_t>& survivors,
                                int64_t places);

}  // namespace pairformer
