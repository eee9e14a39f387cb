#!/usr/bin/env bash
# Everything that needs a CUDA device, within 9 minutes: build, GPU tests, GPU benchmarks. No network: the machine has
# torch, triton, numpy, safetensors, click, pytest, hypothesis, pybind11, scikit-build-core and CMake.
#   bench/gpu.sh [OUT]   writes OUT/gpu.json, OUT/gpu.md and OUT/*.log; OUT defaults to gpu-results
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:-gpu-results}"
mkdir -p "$out"
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1
python3 -m pip install --no-build-isolation --no-deps --no-index --editable . >"$out/build.log" 2>&1 ||
  { cat "$out/build.log"; exit 1; }
timeout -s INT -k 10 180 python3 -m pytest -m gpu -v --tb=short -p no:cacheprovider tests 2>&1 | tee "$out/tests.log"
tests=$?
timeout 300 python3 bench/gpu.py "$out" 2>&1 | tee "$out/bench.log"
measured=$?
exit $((tests + measured))
