#include "quotas.hpp"

#include <algorithm>

namespace pairformer {
namespace {

struct Share {
  int64_t bin, whole;
  double remainder, weight;
};

// Largest remainder over the open bins: the shares of all `places`.
std::vector<Share> shares_of(const std::vector<double>& weight, const std::vector<int64_t>& open,
                             int64_t places) {
  double total = 0;
  for (const int64_t b : open) total += weight[b];
  std::vector<Share> shares;
  shares.reserve(open.size());
  int64_t left = places;
  for (const int64_t b : open) {
    const double exact = static_cast<double>(places) * weight[b] / total;
    const auto whole = static_cast<int64_t>(exact);
    shares.push_back({b, whole, exact - static_cast<double>(whole), weight[b]});
    left -= whole;
  }
  std::sort(shares.begin(), shares.end(), [](const Share& a, const Share& b) {
    if (a.remainder != b.remainder) return a.remainder > b.remainder;
    return a.weight != b.weight ? a.weight > b.weight : a.bin < b.bin;
  });
  for (int64_t i = 0; i < left; ++i) ++shares[i].whole;
  return shares;
}

}  // namespace

std::vector<int64_t> bin_quotas(const std::vector<double>& weight, const std::vector<int64_t>& survivors,
                                int64_t places) {
  std::vector<int64_t> quota(weight.size(), 0), open;
  for (size_t b = 0; b < survivors.size(); ++b) {
    if (survivors[b] > 0) open.push_back(static_cast<int64_t>(b));
  }
  if (places < static_cast<int64_t>(open.size())) {
    std::nth_element(open.begin(), open.begin() + places, open.end(), [&](int64_t a, int64_t b) {
      return weight[a] != weight[b] ? weight[a] > weight[b] : a < b;
    });
    open.resize(places);
  }
  for (const int64_t b : open) quota[b] = 1;
  int64_t left = places - static_cast<int64_t>(open.size());
  while (left > 0) {
    const auto is_full = [&](int64_t b) { return quota[b] == survivors[b]; };
    open.erase(std::remove_if(open.begin(), open.end(), is_full), open.end());
    if (open.empty()) break;
    for (const Share& share : shares_of(weight, open, left)) {
      const int64_t given = std::min(share.whole, survivors[share.bin] - quota[share.bin]);
      quota[share.bin] += given;
      left -= given;
    }
  }
  return quota;
}

}  // namespace pairformer
