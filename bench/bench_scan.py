"""Windows and candidates a second of the scan, rows a second of the encoding, against TargetNet's own calls.

Command: pytest bench/bench_scan.py --benchmark-only

The timed calls are the public ones, from strings to arrays, so short pairs show the cost of a call.
"""

from __future__ import annotations

import functools
import random
import warnings

import numpy as np
import pytest

import pairformer
from pairformer import _core, reference, testing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pairwise2 is deprecated; it is what TargetNet calls
    pairwise2 = pytest.importorskip("Bio.pairwise2")

PAIRS = {(a, b): float(a + b in ("AU", "UA", "CG", "GC", "GU", "UG")) for a in "ACGU" for b in "ACGU"}
# One pair of that many letters, 1,000 pairs of 2,000 on average, and the longest record promised.
SHAPES = ["300", "2000", "30000", "heavy_tailed", "10Mb"]


@functools.cache
def pairs_of(shape):
    rng = random.Random(0)
    if shape == "heavy_tailed":
        return testing.heavy_tailed_pairs(rng, 1000)
    length = 10_000_000 if shape == "10Mb" else int(shape)
    return [testing.random_rna(rng, 22)], [testing.random_rna(rng, length)]


def n_windows(utrs):
    return sum(max(0, len(utr) - 39) for utr in utrs)


def columns(candidates, rows=slice(None)):
    return [getattr(candidates, name)[rows] for name in ("start", "esa_score", "position", "alignment")]


@functools.cache
def candidates_of(shape):
    """Rows at ESA >= 6, of which 50 windows agree with the twin."""
    mirnas, utrs = pairs_of(shape)
    candidates = pairformer.scan(mirnas, utrs, variant="baseline")
    rng = random.Random(1)
    for bag in rng.choices([b for b, utr in enumerate(utrs) if len(utr) >= 40], k=50):
        start = rng.randrange(len(utrs[bag]) - 39)
        first, last = candidates.offsets[bag : bag + 2]
        row = first + np.searchsorted(candidates.start[first:last], start)
        score, *aligned = reference.esa_align(mirnas[bag], utrs[bag][start : start + 40])
        assert (row < last and candidates.start[row] == start) == (score >= 6)
        if score >= 6:
            assert candidates.esa_score[row] == score
            assert candidates.position[row] == np.float32((start + 19.5) / (len(utrs[bag]) - 1))
            assert candidates.aligned(row) == tuple(aligned)
    return candidates


def checked_scan(shape, esa_min, variant="auto", threads=1):
    """A scan of these pairs whose rows are the checked ones."""

    def run():
        return pairformer.scan(mirnas, utrs, esa_min, threads=threads, variant=variant)

    mirnas, utrs = pairs_of(shape)
    every, found = candidates_of(shape), run()
    kept = every.esa_score >= esa_min
    for ours, expected in zip(columns(found), columns(every, kept), strict=True):
        np.testing.assert_array_equal(ours, expected)
    work = (n_windows(utrs), "window") if esa_min == 10 else (len(found.start), "candidate")
    return run, *work


@pytest.mark.benchmark(group="scan, scores (ESA >= 10), one thread")
@pytest.mark.parametrize("variant", _core.variants())
@pytest.mark.parametrize("shape", SHAPES)
def bench_scores(timed, shape, variant):
    timed(*checked_scan(shape, 10, variant))


@pytest.mark.benchmark(group="scan, alignments (ESA >= 6), one thread")
@pytest.mark.parametrize("variant", _core.variants())
@pytest.mark.parametrize("shape", SHAPES)
def bench_alignments(timed, shape, variant):
    timed(*checked_scan(shape, 6, variant))


@pytest.mark.benchmark(group="scan by threads")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("esa_min", [10, 6])
@pytest.mark.parametrize("shape", ["heavy_tailed", "10Mb"])
def bench_threads(timed, shape, esa_min, threads):
    timed(*checked_scan(shape, esa_min, threads=threads))


@pytest.mark.benchmark(group="encode")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [512, 65_536])
def bench_encode(timed, count, threads):
    (mirna,), (utr,) = pairs_of("10Mb")
    candidates = candidates_of("10Mb")
    rows = np.arange(count)
    one_hot = candidates.encode(rows, threads)
    for row in random.Random(2).sample(range(count), 30):
        start = candidates.start[row]
        np.testing.assert_array_equal(one_hot[row], reference.encode(mirna, utr[start : start + 40]))
    timed(lambda: candidates.encode(rows, threads), count, "row")


def targetnet(mirna, utr):
    """One-hot candidates of one pair, a window at a time."""
    tensors = [np.empty((0, 10, 50), np.uint8)]
    for start in range(len(utr) - 39):
        reverse = utr[start : start + 40][::-1]
        best = pairwise2.align.globaldx(mirna[:10], reverse[5:15], PAIRS, one_alignment_only=True)[0]
        if best.score < 6:
            continue
        tensor = np.zeros((1, 10, 50), np.uint8)
        for column, letter in enumerate((best.seqA + mirna[10:])[:45]):
            tensor[0, "ACGU-".index(letter), 5 + column] = 1
        for column, letter in enumerate((reverse[:5] + best.seqB + reverse[15:])[:50]):
            tensor[0, 5 + "ACGU-".index(letter), column] = 1
        tensors.append(tensor)
    return np.concatenate(tensors)


def native(mirna, utr):
    return pairformer.scan(mirna, utr, threads=1).encode(threads=1)


@pytest.mark.benchmark(group="strings to one-hot candidates, one pair")
@pytest.mark.parametrize("implementation", [native, targetnet], ids=["pairformer", "biopython"])
def bench_one_hot(timed, implementation):
    (mirna,), (utr,) = pairs_of("2000")
    utr = utr if implementation is native else utr[:539]
    expected = [reference.encode(mirna, utr[start : start + 40]) for start, *_ in reference.scan(mirna, utr[:539])]
    one_hot = implementation(mirna, utr)
    np.testing.assert_array_equal(one_hot[: len(expected)], expected)
    timed(lambda: implementation(mirna, utr), n_windows([utr]), "window")
