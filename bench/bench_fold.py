"""Folding: bases a second of short RNAs, of a long one in windows, of energies alone, and of RNAfold."""

import random

import pytest

torch = pytest.importorskip("torch")
from pairformer import structures, testing  # noqa: E402
from pairformer.fold import Folder  # noqa: E402

THREADS = 2
pytestmark = pytest.mark.benchmark(group="folding, two threads, and RNAfold on one")


def sequences(count, length):
    rng = random.Random(2020)
    return [testing.random_rna(rng, length) for _ in range(count)]


@pytest.mark.parametrize("model", ["fold", "energies"])
@pytest.mark.parametrize(("count", "length"), [(64, 40), (64, 80), (1, 2000)])
def bench_fold(timed, model, count, length):
    given, folder = sequences(count, length), Folder(model, threads=THREADS)
    for fold in folder.fold(given):
        assert len(fold.structure) == length
        assert (fold.matrix()[tuple(fold.pairs.T)] > (folder.config.threshold or 0.1)).all()
    timed(lambda: folder.fold(given), count * length, "base", rounds=5)


@pytest.mark.parametrize(("count", "length"), [(64, 40), (64, 80)])
def bench_rnafold(timed, count, length):
    pytest.importorskip("RNA")
    given = sequences(count, length)
    assert structures.rnafold(given).sequence.tolist() == given
    timed(lambda: structures.rnafold(given), count * length, "base", rounds=5)
