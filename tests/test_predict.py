"""Prediction: junk in lists, one answer however a pair is asked, sites, files, commands as a user types them."""

import gzip
import io
import itertools
import os
import pickle
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import pairformer
from pairformer import testing
from pairformer.cli import main
from pairformer.models import PairFormer
from pairformer.outputs import PAIR_HEADER, SITE_HEADER
from pairformer.predict import in_batches
from pairformer.scan import pair_fault
from pairformer.sites import SEED_TYPES

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
    with pytest.raises(TypeError, match="slice"):
        many[:1]


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
        ({"engine": "fast"}, ValueError, "engine must be auto or one of native, torch, triton, got fast"),
        ({"k_max": 0}, ValueError, r"k_max must be in \[1, 2147483647\], got 0"),
        ({"k_max": 2**40}, ValueError, r"k_max must be in \[1, 2147483647\]"),
        ({"k_max": 2.0}, TypeError, r"k_max must be an int, got 2\.0"),
        ({"threads": -1}, ValueError, r"threads must be 0 \(all\) or more, got -1"),
        ({"threads": "2"}, TypeError, "threads must be an int, got '2'"),
        ({"device": "abacus"}, ValueError, "device must be auto, cpu or one PyTorch finds here, got abacus"),
        ({"device": "meta"}, ValueError, "device must be auto, cpu or one PyTorch finds here, got meta"),
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
        found = pairformer.predict(*given, model=model, engine="torch")
        assert [backends.fp32_precision, backends.mkldnn.matmul.fp32_precision,
                backends.cudnn.conv.fp32_precision] == asked  # fmt: skip
    finally:
        backends.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(found.logit, expected.logit)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.sites, other.sites)


def test_predictions_cross_processes(model, rng):
    """What a pool of processes returns must be picklable."""
    found = pairformer.predict([LET7, "N", LET7.lower()], [testing.random_rna(rng, 90) + "n"] * 3, model=model)
    again = pickle.loads(pickle.dumps(found))
    assert again.message == found.message
    np.testing.assert_array_equal(again.logit, found.logit)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.sites, other.sites)
        assert [one.draw(i) for i in range(len(one.sites))] == [other.draw(i) for i in range(len(other.sites))]


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


# The command line


@pytest.fixture
def command(model, monkeypatch, capsys):
    """Run ``pairformer`` in this process: arguments and standard input -> exit code, stdout, stderr."""

    def run(name, *arguments, stdin=b""):
        chosen = ["--model", str(model)] if name == "predict" and "--model" not in arguments else []
        monkeypatch.setattr(sys, "argv", ["pairformer", name, *map(str, arguments), *chosen])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path, rng, monkeypatch):
    """A folder with mirnas.fa, utrs.fa.gz and pairs.tsv; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    utrs = [testing.random_rna(rng, 270) + "CUACCUCA" + "G" * 22, "ACGU", testing.random_rna(rng, 150).lower()]
    (tmp_path / "mirnas.fa").write_text(f">let7 human\n{LET7}\n>bad\nACGN\n")
    fasta = "".join(f">u{i}\n{utr[:90]}\r\n{utr[90:]}\r\n" for i, utr in enumerate(utrs))
    (tmp_path / "utrs.fa.gz").write_bytes(gzip.compress(fasta.encode()))
    rows = [("x", "m1", LET7, "u1", utrs[0], "y"), ("", "m2", "", "u2", utrs[0], "z"), ("x", "m3"),
            ("x", "m4", LET7, "u4", "", "\u00e9"), ("", "m5", LET7, "u5", utrs[0], "y", "past the end")]  # fmt: skip
    header = "note\tmirna_id\tmirna_seq\tutr_id\tutr_seq\tlabel"
    (tmp_path / "pairs.tsv").write_text("\n".join([header, *map("\t".join, rows)]) + "\n")
    return tmp_path


def cells(text):
    """Rows of a table without its '#' lines."""
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def test_all_against_all(command, files):
    """UTR by UTR; -o and stdout are the same; the header says what was run; any thread count."""
    code, out, err = command("predict", "mirnas.fa", "utrs.fa.gz", "--rejects", "rejects.tsv")
    assert code == 0
    first, header, *_ = out.splitlines()
    sha = PairFormer.load(first.split("model=")[1].split()[0]).metadata["model_sha256"]
    assert first.startswith(f"# pairformer {pairformer.__version__} model=")
    assert first.endswith(f" model_sha256={sha[:16]} engine=native k_max=16 esa_min=6 prior=0.5")
    assert tuple(header.split("\t")) == PAIR_HEADER
    assert " ".join(PAIR_HEADER) == "mirna_id utr_id utr_length n_candidates probability logit status"
    rows = cells(out)[1:]
    assert [row[:2] for row in rows] == [[m, u] for u in ("u0", "u1", "u2") for m in ("let7", "bad")]
    assert [row[-1] for row in rows] == ["ok", "invalid", "no_window", "invalid", "ok", "invalid"]
    assert rows[1][2:6] == ["300", "0", "NA", "NA"]
    assert rows[2][2:6] == ["4", "0", "0.5", "0"]
    assert err.startswith("6 pairs, 3 invalid, ")
    assert command("predict", "mirnas.fa", "utrs.fa.gz", "-o", "out.tsv", "--threads", 1)[:2] == (0, "")
    assert cells((files / "out.tsv").read_text()) == cells(out)
    rejects = cells((files / "rejects.tsv").read_text())
    assert rejects[0] == ["where", "mirna_id", "utr_id", "message"]
    fault = "mirna must have letters ACGU (or T) only, got 'N' at position 4"
    assert rejects[1:] == [["mirnas.fa:3", "bad", f"u{i}", fault] for i in range(3)]


def test_pair_table(command, files):
    """Rows out = pairs asked, in order, extra columns last; a ragged row is invalid and says why."""
    code, out, err = command("predict", "--pairs", "pairs.tsv", "--rejects", "rejects.tsv")
    assert code == 0
    header, *rows = cells(out)
    assert header == [*PAIR_HEADER, "note", "label"]
    assert [(row[0], row[6], *row[7:]) for row in rows] == [
        ("m1", "ok", "x", "y"), ("m2", "invalid", "", "z"), ("m3", "invalid", "x", ""), ("m4", "no_window", "x", "é"),
        ("m5", "invalid", "", "y"),
    ]  # fmt: skip
    assert cells((files / "rejects.tsv").read_text())[1:] == [
        ["pairs.tsv:3", "m2", "u2", "mirna must have 1 to 35 letters, got 0"],
        ["pairs.tsv:4", "m3", "", "row must have 6 cells, got 2"],
        ["pairs.tsv:6", "m5", "u5", "row must have 6 cells, got 7"],
    ]
    assert err.startswith("5 pairs, 3 invalid, ")
    stdin = gzip.compress((files / "pairs.tsv").read_bytes().replace(b"\n", b"\r\n"))
    assert command("predict", "--pairs", "-", stdin=stdin)[:2] == (0, out)


def test_sites_file(command, files, model):
    """Columns of the contract, 1-based and inclusive, the same sites as in Python."""
    code, out, _ = command("predict", "mirnas.fa", "utrs.fa.gz", "--explain", "--sites", "-", "-o", "pairs.out")
    assert code == 0
    assert out.splitlines()[1] == "# coordinates are 1-based and inclusive"
    columns = (
        "mirna_id utr_id start end seed_start seed_end site_id seed_type esa_score cheap_logit logit position reason "
        "mirna_aligned utr_aligned"
    )
    assert " ".join(SITE_HEADER) == columns
    header, *rows = cells(out)
    assert header == [*SITE_HEADER, "weight"]
    utrs = [line.split("\n", 1)[1].replace("\n", "") for line in _text(files / "utrs.fa.gz").split(">")[1:]]
    expected = []
    for number in (0, 2):
        p = pairformer.predict(LET7, utrs[number], model=model, explain=True)
        for i, site in enumerate(p.sites):
            seed = (
                ["NA"] * 3 if site["site_id"] < 0 else [site["seed_start"] + 1, site["seed_end"], site["site_id"] + 1]
            )
            numbers = [site["cheap_logit"], site["logit"], site["position"]]
            top, bottom = p.draw(i).split("\n")[0][9:-3], p.draw(i).split("\n")[2]
            expected.append(["let7", f"u{number}", site["start"] + 1, site["end"], *seed, site["seed_type"],
                             site["esa_score"], *numbers, site["reason"]])  # fmt: skip
            assert rows[len(expected) - 1][13] in bottom[::-1]
            assert rows[len(expected) - 1][14] in top[::-1]
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row[:9] + row[12:13] == [str(cell) for cell in wanted[:9] + wanted[12:]]
        np.testing.assert_allclose([float(cell) for cell in row[9:12]], wanted[9:12], rtol=1e-5, atol=1e-6)


def test_scan_command(command, files, monkeypatch):
    """Every candidate once, whatever the number made into text at a time."""
    code, out, err = command("scan", LET7, "utrs.fa.gz", "--esa-min", 8)
    assert code == 0
    assert err.startswith("3 pairs, 0 invalid, ")
    header, *rows = cells(out)
    assert " ".join(header) == "mirna_id utr_id start end esa_score position mirna_aligned utr_aligned"
    utr = _text(files / "utrs.fa.gz").split(">")[1].split("\n", 1)[1].replace("\n", "")
    found = pairformer.scan(LET7, utr, 8)
    starts = [(int(row[2]) - 1, int(row[3]), int(row[4])) for row in rows if row[1] == "u0"]
    wanted = zip(found.start.tolist(), (found.start + 40).tolist(), found.esa_score.tolist(), strict=True)
    assert starts == list(wanted)
    monkeypatch.setattr("pairformer.cli.ROWS", 7)
    assert command("scan", LET7, "utrs.fa.gz", "--esa-min", 8)[1] == out
    assert command("scan", "mirnas.fa", "utrs.fa.gz")[2].count("mirnas.fa:3: bad: mirna must have letters") == 1


def _text(path):
    return gzip.decompress(path.read_bytes()).decode().replace("\r\n", "\n")


def test_first_reason_is_told(command, files):
    """Without --rejects a job full of invalid pairs said only how many they were."""
    code, _, err = command("predict", "mirnas.fa", "utrs.fa.gz")
    assert code == 0
    first, summary = err.splitlines()
    assert first.startswith(
        "mirnas.fa:3: bad: mirna must have letters ACGU (or T) only, got 'N' at position 4; all reasons"
    )
    assert summary.startswith("6 pairs, 3 invalid")


def test_long_sequence_as_argument(command, rng):
    """A sequence longer than a file name may be (255) raised OSError."""
    code, out, _ = command("predict", LET7, testing.random_rna(rng, 3000))
    assert code == 0
    assert cells(out)[1][:3] == ["mirna", "utr", "3000"]
    assert command("predict", "A" * 40, "ACGU")[0] == 0


def test_nothing_asked(command, files):
    (files / "empty.fa").touch()
    code, out, err = command("predict", LET7, "empty.fa", "--sites", "sites.tsv", "--rejects", "rejects.tsv")
    assert (code, cells(out)) == (0, [list(PAIR_HEADER)])
    assert err.startswith("0 pairs, 0 invalid, ")


def test_letters_passed_over_are_told(command, files, rng, model):
    """Gaps of an alignment, or a protein, took windows away and nothing said so."""
    utr = testing.random_rna(rng, 100)
    (files / "p.fa").write_text(f">short\nMKV\n>gap\n{utr[:50]}-{utr[50:]}\n>p2\n{'MKVLATEF' * 10}\n>u\n{'C' * 50}\n")
    code, out, err = command("predict", LET7, "p.fa")
    assert code == 0
    status = [row[PAIR_HEADER.index("status")] for row in cells(out)[1:]]
    assert status == ["no_window", "ok", "no_candidate", "no_candidate"]
    told, summary = err.splitlines()
    assert told == ("p.fa:3: UTR gap: 40 windows hold letters outside ACGU and were passed over; pairs like this: 2")
    assert summary.startswith("4 pairs, 0 invalid")
    found = pairformer.predict([LET7] * 3, [f"{utr[:50]}-{utr[50:]}", utr, f"{utr[:50]} {utr[50:]}"], model=model)
    assert found.n_dropped.tolist() == [40, 0, 0]
    assert found[0].n_dropped == 40
    assert found.message[2] == "utr must hold no blanks, got ' ' at position 51; pass ''.join(utr.split())"
    (files / "blanks.tsv").write_text(f"mirna_id\tmirna_seq\tutr_id\tutr_seq\nm\t{LET7} \tu\t {utr[:50]} {utr[50:]}\n")
    assert float(cells(command("predict", "--pairs", "blanks.tsv")[1])[1][5]) == pytest.approx(found.logit[1], rel=1e-5)


def test_an_output_takes_its_place_when_it_is_whole(command, files):
    """A run that failed emptied the results of one before."""
    for suffix in ("", ".gz"):
        table, done = files / f"out.tsv{suffix}", ("predict", LET7, "utrs.fa.gz", "-o", f"out.tsv{suffix}")
        assert command(*done)[0] == 0
        old = table.read_bytes()
        assert len(cells((gzip.decompress(old) if suffix else old).decode())) == 4
        assert not (files / f"out.tsv{suffix}.part").exists()
        (files / "bad.fa").write_text(f">a\n{'ACGU' * 20}\nACGU>b\n")
        code, _, err = command("predict", LET7, "bad.fa", "-o", f"out.tsv{suffix}")
        assert code == 65
        assert "bad.fa:3: FASTA must have '>' only where a line begins, got 'ACGU>b'" in err
        assert f"what was written is in {table}.part" in err
        assert table.read_bytes() == old
        left = (files / f"out.tsv{suffix}.part").read_bytes()
        assert len(cells((gzip.decompress(left) if suffix else left).decode())) == 1
        assert command(*done, "--sites", "none/sites.tsv")[0] == 74
        assert table.read_bytes() == old
    (files / "link.tsv").symlink_to("out.tsv.gz")  # what a link leads to says how it is written
    assert command("predict", LET7, "utrs.fa.gz", "-o", "link.tsv")[0] == 0
    assert (files / "out.tsv.gz").read_bytes() == old
    assert (files / "link.tsv").is_symlink()
    (files / "cut.gz").write_bytes(gzip.compress(b">a\nACGU\n>b\nACGU\n", mtime=0)[:-4])
    assert command("predict", LET7, "cut.gz", "-o", "out.tsv")[0] == 65
    assert [row[1] for row in cells((files / "out.tsv.part").read_text())[1:]] == ["a"]  # what came before the damage
    assert command("predict", "mirnas.fa", "utrs.fa.gz", "--strict", "-o", "out.tsv")[0] == 65
    assert len(cells((files / "out.tsv.part").read_text())) == 7


def test_foreign_bytes_in_names(command, files):
    (files / "u.fa").write_bytes(b">caf\xe9\nACGU\n")
    assert command("predict", LET7, "u.fa", "-o", "out.tsv")[0] == 0
    assert b"\nmirna\tcaf\xe9\t4\t" in (files / "out.tsv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--pairs", "pairs.tsv", "--strict"], 65, "pairs.tsv:3: m2 u2: mirna must have 1 to 35 letters, got 0"),
        (["mirnas.fa", "utrs.fa.gz", "--strict"], 65, "mirnas.fa:3: bad u0: mirna must have letters"),
        (["A" * 36, "ACGU", "--strict"], 65, "argument MIRNA: mirna utr: mirna must have 1 to 35 letters, got 36"),
        ([LET7, "pairs.tsv"], 65, "pairs.tsv:1: FASTA must start with '>', got 'note"),
        (["--pairs", "mirnas.fa"], 65, "mirnas.fa:1: header must name mirna_id once, got 0 times"),
        ([LET7, "cut.gz"], 65, "cut.gz:3: gzip data must be whole, got Compressed file ended"),
        (["--pairs", "none.tsv"], 66, "none.tsv: No such file or directory"),
        ([LET7, "no-file.fa"], 66, "utr must be a sequence or a FASTA file, got 'no-file.fa'; no such file"),
        (["", "ACGU"], 66, "mirna must be a sequence or a FASTA file, got ''; no such file"),
        ([LET7, "utrs"], 66, "utr must be a sequence or a FASTA file, got 'utrs'; no such file"),
        (["mirnas.fa", "utrs.fa.gz", "--explain"], 2, "--explain adds a column to the site table; name one"),
        ([LET7, "."], 66, "utr must be a sequence or a FASTA file, got the directory ."),
        (
            [LET7, "ACGU", "--model", "none"],
            66,
            "model must be default, paper or a directory with config.json, got none",
        ),
        ([LET7], 2, "give MIRNA and UTR, or --pairs"),
        ([LET7, "ACGU", "--pairs", "pairs.tsv"], 2, "give MIRNA and UTR, or --pairs, not both"),
        (["-", "-"], 2, "only one of MIRNA and UTR can be '-'"),
        ([LET7, "ACGU", "--k-max", "0"], 2, "--k-max"),
        ([LET7, "ACGU", "--threads", "-1"], 2, "--threads"),
        ([LET7, "ACGU", "--engine", "fast"], 2, "'fast' is not one of 'auto', 'native', 'torch'"),
        ([LET7, "ACGU", "--device", "abacus"], 2, "device must be auto, cpu or one PyTorch finds here, got abacus"),
        ([LET7, "ACGU", "-o", "none/out.tsv"], 74, "output must be a writable file, got none/out.tsv; No such file"),
        ([LET7, "ACGU", "--sites", "-"], 2, "each output must have a place of its own, got '-' twice"),
        ([LET7, "ACGU", "-o", "a", "--rejects", "./a"], 2, "each output must have a place of its own, got './a' twice"),
        ([LET7, "ACGU", "-o", "."], 74, "output must be a writable file, got .; Is a directory"),
        ([LET7, "utrs.fa.gz", "-o", "utrs.fa.gz"], 2, "got 'utrs.fa.gz' twice or as an input"),
        ([LET7, "utrs.fa.gz", "-o", "hard.gz"], 2, "got 'hard.gz' twice or as an input"),
        ([LET7, "ACGU", "-o", "/dev/null", "--sites", "/dev/null"], 0, "1 pairs, 0 invalid"),
    ],
)
def test_exit_codes(command, files, arguments, code, message):
    """Among them: a cut gzip file was "interrupted" (130), an output over an input emptied it."""
    (files / "cut.gz").write_bytes(gzip.compress(b">a\nACGU\n")[:-4])
    (files / "hard.gz").hardlink_to(files / "utrs.fa.gz")
    before = (files / "utrs.fa.gz").read_bytes()
    found, _, err = command("predict", *arguments)
    assert found == code, err
    assert message in err
    assert "Traceback" not in err
    assert (files / "utrs.fa.gz").read_bytes() == before


def test_help(command):
    for name in ("predict", "scan", "train"):
        code, out, err = command(name, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"Usage: pairformer {name}")
    assert command("--version")[1] == f"pairformer, version {pairformer.__version__}\n"


# As a user types it

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"} | {"OMP_NUM_THREADS": "1"}


def typed(*arguments, stdout=subprocess.PIPE, stdin=b""):
    command = [sys.executable, "-m", "pairformer", *map(str, arguments)]
    done = subprocess.run(
        command, input=stdin, stdout=stdout, stderr=subprocess.PIPE, env=ENVIRONMENT, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_standard_input_is_not_overwritten(tmp_path):
    (tmp_path / "u.fa").write_text(">u\nACGU\n")
    with (tmp_path / "u.fa").open() as stdin:
        command = [sys.executable, "-m", "pairformer", "scan", LET7, "-", "-o", str(tmp_path / "u.fa")]
        assert subprocess.run(command, stdin=stdin, env=ENVIRONMENT, timeout=60, check=False).returncode == 2
    assert (tmp_path / "u.fa").read_text() == ">u\nACGU\n"


def test_typed(model):
    stdin = gzip.compress(b">u\nACGU\n>v\n" + b"A" * 50)
    code, out, err = typed("predict", LET7, "-", "--model", model, stdin=stdin)
    assert code == 0
    rows = cells(out.decode())[1:]
    assert rows == [
        ["mirna", "u", "4", "0", "0.5", "0", "no_window"],
        ["mirna", "v", "50", "0", "0.5", "0", "no_candidate"],
    ]
    assert err.startswith("2 pairs, 0 invalid")


@pytest.mark.parametrize("records", [1, 20_000])
def test_closed_pipe_is_silent(tmp_path, records):
    """Output small enough to wait for the last flush ended in a message of the interpreter."""
    (tmp_path / "u.fa").write_text("".join(f">u{i}\n{'CUACCUCA' * 5}\n" for i in range(records)))
    reader, writer = os.pipe()
    os.close(reader)
    code, _, err = typed("scan", LET7, tmp_path / "u.fa", "--esa-min", 0, stdout=writer)
    os.close(writer)
    assert code == 1
    assert err.splitlines()[1:] == []
    assert err == "" or err.startswith(f"{records} pairs")


def test_closed_streams(tmp_path):
    """Closed standard streams (``2>&-``) ended in an AttributeError."""
    command = [sys.executable, "-m", "pairformer", "scan", "-", "ACGU", "-o", str(tmp_path / "out.tsv")]
    shell = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, "sh", *command], env=ENVIRONMENT, timeout=60, check=False)
    assert done.returncode == 0
    assert len(cells((tmp_path / "out.tsv").read_text())) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk():
    """A write that fails is an error of one line, not a traceback."""
    with open("/dev/full", "wb") as full:
        code, _, err = typed("scan", LET7, "CUACCUCA" * 6, stdout=full)
    assert code == 74
    assert err.splitlines()[-1] == "pairformer: [Errno 28] No space left on device"
    assert "Traceback" not in err


def test_interrupted():
    """Ctrl-C while standard input is read."""
    # A test run in the background inherits an ignored SIGINT; a terminal's child does not.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import pairformer.__main__"
    with subprocess.Popen(
        [sys.executable, "-c", code, "scan", "-", "ACGU"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        process.stdin.write(b">x\n" + b"ACGU\n" * 100_000)  # more than a pipe holds: returns once it is being read
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stdout.read() == b""
        assert process.stderr.read().strip() == b"interrupted"
