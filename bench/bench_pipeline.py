"""From strings to pair logits: end to end, by the paper's stages, its two other pipelines, and peak memory.

Command: pytest bench/bench_pipeline.py --benchmark-only

64 pairs at once with about 1,380 candidates each on average, K = 64, random weights (they do not change the speed).
Stages have the names of PAIR-Former App. H; ``scan_or_cheap_forward`` encodes its windows in chunks as it goes, so
``gather_all_cpu``, the same encoding alone, is part of it and not to be added.
"""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pairformer
from pairformer import STSelector, reference, testing
from pairformer.config import AggregatorConfig, ModelConfig
from pairformer.engines import ENGINES

torch = pytest.importorskip("torch")
from pairformer.models import PairFormer  # noqa: E402
from pairformer.models.pair_former import CHEAP_CHUNK, chunks, pack_tokens  # noqa: E402

N_PAIRS, K_MAX = 64, 64
SIZES = {"default": AggregatorConfig(), "paper": AggregatorConfig.paper()}
STAGES = (
    "CTS generation / filtering",
    "gather_all_cpu",
    "scan_or_cheap_forward",
    "selection (STSelector)",
    "expensive encode on K",
    "tokenize + pack",
    "aggregation",
)


@pytest.fixture(scope="module", autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def pairs():
    return testing.heavy_tailed_pairs(random.Random(0), N_PAIRS, mean=1900)


@functools.cache
def model_of(size):
    torch.manual_seed(0)
    return PairFormer(ModelConfig(aggregator=SIZES[size])).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories of the models, which ``predict`` reads."""
    directories = {size: tmp_path_factory.mktemp(size) for size in SIZES}
    for size, directory in directories.items():
        model_of(size).save(directory, half=False)
    return directories


class Stages:
    """The path of one model, a method per stage; each call reads what the stages before it gave."""

    def __init__(self, pairs, size):
        self.pairs, self.model, self.threads = pairs, model_of(size), 1
        self.calls = dict(
            zip(
                STAGES,
                (self.scan, self.gather, self.cheap, self.select, self.expensive, self.tokenize, self.aggregate),
                strict=True,
            )
        )
        self.candidates = self.scan()
        self.cheap_logit, self.keys = self.cheap()
        self.selection = self.select()
        self.embedding, self.logit = self.expensive()
        self.tokens, self.mask = self.tokenize()
        self.pair_logit = self.aggregate().numpy()

    def scan(self):
        return pairformer.scan(*self.pairs, threads=self.threads)

    def gather(self):
        rows = np.arange(len(self.candidates.start))
        return [self.candidates.encode(rows[chunk]) for chunk in chunks(len(rows), CHEAP_CHUNK)]

    def cheap(self):
        return self.model.cheap_scan(self.candidates)

    def select(self):
        return self.model.select(self.candidates, self.cheap_logit, self.keys, K_MAX, self.threads)

    def expensive(self):
        return self.model.encode_selected(self.candidates, self.selection.rows)

    def tokenize(self):
        rows = self.selection.rows
        return pack_tokens(
            self.model.tokenize(self.candidates, rows, self.embedding, self.logit), self.selection.offsets
        )

    def aggregate(self):
        return self.model.aggregator(self.tokens, self.mask)


def twin_logit(model, mirna, utr):
    """Pair logit of one pair through the plain twins: a window at a time, no chunks, no padding."""
    rows = reference.scan(mirna, utr)
    windows = torch.from_numpy(np.stack([reference.encode(mirna, utr[start : start + 40]) for start, *_ in rows]))
    esa, position = torch.tensor([row[1] for row in rows]), torch.tensor(np.array([row[2] for row in rows]))
    cheap_logit, embedding = model.cheap(windows, esa, position)
    offsets = np.array([0, len(rows)])
    chosen, _, _ = reference.select(
        cheap_logit.numpy(), embedding.numpy(), position.numpy(), offsets, model.config.selector
    )
    h, z = model.expensive(windows[chosen])
    tokens = torch.cat([h, z[:, None], esa[chosen, None], position[chosen, None]], 1)
    return float(model.aggregator(tokens[None], torch.ones(1, len(chosen), dtype=torch.bool)))


@pytest.fixture(scope="module")
def stages_of(pairs):
    """Size -> stages whose logits equal the twin's for five pairs with more candidates than places."""

    @functools.cache
    def stages_of(size):
        stages = Stages(pairs, size)
        n = stages.candidates.n_candidates
        assert 1300 < n.mean() < 1460
        for bag in [b for b in np.argsort(n) if n[b] > K_MAX][:5]:
            twin = twin_logit(stages.model, pairs[0][bag], pairs[1][bag])
            assert stages.pair_logit[bag] == pytest.approx(twin, abs=1e-4)
        return stages

    return stages_of


@pytest.mark.benchmark(group="whole path, 64 pairs, K=64")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def bench_end_to_end(timed, stages_of, saved, pairs, size, threads, engine):
    def run():
        return pairformer.predict(*pairs, model=saved[size], engine=engine, device="cpu", threads=threads)

    np.testing.assert_allclose(run().logit, stages_of(size).pair_logit, rtol=0, atol=1e-4)
    timed(run, N_PAIRS, "pair", rounds=5)


@pytest.mark.benchmark(group="one pair, 2,000 nt")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def bench_one_pair(timed, saved, threads, engine):
    rng = random.Random(1)
    mirna, utr = testing.random_rna(rng, 22), testing.random_rna(rng, 2000)

    def run():
        return pairformer.predict(mirna, utr, model=saved["default"], engine=engine, device="cpu", threads=threads)

    assert run().logit == pytest.approx(twin_logit(model_of("default"), mirna, utr), abs=1e-4)
    timed(run, 1, "pair", rounds=10)


@pytest.mark.benchmark(group="stages, 64 pairs, K=64")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("stage", "size"), [(stage, "default") for stage in STAGES] + [("aggregation", "paper")], ids=lambda value: value
)
def bench_stage(timed, torch_threads, stages_of, stage, size, threads):
    stages = stages_of(size)
    torch_threads(threads)
    stages.threads = threads
    timed(stages.calls[stage], N_PAIRS, "pair", rounds=10)


def naive(stages):
    """Expensive encoder on every candidate, its K best, Set Transformer."""
    candidates, model = stages.scan(), stages.model
    embedding, logit = model.encode_selected(candidates, np.arange(len(candidates.start)))
    top = STSelector(K_MAX, variant="S0").select(logit.numpy(), None, candidates.position, candidates.offsets)
    tokens = model.tokenize(candidates, top.rows, embedding[top.rows], logit[top.rows])
    return model.aggregator(*pack_tokens(tokens, top.offsets)).numpy()


def naive_bag(stages, rows):
    embedding, logit = stages.model.encode_selected(stages.candidates, rows)
    top = np.sort(np.argsort(-logit.numpy(), kind="stable")[:K_MAX])
    tokens = stages.model.tokenize(stages.candidates, rows[top], embedding[top], logit[top])
    return float(stages.model.aggregator(tokens[None], torch.ones(1, len(top), dtype=torch.bool)))


def targetnet_like(stages):
    """Expensive encoder on every candidate, best logit of each bag; no bag is empty."""
    candidates = stages.scan()
    _, logit = stages.model.encode_selected(candidates, np.arange(len(candidates.start)))
    return np.maximum.reduceat(logit.numpy(), candidates.offsets[:-1])


def targetnet_like_bag(stages, rows):
    return max(stages.model.encode_selected(stages.candidates, rows)[1].tolist())


@pytest.mark.benchmark(group="whole path, 64 pairs, K=64")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("pipeline", "of_bag"),
    [(naive, naive_bag), (targetnet_like, targetnet_like_bag)],
    ids=["naive", "targetnet_like"],
)
def bench_other_pipeline(timed, torch_threads, stages_of, pipeline, of_bag, threads):
    stages = stages_of("default")
    torch_threads(threads)
    stages.threads = threads
    bags = range(0, N_PAIRS, 16)
    offsets = stages.candidates.offsets
    expected = [of_bag(stages, np.arange(*offsets[bag : bag + 2])) for bag in bags]
    np.testing.assert_allclose(pipeline(stages)[bags], expected, rtol=0, atol=1e-4)
    # The check was the warm-up.
    timed(lambda: pipeline(stages), N_PAIRS, "pair", rounds=3, warmup_rounds=0)


MEMORY = {
    "scan_10Mb": "pairformer.scan(mirna, testing.random_rna(rng, 10_000_000)).n_candidates[0]",
    "predict_10Mb": "pairformer.predict(mirna, testing.random_rna(rng, 10_000_000), model=sys.argv[1]).n_candidates",
}
PROCESS = """
import random, sys
from pathlib import Path
import pairformer
from pairformer import testing
rng = random.Random(0)
mirna = testing.random_rna(rng, 22)
print({call})
print(*(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.benchmark(group="peak memory of a new process")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak memory")
@pytest.mark.parametrize("call", MEMORY)
def bench_memory(benchmark, saved, call):
    """Below 1 GiB. VmHWM, because ru_maxrss of a child starts at its parent's peak."""
    command = [sys.executable, "-c", PROCESS.format(call=MEMORY[call]), str(saved["default"])]
    output = benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    n_candidates, kib = map(int, output.split())
    assert n_candidates > 500_000
    assert kib < 1 << 20
    benchmark.extra_info["peak_mib"] = kib >> 10
