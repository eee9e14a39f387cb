"""From strings to pair logits: end to end, by the paper's stages, its two other pipelines, and peak memory.

Command: pytest bench/bench_pipeline.py --benchmark-only

64 pairs at once with 1,329 candidates each on average, K = 64, random weights (they do not change the speed).
Stages have the names of PAIR-Former App. H, and beside them its milliseconds for 64 pairs on an RTX 4090 (the faster
run; alignment not counted). PyTorch's ``scan_or_cheap_forward`` encodes its windows in chunks as it goes, so
``gather_all_cpu``, the same encoding alone, is part of it and not to be added; the native engine has no such step, and
makes tokens where it aggregates.
"""

from __future__ import annotations

import functools
import random
import subprocess
import sys
from pathlib import Path

import bench_scan
import numpy as np
import pytest

import pairformer
from pairformer import STSelector, reference, testing
from pairformer.config import AggregatorConfig, ModelConfig, recipe
from pairformer.engines import NativeEngine
from pairformer.predict import Scorer
from pairformer.sites import select_sites

torch = pytest.importorskip("torch")
from pairformer.models import PairFormer  # noqa: E402
from pairformer.models.pair_former import CHEAP_CHUNK, chunks  # noqa: E402

N_PAIRS, K_MAX = 64, 64
ENGINES = ("native", "torch")  # of a CPU; "triton" is measured in bench/gpu.py
MODELS = {
    "default": recipe("default")[0],
    "paper": ModelConfig(),
    "paper size": ModelConfig(aggregator=AggregatorConfig.paper()),
}
STAGES = {
    "CTS generation / filtering": None,
    "gather_all_cpu": 201.5,
    "scan_or_cheap_forward": 15.8,
    "selection (STSelector)": 6.5,
    "expensive encode on K": 2.2,
    "tokenize + pack": 0.8,
    "aggregation": 3.1,
}  # the paper's ms
NATIVE_STAGES = {
    "CTS generation / filtering": None,
    "scan_or_cheap_forward": 15.8,
    "selection (STSelector)": 6.5,
    "expensive encode on K": 2.2,
    "expensive encode on K to aggregation": 6.1,
    "expensive encode on all, to select by": None,
}


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
    return PairFormer(MODELS[size]).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories of the models, which ``predict`` reads."""
    directories = {size: tmp_path_factory.mktemp(size.replace(" ", "_")) for size in MODELS}
    for size, directory in directories.items():
        model_of(size).save(directory, half=False)
    return directories


class Stages:
    """The path of one model in PyTorch, a method per stage; each call reads what the stages before it gave."""

    def __init__(self, pairs, size):
        self.pairs, self.model, self.threads = pairs, model_of(size), 1
        calls = (self.scan, self.gather, self.cheap, self.select, self.expensive, self.tokenize, self.aggregate)
        self.calls = dict(zip(STAGES, calls, strict=True))
        self.candidates = self.scan()
        self.cheap_logit, self.keys = self.cheap()
        self.selection = self.select()
        self.embedding, self.logit = self.expensive()
        self.tokens = self.tokenize()
        self.pair_logit = self.aggregate().logit.numpy()

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
        chosen = self.selection
        return self.model.tokenize(self.candidates, chosen.rows, chosen.offsets, self.embedding, self.logit)

    def aggregate(self):
        return self.model.aggregate(self.tokens)


class NativeStages:
    """The same in the native engine, from what the PyTorch stages gave."""

    def __init__(self, stages):
        self.stages, self.threads = stages, 1
        self.engine = NativeEngine.of(stages.model)
        calls = (stages.scan, self.cheap, stages.select, self.expensive, self.aggregate, self.all_rows)
        self.calls = dict(zip(NATIVE_STAGES, calls, strict=True))
        np.testing.assert_allclose(self.cheap()[0], stages.cheap_logit, rtol=0, atol=1e-5)
        np.testing.assert_allclose(self.expensive()[1], stages.logit.numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(self.aggregate()[1], stages.pair_logit, rtol=0, atol=1e-4)

    def cheap(self):
        return self.engine.model.cheap_scan(self.stages.candidates, threads=self.threads)

    def expensive(self):
        return self.engine.model.encode(self.stages.candidates, self.stages.selection.rows, self.threads)

    def aggregate(self):
        chosen = self.stages.selection
        return self.engine.model.aggregate(self.stages.candidates, chosen.rows, chosen.offsets, threads=self.threads)

    def all_rows(self):
        rows = np.arange(len(self.stages.candidates.start))
        return self.engine.model.encode(self.stages.candidates, rows, self.threads)


def twin_logit(model, mirna, utr):
    """Pair logit of one pair through the plain twins: a window at a time, no chunks, no padding."""
    rows = reference.scan(mirna, utr)
    windows = torch.from_numpy(np.stack([reference.encode(mirna, utr[start : start + 40]) for start, *_ in rows]))
    esa, position = torch.tensor([row[1] for row in rows]), torch.tensor(np.array([row[2] for row in rows]))
    cheap_logit, embedding = model.cheap(windows, esa, position)
    config, candidates = model.config, pairformer.scan(mirna, utr)
    keys = STSelector.from_config(config.selector).keys(embedding.numpy())
    chosen = select_sites(config, candidates, cheap_logit.numpy(), keys).rows
    if config.keep_seed == "none":
        offsets = np.array([0, len(rows)])
        plain = reference.select(cheap_logit.numpy(), embedding.numpy(), position.numpy(), offsets, config.selector)
        np.testing.assert_array_equal(chosen, plain[0])
    tokens = model.tokenize(candidates, chosen, np.array([0, len(chosen)]), *model.expensive(windows[chosen]))
    return float(model.aggregate(tokens).logit)


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
@pytest.mark.parametrize("size", MODELS)
def bench_end_to_end(timed, stages_of, saved, pairs, size, threads, engine):
    scorer = Scorer(saved[size], engine=engine, device="cpu", threads=threads, sites=True)
    np.testing.assert_allclose(scorer.score(*pairs).logit, stages_of(size).pair_logit, rtol=0, atol=1e-4)
    timed(lambda: scorer.score(*pairs), N_PAIRS, "pair", rounds=5)


@pytest.mark.benchmark(group="pairs without their sites, 1,024 pairs, K=64")
@pytest.mark.parametrize("threads", [1, 2])
def bench_pairs_alone(timed, saved, threads):
    """What a table of pairs takes: encoders are asked about short UTRs and crowded ones alone."""
    pairs = testing.heavy_tailed_pairs(random.Random(0), 16 * N_PAIRS, mean=1900)
    whole, alone = (Scorer(saved["default"], threads=threads, sites=sites) for sites in (True, False))
    np.testing.assert_array_equal(alone.score(*pairs).logit, whole.score(*pairs).logit)
    timed(lambda: alone.score(*pairs), 16 * N_PAIRS, "pair", rounds=10)


@pytest.mark.benchmark(group="one pair, 2,000 nt")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def bench_one_pair(timed, saved, threads, engine):
    rng = random.Random(1)
    mirna, utr = testing.random_rna(rng, 22), testing.random_rna(rng, 2000)

    def run():
        found = pairformer.predict(mirna, utr, model=saved["default"], engine=engine, device="cpu", threads=threads)
        assert len(found.sites) == K_MAX
        return found

    assert run().logit == pytest.approx(twin_logit(model_of("default"), mirna, utr), abs=1e-4)
    timed(run, 1, "pair", rounds=10)


@pytest.mark.benchmark(group="stages in PyTorch, 64 pairs, K=64")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("stage", "size"),
    [(stage, "default") for stage in STAGES] + [("aggregation", "paper size")],
    ids=lambda value: value,
)
def bench_stage(timed, benchmark, torch_threads, stages_of, stage, size, threads):
    stages = stages_of(size)
    torch_threads(threads)
    stages.threads = threads
    timed(stages.calls[stage], N_PAIRS, "pair", rounds=10)
    benchmark.extra_info["paper_ms"] = STAGES[stage]


@pytest.mark.benchmark(group="stages in C++, 64 pairs, K=64")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("stage", "size"),
    [(stage, "default") for stage in NATIVE_STAGES] + [("expensive encode on K to aggregation", "paper size")],
    ids=lambda value: value,
)
def bench_native_stage(timed, benchmark, stages_of, stage, size, threads):
    stages = NativeStages(stages_of(size))
    stages.threads = stages.stages.threads = threads
    timed(stages.calls[stage], N_PAIRS, "pair", rounds=10)
    benchmark.extra_info["paper_ms"] = NATIVE_STAGES[stage]
    if stage == "scan_or_cheap_forward" and benchmark.stats:
        count = len(stages.stages.candidates.start)
        benchmark.extra_info["candidates_per_s"] = float(f"{count / benchmark.stats.stats.median:.4g}")


@pytest.fixture(scope="module")
def engine():
    return NativeEngine.load()


def bags_of(n, count):
    """Equal bags of exactly n candidates: the first of a UTR long enough, each bag from its own."""
    rng = random.Random(n)
    utrs = [testing.random_rna(rng, 2 * n + 100) for _ in range(count)]
    candidates = pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", utrs)
    assert candidates.n_candidates.min() >= n
    rows = (candidates.offsets[:-1, None] + np.arange(n)).ravel()
    return candidates.take(rows, np.arange(count + 1) * n)


@pytest.mark.benchmark(group="candidates to pair logit, growth in n, K=64, one thread")
@pytest.mark.parametrize("n", [64, 256, 1024, 4096, 30_000])
def bench_growth(timed, benchmark, engine, n):
    bags = max(1, 60_000 // n)
    candidates = bags_of(n, bags)
    together = engine.score(candidates, threads=1)
    alone = candidates.take(np.arange(n), np.r_[0, np.full(bags, n)])
    assert engine.score(alone, threads=1).pair_logit[0] == together.pair_logit[0]
    timed(lambda: engine.score(candidates, threads=1), bags, "pair", rounds=7, warmup_rounds=1)
    benchmark.extra_info["n"] = n


@pytest.mark.benchmark(group="candidates to pair logit, growth in K, n=1380, one thread")
@pytest.mark.parametrize("k_max", [8, 16, 32, 64, 128, 256, 512])
def bench_budget(timed, engine, k_max):
    candidates = bags_of(1380, 16)
    assert (np.diff(engine.score(candidates, k_max, 1).selection.offsets) == k_max).all()
    timed(lambda: engine.score(candidates, k_max, 1), 16, "pair", rounds=7, warmup_rounds=1)


def naive(stages):
    """Expensive encoder on every candidate, its K best, Set Transformer."""
    candidates, model = stages.scan(), stages.model
    embedding, logit = model.encode_selected(candidates, np.arange(len(candidates.start)))
    top = STSelector(K_MAX, variant="S0").select(logit.numpy(), None, candidates.position, candidates.offsets)
    tokens = model.tokenize(candidates, top.rows, top.offsets, embedding[top.rows], logit[top.rows])
    return model.aggregate(tokens).logit.numpy()


def naive_bag(stages, rows):
    embedding, logit = stages.model.encode_selected(stages.candidates, rows)
    top = np.sort(np.argsort(-logit.numpy(), kind="stable")[:K_MAX])
    offsets = (stages.candidates.offsets > rows[0]) * len(top)
    tokens = stages.model.tokenize(stages.candidates, rows[top], offsets, embedding[top], logit[top])
    return float(stages.model.aggregate(tokens).logit[stages.candidates.bag_of(rows[:1])[0]])


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


def targetnet_python(model, mirna, utr):
    """TargetNet's way in Python: Biopython aligns a window at a time, PyTorch encodes them, the best logit counts."""
    return float(model.expensive(torch.from_numpy(bench_scan.targetnet(mirna, utr)))[1].max())


@pytest.mark.benchmark(group="one pair, 2,000 nt")
def bench_targetnet_python(timed, torch_threads):
    torch_threads(1)
    rng = random.Random(1)
    pair, model = (testing.random_rna(rng, 22), testing.random_rna(rng, 2000)), model_of("default")
    expected = model.encode_selected(candidates := pairformer.scan(*pair), np.arange(len(candidates.start)))[1].max()
    assert targetnet_python(model, *pair) == pytest.approx(float(expected), abs=1e-4)
    timed(lambda: targetnet_python(model, *pair), 1, "pair", rounds=3, warmup_rounds=0)


SHARED = """
import random, sys, time
from pairformer import testing
from pairformer.predict import Scorer
pairs = testing.heavy_tailed_pairs(random.Random(0), 64, mean=1900)
scorer = Scorer(threads=2, sites=True)
call = lambda: scorer.score(*pairs)
call()
print("ready", flush=True)
sys.stdin.readline()
begin, rounds = time.perf_counter(), 0
while time.perf_counter() - begin < 3:
    call()
    rounds += 1
print(64 * rounds / (time.perf_counter() - begin))
"""


@pytest.mark.benchmark(group="processes of two threads each on the same cores")
@pytest.mark.parametrize("processes", [1, 2])
def bench_shared_cores(benchmark, processes):
    def run():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        running = [subprocess.Popen([sys.executable, "-c", SHARED], **pipes) for _ in range(processes)]
        assert all(process.stdout.readline() == "ready\n" for process in running)
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        return [float(process.communicate()[0]) for process in running]

    rates = benchmark.pedantic(run)
    assert len(rates) == processes
    benchmark.extra_info["pairs_per_s"] = sum(rates)


FIRST = 'import pairformer; print(len(pairformer.predict("UGAGGUAGUAGGUUGUAUAGUU", "ACGUUGCA" * 250).sites))'


@pytest.mark.benchmark(group="new process")
@pytest.mark.parametrize("code", ["import numpy", FIRST], ids=["import_numpy", "first_prediction"])
def bench_first_prediction(benchmark, code):
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run().stdout in ("", "64\n")
    benchmark.pedantic(run, rounds=10)
    if benchmark.stats:
        benchmark.extra_info["starts_per_s"] = 1 / benchmark.stats.stats.median


MEMORY = {
    "scan_10Mb": "pairformer.scan(mirna, testing.random_rna(rng, 10_000_000)).n_candidates[0]",
    "predict_10Mb": "pairformer.predict(mirna, testing.random_rna(rng, 10_000_000), model=sys.argv[1]).n_candidates",
    "command_3x10Mb": "command(mirna, [testing.random_rna(rng, 10_000_000)] * 3)",
    "command_50000x1kb": "command(mirna, [testing.random_rna(rng, 1000)] * 50_000)",
    "command_50000x1kb_sites": "command(mirna, [testing.random_rna(rng, 1000)] * 50_000, '--sites', os.devnull)",
}
PROCESS = """
import os, random, sys, tempfile
from pathlib import Path
import pairformer
from pairformer import testing
rng = random.Random(0)
mirna = testing.random_rna(rng, 22)

def command(mirna, utrs, *options):
    "Candidates in the table that the command writes for FASTA files."
    from pairformer import cli
    place = tempfile.TemporaryDirectory()
    folder = Path(place.name)
    (folder / "m.fa").write_text(f">m\\n{{mirna}}\\n")
    with (folder / "u.fa").open("w") as file:
        file.writelines(f">u{{i}}\\n{{utr}}\\n" for i, utr in enumerate(utrs))
    del utrs
    sys.argv = ["pairformer", "predict", str(folder / "m.fa"), str(folder / "u.fa"), "-o", str(folder / "out.tsv")]
    sys.argv += options
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code
    rows = [line.split("\\t") for line in (folder / "out.tsv").open() if not line.startswith("#")]
    place.cleanup()
    return sum(int(row[rows[0].index("n_candidates")]) for row in rows[1:])

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
