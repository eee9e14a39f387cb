"""Microseconds a bag of pairformer.mil: what its forms cost beside the core, and other rules.

Command: pytest bench/bench_mil.py --benchmark-only
"""

from __future__ import annotations

import numpy as np
import pytest

import pairformer
from pairformer import mil, testing

N_BAGS, N, K_MAX = 100, 1000, 64


@pytest.fixture(scope="module")
def bags():
    return testing.bags_of_sizes(np.random.default_rng(0), np.full(N_BAGS, N))


def _stretched(position):
    """The bags' positions as STSelector scales them."""
    bag = position.reshape(N_BAGS, N).astype(np.float64)
    low, high = bag.min(1, keepdims=True), bag.max(1, keepdims=True)
    return ((bag - low) / (high - low)).astype(np.float32).ravel()


@pytest.mark.benchmark(group="mil.STSelector n=1000 K=64, forms")
@pytest.mark.parametrize("form", ["core", "ragged", "padded", "jagged"])
def bench_forms(timed, bags, form):
    """Without centring, so that all do the same work."""
    scores, embeddings, positions, offsets = bags
    core, ours = pairformer.STSelector(K_MAX), mil.STSelector(K_MAX, center=False)
    expected = core.select(scores, embeddings, _stretched(positions), offsets, 1).rows
    if form == "core":
        scaled = _stretched(positions)
        run = lambda: core.select(scores, embeddings, scaled, offsets, 1)  # noqa: E731
    elif form == "ragged":
        run = lambda: ours.select(scores, embeddings, positions, offsets, threads=1)  # noqa: E731
    elif form == "padded":
        mask = np.ones((N_BAGS, N), bool)
        padded = [part.reshape(N_BAGS, N, *part.shape[1:]) for part in (scores, embeddings, positions)]
        run = lambda: ours.select(*padded, mask=mask, threads=1)  # noqa: E731
    else:
        torch = pytest.importorskip("torch")
        ends = torch.from_numpy(offsets)
        jagged = [
            torch.nested.nested_tensor_from_jagged(torch.from_numpy(part), ends)
            for part in (scores, embeddings, positions)
        ]
        run = lambda: ours.select(*jagged, threads=1)  # noqa: E731
    np.testing.assert_array_equal(np.asarray(run().rows), expected)
    timed(run, N_BAGS, "bag")


@pytest.mark.benchmark(group="mil rules n=1000 K=64")
@pytest.mark.parametrize(
    "rule", [mil.STSelector, mil.TopK, mil.Random, mil.UniformPosition, mil.FarthestPoint, mil.KMeansPlusPlus, mil.MMR]
)
def bench_rules(timed, bags, rule):
    count = N_BAGS if rule in (mil.STSelector, mil.TopK, mil.Random, mil.UniformPosition) else 3
    few = [part[: count * N] for part in tuple(bags)[:3]]
    selector, offsets = rule(K_MAX), bags.offsets[: count + 1]

    def run():
        return selector.select(*few, offsets, threads=1)

    kept = run()
    np.testing.assert_array_equal(np.diff(kept.offsets), K_MAX)
    assert len(np.unique(kept.rows)) == count * K_MAX
    timed(run, count, "bag", rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="mil.SetAggregator 32 bags of 64, D=128")
@pytest.mark.parametrize("attention", [False, True])
def bench_aggregator(timed, torch_threads, attention):
    torch = pytest.importorskip("torch")
    torch_threads(1)
    torch.manual_seed(0)
    module = mil.SetAggregator(128).eval()
    x, mask = torch.randn(32, 64, 128), torch.rand(32, 64) < 0.8

    @torch.no_grad()
    def run():
        return module(x, mask, return_att=attention)

    logits = run()[0] if attention else run()
    assert torch.equal(logits, module(x, mask))
    timed(run, 32, "bag")
