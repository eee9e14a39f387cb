"""Prediction: junk in lists, one answer however a pair is asked, sites."""

import copy
import dataclasses
import itertools
import os
import pickle
import random
import re
import signal
import sys
import threading

import numpy as np
import pytest

import pairformer
import pairformer.sites as sites_module
from pairformer import testing
from pairformer.engines import NativeEngine, TorchEngine, exact_float32
from pairformer.predict import in_batches
from pairformer.scan import pair_fault
from pairformer.sites import SEED_TYPES

torch = pytest.importorskip("torch")
from pairformer.models import PairFormer  # noqa: E402

LET7 = "UGAGGUAGUAGGUUGUAUAGUU"
predict_module = sys.modules["pairformer.predict"]


def junk_pairs(rng, count):
    """Pairs of every kind a table holds, most of them sound, some of them twice."""
    random = testing.random_rna
    mirnas = [lambda: LET7, lambda: random(rng, 22), lambda: random(rng, 22).lower().replace("u", "t")] * 4 + [
        lambda: random(rng, 5), lambda: random(rng, 60), lambda: random(rng, 35), lambda: "", lambda: None,
        lambda: "ACGN", lambda: "UGAGGÜ", lambda: LET7 + "\n",
    ]  # fmt: skip
    utrs = [lambda: random(rng, rng.randint(40, 300))] * 12 + [
        lambda: random(rng, 200).lower(), lambda: random(rng, 60) + "N" * 50 + random(rng, 60), lambda: "N" * 90,
        lambda: "", lambda: "ACG", lambda: random(rng, 39), lambda: random(rng, 40), lambda: "A" * 100, lambda: None,
        lambda: random(rng, 50) + "éЖ\udcff" + random(rng, 50),
    ]  # fmt: skip
    pairs = [(rng.choice(mirnas)(), rng.choice(utrs)()) for _ in range(count - 2 - count // 20)]
    pairs += [(random(rng, 22), random(rng, 40_000)), (LET7, "ACGU" * 10_000), *rng.sample(pairs, count // 20)]
    rng.shuffle(pairs)
    return pairs


def assert_same(one, other, where=""):
    """Two Predictions of one pair: everything equal, logits within 1e-6."""
    facts = [
        (p.status, p.message, p.n_candidates, p.utr_length, p.sites[["start", "seed_start", "reason"]].tolist())
        for p in (one, other)
    ]
    assert facts[0] == facts[1], where
    np.testing.assert_allclose(
        [one.logit, one.probability], [other.logit, other.probability], rtol=0, atol=1e-6, err_msg=str(where)
    )
    for name in ("logit", "cheap_logit", "position"):
        np.testing.assert_allclose(one.sites[name], other.sites[name], rtol=1e-6, atol=1e-6, err_msg=str(where))


def test_thousand_pairs_with_junk(model, rng):
    """As many results as pairs; the same with 1 and 2 threads, in another order, in small batches and alone."""
    pairs = junk_pairs(rng, 1000)
    ask = lambda pairs, threads: pairformer.predict(*zip(*pairs, strict=True), model=model, threads=threads)  # noqa: E731
    found = ask(pairs, 1)
    assert len(found) == len(found.status) == len(found.message) == len(list(found)) == 1000
    assert set(found.status) == {"ok", "no_window", "no_candidate", "invalid"}
    for (mirna, utr), p in zip(pairs, found, strict=True):
        fault = pair_fault(mirna, utr)
        assert p.message == fault
        assert (p.status == "invalid") == (fault is not None) == np.isnan(p.probability) == np.isnan(p.logit)
        assert p.utr_length == (len(utr) if isinstance(utr, str) else 0)
        if fault is None:
            assert (p.status == "no_window") == (len(utr) < 40)
            assert (p.status == "ok") == (p.n_candidates > 0)
        if p.status in ("no_window", "no_candidate"):
            assert (p.logit, p.probability) == (0, 0.5)
        assert len(p.sites) == min(p.n_candidates, 16)
    for order, threads in ((rng.sample(range(1000), 1000), 1), (range(0, 1000, 5), 2)):
        for i, p in zip(order, ask([pairs[i] for i in order], threads), strict=True):
            assert_same(found[i], p, i)
    for i in range(0, 1000, 5):
        if found[i].status != "invalid":
            assert_same(found[i], pairformer.predict(*pairs[i], model=model), i)
        elif None not in pairs[i]:
            with pytest.raises(ValueError, match=re.escape(found[i].message)):
                pairformer.predict(*pairs[i], model=model)


def test_small_batches(model, rng, monkeypatch):
    """The pair a site belongs to is right across batches."""
    pairs = list(zip(*junk_pairs(rng, 60), strict=True))
    whole = pairformer.predict(*pairs, model=model, explain=True)
    monkeypatch.setattr(predict_module, "BATCH_PAIRS", 7)
    parts = pairformer.predict(*pairs, model=model, explain=True)
    for one, other in zip(whole, parts, strict=True):
        assert_same(one, other)
    for predictions in (whole, parts):
        number, sites, aligned = predictions.site_table()
        assert len(number) == len(sites) == len(aligned)
        assert [s.tolist() for s in sites] == [s.tolist() for p in predictions for s in p.sites]
        assert number.tolist() == [i for i, p in enumerate(predictions) for _ in p.sites]
    np.testing.assert_allclose(whole.site_table()[1]["weight"], parts.site_table()[1]["weight"], atol=1e-6)


def crowded_pairs(rng):
    """Pairs of every kind, at the end some with many sites of let-7."""
    crowded = ["".join(rng.choices(["CUACCUCA", "UACCUC", "ACGU", "CUACCU", "A"], k=k)) for k in (9, 90, 400, 400)]
    mirnas, utrs = (list(part) for part in zip(*junk_pairs(rng, 200), strict=True))
    return mirnas + [LET7] * 4, utrs + crowded


@pytest.mark.parametrize("k_max", [None, 3])
@pytest.mark.parametrize("changes", [None, {}, {"length_gate": 0.0}, {"kind": "none"}, {"keep_seed": "6mer"}], ids=str)
def test_pairs_are_the_same_to_the_last_bit_before_their_sites_are_read(rng, additive_model, tmp_path, changes, k_max):
    if changes is not None:
        config = PairFormer.load(additive_model).config
        keep = {"keep_seed": changes["keep_seed"]} if "keep_seed" in changes else {}
        heads = dataclasses.replace(config.aggregator, **{} if keep else changes)
        PairFormer(dataclasses.replace(config, aggregator=heads, empty_logit=-0.7, **keep)).save(tmp_path)
    name = "default" if changes is None else tmp_path
    whole, found = (
        predict_module.Scorer(name, k_max, sites=sites).score(*crowded_pairs(random.Random(1)))
        for sites in (True, False)
    )
    columns = ("logit", "probability", "log2_fold_change", "baseline", "interval", "percentile", "n_candidates")
    for column in columns if changes is None else columns[:4]:
        assert getattr(found, column).tobytes() == getattr(whole, column).tobytes(), column
    some = rng.sample(range(len(found)), 20)
    assert [found[i].sites.tolist() for i in some] == [whole[i].sites.tolist() for i in some]
    for one, other in zip(whole.site_table(), pickle.loads(pickle.dumps(found)).site_table(), strict=True):
        assert one.tolist() == other.tolist()
    assert [found[i].draw(0) for i in some if len(found[i].sites)] == [
        copy.copy(whole[i]).draw(0) for i in some if len(found[i].sites)
    ]


@pytest.mark.parametrize("k_max", [None, 3])
def test_encoders_are_asked_about_short_utrs_and_crowded_ones_until_sites_are(rng, monkeypatch, k_max):
    score, asked = NativeEngine.score, []

    def watched(self, candidates, *settings):
        asked.append(np.flatnonzero(candidates.n_candidates))
        return score(self, candidates, *settings)

    monkeypatch.setattr(NativeEngine, "score", watched)
    mirnas, utrs = crowded_pairs(rng)
    whole, found = (predict_module.Scorer(k_max=k_max, sites=sites).score(mirnas, utrs) for sites in (True, False))
    assert len(asked[0]) > len(asked[1])
    for i in asked[0]:
        full = len({*whole[i].sites["site_id"]} - {-1}) == (k_max or 64)
        assert full or 200 < whole.utr_length[i] < 230 or (whole.utr_length[i] < 230) == (i in asked[1])
    assert {len(utrs) - 2, len(utrs) - 1} < {*asked[1]}  # crowded ones
    later = min({*asked[0]} - {*asked[1]})
    assert len(found[later].sites) == len(whole[later].sites)
    assert found[later].draw(0) == whole[later].draw(0)
    assert [len(bags) for bags in asked[2:]] == [1]  # of one pair alone
    predict_module.Scorer(k_max=k_max).score([LET7, LET7], [utrs[-1], "A"]).site_table()
    assert len(asked) == 4  # at first, and not again


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_sites_are_read_leaves_the_child_free(rng, monkeypatch):
    found = pairformer.predict(LET7, [testing.random_rna(rng, 400) for _ in range(2)])
    reading, forked, score = threading.Event(), threading.Event(), NativeEngine.score

    def slow(self, *given):
        if threading.current_thread() is not threading.main_thread():
            reading.set()
            forked.wait(60)
        return score(self, *given)

    monkeypatch.setattr(NativeEngine, "score", slow)
    thread = threading.Thread(target=lambda: found[0].sites)
    thread.start()
    reading.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(30)
        os._exit(int(len(found[0].sites) != 64 or len(found[1].sites) != 64))
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_batches_are_bounded(monkeypatch):
    """Pairs are read no further than one batch and one pair, whatever their number."""
    monkeypatch.setattr(predict_module, "BATCH_PAIRS", 4)
    utrs = ["A" * 60, "A" * 40, "A", None, "A" * 500, "", "A", "", "", ""]
    groups = list(in_batches(utrs, lambda utr: utr, 100))
    assert [len(group) for group in groups] == [2, 2, 1, 4, 1]
    assert list(itertools.chain(*groups)) == utrs
    numbers = itertools.count()
    assert len(next(in_batches(numbers, lambda n: "A" * 30, 100))) == 3
    assert next(numbers) == 4


def test_no_pair(model):
    """An empty list raised in site_table: nothing to concatenate."""
    found = pairformer.predict([], [], model=model, explain=True)
    number, sites, aligned = found.site_table()
    assert len(found) == len(number) == len(sites) == 0
    assert aligned.shape == (0, 2)
    assert "weight" in sites.dtype.names


def test_single_and_lists(model):
    utr = "A" * 30 + "CUACCUCA" + "A" * 30
    one = pairformer.predict(LET7, utr, model=model)
    assert isinstance(one, pairformer.Prediction)
    assert (one.log2_fold_change, one.interval, one.percentile, one.engine) == (None, None, None, "native")
    assert 0 < one.probability < 1
    assert one.probability == pytest.approx(1 / (1 + np.exp(-0.5 * one.logit)))  # logit_scale of the model
    assert one.draw(0).startswith("UTR   5' ")
    many = pairformer.predict(LET7, [utr, ""], model=model)
    assert_same(one, many[0])
    assert_same(many[-1], many[np.int64(1)])
    assert len(pairformer.predict(np.array([LET7, LET7], object), utr, model=model)) == 2
    with pytest.raises(IndexError, match=r"index must be in -2\.\.1, got 2"):
        many[2]
    with pytest.raises(TypeError, match=r"index must be an int, got 1\.0"):
        many[1.0]
    assert len(many[1:]) == 1
    assert_same(many[1:][0], many[1])
    for name in ("explain", "strict", "accessibility"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 'yes'"):
            pairformer.predict(LET7, utr, model=model, **{name: "yes"})


def test_prior(model):
    """Another prior adds its log odds to the scaled logit; logits and sites stay."""
    utr = "ACGUUGCA" * 20
    even, rare = (pairformer.predict(LET7, [utr, "ACGU"], model=model, prior=prior) for prior in (0.5, 0.02))
    assert rare.logit.tolist() == even.logit.tolist()
    odds = rare.probability / (1 - rare.probability) / (even.probability / (1 - even.probability))
    assert odds == pytest.approx(0.02 / 0.98, rel=1e-4)
    assert rare.probability[1] == pytest.approx(0.02)
    for prior in (0, 1, 2.0, float("nan")):
        with pytest.raises(ValueError, match=r"prior must be in \(0, 1\), got"):
            pairformer.predict(LET7, utr, model=model, prior=prior)


@pytest.mark.parametrize(
    ("mirna", "message"),
    [
        ("", "mirna must have 1 to 35 letters, got 0"),
        ("A" * 36, "mirna must have 1 to 35 letters, got 36"),
        ("ACXU", r"mirna must have letters ACGU \(or T\) only, got 'X' at position 3"),
    ],
)
def test_bad_mirna(model, mirna, message):
    with pytest.raises(ValueError, match=message):
        pairformer.predict(mirna, "A" * 50, model=model)
    with pytest.raises(ValueError, match=message):
        pairformer.predict([LET7, mirna], "A" * 50, model=model, strict=True)
    with pytest.raises(ValueError, match="mirna must be a string, got NoneType"):
        pairformer.predict([None], "A" * 50, model=model, strict=True)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"engine": "fast"}, ValueError, "engine must be auto or one of native, torch, triton, triton-bf16, got fast"),
        ({"k_max": 0}, ValueError, r"k_max must be in \[1, 2147483647\], got 0"),
        ({"k_max": 2**40}, ValueError, r"k_max must be in \[1, 2147483647\]"),
        ({"k_max": 2.0}, TypeError, r"k_max must be an int, got 2\.0"),
        ({"k_max": True}, TypeError, "k_max must be an int, got True"),
        ({"threads": -1}, ValueError, r"threads must be 0 \(all\) or more, got -1"),
        ({"threads": "2"}, TypeError, "threads must be an int, got '2'"),
        ({"prior": "0.1"}, TypeError, "prior must be a number, got '0.1'"),
        ({"device": "abacus"}, ValueError, "device must be auto, cpu or one PyTorch finds here, got abacus"),
        ({"device": "meta"}, ValueError, "device must be auto, cpu or one PyTorch finds here, got meta"),
        ({"model": None}, TypeError, "model must be a name or a directory, got None"),
        ({"model": "no/such"}, FileNotFoundError, "model must be default, paper or a directory with .*, got no/such"),
    ],
)
def test_bad_setting(model, setting, error, message):
    """A device PyTorch refuses came as its own RuntimeError; a k_max past 2^31 was found only after the scan."""
    with pytest.raises(error, match=message):
        pairformer.predict(LET7, "A" * 50, **{"model": model, **setting})


@pytest.mark.parametrize("number", [np.int64(3), np.int32(3)])
def test_numpy_settings(model, rng, number):
    """Integers of NumPy were refused as k_max and threads."""
    found = pairformer.predict(LET7, testing.random_rna(rng, 400), model=model, k_max=number, threads=number)
    assert len(found.sites) == 3


def test_more_threads_than_processors(model, rng):
    """threads=100,000 ended in a segmentation fault inside PyTorch."""
    assert pairformer.predict(LET7, testing.random_rna(rng, 300), model=model, threads=100_000).status == "ok"


def test_pytorch_works_with_the_threads_asked_for_and_keeps_its_own(model, rng, monkeypatch):
    seen, scored, before = [], TorchEngine._scored, torch.get_num_threads()
    monkeypatch.setattr(TorchEngine, "_scored", lambda *given: seen.append(torch.get_num_threads()) or scored(*given))
    try:
        torch.set_num_threads(3)
        for threads in (1, 0):
            pairformer.predict(LET7, testing.random_rna(rng, 90), model=model, engine="torch", threads=threads)
            seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 3, 3, 3]


@pytest.mark.parametrize("damage", ["{", "{}", None])
def test_damaged_model(tmp_path, model, damage):
    """Files of a model that cannot be parsed raised whatever the parser raises."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    damaged = "model.safetensors" if damage is None else "config.json"
    (tmp_path / damaged).write_text(damage or "no weights")
    with pytest.raises(ValueError, match=f"model must be as PairFormer.save wrote it, got {tmp_path}; "):
        pairformer.predict(LET7, "A" * 50, model=tmp_path)


def test_rewritten_model_is_read_again(tmp_path, model, rng, monkeypatch):
    """The same relative path in another directory named the model read before."""
    utr = testing.random_rna(rng, 200)
    first = pairformer.predict(LET7, utr, model=model).logit
    other = PairFormer.load(model)
    other.aggregators[0].head[-1].bias.data += 1
    other.save(tmp_path / model.name)
    for name in ("config.json", "model.safetensors"):
        written = (model / name).stat().st_mtime_ns
        os.utime(tmp_path / model.name / name, ns=(written, written))
    monkeypatch.chdir(model.parent)
    assert pairformer.predict(LET7, utr, model=model.name).logit == first
    monkeypatch.chdir(tmp_path)
    assert pairformer.predict(LET7, utr, model=model.name).logit == pytest.approx(first + 1, abs=0.01)


@pytest.mark.parametrize("settings", [("ieee", None), (None, "medium"), ("tf32", None)], ids=str)
def test_float32_is_float32(model, rng, settings):
    """PyTorch's settings changed the logits, or a mixture of old and new ones was an error; they stay as they are."""
    backends, (general, matmul) = torch.backends, settings
    given = [LET7] * 3, [testing.random_rna(rng, 200) for _ in range(3)]
    expected = pairformer.predict(*given, model=model, engine="torch")
    before = torch.get_float32_matmul_precision()
    try:
        if general:
            backends.fp32_precision = general
        if matmul:
            torch.set_float32_matmul_precision(matmul)
        asked = [backends.fp32_precision, backends.mkldnn.matmul.fp32_precision, backends.cudnn.conv.fp32_precision]
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            found = pairformer.predict(*given, model=model, engine="torch")
        assert PairFormer.load(model).expensive.head.weight.dtype == torch.float32
        assert [backends.fp32_precision, backends.mkldnn.matmul.fp32_precision,
                backends.cudnn.conv.fp32_precision] == asked  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
        backends.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found.logit, expected.logit)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.sites, other.sites)


def test_float32_stays_exact_until_the_last_leaves():
    place = torch.backends.mkldnn.matmul
    before = place.fp32_precision
    with exact_float32():
        with exact_float32():
            pass
        assert place.fp32_precision == "ieee"
    assert place.fp32_precision == before


def test_predictions_cross_processes(model, rng):
    """What a pool of processes returns must be picklable."""
    found = pairformer.predict([LET7, "N", LET7.lower()], [testing.random_rna(rng, 90) + "n"] * 3, model=model)
    again = pickle.loads(pickle.dumps(found))
    assert again.message == found.message
    np.testing.assert_array_equal(again.logit, found.logit)
    alone = [pickle.loads(pickle.dumps(one)) for one in found]
    for one, *others in zip(found, again, alone, strict=True):
        for other in others:
            assert repr(other) == repr(one)
            np.testing.assert_array_equal(one.sites, other.sites)
            assert [one.draw(i) for i in range(len(one.sites))] == [other.draw(i) for i in range(len(other.sites))]
    many = pairformer.predict(LET7, [testing.random_rna(rng, n) for n in (90, *[3000] * 9)], model=model)
    assert len(pickle.dumps(many[0])) < len(pickle.dumps(many)) / 10


def test_columns_of_a_table_in_and_out(model, additive_model, rng, monkeypatch):
    """pandas columns are read by place, whatever their index; pair_table has what the fields have, reads no site."""
    pandas = pytest.importorskip("pandas")
    utrs = [testing.random_rna(rng, 300), None, "ACGU", testing.random_rna(rng, 200)]
    frame = pandas.DataFrame({"mirna": [LET7, LET7, LET7, "x"], "utr": utrs}, index=[3, 1, 0, 7])
    monkeypatch.setattr(NativeEngine, "score", None)
    found = pairformer.predict(frame.mirna, frame.utr, model=additive_model)
    assert list(found.status) == ["ok", "invalid", "no_window", "invalid"]
    table = found.pair_table()
    for name in set(table.dtype.names) - {"message", "interval_low", "interval_high"}:
        np.testing.assert_array_equal(table[name], getattr(found, name), err_msg=name)
    np.testing.assert_array_equal(np.stack([table["interval_low"], table["interval_high"]], 1), found.interval)
    assert table["message"].tolist() == [message or "" for message in found.message]
    assert table["message"][1].startswith("utr must be a string, got ")
    assert pandas.DataFrame(table).shape == (4, 12)
    monkeypatch.undo()
    assert pairformer.predict(LET7, frame.utr[:0], model=additive_model).pair_table().shape == (0,)
    plain = pairformer.predict(frame.mirna.astype("category"), frame.utr.iloc[::-1], model=model).pair_table()
    assert plain.dtype.names == ("probability", "logit", "n_candidates", "utr_length", "n_dropped", "status", "message")
    assert list(plain["status"]) == ["ok", "no_window", "invalid", "invalid"]
    assert len(pairformer.fold(frame.utr[2:], model="energies")) == 2
    nothing = pandas.Series([np.nan, np.nan])
    assert list(pairformer.predict(LET7, nothing, model=model).status) == ["invalid", "invalid"]
    spelled = pandas.arrays.NumpyExtensionArray(np.array(utrs[3:]))  # made an array of the dtype U
    assert list(pairformer.predict(LET7, spelled, model=model).status) == ["ok"]
    for wrong, hint in ((frame, "DataFrame; pass one of its columns"), (frame.index, r"Index; pass list\(utr\)"),
                        (np.zeros((2, 2)).astype(str), r"ndarray; pass utr.ravel\(\)"),
                        (torch.zeros(2, requires_grad=True), r"Tensor; pass list\(utr\)")):  # fmt: skip
        with pytest.raises(TypeError, match=f"utr must be a string or a sequence of strings, got {hint}"):
            pairformer.predict(LET7, wrong, model=model)


def test_site_table_of_seed_matches(additive_model, rng, monkeypatch):
    """One row for each, of several batches; those that contribute."""
    monkeypatch.setattr(predict_module, "BATCH_PAIRS", 2)
    utrs = [testing.random_rna(rng, n) + "CUACCUCA" + "G" * 30 for n in (300, 30, 90, 400)]
    found = pairformer.predict(LET7, utrs, model=additive_model)
    (pair, every, _), (some, matches, aligned) = found.site_table(), found.site_table(matches=True)
    kept = np.flatnonzero(every["contribution"])
    np.testing.assert_array_equal(matches, every[kept])
    np.testing.assert_array_equal(some, pair[kept])
    assert len(aligned) == len(matches) >= 4
    places = [int(np.flatnonzero(found[bag].sites["start"] == start)[0])
              for bag, start in zip(some, matches["start"], strict=True)]  # fmt: skip
    assert found.drawings(matches=True) == [found[bag].draw(i) for bag, i in zip(some, places, strict=True)]
    assert found.drawings() == [one.draw(i) for one in found for i in range(len(one.sites))]
    keys = list(zip(some, matches["site_id"], strict=True))
    assert len(set(keys)) == len(keys)
    assert set(keys) == {key for key in zip(pair, every["site_id"], strict=True) if key[1] >= 0}
    with pytest.raises(TypeError, match="matches must be True or False, got 1"):
        found.site_table(matches=1)


@pytest.mark.parametrize("k_max", [1, 2, 7, 1000])
def test_weight_is_the_change_when_a_site_is_left_out(model, rng, k_max):
    utr = testing.random_rna(rng, 120)
    found = pairformer.predict(LET7, utr, model=model, k_max=k_max, explain=True)
    loaded = PairFormer.load(model)
    forward = loaded(pairformer.scan(LET7, utr), k_max)
    tokens = forward.tokens.padded[0]
    assert len(found.sites) == len(tokens) == min(k_max, found.n_candidates)
    for i, weight in enumerate(found.sites["weight"]):
        rest = tokens[[j for j in range(len(tokens)) if j != i]][None]
        without = loaded.aggregators[0](rest, rest.new_ones(rest.shape[:2], dtype=bool))
        assert weight == pytest.approx(found.logit - without.item(), abs=1e-6)


def test_accessibility_is_that_of_80_letters_around(model, rng, monkeypatch):
    monkeypatch.setattr(sites_module, "FOLDED", 2)
    seed = "CUACCUC"
    utrs = [testing.random_rna(rng, 60) + seed + testing.random_rna(rng, n) for n in (5, 20, 200)]
    utrs += [utrs[2][:50] + "n" + utrs[2][51:], "ACGU", "AAUU" * 20 + seed + "A" * 6]
    utrs += [utrs[0] + "GAGGUAG" + "A" * 58 + seed + "A" * 8]  # the first of the last 80 letters pairs with the seed
    pairs = [LET7] * len(utrs) + [testing.random_rna(rng, 22)] * len(utrs), utrs * 2
    found = pairformer.predict(*pairs, model=model, threads=1, accessibility=True)
    plain = pairformer.predict(*pairs, model=model, threads=1)
    assert "unpaired" not in (plain[0].sites.dtype.names or ())
    np.testing.assert_array_equal(found.logit, plain.logit)
    seen = 0
    for p, utr in zip(found, pairs[1], strict=True):
        for site in p.sites:
            begin, end = site["seed_start"], site["seed_end"]
            if site["seed_type"] == "none":
                assert np.isnan(site["unpaired"])
                continue
            left = max(0, min((begin + end - 80) // 2, len(utr) - 80))
            local = pairformer.fold(utr[left : left + 80], model="energies", threads=1)
            expected = local.matrix()[begin - left : end - left].sum(1)
            assert site["unpaired"] == pytest.approx(1 - expected.mean(), abs=0.01)
            seen += 1
    assert seen > 10
    assert np.nanmin(found.site_table()[1]["unpaired"]) < 0.9


@pytest.mark.parametrize("k_max", [1, 5, None])
def test_sites(model, rng, k_max):
    found = pairformer.predict(LET7, testing.random_rna(rng, 300), model=model, k_max=k_max)
    sites = found.sites
    assert len(sites) == (k_max or 16) < found.n_candidates
    assert (np.diff(sites["start"]) > 0).all()
    assert (sites["end"] == sites["start"] + 40).all()
    assert sites["reason"].tolist().count("top") >= (k_max or 16) // 2
    assert "coverage" in sites["reason"] or k_max == 1
    assert set(sites["seed_type"]) <= set(SEED_TYPES)
    assert (sites["esa_score"] >= 6).all()
    np.testing.assert_allclose(sites["position"], (sites["start"] + 19.5) / 299, rtol=1e-6)
    assert "weight" not in sites.dtype.names


def test_settings_tell_what_was_asked_for(model):
    """The header of a table says how it was made."""
    for given, expected in (({}, (16, 0.5)), ({"k_max": 5, "prior": 0.1}, (5, 0.1))):
        settings = predict_module.Scorer(model, **given).settings
        assert (settings["k_max"], settings["prior"]) == expected


def test_a_model_scans_with_its_own_esa_min(model, tmp_path, rng):
    strict, utr = PairFormer.load(model), testing.random_rna(rng, 300)
    strict.config = dataclasses.replace(strict.config, esa_min=8)
    strict.save(tmp_path)
    expected = pairformer.scan(LET7, utr, 8).n_candidates
    assert 0 < expected < pairformer.scan(LET7, utr).n_candidates
    assert pairformer.predict(LET7, utr, model=tmp_path).n_candidates == expected
    assert predict_module.Scorer(tmp_path).settings["esa_min"] == 8


def test_a_drawing_is_of_the_pair_s_own_sites(model, rng):
    found, _ = pairformer.predict(LET7, [testing.random_rna(rng, 200) for _ in range(2)], model=model)
    count = len(found.sites)
    assert found.draw(-1) == found.draw(count - 1)
    with pytest.raises(IndexError):
        found.draw(count)


def test_batches_grow_with_what_works_on_them(monkeypatch):
    """``times`` as many letters, and pairs, where several batches are worked on at once."""
    monkeypatch.setattr(predict_module, "BATCH_PAIRS", 3)
    assert [len(group) for group in in_batches(range(14), lambda _: "A" * 100, 200, times=2)] == [4, 4, 4, 2]
    assert [len(group) for group in in_batches(range(14), lambda _: "", 200, times=2)] == [6, 6, 2]
