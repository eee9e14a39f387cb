"""Protocols keep what they claim, baselines by hand, planted leaks are refused, a report is made as typed."""

import gzip
import hashlib
import json
import random
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from pairformer import testing
from pairformer.config import SourceConfig, TrainConfig
from pairformer.data import PAIRS, SITES, UTRS, Pairs, Sites, columns, load_pairs, load_sites
from pairformer.metrics import ranking
from pairformer.scan import scan
from pairformer.sites import SEED_TYPES, seed_matches
from pairformer.sources import MoreSources, load_sources

torch = pytest.importorskip("torch")
from pairformer import evaluation, training  # noqa: E402
from pairformer.evaluation import baselines, protocols  # noqa: E402
from pairformer.evaluation.audit import name_genes, overlap  # noqa: E402
from pairformer.evaluation.protocols import (  # noqa: E402
    PROTOCOLS,
    Fold,
    Protocol,
    group_folds,
    held_out_pairs,
    held_out_sites,
    rewire,
)  # fmt: skip
from pairformer.evaluation.targetnet import WEIGHTS, TargetNet  # noqa: E402

MADE = ("half-split", "deduplicated", "gene-disjoint", "family-disjoint", "both-disjoint", "rewired", "fold-change")
QUICK = ("--recipe", "paper", "--stage1.epochs", 1, "--stage2.epochs", 1, "--stage3.epochs", 2,
         "--stage3.joint-epochs", 1, "--aggregator.width", 16, "--aggregator.layers", 1, "--resamples", 50,
         "--expensive.channels", "4,4,8", "--cheap.channels", "4,8")  # fmt: skip


def pairs(mirna, utr_id, gene, label):
    columns = (list(mirna), list(gene), ["ACGU" * 20] * len(label), list(utr_id))
    return Pairs(np.array(label, np.float32), *(np.array(column, object) for column in columns))


def test_group_folds_never_split_and_spread_negatives():
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 90, 2000).astype(str)
    negative = rng.random(2000) < 0.1
    fold = group_folds(groups, negative, 3)
    assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    counts = np.bincount(fold[negative])
    assert counts.max() - counts.min() <= 3


@pytest.mark.parametrize("name", MADE)
def test_folds_keep_what_their_protocol_claims(folder, name):
    """No test row has a claimed relation to a training or validation row, nor to a window the encoders see."""
    protocol = PROTOCOLS[name]
    sites, _ = load_sites(folder / SITES, folder)
    folds = protocol.folds(folder)
    assert [fold.lines() for fold in folds] == [fold.lines() for fold in protocol.folds(folder)]
    assert sum(len(fold.test) for fold in folds) > 40
    for fold in folds:
        for rows in (fold.train, fold.validation):
            assert not overlap(rows, fold.test).violations(protocol.claims)
            assert name == "deduplicated" or set(rows.label) == {0, 1}  # its files have 14 positives here
        allowed = sites.take(held_out_sites(sites, fold.test, protocol.claims))
        assert (len(allowed) < len(sites)) == bool(set(protocol.claims) - {"pair"})
        if "family" in protocol.claims:
            assert not set(allowed.family) & set(fold.test.family)
            assert not set(fold.validation.family) & set(fold.train.family)
        if "gene" in protocol.claims:
            assert not {gene for names in allowed.gene for gene in names.split(",")} & set(fold.test.gene)
            assert not any(window in utr for window in allowed.window for utr in set(fold.test.utr))


def some_pairs(*rows):
    mirna, gene, utr = (np.array(column, object) for column in zip(*rows, strict=True)) if rows else [np.array([])] * 3
    return Pairs(np.ones(len(mirna), np.float32), mirna, gene, utr, gene)


def test_held_out_pairs(rng):
    """Each rule by hand: the pair itself always, family, gene and near identity where they are claimed."""
    let7, other, third = "UGAGGUAGUAGGUUGUAUAGUU", "UAGCUUAUCAGACUGAUGUUGA", "CACCCGGCUGUGUGCACAUGUG"
    utrs = [testing.random_rna(rng, 300) for _ in range(3)]
    test = some_pairs((let7, "A", utrs[0]))
    rows = some_pairs(
        (let7, "A", utrs[1]), (let7[:8] + "C" * 14, "B", utrs[1]), (other, "A", utrs[1]), (other, "X,A", utrs[1]),
        (other, "B", utrs[0][:290] + "A" * 10), (let7, "X,A", utrs[1]), (third, "C", utrs[2]),
    )  # fmt: skip
    refused = {
        (): [0, 5],
        ("pair",): [0, 5],
        ("family",): [0, 1, 5],
        ("gene",): [0, 2, 3, 5],
        ("near_identical",): [0, 4, 5],
        ("gene", "family", "near_identical"): [0, 1, 2, 3, 4, 5],
    }
    for claims, gone in refused.items():
        assert np.flatnonzero(~held_out_pairs(rows, test, claims)).tolist() == gone, claims
        assert held_out_pairs(rows.take(np.arange(0)), test, claims).tolist() == []


@pytest.mark.parametrize("claim", ["gene", "near_identical"])
def test_no_window_of_a_test_utr_is_seen_the_last_one_neither(rng, claim):
    utr = testing.random_rna(rng, 60)
    windows = np.array([utr[:40], utr[20:], testing.random_rna(rng, 40)], object)
    sites = Sites(np.ones(3), np.array(["ACGU"] * 3, object), np.array(["X"] * 3, object), windows, *np.zeros((4, 3)))
    assert held_out_sites(sites, some_pairs(("ACGU", "A", utr)), (claim,)).tolist() == [False, False, True]


def test_windows_name_the_genes_they_may_lie_in(folder, rng):
    """20 nt in common with a UTR are enough, 19 are not; two genes are both named."""
    table = dict(zip(*columns(folder / UTRS, "gene_symbol", "utr_seq"), strict=True))
    far = testing.random_rna(rng, 50)
    windows = [table["G7"][20:70], far[:30] + table["G8"][:20], far[:31] + table["G8"][:19], far,
               table["G9"][:25] + table["G10"][50:75], table["G7"][20:70]]  # fmt: skip
    named = name_genes(some_pairs(*(("ACGU", window, window) for window in windows)), folder).gene
    assert [names.split(",")[1:] for names in named] == [["G7"], ["G8"], [], [], ["G10", "G9"], ["G7"]]
    assert [names.split(",")[0] for names in named] == windows


def test_further_sources_are_held_out_and_audited(folder, monkeypatch):
    """Windows of CLASH of a test family or gene train nothing, and the audit finds those that do."""
    protocol, sites = PROTOCOLS["both-disjoint"], load_sites(folder / SITES, folder)[0]
    fold = protocol.folds(folder)[0]
    sources = SourceConfig(clash=1.0, clash_original=1.0, instances=1.0, effects=1.0)
    more = evaluation.with_genes(load_sources(folder, sources), folder)
    unrelated = "ACGACGACGACGACGACGACGA"  # no family of any pair
    planted = some_pairs(*((unrelated, utr[:50], utr[:50]) for utr in fold.test.utr if len(utr) > 50))
    others = some_pairs(*((unrelated, utr[:50], utr[:50]) for utr in fold.train.utr if len(utr) > 50))
    n, cut = len(more.clash), len(more.clash) + len(planted)
    clash = more.clash.join(name_genes(planted.join(others), folder))
    more = replace(more, clash=clash)
    allowed = evaluation._may_train(fold, protocol.claims, clash)
    assert not allowed[n:cut].any()
    assert allowed[cut:].all()
    assert 0 < allowed[:n].sum() < n
    assert not set(clash.take(allowed).family) & set(fold.test.family)
    assert not evaluation._may_train(fold, (), fold.validation).any()
    assert evaluation._audit(protocol, [fold], sites, more)[1] == []
    monkeypatch.setattr(evaluation, "_may_train", lambda fold, claims, pairs: np.ones(len(pairs), bool))
    faults = " ".join(evaluation._audit(protocol, [fold], sites, more)[1])
    for name, relation in (("clash", "gene"), ("clash", "family"), ("clash_original", "family"), ("effects", "gene")):
        assert f"training {name}: {relation}: " in faults


def test_blocks_test_every_pair_once(folder):
    every = load_pairs(folder / PAIRS, folder)
    tests = [fold.test for fold in PROTOCOLS["both-disjoint"].folds(folder)]
    tested = [key for test in tests for key in zip(test.mirna, test.utr_id, strict=True)]
    assert len(tested) == len(set(tested)) == len(every)


def test_rewired_decoys(rng):
    """Each miRNA and each gene as often as among the positives; none known, none a family's target, none twice."""
    mirnas = [testing.random_rna(rng, 22) for _ in range(25)]
    mirnas += [mirna[:9] + testing.random_rna(rng, 13) for mirna in mirnas[:5]]  # families of two
    known = {(rng.choice(mirnas), f"G{rng.randrange(40)}"): i % 4 > 0 for i in range(300)}
    table = pairs([m for m, _ in known], [g for _, g in known], [g for _, g in known], list(known.values()))
    table = replace(table, utr=np.array(["A" * 40 + gene for gene in table.gene], object))
    positives = table.take(table.label > 0.5)
    decoys = rewire(positives, table)
    assert decoys.mirna.tolist() == positives.mirna.tolist()
    assert sorted(decoys.gene) == sorted(positives.gene)
    drawn = list(zip(decoys.mirna, decoys.gene, strict=True))
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & set(known)
    assert not set(zip(decoys.family, decoys.gene, strict=True)) & set(
        zip(positives.family, positives.gene, strict=True)
    )
    assert rewire(positives, table).gene.tolist() == decoys.gene.tolist()
    assert rewire(positives, table, 1).gene.tolist() != decoys.gene.tolist()
    both = positives.join(decoys)
    scores = baselines.identity_scores(both, both)
    assert ranking(both.label, scores["mirna_prior"])["roc_auc"] == pytest.approx(0.5)
    assert ranking(both.label, scores["gene_prior"])["roc_auc"] == pytest.approx(0.5)


def test_decoys_are_no_known_pair_under_another_name(rng):
    """By the gene's name in any case, or by the UTR's letters."""
    mirnas, genes = [testing.random_rna(rng, 22) for _ in range(2)], ["G1", "G2"]
    positives = pairs([*mirnas, *mirnas[:1]], "123", [*genes, "G3"], [1, 1, 1])
    positives = replace(positives, utr=np.array(["A", "C", "G"], object))
    for name, utr in (("g1", "U"), ("other", "A")):  # that of miRNA 2 with G1 is then known
        more = replace(pairs(mirnas[1:], "9", [name], [0]), utr=np.array([utr], object))
        with pytest.raises(ValueError, match="positives must have a pairing without known pairs, got"):
            rewire(positives.take([0, 1]), positives.join(more))
    assert len(rewire(positives.take([0, 1]), positives)) == 2


def test_a_pairing_that_is_hard_to_find_is_found():
    """Few miRNAs, many known pairs: swaps at random alone do not end there."""
    draws = np.random.default_rng(5).choice([1, 0, -1], p=[0.14, 0.3, 0.56], size=(12, 40))
    mirna, gene = np.nonzero(draws >= 0)
    mirnas, names = [testing.random_rna(random.Random(m), 22) for m in range(12)], [f"G{g}" for g in gene]
    table = pairs([mirnas[m] for m in mirna], names, names, draws[mirna, gene])
    table = replace(table, utr=np.array(["A" * 40 + name for name in names], object))
    known = set(zip(table.mirna, table.gene, strict=True))
    for epoch in range(3):
        decoys = rewire(table.take(table.label > 0.5), table, [2020, epoch])
        drawn = set(zip(decoys.mirna, decoys.gene, strict=True))
        assert not known & drawn
        assert len(drawn) == len(decoys) == 70


def test_rewiring_that_cannot_be_is_refused():
    table = pairs("AA", "gg", "gg", [1, 1])
    with pytest.raises(ValueError, match="positives must have a pairing without known pairs, got 2 rows left over"):
        rewire(table, table)


def test_identity_scores_by_hand():
    """Priors with one more label of the mean, 1/3; in the regressions a row's own label is left out of them."""

    def told_apart(mirna, utr, gene, label):
        sequences = np.array(["ACGU"[int(name) % 4] * 50 for name in utr], object)
        return replace(pairs(mirna, utr, gene, label), utr=sequences)

    train = told_apart("AAB", "121", "ghg", [1, 0, 0])
    scores = baselines.identity_scores(train, told_apart("ACB", "212", "hgx", [1, 0, 1]))
    assert scores["look_up"].tolist() == [0, 1, 1]
    a, b, unseen = np.log((4 / 3) / (5 / 3)), np.log((1 / 3) / (5 / 3)), np.log((1 / 3) / (2 / 3))
    assert scores["mirna_prior"] == pytest.approx([a, unseen, b])
    assert scores["gene_prior"] == pytest.approx([b, a, unseen])
    own_left_out = baselines._prior(train.mirna, train.label)
    assert own_left_out == pytest.approx([b, np.log((4 / 3) / (2 / 3)), unseen])
    for labels in ([], [1, 1], [0, 0]):  # of windows
        sites = told_apart("AB"[: len(labels)], "12"[: len(labels)], "gh"[: len(labels)], labels)
        assert np.isfinite(baselines.identity_scores(train, train, sites)["with_site_prior"]).all()
    other_names = told_apart("AAA", "368", "HnG", [0, 0, 0])  # by the gene's name, by the UTR, by neither
    assert baselines.identity_scores(train, other_names)["look_up"].tolist() == [0, 0, 1]


def test_seed_sites_by_hand():
    """One of each type for miRNA 1-8 = UGAGGUAG: 2-8 pairs with CUACCUC, which an A follows."""
    mirna = "UGAGGUAGUAGGUUGUAUAGUU"
    texts = {
        "8mer": ("CUACCUCA", 5, 13),
        "7mer-m8": ("CUACCUCG", 5, 12),
        "7mer-A1": ("GUACCUCA", 6, 13),
        "6mer": ("GUACCUCG", 6, 12),
        "offset 6mer": ("CUACCUGA", 5, 11),
    }
    for kind, (text, start, end) in texts.items():
        assert list(baselines.seed_sites(mirna, f"GGGGG{text}GGGGG")) == [(start, end, kind)]
        dna = 2 * text.lower().replace("u", "t")
        assert [site[2] for site in baselines.seed_sites(mirna.lower(), dna)] == [kind] * 2
    assert not list(baselines.seed_sites(mirna, "GGUACCUGGG"))
    assert not list(baselines.seed_sites("UGAGGUA", "CUACCUCA" * 3))  # no letter 8
    scores = baselines.untrained_scores(pairs([mirna], "1", "g", [1]).take(np.array([0])))
    assert scores["seed_score"].tolist() == [0]
    one = replace(pairs([mirna], "1", "g", [1]), utr=np.array(["G" * 30 + "CUACCUCA" + "A" * 30], object))
    scores = baselines.untrained_scores(one)
    assert scores["seed_score"] == pytest.approx([0.31])
    assert scores["seed_score_au"] == pytest.approx([0.31 * 0.5 / 0.55])
    assert scores["utr_length"].tolist() == [68]
    candidates = scan(one.mirna, one.utr, esa_min=0)
    energies = candidates.duplex_energy()[np.isin(candidates.start, [0, 20, 28])]
    assert len(energies) == 3
    assert scores["duplex"] == pytest.approx([-energies.min()])
    assert baselines.untrained_scores(one.take(np.arange(0)))["duplex"].shape == (0,)
    foreign = replace(one, utr=np.array(["N" * 50 + one.utr[0][:39]], object))
    assert baselines.untrained_scores(foreign)["duplex"].tolist() == [0]
    assert scores["mirna_au"] == pytest.approx([14 / 22])


def test_seed_sites_agree_with_the_scan(rng):
    """Every match far enough from the ends is one that `sites.seed_matches` names in some window, letter for letter."""
    count = 0
    for _ in range(60):
        mirna = testing.random_rna(rng, 22)
        core = mirna[2:7].translate(str.maketrans("ACGU", "UGCA"))[::-1]
        utr = testing.random_rna(rng, 60) + core + testing.random_rna(rng, 60)
        found = {site for site in baselines.seed_sites(mirna, utr) if site[0] >= 34 and site[1] < 110}
        candidates = scan(mirna, utr)
        kind, start, end, _ = seed_matches(candidates, np.arange(len(candidates.start)))
        seen = {(int(s), int(e), SEED_TYPES[k]) for k, s, e in zip(kind, start, end, strict=True)}
        assert found <= seen
        count += len(found)
    assert count > 20


def test_pooled_scores_against_plain_formulas():
    rng = np.random.default_rng(0)
    sizes = [0, 1, 3, 0, 40, 8, 9, 0]
    offsets = np.cumsum([0, *sizes])
    logit = rng.normal(0, 3, offsets[-1]).astype(np.float32)
    pooled = baselines.pooled_scores(logit, offsets, empty=-7.0)
    for bag, (a, b) in enumerate(pairwise(offsets)):
        z = logit[a:b].astype(float)
        if not len(z):
            assert all(values[bag] == -7 for values in pooled.values())
            continue
        p = 1 / (1 + np.exp(-z))
        missed = np.prod(1 - p)
        weight = np.exp(z) / np.exp(z).sum()
        plain = {
            "max": z.max(),
            "mean": z.mean(),
            "top_mean": np.sort(z)[::-1][:8].mean(),
            "softmax": (weight * z).sum(),
            "log_sum_exp": np.log(np.exp(z).sum()),
            "noisy_or": np.log((1 - missed) / missed),
        }
        assert {name: values[bag] for name, values in pooled.items()} == pytest.approx(plain, rel=1e-6)
    assert {len(values) for values in baselines.pooled_scores(logit[:0], np.zeros(4, np.int64)).values()} == {3}


def test_targetnet_of_other_arrays_is_refused(tmp_path):
    assert sum(p.numel() for p in TargetNet().parameters()) == 8_737
    torch.save({"linear.bias": torch.zeros(2)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"TargetNet\.pt must be the published state dict, got .*x\.pt"):
        TargetNet.load(tmp_path / "x.pt")


def test_centred_effects(folder):
    """Each gene's mean over the experiments of other families is taken off, then the range is cut."""
    effect = np.array([[1.0, 0.0], [0.5, 9.0], [0.0, 1.0]])
    elsewhere = protocols._elsewhere(effect, np.array(["a", "a", "b"], object))
    assert elsewhere.tolist() == [[0.0, 1.0], [0.0, 1.0], [0.75, 4.5]]
    for fold in PROTOCOLS["fold-change"].folds(folder):
        test = fold.test
        assert test.label == pytest.approx(np.clip(test.raw - test.elsewhere, -1.5, 1.5), abs=1e-6)
        everywhere = fold.everywhere()
        assert len(everywhere) == len(set(test.utr_id)) * len(fold.mirnas)
        said = {pair: i**2 % 7 for i, pair in enumerate(zip(everywhere.mirna, everywhere.utr_id, strict=True))}
        for mirna, gene, found in zip(test.mirna, test.utr_id, fold.centred(list(said.values())), strict=True):
            others = [said[m, gene] for m in fold.mirnas if m[1:8] != mirna[1:8]]
            assert found == pytest.approx(said[mirna, gene] - np.mean(others))


def read(out):
    return json.loads((out / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_evaluate_command(folder, tmp_path, command, capsys):
    """Trained on the paper's split: audit first, every baseline beside the model, look-up perfect, taken up again."""
    out = tmp_path / "run"
    words = ("evaluate", "--protocol", "half-split", "--train", "--data", folder, "--out", out, *QUICK)
    assert command(*words) == 0
    shown = capsys.readouterr()
    assert re.search(r"pair: \d+ of \d+ rows of test .* stand in training pairs too", shown.err)
    assert shown.err.index("pair: ") < shown.err.index("stage1 epoch 1")
    assert "no figure here is accuracy" in shown.out
    report = read(out)
    scores = report["summary"]["scores"]
    pooled = {f"encoder_{name}" for name in ("max", "mean", "top_mean", "softmax", "log_sum_exp", "noisy_or")}
    assert set(scores) == pooled | {
        "look_up", "mirna_prior", "gene_prior", "mirna_and_gene_prior", "with_site_prior", "length_and_n", "seed_score",
        "seed_score_au", "duplex", "mirna_au", "utr_length", "deep_sets", "gated_attention", "pair-former"}  # fmt: skip
    assert scores["look_up"]["metrics"]["roc_auc"]["mean"] == 1
    assert scores["look_up"]["metrics"]["f1_validation"]["mean"] == 1
    assert report["logit_scale"] > 0
    index = json.loads((out / "folds/index.json").read_text())
    text = gzip.decompress((out / "folds/00.tsv.gz").read_bytes())
    assert index["00.tsv.gz"]["text_sha256"] == hashlib.sha256(text).hexdigest()
    assert text.startswith(b"role\tmirna_seq\tutr_id\tgene\tlabel\n")

    before = (out / "seed2020/00/scores.npz").stat().st_mtime_ns
    assert command(*words) == 0  # taken up: nothing is trained again
    assert (out / "seed2020/00/scores.npz").stat().st_mtime_ns == before
    assert "epoch" not in capsys.readouterr().err
    assert command(*words, "--seeds", "2020,7") == 0
    assert len(read(out)["summary"]["folds"]) == 2
    assert command(*words, "--stage3.lr", 1e-3) == 2
    assert "out must be a new directory or hold the same run" in capsys.readouterr().err

    given = ("evaluate", "--resamples", 50, "--model", out / "seed2020/00/model", "--data", folder)
    assert command(*given, "--protocol", "half-split", "--out", tmp_path / "given", "--k-max", "4,64") == 0
    again = read(tmp_path / "given")["summary"]["scores"]
    assert "deep_sets" not in again
    areas = [again[f"pair-former{at}"]["metrics"]["roc_auc"]["mean"] for at in ("", " at K = 64", " at K = 4")]
    assert areas[0] == areas[1] != areas[2]
    capsys.readouterr()
    assert command(*given, "--protocol", "both-disjoint", "--out", tmp_path / "refused") == 2
    assert "protocol both-disjoint must share nothing by gene, family, near_identical, got a model not trained" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "refused").exists()
    assert command(*given, "--protocol", "fold-change", "--out", tmp_path / "seen", "--allow-overlap") == 0
    report = read(tmp_path / "seen")
    assert report["warning"].startswith("Not what the protocol claims: a model not trained on its folds")
    assert len(report["summary"]["experiments"]) == 8
    assert {"gene_elsewhere", "seed_score_au", "seed_score_au centred"} <= set(report["summary"]["scores"])
    assert "Not what the protocol claims" in capsys.readouterr().out


def test_rows_that_choose_nothing_are_learnt_from(folder, tmp_path, command):
    """Labels weighted within each miRNA pick no epoch: then no training row is set aside, baselines included."""
    words = ("evaluate", "--protocol", "half-split", "--train", "--data", folder, "--out", tmp_path, *QUICK)
    assert command(*words, "--sources.per-mirna", "on") == 0
    dealt = PROTOCOLS["half-split"].folds(folder)[0]
    index = json.loads((tmp_path / "folds/index.json").read_text())["00.tsv.gz"]
    assert (index["train"], index["validation"]) == (len(dealt.train) + len(dealt.validation), 0)
    summary = read(tmp_path)["summary"]
    assert "f1_validation" not in summary["scores"]["deep_sets"]["metrics"]
    assert summary["calibration"]["scales"] == [1]


def with_columns(rows, **columns):
    """Rows with some columns one value."""
    return replace(rows, **{name: np.array([value] * len(rows), object) for name, value in columns.items()})


LEAKS = {
    "gene": lambda rows: replace(rows, mirna=np.array(["C" * 22], object)),
    "family": lambda rows: with_columns(rows, gene="X", utr="ACGUU" * 30),
    "near_identical": lambda rows: with_columns(rows, gene="X", utr=rows.utr[0] + "ACGU"),
}


@pytest.mark.parametrize("claim", LEAKS)
def test_a_planted_leak_is_refused(folder, tmp_path, command, capsys, monkeypatch, claim):
    """One test row's counterpart among five hundred training rows stops a protocol that claims there is none."""
    honest = PROTOCOLS["both-disjoint"].folds(folder)[0]

    def folds(_):
        leak = LEAKS[claim](honest.test.take(np.array([3])))
        return [Fold("planted", honest.train.join(leak), honest.validation, honest.test)]

    monkeypatch.setitem(PROTOCOLS, "planted", Protocol("A leak was put in.", (claim,), folds))
    words = ("evaluate", "--protocol", "planted", "--train", "--data", folder, "--out", tmp_path / "run", *QUICK)
    assert command(*words) == 2
    message = capsys.readouterr().err
    assert f"protocol planted must share nothing by {claim}, got planted: training pairs: {claim}: " in message
    assert not list((tmp_path / "run").glob("*"))  # the folder is free for another run
    monkeypatch.setitem(PROTOCOLS, "planted", Protocol("None was.", (claim,), lambda _: [honest]))
    found, faults = evaluation._audit(
        PROTOCOLS["planted"], [honest], load_sites(folder / SITES, folder)[0], MoreSources()
    )
    assert len(found) == 12
    assert not faults


def test_windows_of_a_test_family_are_refused(folder, monkeypatch):
    """Encoders that saw a window of a test family are found, not only training pairs."""
    honest = PROTOCOLS["both-disjoint"].folds(folder)[0]
    monkeypatch.setattr(evaluation, "held_out_sites", lambda sites, *_: np.ones(len(sites), bool))
    _, faults = evaluation._audit(
        PROTOCOLS["both-disjoint"], [honest], load_sites(folder / SITES, folder)[0], MoreSources()
    )
    assert any("the encoders' windows: family: " in fault for fault in faults)


def test_audit_command(folder, tmp_path, command, capsys):
    """Two tables of a user: relations are counted; asked to be disjoint, the command fails where they are not."""
    rows = load_pairs(folder / PAIRS, folder)
    for name, part in (("a", range(0, 50)), ("b", range(50, 100))):
        lines = [f"{rows.mirna[i]}\t{rows.utr[i]}\t{rows.gene[i]}\n" for i in part]
        (tmp_path / f"{name}.tsv").write_text("mirna_seq\tutr_seq\tgene_symbol\n" + "".join(lines))
    a, b = tmp_path / "a.tsv", tmp_path / "b.tsv"
    assert command("audit", a, b) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["pair", "mirna", "family", "gene", "window", "near_identical"]
    assert command("audit", a, b, "--disjoint", "family,gene") == 65
    assert re.search(rf"{b}: table must share nothing by family,gene with {a}, got family: ", capsys.readouterr().err)
    assert command("audit", a, a, "--disjoint", "color") == 2
    assert command("audit", a, folder / PAIRS, "--data", folder) == 0
    renamed = tmp_path / "renamed.tsv"
    header, *lines = a.read_text().splitlines()
    renamed.write_text("\n".join([header, *(line.rsplit("\t", 1)[0] + "\tENSG0" for line in lines)]))
    capsys.readouterr()
    assert command("audit", a, renamed, "--disjoint", "gene") == 0
    assert re.match(rf"gene: \d+ rows of {renamed.name} have a near-identical UTR in {a.name}", capsys.readouterr().err)


def test_evaluate_usage(folder, tmp_path, command, capsys):
    common = ("evaluate", "--data", folder, "--out", tmp_path)
    for words, message in [
        (("--protocol", "half-split"), "give --train, or --model NAME"),
        (("--protocol", "half-split", "--train", "--model", "default"), "give --train, or --model NAME"),
        (("--protocol", "best", "--train"), "--protocol must be one of half-split, half-split-b"),
        (("--protocol", "half-split", "--model", "default", "--stage3.lr", "1"), "need --train; --model has its own"),
        (("--protocol", "half-split", "--model", "default", "--k-max", "0"), "k_max must be 1 or more, got 0"),
        (("--protocol", "half-split", "--train", "--seeds", "one"), "must be int values between commas, got 'one'"),
    ]:
        assert command(*common, *words) == 2
        assert message in capsys.readouterr().err


def test_a_killed_run_is_taken_up(folder, tmp_path, command, monkeypatch):
    """Stopped in the third training of a fold, then run again: the same scores as a run that was not stopped."""
    words = ("evaluate", "--protocol", "half-split", "--train", "--data", folder, *QUICK, "--out")
    assert command(*words, tmp_path / "whole") == 0
    calls = []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return training.train_aggregator(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "train_aggregator", stops)
        assert command(*words, tmp_path / "broken") == 130
    assert command(*words, tmp_path / "broken") == 0
    whole, broken = (read(tmp_path / name)["summary"]["scores"] for name in ("whole", "broken"))
    assert whole == broken


def test_a_run_of_other_sequences_is_not_taken_up(folder, tmp_path, command, capsys):
    """The rows' names were the same, so scores of the old sequences were reported for the new ones."""
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folder, data)
    words = ("evaluate", "--protocol", "half-split", "--model", "default", "--data", data, "--out", out)
    assert command(*words, "--resamples", 1) == 0
    text = gzip.decompress((data / UTRS).read_bytes()).decode().replace("ACG", "AUG")
    (data / UTRS).write_bytes(gzip.compress(text.encode()))
    assert command(*words) == 2
    assert "out must be a new directory or hold the same run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["deduplicated", "gene-disjoint", "family-disjoint", "hct116", "deeptargetpro-new"])
def test_real_claims_hold(data, name):
    sites, _ = load_sites(data / SITES, data)
    folds = PROTOCOLS[name].folds(data)
    _, faults = evaluation._audit(PROTOCOLS[name], folds[:2], sites, MoreSources())
    assert not faults


def test_real_targetnet(data):
    """Of the 1,024 pairs with the fewest candidates, what the run with the published figures called right."""
    every = load_pairs(data / PAIRS, data)
    few = every.take(scan(every.mirna, every.utr).n_candidates <= 250)
    candidates = scan(few.mirna, few.utr)
    logit = baselines.site_logits(TargetNet.load(data / WEIGHTS), candidates)
    called = baselines.pooled_scores(logit, candidates.offsets, evaluation.TARGETNET_EMPTY)["max"] > 0
    positive = few.label == 1
    assert (len(few), len(logit)) == (1024, 119_615)
    assert (called & positive).sum() == 734
    assert (~called & ~positive).sum() == 56


def test_real_protocols(data):
    """Row counts of the published protocols."""
    half = PROTOCOLS["half-split"].folds(data)[0]
    assert [len(part) for part in (half.train, half.validation, half.test)] == [4932, 548, 5480]
    assert half.test.label.mean() == 0.5
    files = PROTOCOLS["deduplicated"].folds(data)
    assert [(len(f.train) + len(f.validation), len(f.validation), len(f.test), f.test.label.sum()) for f in files] == [
        (878, 87, 218, 109)
    ] * 10
    rewired = PROTOCOLS["rewired"].folds(data)
    assert sum(len(fold.test) for fold in rewired) == 2 * 5379
    assert sum(fold.test.label.sum() for fold in rewired) == 5379


def test_decoys_of_the_protocol_are_no_labelled_pairs(folder):
    """Neither positives nor negatives of miRAW stand among them."""
    every = load_pairs(folder / PAIRS, folder)
    known = set(zip(every.mirna, every.gene, strict=True))
    for fold in PROTOCOLS["rewired"].folds(folder):
        decoys = fold.test.take(fold.test.label < 0.5)
        assert len(decoys) > 0
        assert known.isdisjoint(zip(decoys.mirna, decoys.gene, strict=True))


def test_the_last_window_of_a_utr_counts_for_its_duplex():
    """The site lies behind all windows that begin at multiples of 20."""
    let7 = "UGAGGUAGUAGGUUGUAUAGUU"
    utr = "C" * 80 + "ACUACCUCAC"
    one = replace(pairs([let7], "1", "g", [1]), utr=np.array([utr], object))
    candidates = scan(let7, utr, 0)
    energies = candidates.duplex_energy()[np.isin(candidates.start, [0, 20, 40, 50])]
    assert energies[3] < energies[:3].min()
    assert baselines.untrained_scores(one)["duplex"] == pytest.approx([-energies[3]])


def test_blocks_train_on_no_twin_of_a_test_utr(folder):
    """Every second gene's UTR is its neighbour's with a few letters more."""
    every = load_pairs(folder / PAIRS, folder)
    table = dict(zip(every.gene, every.utr, strict=True))
    number = [int(gene[1:]) for gene in every.gene]
    twins = [table.get(f"G{n - 1}", utr) + "ACG" if n % 2 else utr for n, utr in zip(number, every.utr, strict=True)]
    for fold in protocols._blocks(replace(every, utr=np.array(twins, object)), 3):
        assert not overlap(fold.train.join(fold.validation), fold.test).violations(["near_identical"])


@pytest.mark.parametrize("source", ["decoys", "clash", "effects"])
def test_an_epoch_is_picked_where_only_labels_are_learnt_from(source):
    assert evaluation._picks(TrainConfig(sources=SourceConfig()))
    assert not evaluation._picks(TrainConfig(sources=SourceConfig(**{source: 0.5})))
