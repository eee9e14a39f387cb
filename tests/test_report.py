"""Reports of scores over folds: figures, strict JSON, Markdown, plots."""

import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from pairformer import metrics

pytest.importorskip("torch")
pytest.importorskip("sklearn")
from pairformer import evaluation
from pairformer.evaluation.protocols import Effects
from pairformer.evaluation.report import FoldResult, Score, summarise, write

GROUP_OF = {"pair-former": "model", "scaled": "model", "mirna_prior": "identity", "seed_type": "untrained"}


def make_fold(name, rng_seed, rows=90, validation=30):
    """A fold of 9 miRNAs whose model's logit is four times too large; one class only where ``rng_seed`` is None."""
    generator = np.random.default_rng(rng_seed or 0)
    label = (generator.random(rows + validation) < 0.7).astype(np.float32)
    if rng_seed is None:
        label[:rows] = 1
    logit = 1.5 * (2 * label - 1) + generator.normal(0, 1.2, rows + validation)
    columns = {
        "pair-former": 4 * logit,
        "scaled": logit,
        "mirna_prior": generator.normal(size=rows + validation),
        "seed_type": generator.integers(0, 6, rows + validation).astype(float),
    }
    scores = {
        key: Score(z[:rows], z[rows:], group == "model", group)
        for key, z in columns.items()
        for group in [GROUP_OF[key]]
    }
    mirna = np.array([f"m{i % 9}" for i in range(rows)], object)
    return FoldResult(name, label[:rows], mirna, np.arange(rows) > 8, scores, label[rows:])


@pytest.fixture(scope="module")
def folds():
    return [make_fold("gene 0, family 0", 1), make_fold("gene 1, family 1", 2), make_fold("all positive", None)]


@pytest.fixture(scope="module")
def summary(folds):
    return summarise(folds, "pair-former", n_resamples=200, rng_seed=3)


@pytest.fixture
def report(summary):
    return {
        "protocol": "double-cold",
        "statement": "Shares neither gene nor family.",
        "run": {"command": "pairformer evaluate", "versions": "numpy 2", "seconds": 1.5},
        "audit": ["no pair shared", "2 UTRs nearly identical"],
        "summary": summary,
    }


def test_figures_are_means_over_folds_with_both_classes(folds, summary):
    """The third fold has no negatives: it is counted, NaN in every list, and enters no mean."""
    assert summary["folds_without_both_classes"] == 1
    by_fold = [metrics.ranking(fold.label, fold.scores["scaled"].test)["pr_auc"] for fold in folds[:2]]
    figure = summary["scores"]["scaled"]["metrics"]["pr_auc"]
    assert figure["mean"] == pytest.approx(np.mean(by_fold))
    assert figure["sd"] == pytest.approx(np.std(by_fold))
    assert figure["folds"] == pytest.approx([*by_fold, math.nan], nan_ok=True)
    assert figure["low"] < figure["mean"] < figure["high"]
    assert summary["coverage"] == pytest.approx(0.9)
    assert [fold["negatives"] for fold in summary["folds"]][2] == 0
    assert summary["comparisons"] == sum(metrics.within_mirna(f.mirna, f.label, f.label)[1] for f in folds)


def test_scores_have_the_figures_that_apply(summary):
    figures = {name: set(score["metrics"]) for name, score in summary["scores"].items()}
    ranks = {"pr_auc", "roc_auc", "within_mirna"}
    chosen = {"f1_validation", "threshold_validation"}
    assert figures["seed_type"] == figures["mirna_prior"] == ranks | chosen
    assert figures["scaled"] == figures["pair-former"] >= ranks | chosen | {"f1", "npv", "mcc", "brier"}
    assert {name: score["group"] for name, score in summary["scores"].items()} == GROUP_OF


def test_threshold_is_chosen_on_validation_rows(folds, summary):
    fold, score = folds[0], folds[0].scores["mirna_prior"]
    threshold = metrics.best_threshold(fold.validation_label, score.validation)
    figures = summary["scores"]["mirna_prior"]["metrics"]
    assert figures["threshold_validation"]["folds"][0] == threshold
    assert figures["f1_validation"]["folds"][0] == metrics.decisions(fold.label, score.test, threshold)["f1"]


def test_differences_are_paired(summary):
    """The same ranking on another scale differs by nothing in any resample; the reference has no difference."""
    assert summary["scores"]["scaled"]["difference"]["pr_auc"] == {"mean": 0, "low": 0, "high": 0}
    difference = summary["scores"]["mirna_prior"]["difference"]["roc_auc"]
    assert 0 < difference["low"] < difference["mean"] < difference["high"]
    assert "difference" not in summary["scores"]["pair-former"]


def test_calibration_is_repaired_by_validation_rows():
    folds = [make_fold(str(seed), seed, 2000, 1500) for seed in (1, 2)]
    table = summarise(folds, "pair-former", 1)["calibration"]
    assert all(0.2 < scale < 0.8 for scale in table["scales"])
    assert table["after"]["calibration_error"] < 0.5 * table["before"]["calibration_error"]
    assert table["after"]["brier"] < table["before"]["brier"]
    assert sum(row["rows"] for row in table["after"]["bins"]) == 4000


def test_without_validation_rows_other_folds_repair_calibration():
    """Neither a fold's own rows choose its scale, nor those of the same fold trained with another seed."""
    first, second = (make_fold(str(seed), seed, 2000, 0) for seed in (1, 2))
    turned = {name: replace(score, test=-score.test) for name, score in first.scores.items()}
    again = replace(first, name="1, another seed", scores=turned)
    second = replace(second, mirna=first.mirna)  # the same miRNAs alone are not the same fold
    table = summarise([first, second, again], "pair-former", 1)["calibration"]
    scale = [metrics.balanced_scale(f.label, f.scores["pair-former"].test) for f in (second, first)]
    assert table["scales"] == pytest.approx([scale[0], table["scales"][1], scale[0]])
    moved = replace(first, mirna=first.mirna[::-1])  # nor are the same labels
    assert summarise([first, moved], "pair-former", 1)["calibration"]["scales"] == pytest.approx([scale[1]] * 2)
    table = summarise([first, second], "pair-former", 1)["calibration"]
    assert table["scales"] == pytest.approx(scale)
    assert table["after"]["calibration_error"] < 0.5 * table["before"]["calibration_error"]


def test_validation_rows_of_one_class_fit_nothing(folds):
    one = replace(folds[0], validation_label=np.ones(30))
    summary = summarise([one], "pair-former", 1)
    assert summary["calibration"]["scales"] == [1]
    assert "f1_validation" not in summary["scores"]["pair-former"]["metrics"]


def test_what_does_not_fit_is_refused(folds):
    with pytest.raises(ValueError, match="scores must be the same in every fold and have 'x', got"):
        summarise(folds, "x")
    with pytest.raises(ValueError, match="scores must be the same in every fold"):
        summarise([folds[0], replace(folds[1], scores={})], "pair-former")
    with pytest.raises(ValueError, match="results must have a fold with both classes, got 1 without"):
        summarise(folds[2:], "pair-former")
    with pytest.raises(ValueError, match=r"covered must have 90 rows \(label\), got 1"):
        replace(folds[0], covered=np.ones(1, bool))
    with pytest.raises(ValueError, match="pair-former must have 0 validation rows, got 30"):
        replace(folds[0], validation_label=np.ones(0))
    with pytest.raises(ValueError, match=r"group must be one of identity, .*, got 'other'"):
        Score(np.zeros(3), np.zeros(0), False, "other")
    with pytest.raises(ValueError, match="test must be finite"):
        Score(np.array([math.nan]), np.zeros(0), False, "model")


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_strict(report, folds, tmp_path):
    write(report, folds, tmp_path)
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert read["summary"]["scores"]["scaled"]["metrics"]["pr_auc"]["folds"][2] is None
    assert read["run"]["versions"] == "numpy 2"
    odd = {**report, "summary": {"folds": np.array([1.0, np.inf]), "n": np.int64(3), "pair": (1, math.nan)}}
    write(odd, [], tmp_path, tables=[])
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert read["summary"] == {"folds": [1, None], "n": 3, "pair": [1, None]}


def test_markdown_has_the_rows(report, folds, tmp_path):
    write({**report, "warning": "Few negatives."}, folds, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# double-cold\n\nShares neither gene nor family.\n\n**Few negatives.**\n\n")
    lines = text.splitlines()
    main = [line.split(" | ") for line in lines if line.startswith(("| identity", "| untrained", "| model"))]
    assert [row[1] for row in main] == ["mirna_prior", "seed_type", "**pair-former**", "scaled"]
    assert main[1][5] == "–"
    assert all(len(row) == 8 for row in main)
    assert main[2][7] == "– |"
    assert "| all positive | 90 | 0 | – | – |" in lines
    assert "before and after the logits of each fold are scaled" in text
    assert sum(line.startswith("| before |") for line in lines) > 2
    assert {"- no pair shared", "- versions: numpy 2", "- seconds: 1.5"} <= set(lines)
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert sorted(set(tables)) == [4, 5, 6, 9, 10]


def test_a_reference_that_only_ranks_has_no_calibration(report, folds, tmp_path):
    report["summary"] = summarise(folds, "seed_type", 5)
    assert report["summary"]["calibration"] is None
    write(report, folds, tmp_path)
    assert "## Calibration of seed_type\n\n–\n" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "scores.svg").exists()


def test_other_tables_take_the_place_of_the_summary(report, tmp_path):
    write(report, [], tmp_path / "new", tables=["| Spearman |\n| --- |\n| 0.1 |"])
    text = (tmp_path / "new/report.md").read_text()
    assert "Shares neither gene nor family.\n\n| Spearman |\n| --- |\n| 0.1 |\n\n## Audit" in text
    assert not list((tmp_path / "new").glob("*.svg"))


def test_plots_are_drawn_and_do_not_change(report, folds, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        write(report, folds, tmp_path / name)
    for plot in ("pr.svg", "reliability.svg", "scores.svg"):
        drawn = (tmp_path / "a" / plot).read_text()
        assert "pair-former" in drawn or plot == "reliability.svg"
        assert drawn == (tmp_path / "b" / plot).read_text()
    assert "![pr](pr.svg)" in (tmp_path / "a/report.md").read_text()


def test_without_matplotlib_the_report_says_so(report, folds, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write(report, folds, tmp_path)
    assert "Plots need the extra `plots`" in (tmp_path / "report.md").read_text()
    assert not list(tmp_path.glob("*.svg"))


def test_each_comparison_within_a_mirna_counts_once():
    """The mean over folds of different size is that over all their pairs of rows."""
    summary = summarise([make_fold("small", 1, 60), make_fold("large", 2, 900)], "pair-former", 1)
    figure = summary["scores"]["mirna_prior"]["metrics"]["within_mirna"]
    counts = [fold["comparisons"] for fold in summary["folds"]]
    assert counts[1] > 50 * counts[0]
    assert figure["mean"] == pytest.approx(np.average(figure["folds"], weights=counts))
    assert figure["mean"] != pytest.approx(np.mean(figure["folds"]))


def test_neither_order_nor_folds_of_one_class_change_the_mean_within_mirnas(folds):
    means = [summarise(order, "pair-former", 1)["scores"]["mirna_prior"]["metrics"]["within_mirna"]["mean"]
             for order in (folds, folds[::-1], folds[:2])]  # fmt: skip
    assert means == pytest.approx([means[2]] * 3)


def test_rows_of_folds_of_one_class_count_in_the_coverage(folds):
    none = replace(folds[2], covered=np.zeros(90, bool))
    assert summarise([*folds[:2], none], "pair-former", 1)["coverage"] == pytest.approx(0.6)


def test_the_best_of_a_group_stands_first(report, folds, tmp_path):
    more = [replace(f, scores={"noise": replace(f.scores["mirna_prior"], group="model")} | f.scores) for f in folds]
    write(report | {"summary": summarise(more, "pair-former", 5)}, more, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    rows = [line.split(" | ")[1] for line in lines if line.startswith("| model")]
    assert rows[2:] == ["noise"]


def test_effects_are_scored_as_they_are_and_centred_alike(folder, tmp_path, command, monkeypatch):
    """Each row as measurements are centred; the unit comes from these, the interval from what was measured."""
    from pairformer.evaluation import PROTOCOLS, baselines
    from pairformer.evaluation.fold_change import effect_calibration
    from pairformer.models import PairFormer
    from pairformer.training.stage3_aggregate import read_seed_sites

    protocol = PROTOCOLS["fold-change"]
    one = protocol.folds(folder)[0].whole()
    monkeypatch.setitem(PROTOCOLS, "fold-change", replace(protocol, folds=lambda _: [one]))
    small = ("--stage1.epochs", 1, "--stage2.epochs", 1, "--additive.epochs", 2, "--aggregator.members", 1)
    heads = ("--aggregator.kind", "none", "--aggregator.length-gate", 0, "--sources.clash", 0)
    words = ("evaluate", "--protocol", "fold-change", "--train", "--no-baselines", "--data", folder, "--out", tmp_path)
    assert command(*words, *small, *heads) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["summary"]["scores"]
    assert found["pair-former repression centred"]["spearman"]["difference"] == 0  # the one the others are held against
    with np.load(tmp_path / "seed2020/00/scores.npz") as arrays:
        kept = {name.removeprefix("test "): arrays[name] for name in arrays.files if name.startswith("test ")}
    everywhere = one.everywhere()
    (head,) = PairFormer.load(tmp_path / "seed2020/00/model").additives
    said = head(*read_seed_sites(everywhere, 6).all())[0].detach().numpy()
    np.testing.assert_allclose(kept["pair-former repression centred"], one.centred(said), atol=1e-3)  # saved as halves
    seeds = baselines.untrained_scores(everywhere)["seed_score_au"]
    np.testing.assert_allclose(kept["seed_score_au centred"], one.centred(seeds))
    centred = kept["pair-former repression centred"], one.test.label
    expected = effect_calibration(kept["pair-former repression"], one.test.raw, centred)
    assert {name: report[name] for name in expected} == expected


def test_a_lead_over_fold_changes_is_that_of_a_score_of_the_same_kind(tmp_path):
    """Centred scores against the model's centred one, the others against it as it is."""
    rng, text = np.random.default_rng(0), np.repeat(np.array(list("abcd"), object), 40)
    columns = [rng.normal(size=160).astype(np.float32) for _ in range(3)]
    test = Effects(columns[0], text, text, text, text, *columns[1:])
    names = ["seeds", "pair-former", "pair-former repression", "seeds centred", "pair-former repression centred"]
    noisy = {name: Score(columns[0] + rng.normal(size=160), np.zeros(0), False, "model") for name in names}
    result = FoldResult("one", test.label, text, np.ones(160, bool), noisy, np.zeros(0))
    report = {"protocol": "made", "statement": "", "audit": [], "run": {}, "held_out": True}
    found = evaluation._effects_report(report, [result], [test], tmp_path, 20)["summary"]["scores"]
    assert found.keys() == {"gene_elsewhere", *names}
    for name, scored in found.items():
        ours = "pair-former repression" + (" centred" if name.endswith("centred") else "")
        expected = found[ours]["spearman"]["mean"] - scored["spearman"]["mean"]
        assert scored["spearman"]["difference"] == pytest.approx(expected)
    assert sum(row["rows"] for row in report["effect_bins"]) == 160
    assert "| predicted log2 fold change |" in (tmp_path / "report.md").read_text()
    rest = {name: score for name, score in noisy.items() if "repression" not in name}  # a model without additive heads
    report = evaluation._effects_report(report, [replace(result, scores=rest)], [test], tmp_path, 20)
    assert report["summary"]["scores"].keys() == {"gene_elsewhere", *rest}
