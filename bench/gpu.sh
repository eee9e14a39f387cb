#!/usr/bin/env bash
# Everything that needs a CUDA device, within 9 minutes: build, GPU tests, GPU benchmarks. No network: the machine has
# torch, triton, numpy, safetensors, click, pytest, hypothesis, pybind11, scikit-build-core and CMake.
#   [COMMIT=...] bench/gpu.sh [OUT]   writes OUT/gpu.json, OUT/gpu.md and OUT/*.log; OUT defaults to gpu-results
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:-gpu-results}"
mkdir -p "$out"
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1 CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" PIP_BREAK_SYSTEM_PACKAGES=1
TRITON_CACHE_DIR="$(mktemp -d)"
TORCHINDUCTOR_CACHE_DIR="$(mktemp -d)"
export TRITON_CACHE_DIR TORCHINDUCTOR_CACHE_DIR
python3 -m pip install --no-build-isolation --no-deps --no-index --editable . >"$out/build.log" 2>&1 ||
  { cat "$out/build.log"; exit 1; }
echo "built after $SECONDS s"
failed=0
# A file a process, since a fault of one kernel leaves the device unusable for the rest of its process, and three where
# tests are of types of numbers; side by side, beside what the benchmarks will call, since most of the time is compiling
# on one core each. What libraries warn of is no fault here.
declare -A running
for file in $(grep -l 'mark\.gpu' tests/test_*.py); do
  parts=('')
  ! grep -q 'list(PRECISE)' "$file" || parts=(float32 bfloat16 'not float32 and not bfloat16')
  for part in "${parts[@]}"; do
    timeout -s INT -k 10 170 python3 -m pytest -m gpu -k "$part" -v --tb=short -W default -p no:cacheprovider "$file" \
      >"$out/$(basename "$file" .py)-${part// /_}.log" 2>&1 &
    running["$file $part"]=$!
  done
done
timeout -k 10 180 nice -n 5 python3 bench/gpu.py --compile >"$out/compile.log" 2>&1
for file in "${!running[@]}"; do
  wait "${running[$file]}" || { echo "failed: $file"; failed=1; }
done
# What was tuned on a device that others used.
find "$TRITON_CACHE_DIR" "$TORCHINDUCTOR_CACHE_DIR" '(' -name '*.autotune.json' -o -name '*.best_config' ')' -delete
cat "$out"/test_*.log >"$out/tests.log"
rm "$out"/test_*.log
cat "$out/tests.log"
echo "tested after $SECONDS s"
python3 bench/gpu.py "$out" $((SECONDS < 500 ? 515 - SECONDS : 25)) 2>&1 | tee "$out/bench.log" || failed=1
echo "measured after $SECONDS s"
exit $failed
