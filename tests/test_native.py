"""The native engine computes what the PyTorch models compute, whatever the instruction set, threads and batch."""

import dataclasses
import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import pairformer
from pairformer import _core, testing
from pairformer.config import AggregatorConfig, CheapConfig, ExpensiveConfig, ModelConfig, SelectorConfig
from pairformer.data import PAIRS, load_pairs
from pairformer.engines import NativeEngine, TorchEngine

SMALL = ExpensiveConfig(channels=(3, 5, 5), stem_kernel=3, block_kernel=2, se_reduction=2, pooled_length=7)
CONFIGS = {
    "default": ModelConfig(),
    "paper": ModelConfig(aggregator=AggregatorConfig.paper()),
    "narrow": ModelConfig(
        dataclasses.replace(SMALL, stem_kernel=101, pooled_length=73),
        CheapConfig((3, 5), 7, 9),
        SelectorConfig(k_max=9),
        AggregatorConfig(width=6, layers=1, heads=3, hidden=5),
    ),
    "wide": ModelConfig(
        ExpensiveConfig((24, 40), stem_kernel=8, block_kernel=5, pooled_length=50),
        CheapConfig((40, 70), 40, 33),
        SelectorConfig(k_max=70),
        AggregatorConfig(width=40, layers=2, heads=2, hidden=50, pool_seeds=3),
    ),
    "induced": ModelConfig(
        SMALL, aggregator=AggregatorConfig(width=20, layers=2, heads=4, hidden=17, inducing_points=5)
    ),
    "no_layers": ModelConfig(SMALL, aggregator=AggregatorConfig(layers=0), empty_logit=-0.25),
    "additive": ModelConfig(
        SMALL,
        token=("site",),
        aggregator=AggregatorConfig(kind="none", additive=9, length_gate=0.35),
        empty_logit=0.5,
    ),
    "ensemble": ModelConfig(
        SMALL,
        token=("context", "logit", "duplex", "site"),
        keep_seed="6mer",
        empty_logit=-0.25,
        aggregator=AggregatorConfig(width=20, layers=1, hidden=17, additive=33, members=3, length_gate=0.35),
    ),
    "deep_sets": ModelConfig(SMALL, aggregator=AggregatorConfig(kind="deep_sets", width=12, hidden=21)),
    "gated": ModelConfig(SMALL, aggregator=AggregatorConfig(kind="gated_attention", width=12, hidden=21)),
    "position_first": ModelConfig(SMALL, token=("position", "logit", "embedding")),
    "sites": ModelConfig(SMALL, token=("site", "embedding", "logit"), keep_seed="offset 6mer"),
    "context": ModelConfig(SMALL, token=("context",)),
    "duplex": ModelConfig(dataclasses.replace(SMALL, se_reduction=16), token=("duplex",)),  # squeezed into 1 channel
    "no_embedding": ModelConfig(SMALL, token=("esa",), esa_min=7),
}
LENGTHS = (900, 30, 2300, 41, 40, 600, 0, 77)


def shapes(config):
    """Arrays of a model by name; those of the PyTorch model are the same (tested below)."""
    found = {}

    def linear(name, inputs, outputs, *taps, bias=True):
        found[f"{name}.weight"] = (outputs, inputs, *taps)
        if bias:
            found[f"{name}.bias"] = (outputs,)

    def norm(name, width):
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    def feed_forward(name):
        linear(f"{name}.0", a.width, a.hidden)
        linear(f"{name}.3", a.hidden, a.width)

    def mab(name):
        for part in ("query", "key", "value", "out"):
            linear(f"{name}.{part}", a.width, a.width)
        norm(f"{name}.norm1", a.width)
        norm(f"{name}.norm2", a.width)
        feed_forward(f"{name}.feed_forward")

    e, c, a = config.expensive, config.cheap, config.aggregator
    linear("expensive.stem", 10, e.channels[0], e.stem_kernel, bias=False)
    for i, (inputs, outputs) in enumerate(itertools.pairwise(e.channels)):
        linear(f"expensive.blocks.{i}.conv1", inputs, outputs, e.block_kernel, bias=False)
        linear(f"expensive.blocks.{i}.conv2", outputs, outputs, e.block_kernel, bias=False)
        if inputs != outputs:
            linear(f"expensive.blocks.{i}.skip", inputs, outputs, 1, bias=False)
    squeezed = max(1, e.channels[-1] // e.se_reduction)
    linear("expensive.squeeze", e.channels[-1], squeezed, bias=False)
    linear("expensive.excite", squeezed, e.channels[-1], bias=False)
    linear("expensive.head", e.width, 1)
    linear("cheap.conv1", 10, c.channels[0], 5)
    linear("cheap.conv2", *c.channels, 3)
    linear("cheap.embed", c.channels[1], c.width)
    linear("cheap.score1", c.channels[1] + 2, c.hidden)
    linear("cheap.score2", c.hidden, 1)
    for member in range(a.members if a.kind != "none" else 0):
        at = f"aggregators.{member}"
        linear(f"{at}.project", config.token_width, a.hidden if a.kind == "deep_sets" else a.width)
        if a.kind == "deep_sets":
            linear(f"{at}.phi.2", a.hidden, a.width)
        if a.kind == "gated_attention":
            linear(f"{at}.value", a.width, a.hidden)
            linear(f"{at}.gate", a.width, a.hidden)
            linear(f"{at}.weight", a.hidden, 1, bias=False)
        if a.kind == "set_transformer":
            for i in range(a.layers):
                for part in ("gather", "spread") if a.inducing_points else ("attend",):
                    mab(f"{at}.layers.{i}.{part}")
                if a.inducing_points:
                    found[f"{at}.layers.{i}.points"] = (a.inducing_points, a.width)
            found[f"{at}.pool.seeds"] = (a.pool_seeds, a.width)
            feed_forward(f"{at}.pool.feed_forward")
            mab(f"{at}.pool.attend")
        norm(f"{at}.head.0", a.width)
        linear(f"{at}.head.1", a.width, a.width)
        linear(f"{at}.head.4", a.width, 1)
        if a.length_gate:
            found[f"gates.{member}.bias"] = found[f"gates.{member}.slope"] = ()
    for member in range(a.members if a.additive else 0):
        at = f"additives.{member}"
        found[f"{at}.gain"] = ()
        for layer, inputs, outputs in (("site.0", 13, a.additive), ("site.3", a.additive, a.additive),
                                       ("site.5", a.additive, 1), ("bag.0", 12, a.additive),
                                       ("bag.3", a.additive, 1)):  # fmt: skip
            linear(f"{at}.{layer}", inputs, outputs)
    return found


def arrays_of(config):
    """Random weights of a size that neither fades nor grows from layer to layer; no part of a model is zero."""
    rng = np.random.default_rng(7)
    return {
        name: np.asarray(
            rng.normal(size=shape) * (0.3 if len(shape) <= 1 else np.sqrt(1.5 / np.prod(shape[1:])))
            + (len(shape) == 1 and ("norm" in name or "head.0" in name) and name.endswith("weight")),
            np.float32,
        )
        for name, shape in shapes(config).items()
    }


def native(config, variant="auto"):
    return NativeEngine(config, arrays_of(config), {}, variant)


def torch_model(config, arrays=None):
    """The same model in PyTorch."""
    torch = pytest.importorskip("torch")
    from pairformer.models import PairFormer

    model = PairFormer(config).eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in (arrays or arrays_of(config)).items()})
    return model.requires_grad_(False)


def close(found, expected, share=3e-6):
    """Equal up to a share of the largest value, or of 1 where all are smaller."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=share * max(1, np.abs(expected).max()))


@pytest.fixture
def candidates(rng):
    mirnas = [testing.random_rna(rng, length) for length in (22, 22, 35, 7, 10, 21, 22, 1)]
    return pairformer.scan(mirnas, [testing.random_rna(rng, length) for length in LENGTHS])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("variant", _core.variants())
@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_agrees_with_torch(rng, name, variant):
    config = CONFIGS[name]
    torch = pytest.importorskip("torch")
    model, engine = torch_model(config), native(config, variant)
    assert engine.model.variant == variant
    utrs = [testing.random_rna(rng, length) for length in LENGTHS]
    candidates = pairformer.scan(testing.random_rna(rng, 22), utrs, config.esa_min)
    cheap_logit, key = model.cheap_scan(candidates)
    inputs = (candidates.encode(), candidates.esa_score, candidates.position)
    cheap_embedding = model.cheap(*map(torch.from_numpy, inputs))[1].numpy()
    found = engine.model.cheap_scan(candidates)
    close(found[0], cheap_logit)
    # A key's bit is the sign of a number that may round to either side of 0.
    doubtful = (np.abs(cheap_embedding) < 1e-5).any(1)
    np.testing.assert_array_equal(found[1][~doubtful], key[~doubtful])
    assert doubtful.mean() < 0.01

    rows = np.array([5, 0, 700, 701, 5], np.int64)
    expected = [value.numpy() for value in model.encode_selected(candidates, rows)]
    for one, other in zip(engine.model.encode(candidates, rows), expected, strict=True):
        close(one, other)

    result = model(candidates)
    selection = result.selection
    site, pair, weight, repression, contribution = engine.model.aggregate(
        candidates, selection.rows, selection.offsets, explain=True
    )
    expected = TorchEngine(model).score(candidates, explain=True)
    close(site, expected.logit)
    close(pair, expected.pair_logit, 2e-5)
    close(weight, expected.weight, 4e-5)
    if config.aggregator.additive:
        close(repression, expected.repression)
        close(contribution, expected.contribution)
        assert np.ptp(repression) > 0.01
        assert repression[LENGTHS.index(30)] == 0
        assert np.ptp(contribution) > 0.01
    else:
        assert repression is contribution is expected.repression is expected.contribution is None
    assert np.ptp(pair) > 0.01
    assert pair[LENGTHS.index(30)] == config.empty_logit


def test_predictions_agree_with_torch(rng, model):
    pytest.importorskip("torch")
    pairs = testing.heavy_tailed_pairs(rng, 12, mean=500)
    both = [pairformer.predict(*pairs, model=model, engine=engine, explain=True) for engine in ("native", "torch")]
    np.testing.assert_allclose(both[0].logit, both[1].logit, rtol=0, atol=1e-4)
    for one, other in zip(*both, strict=True):
        assert one.sites.dtype == other.sites.dtype
        np.testing.assert_array_equal(one.sites[["start", "reason"]], other.sites[["start", "reason"]])
        np.testing.assert_allclose(one.sites["weight"], other.sites["weight"], rtol=0, atol=1e-4)
    assert both[0].engine == "native"
    assert pairformer.predict(*pairs, model=model, device="cpu").engine == "native"


@pytest.mark.data
def test_real_pairs_select_the_same_rows(data):
    """The same rows in 99 % of bags and more; others only where two compared numbers lie within 1e-5."""
    pytest.importorskip("torch")
    pairs = load_pairs(data / PAIRS, data)
    every = slice(0, None, 12)
    candidates = pairformer.scan(list(pairs.mirna[every]), list(pairs.utr[every]))
    one, other = (engine.score(candidates) for engine in (NativeEngine.load(), TorchEngine.load(device="cpu")))
    np.testing.assert_allclose(one.cheap_logit, other.cheap_logit, rtol=0, atol=1e-5)
    same = np.array([
        np.array_equal(one.selection.rows[slice(*ends)], other.selection.rows[slice(*ends)])
        for ends in zip(one.selection.offsets, one.selection.offsets[1:], strict=False)
    ])  # fmt: skip
    assert len(same) > 450
    assert same.mean() >= 0.99
    np.testing.assert_allclose(one.pair_logit[same], other.pair_logit[same], rtol=0, atol=1e-4)
    for bag in np.flatnonzero(~same):
        mine, theirs = (set(s.rows[slice(*s.offsets[bag : bag + 2])]) for s in (one.selection, other.selection))
        # Each row that only one has stands for one that only the other has, of the same score but for rounding.
        swapped = [sorted(one.cheap_logit[list(rows)]) for rows in (mine - theirs, theirs - mine)]
        np.testing.assert_allclose(*swapped, rtol=0, atol=1e-5)


def test_aggregators_that_do_not_count_change_nothing(candidates):
    config = CONFIGS["ensemble"]
    model, arrays = torch_model(config), arrays_of(config)
    found = []
    # a share of 1e-6 and more at 50 nt, and less
    for bias, times in ((-1.3, 1.0), (-2.0, 1.0), (-2.0, 100.0), (-1.3, 100.0)):
        for name in arrays:
            if name.startswith("gates.") and name.endswith("bias"):
                arrays[name] = np.array(bias, np.float32)
        given = {name: np.array(times * a if name.startswith("aggregators.") else a, np.float32)
                 for name, a in arrays.items()}  # fmt: skip
        model.load_state_dict({name: pytest.importorskip("torch").from_numpy(a) for name, a in given.items()})
        one, other = NativeEngine(config, given, {}), TorchEngine(model)
        found.append(one.score(candidates, explain=True))
        expected = other.score(candidates, explain=True)
        close(found[-1].pair_logit, expected.pair_logit, 2e-5)
        close(found[-1].weight, expected.weight, 4e-5)
    assert (found[0].pair_logit != found[1].pair_logit).any()
    np.testing.assert_array_equal(found[1].pair_logit, found[2].pair_logit)
    np.testing.assert_array_equal(found[1].weight, found[2].weight)


@pytest.mark.parametrize("variant", _core.variants())
@pytest.mark.parametrize("name", ["narrow", "wide", "induced", "additive", "ensemble", "deep_sets", "gated"])
def test_threads_and_batch_change_nothing(candidates, name, variant):
    engine = native(CONFIGS[name], variant)
    every = engine.score(candidates, threads=1, explain=True)
    for threads in (2, 3, 0):
        found = engine.score(candidates, threads=threads, explain=True)
        for field in ("pair_logit", "cheap_logit", "logit", "weight", "repression", "contribution"):
            np.testing.assert_array_equal(getattr(found, field), getattr(every, field))
    rows = np.arange(0, len(candidates.start), 17)
    embedding, logit = engine.model.encode(candidates, rows, threads=2)
    cheap = engine.model.cheap_scan(candidates, threads=2)
    for i in range(0, len(rows), 20):
        row = rows[i : i + 1]
        one = engine.model.encode(candidates, row)
        np.testing.assert_array_equal(one[0][0], embedding[i])
        assert one[1][0] == logit[i]
        bag = int(candidates.bag_of(row)[0])
        offsets = np.zeros(len(candidates) + 1, np.int64)
        offsets[bag + 1 :] = 1
        alone = engine.model.cheap_scan(candidates.take(row, offsets))
        for found, expected in zip(alone, cheap, strict=True):
            np.testing.assert_array_equal(found[0], expected[row[0]])
    for bag in range(len(candidates)):
        ends = slice(*candidates.offsets[bag : bag + 2])
        offsets = np.zeros(len(candidates) + 1, np.int64)
        offsets[bag + 1 :] = ends.stop - ends.start
        alone = candidates.take(np.arange(ends.start, ends.stop), offsets)
        np.testing.assert_array_equal(engine.score(alone).pair_logit[bag], every.pair_logit[bag])
        np.testing.assert_array_equal(engine.score(alone).cheap_logit, every.cheap_logit[ends])


def test_many_bags(rng):
    """More bags than have their tokens in memory at once."""
    engine = native(CONFIGS["narrow"])
    utrs = [testing.random_rna(rng, rng.randint(30, 90)) for _ in range(600)]
    every = engine.score(pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", utrs), explain=True)
    offsets = every.selection.offsets
    assert np.count_nonzero(np.diff(offsets)) > 300
    for bag in range(0, len(utrs), 7):
        alone = engine.score(pairformer.scan(["UGAGGUAGUAGGUUGUAUAGUU"], utrs[bag : bag + 1]), explain=True)
        assert alone.pair_logit[0] == every.pair_logit[bag]
        np.testing.assert_array_equal(alone.weight, every.weight[offsets[bag] : offsets[bag + 1]])


@pytest.mark.parametrize("variant", _core.variants())
@pytest.mark.parametrize("name", ["expensive.blocks.0.conv1", "expensive.squeeze", "aggregators.0.project",
                                  "aggregators.0.layers.0.attend.query", "aggregators.0.pool.feed_forward.0",
                                  "aggregators.0.head.1", "expensive.stem"])  # fmt: skip
def test_not_a_number_stays_one(candidates, name, variant):
    config = CONFIGS["narrow"]
    arrays = arrays_of(config)
    arrays[f"{name}.weight"][:] = np.nan
    scored = NativeEngine(config, arrays, {}, variant).score(candidates)
    assert np.isnan(scored.pair_logit[np.diff(candidates.offsets) > 0]).all()


@pytest.mark.parametrize("variant", _core.variants())
@pytest.mark.parametrize(("name", "layer"), [("narrow", "pool.attend.query"), ("gated", "gate")])
def test_exponents_past_what_a_float32_holds(candidates, name, layer, variant):
    config, arrays = CONFIGS[name], arrays_of(CONFIGS[name])
    for part in ("weight", "bias"):
        arrays[f"aggregators.0.{layer}.{part}"] *= np.float32(1e4)
    found = NativeEngine(config, arrays, {}, variant).score(candidates)
    close(found.pair_logit, TorchEngine(torch_model(config, arrays)).score(candidates).pair_logit, 2e-5)


def test_large_contributions_are_finite(candidates):
    arrays = arrays_of(CONFIGS["additive"])
    arrays["additives.0.site.5.bias"][:] = 200
    assert 150 < NativeEngine(CONFIGS["additive"], arrays, {}).score(candidates).contribution.max() < 250


def test_the_weight_of_an_only_site_is_the_whole_logit():
    config, utr = CONFIGS["ensemble"], "ACGU" * 20 + "CUACCUC" + "AACGU"
    scored = native(config).score(pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", utr), k_max=1, explain=True)
    assert scored.contribution.all()
    close(scored.weight, scored.pair_logit - np.float32(config.empty_logit))


def test_cheap_logit_that_is_not_a_number_is_an_error(candidates):
    arrays = arrays_of(CONFIGS["narrow"])
    arrays["cheap.conv1.weight"][:] = np.nan
    with pytest.raises(ValueError, match="cheap_logit must be finite"):
        NativeEngine(CONFIGS["narrow"], arrays, {}).score(candidates)


def test_order_of_rows_changes_only_rounding(candidates):
    engine = native(CONFIGS["default"])
    offsets = candidates.offsets
    rows = np.arange(offsets[2], offsets[3])[:50]
    chosen = np.zeros(len(candidates) + 1, np.int64)
    chosen[3:] = 50
    one = engine.model.aggregate(candidates, rows, chosen)
    other = engine.model.aggregate(candidates, np.random.default_rng(0).permutation(rows), chosen)
    assert one[1][2] == pytest.approx(other[1][2], abs=2e-6)


def test_no_candidates():
    engine = native(CONFIGS["no_layers"])
    for utrs in ([], ["ACGU"], ["", "A" * 50]):
        candidates = pairformer.scan(["UGAGGUAGUAGG"] * len(utrs), utrs, 10)
        scored = engine.score(candidates, explain=True)
        np.testing.assert_array_equal(scored.pair_logit, np.full(len(utrs), -0.25, np.float32))
        assert len(scored.cheap_logit) == len(scored.weight) == len(scored.selection.rows) == 0
        assert [array.shape for array in engine.model.encode(candidates, np.empty(0, np.int64))] == [(0, 35), (0,)]


def test_engine_by_name(model):
    pytest.importorskip("torch")
    pair = ("UGAGGUAGUAGGUUGUAUAGUU", "ACGUUGCA" * 40)
    with pytest.raises(ValueError, match="device must be auto or cpu for engine native, got cuda; pass engine='torch'"):
        pairformer.predict(*pair, model=model, engine="native", device="cuda")
    with pytest.raises(ValueError, match="device must be auto, cpu or one PyTorch finds here, got abacus"):
        pairformer.predict(*pair, model=model, device="abacus")
    assert pairformer.predict(*pair, model=model, engine="torch", device="cpu").engine == "torch"


def test_without_torch():
    """Prediction and explanation of the shipped model load neither PyTorch nor anything else heavy."""
    code = """
import sys, pairformer
p = pairformer.predict("UGAGGUAGUAGGUUGUAUAGUU", "ACGUUGCA" * 10, explain=True)
print(p.engine, len(p.sites), bool(p.sites["weight"].any()), p.draw(0).count(chr(10)))
print(*sys.modules)
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "native 41 True 2"
    assert not set(lines[1].split()) & {"torch", "triton", "sklearn", "click", "matplotlib"}


def _in_child(engine, candidates, results):
    results.put(engine.score(candidates, threads=2).pair_logit)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_has_its_own_threads(candidates):
    engine = native(CONFIGS["narrow"])
    expected = engine.score(candidates, threads=2).pair_logit
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_in_child, args=(engine, candidates, results))
    child.start()
    np.testing.assert_array_equal(results.get(timeout=60), expected)
    child.join(60)
    assert child.exitcode == 0


def test_threads_leave_exit_and_signals_alone():
    """Daemon threads inside a call when the interpreter ends aborted it; a thread of the pool took a blocked signal."""
    code = """
import os, signal, threading
import pairformer
utrs = ["ACGUUGCA" * 4000] * 20
pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", utrs, threads=2)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.kill(os.getpid(), signal.SIGUSR1)
print(signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1, flush=True)
def work():
    while True:
        pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", utrs, threads=1)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
"""
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # NumPy's threads take signals
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, env=alone
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_more_queries_than_attend_at_once(rng):
    config = dataclasses.replace(CONFIGS["narrow"], selector=SelectorConfig(k_max=600))
    candidates = pairformer.scan([testing.random_rna(rng, 22)] * 2, [testing.random_rna(rng, n) for n in (1200, 500)])
    found = native(config).score(candidates)
    assert np.diff(found.selection.offsets).max() > 512
    close(found.pair_logit, TorchEngine(torch_model(config)).score(candidates).pair_logit)


def test_callers_share_the_threads(candidates):
    engine = native(CONFIGS["narrow"])
    expected = engine.score(candidates, threads=1).pair_logit
    found = [None] * 8

    def run(i):
        for _ in range(5):
            found[i] = engine.score(candidates, threads=2).pair_logit

    callers = [threading.Thread(target=run, args=(i,)) for i in range(len(found))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for one in found:
        np.testing.assert_array_equal(one, expected)


def test_threads_follow_the_processors_allowed():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no affinity on this system")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert _core.available_threads() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert 1 <= _core.available_threads() <= len(allowed)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no list of threads on this system")
def test_as_many_threads_as_asked_for():
    code = """
import os, pairformer
before = len(os.listdir("/proc/self/task"))
for threads in (1, 2):
    pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", ["ACGUUGCA" * 4000] * 20, threads=threads)
    print(len(os.listdir("/proc/self/task")) - before + 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"1\n{min(2, _core.available_threads())}\n"


def test_threads_follow_the_control_group():
    group = Path("/sys/fs/cgroup/cpu/pairformer-test")
    try:
        group.mkdir(exist_ok=True)
    except OSError:
        pytest.skip("no control group to be made here")
    code = f"""
import os
from pathlib import Path
Path("{group}/cgroup.procs").write_text(str(os.getpid()))
from pairformer import _core
print(_core.available_threads())
"""
    try:
        (group / "cpu.cfs_quota_us").write_text((group / "cpu.cfs_period_us").read_text())
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    finally:
        group.rmdir()
    assert result.stdout == "1\n"


def test_damaged_models(tmp_path, model):
    """Wrong kinds of numbers are refused by name, and a model that was replaced is read again, whatever its date."""
    import json
    import shutil

    from safetensors.numpy import load_file, save_file

    place = tmp_path / "model"
    shutil.copytree(model, place)
    pair = ("UGAGGUAGUAGGUUGUAUAGUU", "ACGUUGCA" * 40)
    before = pairformer.predict(*pair, model=place).logit
    arrays = load_file(place / "model.safetensors")
    config = json.loads((place / "config.json").read_text())
    arrays["aggregators.0.head.4.bias"] = arrays["aggregators.0.head.4.bias"] + 1
    save_file(arrays, place / "model.safetensors")
    os.utime(place / "model.safetensors", (1, 1))
    assert pairformer.predict(*pair, model=place).logit == pytest.approx(before + 1, abs=0.01)
    save_file({name: array.astype(np.int64) for name, array in arrays.items()}, place / "model.safetensors")
    with pytest.raises(ValueError, match="must hold floating-point numbers, got int64; in "):
        pairformer.predict(*pair, model=place)
    wrong = {"empty_logit": "a", "esa_min": 6.5, "logit_scale": float("inf"), "effect_interval": [-(10**400), 1]}
    for field, value in wrong.items():
        broken = {**config, "config": {**config["config"], field: value}}
        (place / "config.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=f"{field} must be"):
            pairformer.predict(*pair, model=place)
