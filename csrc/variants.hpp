// The instruction sets this extension is compiled for.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace pairformer {

// Those this processor can run, best first; plain code is always the last.
std::vector<const Kernels*> variants();

// The variant of a name, "auto" for the first. Throws std::invalid_argument for another.
const Kernels& kernels_of(const std::string& name);

}  // namespace pairformer
