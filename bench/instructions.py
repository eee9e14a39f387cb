"""Instructions of each step, by callgrind: figures that other load on the machine does not move.

Command: python bench/instructions.py. Needs valgrind, which has no AVX-512: the counts are of the avx2 variant.
"""

import os
import re
import subprocess
import sys

import pairformer
from pairformer import testing
from pairformer.engines import NativeEngine

LENGTH = 1960
CALLS = {
    "scan": lambda engine, pair, candidates, scored: pairformer.scan(*pair, threads=1, variant="avx2"),
    "cheap encoder": lambda engine, pair, candidates, scored: engine.model.cheap_scan(candidates, threads=1),
    "selection S2": lambda engine, pair, candidates, scored: pairformer.STSelector(64).select(*scored[:4], threads=1),
    "expensive encoder": lambda engine, pair, candidates, scored: engine.model.encode(candidates, scored[4], 1),
    "expensive encoder and aggregator": lambda engine, pair, candidates, scored: engine.model.aggregate(
        candidates, scored[4], scored[5], threads=1
    ),
}


def run(name: str, times: int) -> None:
    import random

    rng = random.Random(0)
    pair = testing.random_rna(rng, 22), testing.random_rna(rng, LENGTH)
    engine = NativeEngine.load(variant="avx2")
    candidates = pairformer.scan(*pair, threads=1)
    logit, key, _ = engine.model.cheap_scan(candidates, threads=1)
    arguments = logit, key, candidates.position, candidates.offsets
    chosen = pairformer.STSelector(64).select(*arguments, threads=1)
    for _ in range(times):
        CALLS[name](engine, pair, candidates, (*arguments, chosen.rows, chosen.offsets))
    print(len(logit), len(chosen.rows))


def counted(name: str, times: int) -> tuple[int, int, int]:
    """Instructions of a process that makes the call so often; candidates; selected ones."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, sys.executable, __file__, name, str(times)], check=True, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    candidates, selected = map(int, done.stdout.split())
    return int(re.search(r"Collected : (\d+)", done.stderr)[1]), candidates, selected


if __name__ == "__main__":
    if sys.argv[1:]:
        run(sys.argv[1], int(sys.argv[2]))
    else:
        print("## instructions by callgrind, `python bench/instructions.py`\n")
        print("| step, one pair, avx2 | instructions | of |\n|---|---|---|")
        for step in CALLS:
            once, candidates, selected = counted(step, 2)
            cost = (counted(step, 12)[0] - once) / 10
            per, unit = (selected, "selected") if step.startswith("expensive") else (candidates, "candidate")
            print(f"| {step} | {cost / per:.1f} | {unit} ({per}) |")
