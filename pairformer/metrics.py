"""What a score is worth, with both classes weighing the same: ranking, decisions, calibration, resampling."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pairformer.scan import Strings

CHUNK = 2**20
"""Resamples times rows that :func:`bootstrap` holds at once, in some ten arrays of 8 bytes."""

SCALES = (0.01, 10.0)
"""Range that :func:`balanced_scale` chooses from."""


def ranking(label: ArrayLike, score: ArrayLike) -> dict[str, float]:
    """Class-balanced PR-AUC (average precision, each class weighing 0.5) and ROC-AUC.

    Args:
        label: (M,) 0 or 1, both present.
        score: (M,) higher means positive.

    Raises:
        ValueError: ``label`` has one class only.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    positive = _positive(label)
    return {
        "pr_auc": float(average_precision_score(positive, score, sample_weight=_class_weights(positive))),
        "roc_auc": float(roc_auc_score(positive, score)),
    }


def within_mirna(mirna: Strings, label: ArrayLike, score: ArrayLike) -> tuple[float, int]:
    """ROC-AUC over pairs of rows that share the miRNA, and how many such (positive, negative) pairs there are.

    What a score knows of the transcript once the miRNA's identity is taken out; NaN where no miRNA has both.
    """
    mirna, label, score = np.asarray(mirna), np.asarray(label), _finite("score", score)
    won, count = 0.0, 0
    for name in set(mirna[label < 0.5]):
        margin = np.subtract.outer(score[(mirna == name) & (label > 0.5)], score[(mirna == name) & (label < 0.5)])
        won += (margin > 0).sum() + 0.5 * (margin == 0).sum()
        count += margin.size
    return (float(won / count) if count else float("nan")), count


def precision_recall(label: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Class-balanced precision and recall, (T + 1,) each, from the lowest of T thresholds up to recall 0."""
    from sklearn.metrics import precision_recall_curve

    positive = _positive(label)
    return precision_recall_curve(positive, score, sample_weight=_class_weights(positive))[:2]


def decisions(label: ArrayLike, probability: ArrayLike, threshold: float = 0.5) -> dict[str, float]:
    """Class-balanced figures of calling a row positive where ``probability >= threshold``.

    Args:
        label: (M,) 0 or 1, both present.
        probability: (M,); any score will do with a threshold of its own.
        threshold: of ``probability``.

    Returns:
        f1, accuracy, precision, recall, specificity, npv (precision of the negative calls), mcc (Matthews
        correlation); 0 where nothing is called. With as many positives as negatives, the plain figures.

    Raises:
        ValueError: ``label`` has one class only.
    """
    from sklearn.metrics import accuracy_score, matthews_corrcoef, precision_recall_fscore_support

    positive, called = _positive(label), _finite("probability", probability) >= threshold
    weight = _class_weights(positive)
    precision, recall, f1, _ = precision_recall_fscore_support(
        positive, called, labels=[False, True], sample_weight=weight, zero_division=0.0
    )
    figures = {
        "f1": f1[1],
        "accuracy": accuracy_score(positive, called, sample_weight=weight),
        "precision": precision[1],
        "recall": recall[1],
        "specificity": recall[0],
        "npv": precision[0],
        "mcc": matthews_corrcoef(positive, called, sample_weight=weight),
    }
    return {name: float(value) for name, value in figures.items()}


def best_threshold(label: ArrayLike, score: ArrayLike) -> float:
    """The score that, as threshold of :func:`decisions`, gives the highest F1; the lowest of several such.

    Args:
        label: (M,) 0 or 1, both present.
        score: (M,) finite, higher means positive.

    Raises:
        ValueError: ``label`` has one class only.
    """
    from sklearn.metrics import roc_curve

    false_rate, true_rate, threshold = roc_curve(_positive(label), score, drop_intermediate=False)
    # F1 = 2 TP / (2 TP + FP + FN) where both classes have mass 1; rounded, since equal fractions may differ in a bit.
    f1 = (2 * true_rate / (true_rate + false_rate + 1)).round(12)
    return float(threshold[::-1][f1[::-1].argmax()])


def reliability(label: ArrayLike, probability: ArrayLike, n_bins: int = 10) -> NDArray[np.void]:
    """How often rows of one probability are positive, both classes weighing the same.

    Args:
        label: (M,) 0 or 1, both present.
        probability: (M,) in [0, 1].
        n_bins: bins of equal width; bin b holds b / n_bins <= probability < (b + 1) / n_bins, the last also 1.

    Returns:
        One record per non-empty bin: probability (mean), positives (share), weight (the bin's share of all),
        float64; rows int64.

    Raises:
        ValueError: ``label`` has one class only, or a probability is not in [0, 1].
    """
    positive, probability = _positive(label), np.asarray(probability, float)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"probability must be in [0, 1], got {probability.min()} to {probability.max()}")
    bins = np.minimum((probability * n_bins).astype(np.int64), n_bins - 1)
    weight = _class_weights(positive) / len(positive)
    rows, mass, mean, share = (
        np.bincount(bins, weights, n_bins) for weights in (None, weight, weight * probability, weight * positive)
    )
    full = rows > 0
    table = np.empty(full.sum(), [("probability", "f8"), ("positives", "f8"), ("weight", "f8"), ("rows", "i8")])
    table["probability"], table["positives"] = mean[full] / mass[full], share[full] / mass[full]
    table["weight"], table["rows"] = mass[full], rows[full]
    return table


def calibration(label: ArrayLike, probability: ArrayLike, n_bins: int = 10) -> dict[str, float]:
    """Class-balanced Brier score (0.25 for even odds) and expected calibration error.

    The error is the mean distance of the two columns of :func:`reliability`, bins counting by weight. It is
    biased upwards in small samples, so compare it between scores of the same rows only.
    """
    from sklearn.metrics import brier_score_loss

    positive, table = _positive(label), reliability(label, probability, n_bins)
    return {
        "brier": float(brier_score_loss(positive, probability, sample_weight=_class_weights(positive))),
        "calibration_error": float(table["weight"] @ abs(table["probability"] - table["positives"])),
    }


def sigmoid(logit: ArrayLike) -> NDArray[np.float64]:
    """Probability of a logit, of any size without overflow; exactly 0.5 at 0."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logit, float)))


def at_prior(logit: ArrayLike, prior: float) -> NDArray[np.float64]:
    """The logit moved from even prior odds to a share ``prior`` of positives.

    Raises:
        ValueError: ``prior`` is not in (0, 1).
        TypeError: it is no number.
    """
    if not isinstance(prior, numbers.Real):
        raise TypeError(f"prior must be a number, got {prior!r}")
    if not 0 < prior < 1:
        raise ValueError(f"prior must be in (0, 1), got {prior}")
    return np.asarray(logit, float) + math.log(prior / (1 - prior))


def balanced_loss(label: ArrayLike, logit: ArrayLike) -> float:
    """Mean negative log-likelihood of sigmoid(logit), both classes weighing the same; ValueError without both."""
    positive, logit = _positive(label), np.asarray(logit, float)
    return float((_class_weights(positive) * np.logaddexp(0, np.where(positive, -logit, logit))).mean())


def balanced_scale(label: ArrayLike, logit: ArrayLike) -> float:
    """Factor c within ``SCALES`` with the least :func:`balanced_loss` of c * logit: temperature scaling, 1 / c.

    One number, since few negatives fit no more, and none that moves even odds (a logit of 0) or the order. ValueError
    without both classes, or for a logit that is not finite.
    """
    logit = _finite("logit", logit)
    scales = np.geomspace(*SCALES, 601)
    return float(min(scales, key=lambda scale: balanced_loss(label, scale * logit)))


def bootstrap(
    label: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    groups: Sequence[Strings],
    n_resamples: int = 1000,
    rng_seed: int = 2020,
) -> NDArray[np.float64]:
    """Resampled :func:`ranking` of several scores on the same rows, averaged over folds.

    Rows of one miRNA are not independent, so whole groups are drawn: as many as there are names in all folds,
    with replacement, ``multinomial`` over the sorted names. One draw serves every fold and score, so figures of
    one resample may be subtracted.

    Args:
        label: per fold (M,) 0 or 1.
        scores: per fold (S, M) finite, the same S scores in each.
        groups: per fold (M,) names.
        n_resamples: number of draws R.
        rng_seed: of the draws.

    Returns:
        (R, S, 2) float64: class-balanced PR-AUC and ROC-AUC, mean over the folds that still have both classes;
        NaN where none has.

    Raises:
        ValueError: a fold's inputs differ in rows, there is no row, or a score is not finite.
    """
    names, index = np.unique(np.concatenate([np.asarray(g, object) for g in groups]), return_inverse=True)
    if not len(names):
        raise ValueError("label must have rows in a fold, got none")
    group_of = np.split(index, np.cumsum([len(g) for g in groups])[:-1])
    folds = [_tied_runs(*fold) for fold in zip(label, scores, group_of, strict=True)]
    rng, even = np.random.default_rng(rng_seed), np.full(len(names), 1 / len(names))
    step = max(1, CHUNK // max(1, *map(len, group_of)))
    sizes = [min(step, n_resamples - start) for start in range(0, n_resamples, step)]
    means = [_fold_mean(rng.multinomial(len(names), even, size), folds) for size in sizes]
    return np.concatenate(means) if means else np.empty((0, len(folds[0]), 2))


def interval(samples: NDArray[np.floating], level: float = 0.95) -> tuple[float, float]:
    """Low and high percentile that hold the middle ``level`` of (R,) samples; NaN ones do not count."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class _Ranked(NamedTuple):
    """One score of one fold, its rows sorted from the highest; equal scores are one run."""

    positive: NDArray[np.bool_]  # (M,)
    group: NDArray[np.int64]  # (M,)
    ends: NDArray[np.int64]  # (E,) last row of each run


def _tied_runs(label: ArrayLike, scores: ArrayLike, group: NDArray[np.int64]) -> list[_Ranked]:
    positive, scores = np.asarray(label) > 0.5, _finite("scores", scores)
    if scores.ndim != 2 or not scores.shape[1] == len(positive) == len(group):
        raise ValueError(f"scores must be (S, {len(positive)}) with a group per row, got {scores.shape}, {len(group)}")
    ranked = []
    for score in scores:
        order = np.argsort(-score)
        ends = np.flatnonzero(np.diff(score[order], append=np.inf))
        ranked.append(_Ranked(positive[order], group[order], ends))
    return ranked


def _fold_mean(draws: NDArray[np.int64], folds: list[list[_Ranked]]) -> NDArray[np.float64]:
    """(R, S, 2) mean over folds, without those that lost a class; ``draws`` (R, G) times each group was drawn."""
    figures = np.array([[_areas(draws, ranked) for ranked in fold] for fold in folds])  # (F, S, 2, R)
    kept = (~np.isnan(figures)).sum(0)
    mean = np.divide(np.nansum(figures, 0), kept, out=np.full(kept.shape, np.nan), where=kept > 0)
    return np.moveaxis(mean, -1, 0)


def _areas(draws: NDArray[np.int64], ranked: _Ranked) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """PR-AUC and ROC-AUC, (R,) each, of the rows times their group's draws; NaN where a class is lost."""
    if not len(ranked.ends):
        lost = np.full(len(draws), np.nan)
        return lost, lost
    weight = draws[:, ranked.group]  # (R, M)
    called = weight.cumsum(1)[:, ranked.ends]  # (R, E)
    true = (weight * ranked.positive).cumsum(1)[:, ranked.ends]
    false = called - true
    with np.errstate(invalid="ignore"):
        true_rate, false_rate = true / true[:, -1:], false / false[:, -1:]
    both = true_rate + false_rate
    precision = np.divide(true_rate, both, out=np.zeros(both.shape), where=both != 0)
    rise = np.diff(true_rate, prepend=0)
    return (rise * precision).sum(1), (np.diff(false_rate, prepend=0) * (true_rate - rise / 2)).sum(1)


def _positive(label: ArrayLike) -> NDArray[np.bool_]:
    """(M,) True where the label is 1."""
    positive = np.asarray(label) > 0.5
    if positive.all() or not positive.any():
        raise ValueError(f"label must have both classes, got {len(positive)} rows of one")
    return positive


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, float)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got a NaN or an infinity")
    return array


def _class_weights(label: ArrayLike) -> NDArray[np.float64]:
    """Weights under which both classes count equally and the mean weight is 1."""
    positive = np.asarray(label) > 0.5
    return np.where(positive, 0.5 / positive.mean(), 0.5 / (~positive).mean())
