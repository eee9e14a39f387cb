"""Metrics: worked by hand, invariances, and the bootstrap against a plain loop over scikit-learn."""

import functools

import numpy as np
import pytest

from pairformer import metrics

pytest.importorskip("sklearn")
pytest.importorskip("torch")

from pairformer.evaluation.fold_change import (
    bins_table,
    effect_bins,
    effect_calibration,
    experiment_metrics,
    summarise_effects,
)  # fmt: skip

LABEL = np.array([1, 1, 1, 1, 0, 0])
PROBABILITY = np.array([0.9, 0.8, 0.5, 0.2, 0.7, 0.1])


@pytest.fixture
def generator():
    return np.random.default_rng(2020)


def test_decisions_by_hand():
    """Three of four positives and one of two negatives called: TP 3/8, FN 1/8, FP 1/4, TN 1/4."""
    figures = metrics.decisions(LABEL, PROBABILITY)
    assert figures == pytest.approx(
        {
            "f1": 2 / 3,
            "accuracy": 5 / 8,
            "precision": 3 / 5,
            "recall": 3 / 4,
            "specificity": 1 / 2,
            "npv": 2 / 3,
            "mcc": (3 / 4 + 1 / 2 - 1) / np.sqrt(4 * 5 / 8 * 3 / 8),
        }
    )


@pytest.mark.parametrize(("threshold", "zero"), [(0.0, ("specificity", "npv", "mcc")), (2.0, ("f1", "precision"))])
def test_decisions_without_calls_of_a_class_are_zero(threshold, zero):
    figures = metrics.decisions(LABEL, PROBABILITY, threshold)
    assert [figures[name] for name in zero] == [0.0] * len(zero)


def test_decisions_are_plain_with_equal_classes(generator):
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    label, probability = np.arange(40) % 2, generator.random(40)
    figures, called = metrics.decisions(label, probability, 0.4), probability >= 0.4
    for name, plain in (("f1", f1_score), ("accuracy", accuracy_score), ("mcc", matthews_corrcoef)):
        assert figures[name] == pytest.approx(plain(label, called))


def test_precision_recall_spans_the_average_precision(generator):
    label, score = generator.random(50) < 0.8, generator.integers(0, 9, 50)
    precision, recall = metrics.precision_recall(label, score)
    assert -np.diff(recall) @ precision[:-1] == pytest.approx(metrics.ranking(label, score)["pr_auc"])
    assert precision[0] == pytest.approx(0.5)


def test_best_threshold_by_hand():
    """Down to 0.5: recall 3/4, half the negatives; down to 0.2: recall 1, half the negatives, F1 4/5."""
    assert metrics.best_threshold(LABEL, PROBABILITY) == 0.2
    assert metrics.decisions(LABEL, PROBABILITY, 0.2)["f1"] == pytest.approx(4 / 5)


def test_best_threshold_is_the_lowest_of_the_best():
    """Rates (1/2, 0) at score 3 and (1, 1) at 1 both give F1 2/3; (1/2, 1/2) between gives less."""
    assert metrics.best_threshold([1, 0, 0, 1], [3, 2, 1, 1]) == 1
    assert [metrics.decisions([1, 0, 0, 1], [3, 2, 1, 1], t)["f1"] for t in (3, 1)] == pytest.approx([2 / 3] * 2)
    # 4 of 5 against 3 of 5 and all against all give 2/3 too, which differ in the last bit
    assert metrics.best_threshold([1, 0, 1, 1, 0, 0, 1, 0, 0, 1], np.arange(10)[::-1]) == 0


def test_best_threshold_beats_every_other(generator):
    label, score = generator.random(60) < 0.7, generator.integers(0, 20, 60)
    f1 = {t: metrics.decisions(label, score, t)["f1"] for t in np.unique(score)}
    assert f1[metrics.best_threshold(label, score)] == pytest.approx(max(f1.values()))


def test_reliability_by_hand():
    """Bins [0, 0.5) and [0.5, 1]; a positive weighs 1/8, a negative 1/4."""
    table = metrics.reliability(LABEL, PROBABILITY, n_bins=2)
    assert table["rows"].tolist() == [2, 4]
    assert table["weight"] == pytest.approx([3 / 8, 5 / 8])
    assert table["positives"] == pytest.approx([1 / 3, 3 / 5])
    assert table["probability"] == pytest.approx([(0.2 + 2 * 0.1) / 3, (0.9 + 0.8 + 0.5 + 2 * 0.7) / 5])
    figures = metrics.calibration(LABEL, PROBABILITY, n_bins=2)
    assert figures["calibration_error"] == pytest.approx(3 / 8 * 0.2 + 5 / 8 * 0.12)
    assert figures["brier"] == pytest.approx((0.01 + 0.04 + 0.25 + 0.64) / 8 + (0.49 + 0.01) / 4)


def test_reliability_leaves_out_empty_bins_and_keeps_the_ends():
    table = metrics.reliability([0, 1, 1], [0.0, 1.0, 1.0])
    assert table["probability"].tolist() == [0, 1]
    assert table["rows"].sum() == 3


def test_calibrated_probabilities_have_little_error(generator):
    """The classes weigh the same, so the odds of the sample leave every logit."""
    logit = generator.normal(-3, 2, 200_000)
    label = generator.random(len(logit)) < metrics.sigmoid(logit)
    assert label.mean() < 0.2
    even = logit - np.log(label.mean() / (1 - label.mean()))
    assert metrics.calibration(label, metrics.sigmoid(even))["calibration_error"] < 0.01


def test_scale_repairs_planted_overconfidence(generator):
    logit = generator.normal(0, 1.5, 50_000)
    label = generator.random(len(logit)) < metrics.sigmoid(logit)
    scale = metrics.balanced_scale(label, 3.75 * logit)
    assert scale == pytest.approx(1 / 3.75, abs=0.01)
    before, after = (metrics.calibration(label, metrics.sigmoid(z)) for z in (3.75 * logit, scale * 3.75 * logit))
    assert before["calibration_error"] > 0.1
    assert after["calibration_error"] < 0.01
    assert after["brier"] < before["brier"]


def test_scale_stays_in_range():
    """A score that is upside down gets the least scale, one that separates the classes the largest."""
    low, high = metrics.SCALES
    assert metrics.balanced_scale([1, 1, 0], [-2, -1, 3]) == pytest.approx(low)
    assert metrics.balanced_scale([1, 1, 0], [2, 1, -3]) == pytest.approx(high)


def test_at_prior():
    assert metrics.at_prior([0.0, 1.0], 0.5) == pytest.approx([0, 1])
    assert metrics.sigmoid(metrics.at_prior(0, 0.1)) == pytest.approx(0.1)
    for prior in (0, 1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"prior must be in \(0, 1\), got"):
            metrics.at_prior(0, prior)


def test_sigmoid():
    assert metrics.sigmoid([-1e5, 0, 1e5]).tolist() == [0, 0.5, 1]
    assert metrics.sigmoid(-3) == pytest.approx(1 / (1 + np.exp(3)))


@pytest.mark.parametrize(
    "figure", [metrics.decisions, metrics.best_threshold, metrics.reliability, metrics.calibration]
)
def test_one_class_is_refused(figure):
    with pytest.raises(ValueError, match="label must have both classes, got 2 rows of one"):
        figure([1, 1], [0.5, 0.6])


def test_impossible_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got 0.5 to 1.5"):
        metrics.reliability([0, 1], [0.5, 1.5])


def test_row_order_does_not_matter(generator):
    label, probability = generator.random(80) < 0.8, generator.random(80).round(1)
    order = generator.permutation(80)
    for figure in (metrics.ranking, metrics.decisions, metrics.calibration):
        assert figure(label, probability) == pytest.approx(figure(label[order], probability[order]))
    assert metrics.best_threshold(label, probability) == metrics.best_threshold(label[order], probability[order])


def test_monotone_maps_do_not_matter(generator):
    label, score = generator.random(80) < 0.8, generator.integers(-9, 9, 80).astype(float)
    mapped = np.exp(score / 3)
    assert metrics.ranking(label, score) == pytest.approx(metrics.ranking(label, mapped))
    assert np.exp(metrics.best_threshold(label, score) / 3) == metrics.best_threshold(label, mapped)
    groups = [np.arange(80) % 11]
    samples = metrics.bootstrap([label], [[score, mapped]], groups, 20)
    assert np.array_equal(samples[:, 0], samples[:, 1])


def folds_to_resample(generator):
    """Three folds of few groups: scores with many ties, a class that one group holds, a fold with one class."""
    folds = []
    for rows, names in ((41, "ABC"), (17, "CD"), (9, "AE")):
        group = generator.choice(list(names), rows).astype(object)
        label = generator.random(rows) < 0.7
        scores = np.stack([generator.integers(0, 4, rows), generator.normal(size=rows), np.zeros(rows)])
        folds.append((label, scores, group))
    for (label, _, group), alone in zip(folds[:2], "AD", strict=True):
        label[:] = label & (group == alone)
    folds[2][0][:] = True
    return zip(*folds, strict=True)


def plain_bootstrap(label, scores, groups, n_resamples, rng_seed):
    """The same draws, one at a time, through scikit-learn; and how many folds lost a class."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    names = sorted(set(np.concatenate(groups)))
    rng, lost, samples = np.random.default_rng(rng_seed), [], []
    for _ in range(n_resamples):
        drawn = dict(zip(names, rng.multinomial(len(names), [1 / len(names)] * len(names)), strict=True))
        figures = []
        for y, fold, group in zip(label, scores, groups, strict=True):
            weight = np.array([drawn[name] for name in group], float)
            mass = [weight[y == value].sum() for value in (False, True)]
            if 0 in mass:
                continue
            balanced = weight / np.take(mass, y.astype(int))
            figures.append(
                [[area(y, score, sample_weight=balanced) for area in (average_precision_score, roc_auc_score)]
                 for score in fold]
            )  # fmt: skip
        lost.append(len(label) - len(figures))
        samples.append(np.mean(figures, 0) if figures else np.full((3, 2), np.nan))
    return np.array(samples), lost


def test_bootstrap_equals_the_plain_loop(generator, monkeypatch):
    folds = [list(part) for part in folds_to_resample(generator)]
    expected, lost = plain_bootstrap(*folds, 60, 7)
    assert set(lost) == {1, 2, 3}
    assert np.isnan(expected).any()
    np.testing.assert_allclose(metrics.bootstrap(*folds, 60, 7), expected, rtol=0, atol=1e-10)
    monkeypatch.setattr(metrics, "CHUNK", 41 * 7)
    np.testing.assert_allclose(metrics.bootstrap(*folds, 60, 7), expected, rtol=0, atol=1e-10)


def test_bootstrap_of_a_constant_score_is_chance(generator):
    samples = metrics.bootstrap([generator.random(90) < 0.9], [np.zeros((1, 90))], [np.arange(90)], 50)
    assert samples == pytest.approx(0.5)


def test_bootstrap_of_one_group_is_the_ranking():
    """The one group is drawn once every time: no resample differs from the rows themselves."""
    samples = metrics.bootstrap([LABEL], [[PROBABILITY]], [["A"] * 6], 3)
    assert samples[:, 0] == pytest.approx(np.array([list(metrics.ranking(LABEL, PROBABILITY).values())] * 3))


def test_bootstrap_is_wider_over_groups_than_over_rows(generator):
    """Rows of one group share their score, so the groups hold less than the rows seem to."""
    group = np.arange(400) % 20
    label = generator.random(400) < 0.5
    score = generator.normal(size=20)[group] + label
    widths = [
        np.diff(metrics.interval(metrics.bootstrap([label], [[score]], [names], 200)[:, 0, 1]))
        for names in (group, np.arange(400))
    ]
    assert widths[0] > 1.3 * widths[1]


def test_bootstrap_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"scores must be \(S, 2\) with a group per row, got \(1, 3\), 2"):
        metrics.bootstrap([[0, 1]], [[[1, 2, 3]]], [["A", "B"]])
    with pytest.raises(ValueError, match="scores must be finite"):
        metrics.bootstrap([[0, 1]], [[[1, np.nan]]], [["A", "B"]])
    assert metrics.bootstrap([[0, 1]], [[[1, 2]]], [["A", "B"]], 0).shape == (0, 1, 2)


def test_interval():
    samples = np.arange(101.0)
    assert metrics.interval(np.append(samples, np.nan), 0.9) == pytest.approx((5, 95))
    assert np.isnan(metrics.interval(np.array([np.nan]))).all()


def test_figures_of_one_class_or_of_nan_are_refused():
    for call in (metrics.ranking, metrics.balanced_loss, metrics.balanced_scale, metrics.decisions):
        with pytest.raises(ValueError, match="label must have both classes, got 2 rows of one"):
            call([1, 1], [0.1, 0.2])
    by_mirna = functools.partial(metrics.within_mirna, ["a", "a"])
    for call in (metrics.balanced_scale, metrics.decisions, by_mirna):
        with pytest.raises(ValueError, match="must be finite, got a NaN or an infinity"):
            call([0, 1], [np.nan, 0.2])


def test_a_fold_without_rows_has_no_figure():
    full, empty = ([0, 1], [[1.0, 2.0]], ["a", "b"]), ([], np.empty((1, 0)), [])
    with pytest.raises(ValueError, match="label must have rows in a fold, got none"):
        metrics.bootstrap(*([part] for part in empty))
    both = metrics.bootstrap(*([one, other] for one, other in zip(full, empty, strict=True)), n_resamples=20)
    np.testing.assert_array_equal(both, metrics.bootstrap(*([part] for part in full), n_resamples=20))


def test_within_mirna_by_hand():
    """Pairs of rows that share the miRNA alone, a tie as half; an "a" of each class against the others' of "b"."""
    mirna, label, score = ["a", "a", "a", "b", "b", "c"], [1, 0, 0, 1, 0, 1], [2, 1, 2, 4, 3, 0]
    assert metrics.within_mirna(mirna, label, score) == (pytest.approx(2.5 / 3), 3)
    share, count = metrics.within_mirna(["a", "b"], [1, 0], [1, 0])
    assert np.isnan(share)
    assert count == 0


# Fold changes.


def test_experiment_metrics_by_hand():
    effect = np.arange(20.0)
    assert experiment_metrics(effect, effect[::-1], 2 * effect) == pytest.approx((1, 1, 1, -1))
    assert experiment_metrics(effect, effect, np.zeros(20)) == (0, 0, 0.5, 0)
    effect = np.arange(21.0)  # of the two at the top one is scored first, one last
    score = np.where(effect == 19, -1, effect)
    _, r2, area, _ = experiment_metrics(effect, (effect - 10) ** 2, score)
    assert (r2, area) == (pytest.approx(np.corrcoef(effect, score)[0, 1] ** 2), 0.5)


def test_an_experiment_in_several_folds_has_their_mean():
    effect = np.arange(20.0)
    scores = [{"model": effect, "other": effect}, {"model": -effect, "other": effect}]
    found = summarise_effects([["a"] * 20] * 2, [effect] * 2, [effect] * 2, scores, "model", 10)["scores"]
    assert [found[name]["spearman"]["values"] for name in ("model", "other")] == [[0], [1]]


def test_lead_is_paired_over_experiments():
    rng = np.random.default_rng(1)
    names = np.repeat([f"m{i}" for i in range(6)], 50)
    effect = rng.normal(size=300)
    good = effect + rng.normal(size=300)
    scores = {"pair-former": good, "same": good.copy(), "noise": rng.normal(size=300)}
    summary = summarise_effects([names[:150], names[150:]], [effect[:150], effect[150:]], [effect[:150], effect[150:]],
                                [{k: v[:150] for k, v in scores.items()}, {k: v[150:] for k, v in scores.items()}],
                                "pair-former", 200)  # fmt: skip
    same, noise = (summary["scores"][name]["spearman"] for name in ("same", "noise"))
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    assert noise["low"] > 0.3
    assert len(noise["values"]) == 6


def test_effect_interval_holds_its_share_at_every_strength():
    """Errors grow with predicted repression, downwards more: the interval does too, and holds 90 % throughout."""
    rng = np.random.default_rng(0)
    repression = np.concatenate([rng.normal(0, 0.2, 30_000), rng.exponential(1, 30_000)])
    strength = np.maximum(0.5 * repression, 0)
    noise = rng.normal(0, 0.3 + np.where(rng.random(60_000) < 0.5, strength, 0.2 * strength))
    effect = 0.5 * repression + np.where(noise > 0, noise, 0.5 * noise)
    found = effect_calibration(repression, effect)
    scale, ends, growth = (np.array(found[f"effect_{name}"]) for name in ("scale", "interval", "widening"))
    assert ends[0] < 0 < ends[1]
    assert growth[0] > 1.2 * growth[1] > 0
    predicted = -scale * repression
    outwards = np.maximum(-predicted, 0)[:, None] * growth * [-1, 1]
    low, high = (predicted[:, None] + ends + outwards).T
    held = (-effect >= low) & (-effect <= high)
    assert held.mean() == pytest.approx(0.9, abs=0.005)
    for part in np.array_split(np.argsort(predicted), 6):
        assert held[part].mean() == pytest.approx(0.9, abs=0.03)
    few = effect_calibration(repression[-9:], effect[-9:])  # too few to tell parts apart
    assert few["effect_widening"] == [0, 0]
    assert effect_calibration(repression, -effect) == effect_calibration(0 * repression, effect) == {}
    centred = effect_calibration(repression, effect + 1, (repression, effect))  # a level is no part of the unit
    assert centred["effect_scale"] == found["effect_scale"]
    assert np.mean(centred["effect_interval"]) == pytest.approx(np.mean(ends) - 1, abs=0.05)
    strength = rng.uniform(0.2, 1, 20_000)  # errors that vanish sooner than their line would cross 0
    bent = effect_calibration(strength, strength + rng.normal(0, strength**2))
    assert bent["effect_interval"][0] < 0 < bent["effect_interval"][1]


def test_interval_of_a_lead_holds_95_percent_of_draws():
    rng = np.random.default_rng(1)
    names, effect = np.repeat(list("abcdef"), 30), rng.normal(size=180)
    scores = {"model": effect + rng.normal(size=180), "noise": rng.normal(size=180)}
    found = summarise_effects([names], [effect], [effect], [scores], "model", 200)["scores"]
    lead = np.subtract(*(found[name]["spearman"]["values"] for name in ("model", "noise")))
    drawn = np.random.default_rng(2020).integers(6, size=(200, 6))
    ends = [found["noise"]["spearman"][end] for end in ("low", "high")]
    assert ends == pytest.approx(np.quantile(lead[drawn].mean(1), (0.025, 0.975)))


def test_bins_of_predicted_fold_changes_by_hand():
    """Edges belong to the bin above; an interval widens by what is predicted; nothing is said of empty bins."""
    calibration = {"effect_scale": 2.0, "effect_interval": [-0.5, 0.25], "effect_widening": [1.0, 0.5]}
    repression = np.array([0.05, 0.125, 0.125, -0.1, 0.0])  # predicted -0.1, -0.25, -0.25, 0.2, 0
    found = effect_bins(repression, np.array([0.1, 1.1, 0.9, 1.0, 0.5]), np.array([0, 1, 2, 3, 4.0]), calibration)
    assert [(row["low"], row["high"], row["rows"]) for row in found] == [
        (-0.3, -0.2, 2),
        (-0.1, -0.05, 1),
        (0, None, 2),
    ]
    assert [row["predicted"] for row in found] == pytest.approx([-0.25, -0.1, 0.1])
    assert [row["measured"] for row in found] == pytest.approx([-1, -0.1, -0.75])
    assert [row["centred"] for row in found] == pytest.approx([-1.5, 0, -3.5])
    assert [row["inside"] for row in found] == [0.5, 1, 0.5]  # -1.0 <= -0.9; 0.2 - 0.5 > -1.0
    assert "| -0.3 to -0.2 | 2 | -0.250 | -1.000 | -1.500 | 0.500 |" in bins_table(found)
    assert "| 0.0 to | 2 |" in bins_table(found)


def test_an_interval_does_not_widen_where_errors_shrink():
    """With errors that are smaller for strong repression it keeps one width."""
    rng = np.random.default_rng(0)
    strength = rng.uniform(0.2, 1, 20_000)
    found = effect_calibration(strength, strength + rng.normal(0, 1.2 - strength))
    assert found["effect_widening"] == [0, 0]
    assert found["effect_interval"][0] < -0.5 < 0.5 < found["effect_interval"][1]
