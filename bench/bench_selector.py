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


def _bench(benchmark, run, n_bags):
    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
    if benchmark.stats:
        benchmark.extra_info["us_per_bag"] = round(benchmark.stats.stats.min / n_bags * 1e6, 2)


def _assert_same_as_twin(selection, selector, bags, n_bags=3):
    few = bags.offsets[: n_bags + 1]
    n = few[-1]
    rows, ends, reason = reference.select(
        bags.cheap_logit[:n], bags.cheap_embedding[:n], bags.position[:n], few, selector.config
    )
    np.testing.assert_array_equal(selection.rows[: len(rows)], rows)
    np.testing.assert_array_equal(selection.offsets[: n_bags + 1], ends)
    np.testing.assert_array_equal(selection.reason[: len(rows)], reason)


def _bench_select(benchmark, selector, bags, signal, threads=1):
    def run():
        return selector.select(bags.cheap_logit, signal, bags.position, bags.offsets, threads)

    _assert_same_as_twin(run(), selector, bags)
    _bench(benchmark, run, len(bags.offsets) - 1)


@pytest.mark.benchmark(group="select n=1380 K=64")
@pytest.mark.parametrize(("variant", "signal"), [("S0", None), ("S1", None), ("S2", "keys"), ("S2", "embeddings")])
def bench_select(benchmark, bags, variant, signal):
    selector = STSelector(K_MAX, variant=variant)
    signals = {None: None, "keys": selector.keys(bags.cheap_embedding), "embeddings": bags.cheap_embedding}
    _bench_select(benchmark, selector, bags, signals[signal])


@pytest.mark.benchmark(group="select n=1380 K=64")
def bench_torch_topk(benchmark, bags):
    torch = pytest.importorskip("torch")
    logit = torch.from_numpy(bags.cheap_logit)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _bench(benchmark, lambda: [torch.topk(bag, K_MAX) for bag in logit.split(N)], N_BAGS)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.benchmark(group="select n=1380 K=64")
def bench_twin(benchmark, bags):
    n_bags = 3
    few = bags.offsets[: n_bags + 1]
    config = STSelector(K_MAX).config

    def run():
        return reference.select(bags.cheap_logit, bags.cheap_embedding, bags.position, few, config)

    _bench(benchmark, run, n_bags)


@pytest.mark.benchmark(group="simhash keys n=1380")
def bench_keys(benchmark, bags):
    selector = STSelector()
    few = bags.cheap_embedding[:N]
    np.testing.assert_array_equal(selector.keys(few), reference.simhash_keys(few, selector.config.rng_seed))
    _bench(benchmark, lambda: selector.keys(bags.cheap_embedding, threads=1), N_BAGS)


@pytest.mark.benchmark(group="select S2 from keys, n=1380, by budget")
@pytest.mark.parametrize("k_max", [8, 16, 32, 64, 128, 256, 512])
def bench_budget(benchmark, bags, k_max):
    selector = STSelector(k_max)
    _bench_select(benchmark, selector, bags, selector.keys(bags.cheap_embedding))


@pytest.mark.benchmark(group="select S2 from keys, heavy-tailed bags, mean n=1380")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spread", SPREADS)
def bench_heavy_tailed(benchmark, spread, threads):
    bags = testing.heavy_tailed_bags(np.random.default_rng(1), N_BAGS, spread=spread)
    selector = STSelector(K_MAX)
    _bench_select(benchmark, selector, bags, selector.keys(bags.cheap_embedding), threads)


@pytest.mark.benchmark(group="select S2 from keys, unfriendly bags, n=1380")
@pytest.mark.parametrize("kind", ["shuffled", "coarse_logits", "one_outlier", "rising_logits"])
def bench_unfriendly(benchmark, bags, kind):
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
    _bench_select(benchmark, selector, unfriendly, selector.keys(bags.cheap_embedding))
