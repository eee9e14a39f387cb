"""Predicted fold changes: sites add up, intervals widen, percentiles, and the columns of the tables."""

import sys

import numpy as np
import pytest

import pairformer
from pairformer import testing
from pairformer.config import ModelConfig

LET7 = "UGAGGUAGUAGGUUGUAUAGUU"
SITE = "CUACCUCA"  # let-7's


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_fold_changes_add_up(additive_model, rng, engine):
    """The baseline and the contributions of the sites are the fold change; each seed site contributes once."""
    utrs = [testing.random_rna(rng, 60) + SITE + testing.random_rna(rng, 90) + SITE + testing.random_rna(rng, 80)]
    utrs += [testing.random_rna(rng, 300), "ACGU"]
    found = pairformer.predict(LET7, utrs, model=additive_model, engine=engine)
    assert found.log2_fold_change.shape == (3,)
    change = found.log2_fold_change
    strength = np.maximum(-change, 0)  # strong predictions are less sure
    ends = np.stack([change - 0.5 - strength, change + 0.25 + 0.5 * strength], 1)
    np.testing.assert_allclose(found.interval, ends, rtol=0, atol=1e-6)
    assert strength.max() > 0
    one = found[0]
    contribution = one.sites["contribution"]
    for pair, baseline in zip(found, found.baseline, strict=True):
        assert pair.baseline == baseline
        assert pair.log2_fold_change == pytest.approx(baseline + pair.sites["contribution"].sum(), abs=1e-6)
    assert one.interval == pytest.approx(tuple(ends[0]))
    counted = one.sites[contribution != 0]
    assert (counted["contribution"] < 0).all()
    assert sorted(counted["site_id"]) == sorted(set(one.sites["site_id"]) - {-1})
    assert {60, 158} <= set(counted["seed_start"])
    assert found[2].log2_fold_change == found[2].baseline == 0  # no candidate
    assert not np.signbit([found[2].log2_fold_change, *contribution[contribution == 0]]).any()  # no -0 is written
    alone = pairformer.predict(LET7, utrs[0], model=additive_model, engine=engine)
    assert alone.log2_fold_change == pytest.approx(one.log2_fold_change, abs=1e-6)
    assert alone.percentile == 50


def test_an_interval_widens_with_repression_alone():
    config = ModelConfig(effect_interval=(-0.5, 0.25), effect_widening=(1.0, 0.5))
    ends = sys.modules["pairformer.predict"]._interval(np.array([-1, 2], np.float32), config)
    assert ends.tolist() == [[-2.5, -0.25], [1.5, 2.25]]


def test_percentile_is_among_the_pairs_of_a_mirna(additive_model, rng):
    utrs = [testing.random_rna(rng, 200) for _ in range(6)]
    mirnas = [LET7, "UAGCUUAUCAGACUGAUGUUGA", LET7.lower(), LET7.replace("U", "T"), "", LET7]
    found = pairformer.predict(mirnas, [*utrs[:5], utrs[0]], model=additive_model)
    assert np.isnan(found.log2_fold_change[4])
    assert np.isnan(found.percentile[4])
    short = pairformer.predict([*mirnas, LET7, LET7], [*utrs[:5], utrs[0], "ACGU", "N" * 90], model=additive_model)
    assert short.log2_fold_change[6] == short.log2_fold_change[7] == 0
    assert np.isnan(short.percentile[6:]).all()
    np.testing.assert_array_equal(short.percentile[:6], found.percentile)
    assert found.percentile[1] == 50
    change = found.log2_fold_change
    for i in (0, 2, 3, 5):  # one miRNA, spelled three ways; rows 0 and 5 tie
        above = [(change[j] > change[i]) + 0.5 * (change[j] == change[i]) for j in (0, 2, 3, 5)]
        assert found.percentile[i] == pytest.approx(100 * np.mean(above))
    assert pairformer.predict(mirnas, utrs, model=additive_model)[4].message is not None


def test_a_model_without_additive_head_says_nothing_of_fold_changes(model, rng):
    found = pairformer.predict([LET7], [testing.random_rna(rng, 90)], model=model)
    assert found.log2_fold_change is found.interval is found.percentile is found.baseline is found[0].baseline is None
    assert "contribution" not in found[0].sites.dtype.names


def test_columns_of_fold_changes(additive_model, tmp_path, rng, command):
    utr = testing.random_rna(rng, 60) + SITE + testing.random_rna(rng, 60)
    (tmp_path / "pairs.tsv").write_text(
        "mirna_id\tmirna_seq\tutr_id\tutr_seq\tlog2_fold_change\n"
        f"let-7\t{LET7}\tmade\t{utr}\tmine\nbad\tNN\tmade\t{utr}\tyours\n"
    )
    outputs = ("-o", tmp_path / "out.tsv", "--sites", tmp_path / "sites.tsv")
    words = ("predict", "--pairs", tmp_path / "pairs.tsv", "--model", additive_model, "--explain", *outputs)
    assert command(*words) == 0
    _, header, *rows = (line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines())
    added = ["log2_fold_change", "log2_fold_change_low", "log2_fold_change_high", "baseline"]
    assert header[7:] == [*added, "input_log2_fold_change"]
    expected = pairformer.predict(LET7, utr, model=additive_model)
    assert [float(cell) for cell in rows[0][7:11]] == pytest.approx(
        [expected.log2_fold_change, *expected.interval, expected.baseline], rel=1e-4
    )
    assert rows[0][11] == "mine"
    assert rows[1][7:] == ["NA", "NA", "NA", "NA", "yours"]
    *_, site_header, first = (line.split("\t") for line in (tmp_path / "sites.tsv").read_text().splitlines()[:4])
    assert site_header[-2:] == ["contribution", "weight"]
    assert len(first) == len(site_header)


def test_column_of_percentiles(additive_model, tmp_path, rng, command):
    utrs = [testing.random_rna(rng, 300) for _ in range(5)] + ["ACGU"]
    (tmp_path / "m.fa").write_text(f">let-7\n{LET7}\n>other\n{LET7[::-1]}\n>bad\nNN\n")
    (tmp_path / "u.fa").write_text("".join(f">u{i}\n{utr}\n" for i, utr in enumerate(utrs)))
    words = ("predict", tmp_path / "m.fa", tmp_path / "u.fa", "--model", additive_model)
    assert command(*words, "-o", tmp_path / "plain.tsv") == 0
    (tmp_path / "out.tsv").touch(0o600)
    assert command(*words, "-o", tmp_path / "out.tsv", "--percentile") == 0
    assert (tmp_path / "out.tsv").stat().st_mode & 0o777 == 0o600
    plain, ranked = ((tmp_path / name).read_text().splitlines() for name in ("plain.tsv", "out.tsv"))
    assert [line.rpartition("\t")[0] for line in ranked[1:]] == plain[1:]
    header, *rows = (line.split("\t") for line in ranked[1:])
    assert header[-1] == "percentile"
    expected = pairformer.predict([LET7] * 6, utrs, model=additive_model).percentile
    found = [row[-1] for row in rows if row[0] == "let-7"]
    assert [float(cell) for cell in found[:5]] == pytest.approx(expected[:5], rel=1e-4)
    assert found[5] == "NA"
    assert {row[-1] for row in rows if row[0] == "bad"} == {"NA"}
    assert {path.name for path in tmp_path.iterdir()} >= {"m.fa", "u.fa", "plain.tsv", "out.tsv"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]
    assert command(*words, "--percentile") == 2
    assert command(*words, "-o", "/dev/null", "--percentile") == 2
    assert command(*words[:-1], "paper", "-o", tmp_path / "out.tsv", "--percentile") == 2
    assert (tmp_path / "out.tsv").read_text().splitlines() == ranked


def test_columns_of_sites_hold_what_their_names_say(additive_model, tmp_path, rng, command):
    utr = testing.random_rna(rng, 60) + SITE + testing.random_rna(rng, 60)
    words = ("--model", additive_model, "--explain", "--accessibility", "--sites", tmp_path / "sites.tsv")
    assert command("predict", LET7, utr, *words, "-o", tmp_path / "out.tsv") == 0
    lines = [line.split("\t") for line in (tmp_path / "sites.tsv").read_text().splitlines() if line[0] != "#"]
    found = pairformer.predict(LET7, utr, model=additive_model, explain=True, accessibility=True).sites
    for name in ("contribution", "weight", "unpaired"):
        column = [float(row[lines[0].index(name)].replace("NA", "nan")) for row in lines[1:]]
        np.testing.assert_allclose(column, found[name], rtol=1e-4, atol=1e-6)


def test_columns_of_a_table_scored_before_are_renamed():
    from pairformer.outputs import renamed

    assert renamed(["percentile", "note", "logit", "baseline"]) == [
        "input_percentile", "note", "input_logit", "input_baseline"]  # fmt: skip
    assert renamed(["logit", "input_logit"]) == ["input_input_logit", "input_logit"]
