// GFLOP/s of the network's products: csrc/kernels.cpp beside Eigen, OpenBLAS and MKL. Run by products.py.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <eigen3/Eigen/Dense>
#include <functional>
#include <vector>

#include "../csrc/kernels.hpp"

using namespace pairformer;

namespace {

struct Shape {
  const char* what;
  int m, n, k, lda;  // rows of a overlap where lda < k
};

constexpr Shape kShapes[] = {{"cheap conv2, one window", 13, 32, 48, 32},
                             {"expensive block 1, one window", 50, 16, 48, 16},
                             {"expensive block 3, one window", 50, 32, 96, 32},
                             {"token projection, default", 64, 64, 387, 400},
                             {"feed-forward, default", 64, 128, 64, 64},
                             {"token projection, paper", 64, 256, 387, 400},
                             {"feed-forward, paper", 64, 512, 256, 256}};

double best_seconds(const std::function<void()>& call, double flop) {
  double best = 1e9;
  const int64_t rounds = static_cast<int64_t>(1e8 / flop) + 1;
  for (int repeat = 0; repeat < 7; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < rounds; ++i) call();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    best = std::min(best, seconds.count() / rounds);
  }
  return best;
}

using Cblas = void (*)(int, int, int, int64_t, int64_t, int64_t, float, const float*, int64_t, const float*, int64_t,
                       float, float*, int64_t);
using Blas = void (*)(const char*, const char*, const int*, const int*, const int*, const float*, const float*,
                      const int*, const float*, const int*, const float*, float*, const int*);
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void* symbol(const char* library, const char* name) {
  void* handle = dlopen(library, RTLD_NOW);
  void* found = handle ? dlsym(handle, name) : nullptr;
  if (!found) std::fprintf(stderr, "%s\n", dlerror());
  return found;
}

}  // namespace

int main(int, char** arguments) {
  const auto openblas = reinterpret_cast<Cblas>(symbol(arguments[1], "scipy_cblas_sgemm64_"));
  const auto mkl = reinterpret_cast<Blas>(symbol(arguments[2], "sgemm_"));
  if (!openblas || !mkl) return 1;
  const Kernels& kernels = kernels_avx512();
  std::printf("## products on one thread, GFLOP/s, `python bench/products.py`\n\n");
  std::printf("| product (m x n x k) | pairformer | Eigen | OpenBLAS | MKL |\n|---|---|---|---|---|\n");
  for (const auto& [what, m, n, k, lda] : kShapes) {
    std::vector<float> a(static_cast<size_t>(m) * lda + k), b(static_cast<size_t>(k) * n), bias(n, 0.0f);
    for (size_t i = 0; i < a.size(); ++i) a[i] = std::sin(static_cast<float>(i));
    for (size_t i = 0; i < b.size(); ++i) b[i] = std::cos(static_cast<float>(i));
    auto* panels = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * k * padded(n)));
    auto* c = static_cast<float*>(std::aligned_alloc(64, sizeof(float) * m * n));
    kernels.pack(b.data(), n, 1, k, n, panels);
    const float one = 1, zero = 0;
    const std::function<void()> calls[] = {
        [&] { kernels.gemm({a.data(), lda, panels, bias.data(), c, n, m, n, k}); },
        [&] {
          const Eigen::Map<const Matrix, 0, Eigen::OuterStride<>> left(a.data(), m, k, Eigen::OuterStride<>(lda));
          Eigen::Map<Matrix>(c, m, n).noalias() = left * Eigen::Map<const Matrix>(b.data(), k, n);
        },
        [&] { openblas(101, 111, 111, m, n, k, 1, a.data(), lda, b.data(), n, 0, c, n); },
        [&] { mkl("N", "N", &n, &m, &k, &one, b.data(), &n, a.data(), &lda, &zero, c, &n); }};
    const double flop = 2.0 * m * n * k;
    std::printf("| %s (%d x %d x %d) |", what, m, n, k);
    std::vector<float> first;
    for (const auto& call : calls) {
      if (lda < k && &call >= calls + 2) {  // BLAS takes no rows that overlap
        std::printf(" – |");
        continue;
      }
      std::fill_n(c, m * n, 0.0f);
      call();
      if (first.empty()) first.assign(c, c + m * n);
      float off = 0;
      for (int i = 0; i < m * n; ++i) off = std::max(off, std::abs(c[i] - first[i]));
      if (off > 1e-3f) {
        std::fprintf(stderr, "%s: off by %g\n", what, off);
        return 1;
      }
      std::printf(" %.0f |", flop / best_seconds(call, flop) / 1e9);
    }
    std::printf("\n");
    std::free(panels);
    std::free(c);
  }
}
