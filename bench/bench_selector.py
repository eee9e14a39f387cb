"""Microseconds a bag of STSelector, its variants, top-K in PyTorch and the NumPy twin, on one thread.

Command: pytest bench/bench_selector.py --benchmark-only
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pairformer import STSelector, reference, testing

N_BAGS, N, K_MAX = 200, 1380, 64
# Spread 1: every bin has candidates, so K2 = 32 places need neither weights nor keys. At 0.5 they do.
SPREADS = [1.0, 0.5]


@pytest.fixture(scope="module", params=SPREADS, ids=lambda spread: f"spread{spread}")
def bags(request):
    return testing.bags_of_sizes(np.random.default_rng(0), np.full(N_BAGS, N), spread=request.param)


def _assert_same_as_twin(selection, selector, bags):
    few = bags.offsets[:4]
    n = few[-1]
    rows, ends, reason = reference.select(
        bags.cheap_logit[:n], bags.cheap_embedding[:n], bags.position[:n], few, selector.config
    )
    np.testing.assert_array_equal(selection.rows[: len(rows)], rows)
    np.testing.assert_array_equal(selection.offsets[:4], ends)
    np.testing.assert_array_equal(selection.reason[: len(rows)], reason)


def _bench_select(timed, selector, bags, signal, threads=1):
    def run():
        return selector.select(bags.cheap_logit, signal, bags.position, bags.offsets, threads)

    _assert_same_as_twin(run(), selector, bags)
    timed(run, len(bags.offsets) - 1, "bag")


@pytest.mark.benchmark(group="select n=1380 K=64")
@pytest.mark.parametrize(("variant", "signal"), [("S0", None), ("S1", None), ("S2", "keys"), ("S2", "embeddings")])
def bench_select(timed, bags, variant, signal):
    selector = STSelector(K_MAX, variant=variant)
    signals = {None: None, "keys": selector.keys(bags.cheap_embedding), "embeddings": bags.cheap_embedding}
    _bench_select(timed, selector, bags, signals[signal])


@pytest.mark.benchmark(group="select n=1380 K=64")
def bench_torch_topk(timed, torch_threads, bags):
    torch = pytest.importorskip("torch")
    torch_threads(1)
    logit = torch.from_numpy(bags.cheap_logit)
    timed(lambda: [torch.topk(bag, K_MAX) for bag in logit.split(N)], N_BAGS, "bag")


@pytest.mark.benchmark(group="select n=1380 K=64")
def bench_twin(timed, bags):
    n_bags = 3
    few = bags.offsets[: n_bags + 1]
    config = STSelector(K_MAX).config

    def run():
        return reference.select(bags.cheap_logit, bags.cheap_embedding, bags.position, few, config)

    timed(run, n_bags, "bag")


@pytest.mark.benchmark(group="simhash keys n=1380")
def bench_keys(timed, bags):
    selector = STSelector()
    few = bags.cheap_embedding[:N]
    np.testing.assert_array_equal(selector.keys(few), reference.simhash_keys(few, selector.config.rng_seed))
    timed(lambda: selector.keys(bags.cheap_embedding, threads=1), N_BAGS, "bag")


@pytest.mark.benchmark(group="select S2 from keys, n=1380, by budget")
@pytest.mark.parametrize("k_max", [8, 16, 32, 64, 128, 256, 512])
def bench_budget(timed, bags, k_max):
    selector = STSelector(k_max)
    _bench_select(timed, selector, bags, selector.keys(bags.cheap_embedding))


@pytest.mark.benchmark(group="select S2 from keys, heavy-tailed bags, mean n=1380")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spread", SPREADS)
def bench_heavy_tailed(timed, spread, threads):
    bags = testing.heavy_tailed_bags(np.random.default_rng(1), N_BAGS, spread=spread)
    selector = STSelector(K_MAX)
    _bench_select(timed, selector, bags, selector.keys(bags.cheap_embedding), threads)


@pytest.mark.benchmark(group="select S2 from keys, unfriendly bags, n=1380")
@pytest.mark.parametrize("kind", ["shuffled", "coarse_logits", "one_outlier", "rising_logits"])
def bench_unfriendly(timed, bags, kind):
    rng = np.random.default_rng(2)
    logit, position = bags.cheap_logit.copy(), bags.position.copy()
    for first, last in pairwise(bags.offsets):
        if kind == "shuffled":
            rng.shuffle(position[first:last])
        elif kind == "rising_logits":
            logit[first:last].sort()
        elif kind == "one_outlier":
            # Not the best: that one would leave the pool in step A.
            logit[first] = -1e30
    if kind == "coarse_logits":
        logit = np.round(logit * 4) / np.float32(4)
    unfriendly = testing.CheapSignals(logit, bags.cheap_embedding, position, bags.offsets)
    selector = STSelector(K_MAX)
    _bench_select(timed, selector, unfriendly, selector.keys(bags.cheap_embedding))
