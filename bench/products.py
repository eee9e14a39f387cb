"""GFLOP/s of the network's products on one thread: own loops, Eigen, OpenBLAS (of NumPy) and MKL (of PyTorch).

Command: python bench/products.py. Needs a C++ compiler, AVX-512, and Eigen's headers (Debian: libeigen3-dev).
"""

import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-march=x86-64-v4", "-mprefer-vector-width=512", "-ffp-contract=fast",
         "-fno-math-errno", "-fno-trapping-math"]  # fmt: skip
KERNELS = ['-DPAIRFORMER_NAME="avx512"', "-DPAIRFORMER_TABLE=kernels_avx512", "-DPAIRFORMER_LANES=16"]

if __name__ == "__main__":
    openblas = next(Path(np.__file__).parent.parent.glob("numpy.libs/libscipy_openblas64_*.so"))
    mkl = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/products"
        sources = [str(HERE / "products.cpp"), str(HERE.parent / "csrc" / "kernels.cpp")]
        subprocess.run(["c++", *FLAGS, *KERNELS, *sources, "-ldl", "-o", program], check=True)
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        subprocess.run([program, openblas, mkl], check=True, env={**os.environ, **one_thread})
