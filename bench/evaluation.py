"""Reports of protocols as one page: python bench/evaluation.py RUNS COMMIT > bench/evaluation.md

RUNS holds a directory per run, as `pairformer evaluate --out RUNS/NAME` wrote it.
"""

import json
import sys
from pathlib import Path

from pairformer.evaluation.report import GROUPS

HEAD = """# Scores by protocol

Written by `python bench/evaluation.py RUNS COMMIT`. ± is the population sd over folds and seeds, brackets are
95 % of 1,000 resamples of whole miRNAs. What each protocol and score is, and how to read them: ../EVALUATION.md.

Commits {commit}.
2 cores of an AMD EPYC (AVX-512) without a GPU, two runs at a time on one thread each."""
COLUMNS = {
    "pr_auc": "PR-AUC",
    "roc_auc": "ROC-AUC",
    "within_mirna": "within miRNA",
    "f1": "F1 at 0.5",
    "f1_validation": "F1, validation threshold",
    "recall": "recall",
    "specificity": "specificity",
    "mcc": "MCC",
    "brier": "Brier",
    "calibration_error": "calibration error",
}


def cell(metrics, name):
    """mean ± sd over folds [95 % of the resamples]"""
    figure = metrics.get(name)
    if not figure or figure["mean"] is None:
        return "–"
    span = f" [{figure['low']:.3f}, {figure['high']:.3f}]" if "low" in figure else ""
    return f"{figure['mean']:.4f} ± {figure['sd']:.4f}{span}"


def labelled(report):
    scores = report["summary"]["scores"]
    yield "| kind | score | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name, score in sorted(
        scores.items(), key=lambda s: (GROUPS.index(s[1]["group"]), -s[1]["metrics"]["pr_auc"]["mean"])
    ):
        cells = (cell(score["metrics"], column) for column in COLUMNS)
        yield f"| {score['group']} | {name} | " + " | ".join(cells) + " |"
    calibration, folds = report["summary"]["calibration"], report["summary"]["folds"]
    before, after = calibration["before"], calibration["after"]
    yield ""
    yield (
        f"{len(folds)} folds, {sum(f['rows'] for f in folds)} rows, {sum(f['negatives'] for f in folds)} negatives, "
        f"{report['summary']['comparisons']} comparisons within a miRNA, coverage {report['summary']['coverage']:.3f}; "
        f"calibration error of the model {before['calibration_error']:.3f}, scaled {after['calibration_error']:.3f} "
        f"(Brier {before['brier']:.3f}, {after['brier']:.3f})."
    )


def effects(report, markdown):
    yield markdown[markdown.index("| kind |") : markdown.index("## Audit")].strip()
    yield ""
    yield f"{len(report['summary']['experiments'])} experiments; ± is over them."


def main(runs, commit):
    print(HEAD.format(commit=commit))
    for path in sorted(Path(runs).glob("*/report.json")):
        report, markdown = json.loads(path.read_text()), (path.parent / "report.md").read_text()
        run = report["run"]
        facts = f"{run['seconds'] / 60:.0f} min, {run['machine']}, {run['versions']}, folds {run['folds_sha256'][:12]}"
        print(f"\n## {path.parent.name}\n\n`{run['command']}`: {facts}\n")
        print("\n".join(effects(report, markdown) if "experiments" in report["summary"] else labelled(report)))


if __name__ == "__main__":
    main(*sys.argv[1:])
