"""Scores against measured repression, one experiment at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

METRICS = ("spearman", "r2", "auroc_top", "spearman_raw")
TOP_SHARE = 0.05
LEVELS = (0.05, 0.95)  # quantiles between which 90 % of measured fold changes lie
EDGES = (-np.inf, -0.6, -0.4, -0.3, -0.2, -0.1, -0.05, 0.0, np.inf)  # of bins of predicted log2 fold changes
INTERVAL_PARTS, INTERVAL_LEAST = 50, 200  # parts of the pairs an interval is fitted to, and pairs of a part


def experiment_metrics(effect: NDArray, raw: NDArray, score: NDArray) -> tuple[float, ...]:
    """How a score ranks the genes of one experiment.

    Args:
        effect: (G,) repression, centred per gene or as measured.
        raw: (G,) repression as measured.
        score: (G,) higher means more repressed.

    Returns:
        Spearman's rho, squared Pearson, ROC-AUC of the ``TOP_SHARE`` most repressed, Spearman's rho with ``raw``.
        A constant score, or effect, has 0, 0, 0.5, 0.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    if np.ptp(score) == 0 or np.ptp(effect) == 0:
        return 0.0, 0.0, 0.5, 0.0
    top = effect >= np.quantile(effect, 1 - TOP_SHARE)
    return (
        float(spearmanr(effect, score).statistic),
        float(np.corrcoef(effect, score)[0, 1] ** 2),
        float(roc_auc_score(top, score)),
        float(spearmanr(raw, score).statistic) if np.ptp(raw) else 0.0,
    )


def summarise_effects(
    experiments: Sequence[Sequence[str]],
    effects: Sequence[NDArray],
    raws: Sequence[NDArray],
    scores: Sequence[dict[str, NDArray]],
    reference: str,
    n_resamples: int = 1000,
) -> dict:
    """Metrics of each score by experiment, their mean and spread, and the reference's lead with its interval.

    An experiment whose genes lie in several folds has the mean over them: scores of two models do not compare.

    Args:
        experiments: of each fold, the experiment of each row.
        effects: of each fold, (M,) repression, centred or as measured.
        raws: of each fold, (M,) measured repression.
        scores: of each fold, name -> (M,).
        reference: the score whose lead over each other one is given.
        n_resamples: experiments are drawn with replacement this often.

    Returns:
        experiments: their names; scores: name -> metric -> {mean, sd, values by experiment, and lead of the
        reference: difference, low, high (95 %)}.
    """
    names = sorted({name for fold in experiments for name in fold})
    table = {score: np.full((len(effects), len(names), len(METRICS)), np.nan) for score in scores[0]}
    for f, (fold, effect, raw) in enumerate(zip(experiments, effects, raws, strict=True)):
        for e, name in enumerate(names):
            rows = np.flatnonzero(np.asarray(fold) == name)
            if len(rows):
                for score, values in scores[f].items():
                    table[score][f, e] = experiment_metrics(effect[rows], raw[rows], values[rows])
    means = {score: np.nanmean(values, 0) for score, values in table.items()}  # (E, metrics)
    drawn = np.random.default_rng(2020).integers(len(names), size=(n_resamples, len(names)))
    summary: dict = {"experiments": names, "scores": {}}
    for score, values in means.items():
        lead = means[reference] - values
        low, high = np.quantile(lead[drawn].mean(1), (0.025, 0.975), axis=0)
        summary["scores"][score] = {
            metric: {
                "mean": float(values[:, m].mean()), "sd": float(values[:, m].std()), "values": values[:, m].tolist(),
                "difference": float(lead[:, m].mean()), "low": float(low[m]), "high": float(high[m]),
            }
            for m, metric in enumerate(METRICS)
        }  # fmt: skip
    return summary


def effect_calibration(repression: NDArray, effect: NDArray, centred: tuple[NDArray, NDArray] | None = None) -> dict:
    """Unit and error of predicted repression, from held-out pairs.

    Args:
        repression: (M,) as predicted.
        effect: (M,) measured, -log2.
        centred: both less their gene's mean in other experiments, to take the unit from; None: from both as they are.

    Returns:
        effect_scale: least squares, effect = scale * repression; effect_interval: quantiles of what measured log2 fold
        changes lie off -scale * repression, and effect_widening: what they grow by with predicted repression, lines
        through the quantiles of up to ``INTERVAL_PARTS`` equally large parts of the pairs, sorted by repression; 0
        where such lines would cross 0. Nothing at all where predicted repression does not go with measured.
    """
    said, found = centred or (repression, effect)
    scale = float(np.sum(said * found) / max(np.sum(np.square(said)), 1e-12))
    if scale <= 0:
        return {}
    predicted = scale * np.asarray(repression, np.float64)
    parts = np.array_split(np.argsort(predicted), min(INTERVAL_PARTS, max(1, len(predicted) // INTERVAL_LEAST)))
    strength = np.array([np.maximum(predicted[part], 0).mean() for part in parts])
    off = np.array([np.quantile((predicted - effect)[part], LEVELS) for part in parts])
    spread = strength - strength.mean()
    slope = spread @ off / max(spread @ spread, 1e-12)  # (2,)
    slope = np.array([min(slope[0], 0.0), max(slope[1], 0.0)])
    ends = _ends(predicted, effect, slope)
    if not ends[0] < 0 < ends[1]:
        slope = np.zeros(2)
        ends = _ends(predicted, effect, slope)
    return {
        "effect_scale": round(scale, 4),
        "effect_interval": [round(float(end), 4) for end in ends],
        "effect_widening": [round(abs(float(one)), 4) for one in slope],
    }


def _ends(predicted: NDArray, effect: NDArray, slope: NDArray) -> NDArray[np.float64]:
    """(2,) quantiles of the error that is left when each end grows with predicted repression."""
    off = (predicted - effect)[:, None] - np.maximum(predicted, 0)[:, None] * slope
    return np.quantile(off, LEVELS, axis=0).diagonal()


def effect_bins(repression: NDArray, effect: NDArray, centred: NDArray, calibration: dict) -> list[dict]:
    """How predicted log2 fold changes hold, by their size.

    Args:
        repression: (M,) as predicted for held-out pairs.
        effect: (M,) measured, -log2.
        centred: (M,) less its gene's mean in other experiments.
        calibration: what :func:`effect_calibration` found.

    Returns:
        Of each bin between two of ``EDGES`` that has pairs: low, high (None: no end), rows, and the means predicted,
        measured, centred and inside, the share of what was measured that its interval holds.
    """
    predicted = -calibration["effect_scale"] * np.asarray(repression, np.float64)
    wider = np.outer(np.maximum(-predicted, 0), calibration["effect_widening"]) * (-1, 1)
    ends = predicted[:, None] + calibration["effect_interval"] + wider
    columns = {"predicted": predicted, "measured": -effect, "centred": -centred,
               "inside": (ends[:, 0] <= -effect) & (-effect <= ends[:, 1])}  # fmt: skip
    bins = []
    for low, high in itertools.pairwise(EDGES):
        rows = (predicted >= low) & (predicted < high)
        if rows.any():
            edges = {name: edge if np.isfinite(edge) else None for name, edge in (("low", low), ("high", high))}
            means = {name: float(column[rows].mean()) for name, column in columns.items()}
            bins.append({**edges, "rows": int(rows.sum()), **means})
    return bins


def bins_table(bins: list[dict]) -> str:
    """Markdown of :func:`effect_bins`."""
    lines = [
        "| predicted log2 fold change | pairs | mean | mean measured | measured, centred | within their interval |",
        "|---|---|---|---|---|---|",
    ]
    for row in bins:
        name = f"{'' if row['low'] is None else row['low']} to {'' if row['high'] is None else row['high']}".strip()
        means = " | ".join(f"{row[key]:.3f}" for key in ("predicted", "measured", "centred", "inside"))
        lines.append(f"| {name} | {row['rows']:,} | {means} |")
    return "\n".join(lines)


def effects_table(summary: dict, groups: dict[str, str]) -> str:
    """Markdown: one row a score, mean +- sd over experiments, and the lead of the model's score, centred where the row
    is, in Spearman's rho."""
    lines = [
        "| kind | score | Spearman | r2 | ROC-AUC of the top 5 % | Spearman, as measured | lead of the model |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, metrics in summary["scores"].items():
        cells = [f"{metrics[metric]['mean']:.3f} ± {metrics[metric]['sd']:.3f}" for metric in METRICS]
        lead = metrics["spearman"]
        cells.append(f"{lead['difference']:+.3f} [{lead['low']:+.3f}, {lead['high']:+.3f}]")
        lines.append("| " + " | ".join([groups[name], name, *cells]) + " |")
    return "\n".join(lines)
