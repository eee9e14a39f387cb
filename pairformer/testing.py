"""Inputs that tests and benchmarks share."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


def random_rna(rng: random.Random, length: int, letters: str = "ACGU") -> str:
    """A random sequence."""
    return "".join(rng.choices(letters, k=length))


def heavy_tailed_pairs(rng: random.Random, n_pairs: int, mean: int = 2000) -> tuple[list[str], list[str]]:
    """miRNAs of 22 nt and UTRs whose lengths are the quantiles of a log-normal, sigma 1, scaled to this mean."""
    tail = [math.exp(NormalDist().inv_cdf((i + 0.5) / n_pairs)) for i in range(n_pairs)]
    rng.shuffle(tail)
    lengths = [round(mean * n_pairs * part / sum(tail)) for part in tail]
    return [random_rna(rng, 22) for _ in lengths], [random_rna(rng, length) for length in lengths]


class CheapSignals(NamedTuple):
    """What ``STSelector.select`` reads; unpack it: ``selector.select(*bags)``."""

    cheap_logit: np.ndarray
    """(N,) float32"""

    cheap_embedding: np.ndarray
    """(N, dim) float32"""

    position: np.ndarray
    """(N,) float32"""

    offsets: np.ndarray
    """(B + 1,) int64"""


def bags_of_sizes(rng: np.random.Generator, sizes: np.ndarray, dim: int = 64, spread: float = 1.0) -> CheapSignals:
    """Bags whose candidates come in runs of near-duplicates, as neighbouring windows do.

    Args:
        rng: source of randomness.
        sizes: (B,) candidates of each bag.
        dim: width of the embedding.
        spread: share of the transcript that has candidates; below 1 position bins stay empty.

    Returns:
        Signals with ascending positions in each bag.
    """
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    n = int(offsets[-1])
    position = spread * rng.random(n, dtype=np.float32)
    for first, last in pairwise(offsets):
        position[first:last].sort()
    # A run shares its embedding up to small noise, so about half of its keys agree.
    run = np.cumsum(rng.random(n) < 1 / 3)
    embedding = rng.standard_normal((int(run[-1]) + 1 if n else 1, dim), dtype=np.float32)[run]
    embedding += 0.02 * rng.standard_normal((n, dim), dtype=np.float32)
    logit = rng.normal(-4, 2, n).astype(np.float32)
    return CheapSignals(logit, embedding, position, offsets)


def heavy_tailed_bags(rng: np.random.Generator, n_bags: int, spread: float = 1.0) -> CheapSignals:
    """Bags whose sizes are log-normal, sigma 1, of mean 1,380: most are below the mean, a few many times it."""
    return bags_of_sizes(rng, rng.lognormal(np.log(1380) - 0.5, 1.0, n_bags).astype(np.int64), spread=spread)
