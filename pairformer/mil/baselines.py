"""Other rules of selection, behind the call of STSelector: what to compare it with, in NumPy.

Every rule takes exactly min(k_max, n) instances of a bag of n, and gives them the reason 1 (coverage), but TopK 0.
None depends on the other bags of a batch; on the order of rows only where two scores or distances are equal.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairformer.config import as_int, check_within
from pairformer.mil.selectors import COVERAGE, TOP, Bags, Selector


class BagSelector(Selector):
    """A rule that looks at one bag at a time."""

    reason = COVERAGE

    def _choose(self, bags: Bags, threads: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        chosen, reasons = [np.empty(0, np.int64)], [np.empty(0, np.uint8)]
        for rows, *signals in bags:
            few = len(rows) <= self.k_max
            kept = rows if few else rows[np.sort(self._pick(*signals))]
            chosen.append(kept)
            reasons.append(np.full(len(kept), TOP if few else self.reason, np.uint8))
        ends = np.cumsum([len(part) for part in chosen])
        return np.concatenate(chosen), ends.astype(np.int64), np.concatenate(reasons)

    @abstractmethod
    def _pick(self, scores: NDArray[np.float32], embeddings: Any, positions: Any) -> NDArray[np.int64]:
        """``k_max`` distinct rows of a bag that has more."""


class TopK(BagSelector):
    """The best scores, equal ones by row."""

    reason = TOP

    def _pick(self, scores, embeddings, positions):
        return np.argsort(-scores, kind="stable")[: self.k_max]


class DrawnSelector(BagSelector):
    """A rule that draws, by hashing scores with ``rng_seed``; of equal scores in a bag the rows are hashed too."""

    def __init__(self, k_max: int = 64, rng_seed: int = 0) -> None:
        super().__init__(k_max)
        self.rng_seed = as_int("rng_seed", rng_seed)


class Random(DrawnSelector):
    """A uniform sample."""

    def _pick(self, scores, embeddings, positions):
        return np.argsort(_noise(_names(scores), self.rng_seed), kind="stable")[: self.k_max]


class UniformPosition(BagSelector):
    """Every n/K-th instance by position; in a plane by row of a ceil(sqrt(n))-cell grid, then along it."""

    needs = ("positions",)

    def _pick(self, scores, embeddings, positions):
        n = len(scores)
        if positions.shape[1] == 1:
            order = np.argsort(positions[:, 0], kind="stable")
        else:
            side = math.isqrt(n - 1) + 1
            order = np.lexsort((positions[:, 1], np.minimum(np.floor(positions[:, 0] * side), side - 1)))
        return order[(2 * np.arange(self.k_max) + 1) * n // (2 * self.k_max)]


class FarthestPoint(BagSelector):
    """The best score first, then always the instance farthest from those taken, by Euclidean distance.

    Source: Gonzalez, Clustering to minimize the maximum intercluster distance, 1985.
    """

    needs = ("embeddings",)

    def _pick(self, scores, embeddings, positions):
        points = _vectors(embeddings)
        chosen = [int(np.argmax(scores))]
        nearest = np.full(len(points), np.inf)
        while len(chosen) < self.k_max:
            nearest = np.minimum(nearest, _squared_distance(points, chosen[-1]))
            nearest[chosen[-1]] = -1  # taken: copies of it are still at 0
            chosen.append(int(np.argmax(nearest)))
        return np.array(chosen)


class KMeansPlusPlus(DrawnSelector):
    """The seeding of k-means++: each next instance with probability as its squared distance from those taken.

    Source: Arthur and Vassilvitskii, SODA 2007; drawn as the first of exponential clocks that run at these rates.
    """

    needs = ("embeddings",)

    def _pick(self, scores, embeddings, positions):
        points, names = _vectors(embeddings), _names(scores)
        chosen = [int(np.argmin(_noise(names, self.rng_seed)))]
        nearest = np.full(len(points), np.inf)
        free = np.ones(len(points), bool)
        while len(chosen) < self.k_max:
            free[chosen[-1]] = False
            nearest = np.minimum(nearest, _squared_distance(points, chosen[-1]))
            clock = -np.log1p(-_noise(names, self.rng_seed, len(chosen)))
            rate = np.where(free, np.maximum(nearest, 1e-300), 0)  # where only copies are left, any of them
            with np.errstate(divide="ignore"):
                chosen.append(int(np.argmin(clock / rate)))
        return np.array(chosen)


class MMR(BagSelector):
    """Maximal marginal relevance: ``balance`` times the score less (1 - balance) times the largest cosine to one taken.

    Scores are scaled to [0, 1] in each bag. Source: Carbonell and Goldstein, SIGIR 1998.
    """

    needs = ("embeddings",)

    def __init__(self, k_max: int = 64, balance: float = 0.5) -> None:
        super().__init__(k_max)
        self.balance = balance
        check_within(self, "balance", "[0, 1]")

    def _pick(self, scores, embeddings, positions):
        points = _unit(_vectors(embeddings))
        low, high = float(scores.min()), float(scores.max())
        relevance = (scores.astype(np.float64) - low) / (high - low or 1)
        likeness = np.full(len(points), -np.inf)
        chosen = [int(np.argmax(relevance))]
        while len(chosen) < self.k_max:
            likeness = np.maximum(likeness, points @ points[chosen[-1]])
            gain = self.balance * relevance - (1 - self.balance) * likeness
            gain[chosen] = -np.inf
            chosen.append(int(np.argmax(gain)))
        return np.array(chosen)


class FacilityLocation(BagSelector):
    """Greedy maximum of the sum over all instances of the largest cosine to one taken, counted from -1.

    Args:
        k_max: the budget.
        impl: "numpy", where equal gains go to the best score; or "submodlib" for the lazy greedy search of that
            package, which must be installed.

    Source: Nemhauser et al., 1978; submodlib's FacilityLocationFunction.
    """

    needs = ("embeddings",)

    def __init__(self, k_max: int = 64, impl: str = "numpy") -> None:
        super().__init__(k_max)
        if impl not in ("numpy", "submodlib"):
            raise ValueError(f"impl must be numpy or submodlib, got {impl!r}")
        self.impl = impl

    def _pick(self, scores, embeddings, positions):
        points = _unit(_vectors(embeddings))
        likeness = 1 + points @ points.T  # (n, n)
        if self.impl == "submodlib":
            from submodlib import FacilityLocationFunction

            function = FacilityLocationFunction(n=len(points), mode="dense", sijs=likeness, separate_rep=False)
            found = function.maximize(
                self.k_max, "LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
            )
            return np.array([row for row, _ in found])
        chosen: list[int] = []
        covered = np.zeros(len(points))
        while len(chosen) < self.k_max:
            gain = np.maximum(likeness - covered, 0).sum(1)  # likeness is symmetric
            gain[chosen] = -1
            # Two that are each other's nearest gain the same: of those the one with the best score.
            best = gain >= gain.max() - 1e-9
            chosen.append(int(np.argmax(np.where(best, scores, -np.inf))))
            covered = np.maximum(covered, likeness[chosen[-1]])
        return np.array(chosen)


def _vectors(embeddings: NDArray) -> NDArray[np.float64]:
    if embeddings.ndim != 2:
        raise ValueError("embeddings must be vectors for this rule, got keys")
    return embeddings.astype(np.float64)


def _unit(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1, or 0 where a row is all zero."""
    length = np.sqrt(np.square(points).sum(1, keepdims=True))
    return np.divide(points, length, out=np.zeros_like(points), where=length > 0)


def _squared_distance(points: NDArray[np.float64], one: int) -> NDArray[np.float64]:
    return np.square(points - points[one]).sum(1)


def _names(scores: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Numbers that tell the instances of a bag apart by their scores, and those of one score by row."""
    order = np.argsort(scores, kind="stable")
    equal = np.empty(len(scores), np.uint64)
    equal[order] = np.arange(len(scores)) - np.searchsorted(scores[order], scores[order])
    return (scores + 0.0).view(np.uint32) | equal << np.uint64(32)  # + 0.0: one bit pattern for both zeros


def _noise(names: NDArray[np.uint64], rng_seed: int, draw: int = 0) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1) that belong to the names, so that neither order nor batch matters.

    The hash is splitmix64's finaliser.
    """
    bits = names + np.uint64(((rng_seed + 1) * 0x9E3779B97F4A7C15 + draw * 0xD1B54A32D192ED03) % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits = (bits ^ (bits >> np.uint64(31))) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) / 2.0**52
