"""Scores of held-out folds -> figures with intervals -> report.json, report.md and plots."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairformer import metrics
from pairformer.data import DataError

GROUPS = ("identity", "untrained", "pooled", "MIL", "model")
"""Kinds of score, in the order of the table."""

RANKING = ("pr_auc", "roc_auc")
"""What :func:`pairformer.metrics.bootstrap` resamples."""

DECISIONS = ("accuracy", "precision", "recall", "specificity", "npv", "mcc", "brier", "calibration_error")
"""Columns of the second table, figures of probabilities."""

KEPT = ("pr_auc", "roc_auc", "within_mirna", "spearman", "r2", "auroc_top")
"""Figures kept with a model that a report calibrates."""


@dataclass(frozen=True, eq=False)
class Score:
    """One score of the rows of a fold; higher means positive."""

    test: NDArray[np.floating]
    """(M,) of the held-out rows."""

    validation: NDArray[np.floating]
    """(V,) of the rows that choose a threshold and a scale."""

    is_logit: bool
    """True: sigmoid(test) is a probability at even prior odds. False: only the order counts."""

    group: str
    """One of ``GROUPS``."""

    def __post_init__(self) -> None:
        if self.group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {self.group!r}")
        for name, rows in (("test", self.test), ("validation", self.validation)):
            if not np.isfinite(rows).all():
                raise ValueError(f"{name} must be finite, got a NaN or an infinity")


@dataclass(frozen=True, eq=False)
class FoldResult:
    """Every score of one fold's held-out rows. Seeds are folds with the same rows and another name."""

    name: str
    """Such as "gene 0, family 2"."""

    label: NDArray
    """(M,) 0 or 1."""

    mirna: NDArray[np.object_]
    """(M,) sequence or name; rows that share it are drawn together."""

    covered: NDArray[np.bool_]
    """(M,) False: the bag has no candidate."""

    scores: dict[str, Score]
    """By name, the same names in every fold."""

    validation_label: NDArray
    """(V,) 0 or 1."""

    def __post_init__(self) -> None:
        rows = len(self.label)
        validation = len(self.validation_label)
        columns = {"mirna": self.mirna, "covered": self.covered}
        for name, column in (columns | {name: score.test for name, score in self.scores.items()}).items():
            if len(column) != rows:
                raise ValueError(f"{name} must have {rows} rows (label), got {len(column)}")
        for name, score in self.scores.items():
            if len(score.validation) != validation:
                raise ValueError(f"{name} must have {validation} validation rows, got {len(score.validation)}")


def summarise(results: list[FoldResult], reference: str, n_resamples: int = 1000, rng_seed: int = 2020) -> dict:
    """Figures of every score, mean and population sd over folds, and of the calibration of one.

    Args:
        results: one per fold and seed; those with one class only enter no figure but the coverage.
        reference: the score that the others are subtracted from and whose calibration is shown.
        n_resamples: of :func:`pairformer.metrics.bootstrap`, which gives the 95 % intervals.
        rng_seed: of the bootstrap.

    Returns:
        reference, n_resamples, rng_seed; coverage, share of rows with a candidate; comparisons, those of
        within_mirna in all folds; folds_without_both_classes; folds (name, rows, negatives, comparisons);
        scores, by name: group, metrics (by name: mean, sd, folds with NaN for a fold without; pr_auc and roc_auc
        also low, high) and, but for the reference, difference (of both: reference minus this, mean, low, high,
        paired); calibration of the reference, None where it is no logit.

    Raises:
        ValueError: folds differ in their scores, ``reference`` is none of them, or no fold has both classes.
    """
    used = [result for result in results if _has_both(result.label)]
    if not used:
        raise ValueError(f"results must have a fold with both classes, got {len(results)} without")
    names = set(used[0].scores)
    if any(set(result.scores) != names for result in results) or reference not in names:
        raise ValueError(f"scores must be the same in every fold and have {reference!r}, got {sorted(names)}")
    comparisons = [metrics.within_mirna(result.mirna, result.label, result.label)[1] for result in results]
    folds = [
        {
            "name": result.name,
            "rows": len(result.label),
            "negatives": int((result.label < 0.5).sum()),
            "comparisons": count,
        }
        for result, count in zip(results, comparisons, strict=True)
    ]
    return {
        "reference": reference,
        "n_resamples": n_resamples,
        "rng_seed": rng_seed,
        "coverage": float(np.concatenate([result.covered for result in results]).mean()),
        "comparisons": sum(comparisons),
        "folds_without_both_classes": len(results) - len(used),
        "folds": folds,
        "scores": _scores(results, used, comparisons, reference, n_resamples, rng_seed),
        "calibration": _calibration(used, reference) if used[0].scores[reference].is_logit else None,
    }


def write(report: dict, results: list[FoldResult], out: Path, *, tables: list[str] | None = None) -> None:
    """Write report.json, report.md and, where matplotlib is installed, pr.svg, reliability.svg, scores.svg.

    Args:
        report: protocol, statement, warning (optional), audit (findings), run (what is known of it, as text or
            numbers) and summary, what :func:`summarise` returned.
        results: the folds of the summary, for the plots.
        out: folder, made where there is none.
        tables: Markdown to put in place of the summary's tables and plots, for a summary of another shape.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(_strict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if tables is None:
        tables = [*_tables(report["summary"]), _plots(report["summary"], results, out)]
    parts = [f"# {report['protocol']}", report["statement"]]
    if "warning" in report:
        parts.append(f"**{report['warning']}**")
    parts += [*tables, "## Audit", _bullets(report["audit"]), "## Run"]
    parts.append(_bullets(f"{key}: {value}" for key, value in report["run"].items()))
    (out / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _has_both(label: NDArray) -> bool:
    return 0 < (label > 0.5).sum() < len(label)


def _validation(result: FoldResult, name: str) -> tuple[NDArray, NDArray[np.floating]] | None:
    """Labels and one score of the validation rows, where both classes are there."""
    label = result.validation_label
    return (label, result.scores[name].validation) if _has_both(label) else None


def _scores(
    results: list[FoldResult],
    used: list[FoldResult],
    comparisons: list[int],
    reference: str,
    n_resamples: int,
    seed: int,
) -> dict:
    """The part ``scores`` of the summary."""
    samples = metrics.bootstrap(
        [result.label for result in used],
        [np.stack([result.scores[name].test for name in used[0].scores]) for result in used],
        [result.mirna for result in used],
        n_resamples,
        seed,
    )
    resampled = dict(zip(used[0].scores, samples.transpose(1, 2, 0), strict=True))  # name -> (2, R)
    values = {name: _over_folds([_fold_metrics(result, name) for result in results]) for name in resampled}
    for figures in values.values():  # each comparison counts once, however many its fold has
        within = np.array(figures["within_mirna"]["folds"])
        known = ~np.isnan(within)
        weight = np.array(comparisons)[known]
        figures["within_mirna"]["mean"] = float(np.average(within[known], weights=weight)) if known.any() else math.nan
    scores: dict[str, dict] = {}
    for name in resampled:
        for metric, areas in zip(RANKING, resampled[name], strict=True):
            values[name][metric].update(_interval(areas))
        scores[name] = {"group": used[0].scores[name].group, "metrics": values[name]}
        if name != reference:
            scores[name]["difference"] = {
                metric: {"mean": values[reference][metric]["mean"] - values[name][metric]["mean"], **_interval(areas)}
                for metric, areas in zip(RANKING, resampled[reference] - resampled[name], strict=True)
            }
    return scores


def _fold_metrics(result: FoldResult, name: str) -> dict[str, float]:
    """Metric -> value of one score on one fold; empty where it has one class only."""
    label, score = result.label, result.scores[name]
    if not _has_both(label):
        return {}
    values = metrics.ranking(label, score.test)
    values["within_mirna"] = metrics.within_mirna(result.mirna, label, score.test)[0]
    if score.is_logit:
        probability = metrics.sigmoid(score.test)
        values |= metrics.decisions(label, probability) | metrics.calibration(label, probability)
    if rows := _validation(result, name):
        threshold = metrics.best_threshold(*rows)
        values["f1_validation"] = metrics.decisions(label, score.test, threshold)["f1"]
        values["threshold_validation"] = threshold
    return values


def _over_folds(folds: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Metric -> mean, sd and folds; a fold without the metric is NaN and enters neither mean nor sd."""
    table = {}
    for metric in dict.fromkeys(metric for fold in folds for metric in fold):
        values = np.array([fold.get(metric, math.nan) for fold in folds])
        known = values[~np.isnan(values)]
        mean, sd = (float(known.mean()), float(known.std())) if len(known) else (math.nan, math.nan)
        table[metric] = {"mean": mean, "sd": sd, "folds": values.tolist()}
    return table


def _interval(samples: NDArray[np.floating]) -> dict[str, float]:
    return dict(zip(("low", "high"), metrics.interval(samples), strict=True))


def _calibration(used: list[FoldResult], reference: str) -> dict:
    """How the reference's probabilities hold, pooled over folds, before and after scaling each fold's logits.

    The scale of a fold is fitted on its validation rows, or where none were set aside on what the other folds' models
    say of their test rows; a fold without both classes there keeps its logits.
    """
    label, logit = _pooled(used, reference)
    rows = [
        _validation(result, reference) if len(result.validation_label) else _other_folds(used, result, reference)
        for result in used
    ]
    scales = [metrics.balanced_scale(*part) if part else 1.0 for part in rows]
    scaled = np.concatenate([c * r.scores[reference].test for c, r in zip(scales, used, strict=True)])
    return {"scales": scales, "before": _reliability(label, logit), "after": _reliability(label, scaled)}


def _other_folds(used: list[FoldResult], result: FoldResult, name: str) -> tuple[NDArray, NDArray[np.floating]] | None:
    """Labels and one score of the other folds' test rows; another seed of this fold is not another fold."""

    def same(other: FoldResult) -> bool:
        return np.array_equal(other.mirna, result.mirna) and np.array_equal(other.label, result.label)

    others = [other for other in used if not same(other)]
    return _pooled(others, name) if others else None


def _pooled(results: list[FoldResult], name: str) -> tuple[NDArray, NDArray[np.floating]]:
    """Labels and one score of the test rows of several folds."""
    return np.concatenate([r.label for r in results]), np.concatenate([r.scores[name].test for r in results])


def _reliability(label: NDArray, logit: NDArray[np.floating]) -> dict:
    probability = metrics.sigmoid(logit)
    bins = metrics.reliability(label, probability)
    return {
        **metrics.calibration(label, probability),
        "bins": [{name: row[name].item() for name in bins.dtype.names or ()} for row in bins],
    }


def _tables(summary: dict) -> list[str]:
    """The summary as Markdown: scores, probabilities, folds of the reference, its calibration."""
    reference = summary["reference"]
    scores = dict(sorted(summary["scores"].items(), key=lambda item: (GROUPS.index(item[1]["group"]), -_pr_auc(item))))
    header = ["group", "score", "PR-AUC", "ROC-AUC", "within miRNA", "F1 at 0.5", "F1, validation threshold"]
    main = [
        [
            score["group"],
            f"**{name}**" if name == reference else name,
            *(_span(score["metrics"][metric]) for metric in RANKING),
            *(_mean(score, metric) for metric in ("within_mirna", "f1", "f1_validation")),
            _span(score.get("difference", {}).get("pr_auc")),
        ]
        for name, score in scores.items()
    ]
    probabilities = [
        [name, *(_mean(score, metric) for metric in DECISIONS)]
        for name, score in scores.items()
        if "brier" in score["metrics"]
    ]
    return [
        f"Means over {len(summary['folds'])} folds ({summary['folds_without_both_classes']} of them left out: one "
        f"class only), both classes weighing the same; chance is 0.5 for both areas. In brackets: 95 % of "
        f"{summary['n_resamples']} resamples of whole miRNAs. Within miRNA: ROC-AUC over {summary['comparisons']} "
        f"pairs of rows that share one. {number(100 * summary['coverage'], 1)} % of rows have a candidate.",
        table([*header, f"PR-AUC of {reference} minus this"], main),
        "## Probabilities, called positive from 0.5",
        table(["score", *(name.replace("_", " ") for name in DECISIONS)], probabilities),
        f"## {reference} by fold",
        _fold_table(summary),
        f"## Calibration of {reference}",
        *_calibration_tables(summary["calibration"]),
    ]


def _fold_table(summary: dict) -> str:
    areas = [summary["scores"][summary["reference"]]["metrics"][metric]["folds"] for metric in RANKING]
    rows = [
        [fold["name"], str(fold["rows"]), str(fold["negatives"]), *map(number, values)]
        for fold, *values in zip(summary["folds"], *areas, strict=True)
    ]
    return table(["fold", "rows", "negatives", "PR-AUC", "ROC-AUC"], rows)


def _calibration_tables(calibration: dict | None) -> list[str]:
    if calibration is None:
        return ["–"]
    stages = {name: calibration[name] for name in ("before", "after")}
    figures = [[name, *(number(part[m]) for m in ("brier", "calibration_error"))] for name, part in stages.items()]
    bins = [
        [name, number(row["probability"]), number(row["positives"]), str(row["rows"])]
        for name, part in stages.items()
        for row in part["bins"]
    ]
    scales = calibration["scales"]
    return [
        "Rows of all folds, before and after the logits of each fold are scaled by one number fitted on its "
        "validation rows, or where none were set aside on the test rows of the other folds "
        f"({min(scales):.2f} to {max(scales):.2f}).",
        table(["", "Brier", "calibration error"], figures),
        table(["", "mean probability", "share of positives", "rows"], bins),
    ]


def _plots(summary: dict, results: list[FoldResult], out: Path) -> str:
    """Draw what there is to draw; the Markdown that shows it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "Plots need the extra `plots`: `pip install 'pairformer[plots]'`."
    draws = {"pr": _draw_pr}
    used = [result for result in results if _has_both(result.label)]
    if summary["calibration"] is not None:
        draws |= {"reliability": _draw_reliability, "scores": _draw_scores}
    for name, draw in draws.items():
        with svg_figure(out / f"{name}.svg", 5, 4) as figure:
            axes = figure.subplots()
            draw(axes, summary, used)
            axes.legend(fontsize="small")
    return "\n".join(f"![{name}]({name}.svg)" for name in draws)


@contextlib.contextmanager
def svg_figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches, at the end written as an SVG that depends on nothing but what was drawn."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "pairformer", "svg.fonttype": "none"}):
        figure = Figure((width, height), layout="constrained")
        yield figure
        figure.savefig(path, metadata={"Date": None})


def _draw_pr(axes: Any, summary: dict, used: list[FoldResult]) -> None:
    """Curves of the reference and of the best score of each kind, rows of all folds pooled."""
    scores = summary["scores"]
    best = {score["group"]: name for name, score in sorted(scores.items(), key=_pr_auc)}
    for name in dict.fromkeys([summary["reference"], *best.values()]):
        precision, recall = metrics.precision_recall(*_pooled(used, name))
        axes.step(recall, precision, where="post", label=f"{name} ({scores[name]['group']})")
    axes.set(xlabel="recall", ylabel="class-balanced precision", xlim=(0, 1), ylim=(0, 1.02))


def _draw_reliability(axes: Any, summary: dict, used: list[FoldResult]) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for stage, label in (("before", "as given"), ("after", "scaled")):
        bins = summary["calibration"][stage]["bins"]
        axes.plot(*([row[name] for row in bins] for name in ("probability", "positives")), marker="o", label=label)
    axes.set(xlabel="mean probability", ylabel="class-balanced share of positives", xlim=(0, 1), ylim=(0, 1))


def _draw_scores(axes: Any, summary: dict, used: list[FoldResult]) -> None:
    label, logit = _pooled(used, summary["reference"])
    classes = [metrics.sigmoid(logit[label < 0.5]), metrics.sigmoid(logit[label > 0.5])]
    axes.hist(classes, bins=20, range=(0, 1), density=True, label=["negative", "positive"])
    axes.set(xlabel=f"probability of {summary['reference']}", ylabel="density of each class")


def _strict(value: Any) -> Any:
    """The value for strict JSON: arrays as lists, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _strict(value.tolist())
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "–"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _pr_auc(item: tuple[str, dict]) -> float:
    return item[1]["metrics"]["pr_auc"]["mean"]


def _mean(score: dict, metric: str) -> str:
    return number(score["metrics"].get(metric, {}).get("mean"))


def _span(figure: dict | None) -> str:
    """mean [low, high]"""
    return "–" if figure is None else f"{number(figure['mean'])} [{number(figure['low'])}, {number(figure['high'])}]"


def read_calibration(path: Path, names: Sequence[str]) -> tuple[str, dict, dict]:
    """Of a report.json the protocol, those of some calibrations that are there, and mean figures by score.

    Raises:
        DataError: it is no report, or of folds whose genes and families were not held out.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        protocol, found = report["protocol"], {name: report[name] for name in names if name in report}
        scores = {name: score.get("metrics", score) for name, score in report["summary"]["scores"].items()}
        means = {name: {figure: _rounded(figures[figure]["mean"]) for figure in KEPT if figure in figures}
                 for name, figures in scores.items()}  # fmt: skip
        held_out = report["held_out"]
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path}:1: report must be as evaluate wrote it, got {type(error).__name__}: {error}"
        ) from error
    if not (held_out and found):
        raise DataError(
            f"{path}:1: report must be of a model trained on folds whose genes and families were held out, got "
            f"{protocol}"
        )
    return protocol, found, means


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
