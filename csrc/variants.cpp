#include "variants.hpp"

#include <stdexcept>

namespace pairformer {

std::vector<const Kernels*> variants() {
  std::vector<const Kernels*> known;
#ifdef PAIRFORMER_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("fma"))
    known.push_back(&kernels_avx512());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) known.push_back(&kernels_avx2());
#endif
#ifdef __GNUC__
  known.push_back(&kernels_baseline());
#endif
  known.push_back(&kernels_portable());
  return known;
}

const Kernels& kernels_of(const std::string& name) {
  std::string names = "auto";
  for (const Kernels* known : variants()) {
    if (name == "auto" || name == known->name) return *known;
    names += std::string(", ") + known->name;
  }
  throw std::invalid_argument("variant must be one of " + names + " on this processor, got " + name);
}

}  // namespace pairformer
