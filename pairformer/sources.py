"""What models learn from beside labelled windows and pairs: CLASH, measured fold changes, windows inside pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pairformer.config import SourceConfig
from pairformer.data import (
    SITES,
    UTRS,
    DataError,
    Pairs,
    as_rna,
    check_mirnas,
    columns,
    load_pairs,
    load_utrs,
    table_rows,
)  # fmt: skip

CLASH, CLASH_ORIGINAL = "mirbench_hejret2023/sites.tsv", "clash_hejret2023_original/sites.tsv.gz"
FUNMIRBENCH = "lfc_funmirbench"
MOST_EFFECT = 1.5  # log2; effects beyond say more of the measurement than of a miRNA
LEAST_GENES = 10  # of an experiment, to rank


@dataclass(frozen=True, eq=False)
class FoldChanges(Pairs):
    """Pairs whose label is repression as measured: -log2 fold change where the miRNA was added, + where taken away."""

    experiment: NDArray[np.object_]
    """Name of the experiment."""
    series: NDArray[np.object_]
    """Experiments of one laboratory with shared controls."""

    def centred(self) -> FoldChanges:
        """With what a gene does in other experiments of its series taken out, within +-``MOST_EFFECT``.

        In a series of five families or more a gene's mean over the experiments of other families is subtracted, in
        each experiment then the median.
        """
        label, family = self.label.astype(np.float64), self.family
        for series in np.unique(self.series):
            rows = np.flatnonzero(self.series == series)
            if len(set(family[rows])) < 5:
                continue
            _, gene = np.unique(self.utr_id[rows], return_inverse=True)
            _, group = np.unique(family[rows], return_inverse=True)
            total, count = np.zeros((2, group.max() + 1, gene.max() + 1))
            np.add.at(total, (group, gene), label[rows])
            np.add.at(count, (group, gene), 1)
            others = count.sum(0)[gene] - count[group, gene]
            mean = (total.sum(0)[gene] - total[group, gene]) / np.maximum(others, 1)
            label[rows] -= np.where(others > 0, mean, 0.0)
        for experiment in np.unique(self.experiment):
            rows = self.experiment == experiment
            label[rows] -= np.median(label[rows])
        return replace(self, label=np.clip(label, -MOST_EFFECT, MOST_EFFECT).astype(np.float32))

    def specific(self, components: int) -> FoldChanges:
        """Less what the leading components of other families' experiments explain of each experiment.

        Experiments as rows, genes as columns, standardised, 0 where not measured: the first right singular vectors of
        those of other families are fitted to an experiment by least squares, with a constant that stays.
        """
        if not components:
            return self
        experiments, row = np.unique(self.experiment, return_inverse=True)
        genes, column = np.unique(self.utr_id, return_inverse=True)
        table = np.full((len(experiments), len(genes)), np.nan)
        table[row, column] = self.label
        table -= np.nanmean(table, 1, keepdims=True)
        table = np.nan_to_num(table / np.maximum(np.nanstd(table, 1, keepdims=True), 1e-6))
        label, family = self.label.astype(np.float64), np.empty(len(experiments), object)
        family[row] = self.family
        for own in set(family):
            shared = np.linalg.svd(table[family != own], full_matrices=False)[2][:components].T  # (genes, components)
            for experiment in np.flatnonzero(family == own):
                rows = np.flatnonzero(row == experiment)
                known = np.column_stack([np.ones(len(rows)), shared[column[rows]]])
                fitted = np.linalg.lstsq(known, label[rows], rcond=None)[0]
                label[rows] -= known[:, 1:] @ fitted[1:]
        return replace(self, label=label.astype(np.float32))


@dataclass(frozen=True, eq=False)
class MoreSources:
    """What is learnt from beside labelled windows of 40 nt and labelled pairs."""

    clash: Pairs | None = None
    """Windows of 50 nt with negatives of the same miRNA frequencies: bags of stage 3, and their best candidates
    windows of stages 1 and 2."""
    clash_original: Pairs | None = None
    """Nearly the same positives with ten times as many negatives, uncorrected: stages 1 and 2."""
    effects: FoldChanges | None = None
    """Measured fold changes."""
    instances: Pairs | None = None
    """Windows of 40 nt with labels of their own that lie in a labelled pair of their miRNA."""

    def items(self) -> Iterator[tuple[str, Pairs]]:
        """Names and rows of those that are there."""
        return ((f.name, rows) for f in fields(self) if (rows := getattr(self, f.name)) is not None)

    def where(self, allowed: Callable[[Pairs], NDArray[np.bool_]]) -> MoreSources:
        """Only the rows that are allowed."""
        return MoreSources(**{name: rows.take(allowed(rows)) for name, rows in self.items()})


def load_sources(
    folder: Path | None, sources: SourceConfig, windows: Path | None = None, fold_changes: Path | None = None
) -> MoreSources:
    """Those that a config gives a share, of the data folder or of tables of one's own.

    Args:
        folder: the data folder; None where no source but ``fold_changes`` has a share.
        sources: the shares.
        windows: table of labelled windows inside pairs; None: the data folder's.
        fold_changes: table for :func:`read_fold_changes`; None: the data folder's.

    Raises:
        DataError: a table is damaged, as ``file:line: ...``.
    """
    effects = read_fold_changes(fold_changes, folder) if fold_changes and sources.effects else None
    if folder is None:
        return MoreSources(effects=effects)
    return MoreSources(
        load_clash(folder) if sources.clash or sources.clash_windows else None,
        load_clash(folder, "train_1_10", CLASH_ORIGINAL) if sources.clash_original else None,
        load_fold_changes(folder) if sources.effects and effects is None else effects,
        load_instances(windows or folder / SITES) if sources.instances else None,
    )


def load_fold_changes(folder: Path) -> FoldChanges:
    """Every gene of ``FUNMIRBENCH`` with a UTR in every experiment with a signal (quality good or weak).

    Raises:
        DataError: a table is damaged or nothing is left of it, as ``file:line: ...``.
    """
    table = folder / FUNMIRBENCH
    experiments = list(table_rows(table / "experiments.tsv", "experiment", "mirna_seq", "type", "geo", "quality"))
    check_mirnas(experiments)
    known, genes, utrs = {row["experiment"]: row for row in experiments}, {}, load_utrs(folder)
    sign = {name: _sign(row) for name, row in known.items()}
    for row in table_rows(table / "gene_utr.tsv", "gene_id", "gene_symbol", "utr_id"):
        genes[row["gene_id"]] = row["gene_symbol"] or row["gene_id"], row["utr_id"] or row["gene_id"]
        if genes[row["gene_id"]][1] not in utrs:
            raise DataError(f"{row['where']}: utr_id must be in {UTRS}, got {genes[row['gene_id']][1]}")
    kept = []
    for row in table_rows(table / "lfc.tsv.gz", "experiment", "gene_id", "log2fc"):
        if row["experiment"] not in known:
            raise DataError(f"{row['where']}: experiment must be in experiments.tsv, got {row['experiment']}")
        repression = sign[row["experiment"]] * _finite(row, "log2fc")
        if row["gene_id"] in genes and known[row["experiment"]]["quality"] in ("good", "weak"):
            kept.append((repression, row["experiment"], *genes[row["gene_id"]]))
    if not kept:
        raise DataError(f"{table / 'lfc.tsv.gz'}:1: table must have genes of gene_utr.tsv in experiments of quality "
                        "good or weak, got none; set the source effects to 0")  # fmt: skip
    label, *names = zip(*kept, strict=True)
    experiment, gene, utr_id = (np.array(part, object) for part in names)
    mirna = np.array([as_rna(known[name]["mirna_seq"]) for name in experiment], object)
    series = np.array([known[name]["geo"] for name in experiment], object)
    utr = np.array([utrs[name] for name in utr_id], object)
    return FoldChanges(np.array(label, np.float32), mirna, gene, utr, utr_id, experiment, series)


def read_fold_changes(table: Path, folder: Path | None = None) -> FoldChanges:
    """Fold changes of your own: a TSV with ``experiment``, ``log2_fold_change`` and, as in
    :func:`pairformer.data.load_pairs`, mirna_seq and utr_seq, or a utr_id of the data folder's ``utr3_human``.

    Where known: gene_symbol and utr_id; ``type``, OE (the miRNA was added, the default) or KO (taken away);
    ``series``, of experiments of one laboratory with shared controls, else each experiment is its own.

    Raises:
        DataError: what ``load_pairs`` refuses; a fold change is not a finite number, a type neither OE nor KO, an
            experiment has several miRNAs, types or series, one UTR twice, or fewer than ``LEAST_GENES``; as
            ``file:line: ...``.
    """
    pairs, rows = load_pairs(table, folder, labelled=False), list(table_rows(table, "experiment", "log2_fold_change"))
    about, genes, label, series = dict[str, tuple](), dict[str, set[str]](), list[float](), list[str]()
    for row, mirna, utr_id in zip(rows, pairs.mirna, pairs.utr_id, strict=True):
        name, where = row["experiment"], row["where"]
        label.append(_sign(row) * _finite(row, "log2_fold_change"))
        series.append(row.get("series") or name)
        facts = mirna, row.get("type") or "OE", series[-1]
        if about.setdefault(name, facts) != facts:
            raise DataError(f"{where}: experiment {name} must have one mirna_seq, type and series, got "
                            f"{' '.join(about[name])} and {' '.join(facts)}; name each by itself")  # fmt: skip
        if utr_id in genes.setdefault(name, set()):
            raise DataError(f"{where}: utr_id must stand once in experiment {name}, got {utr_id[:40]} again; average "
                            "its rows")  # fmt: skip
        genes[name].add(utr_id)
    for name, own in genes.items():
        if len(own) < LEAST_GENES:
            raise DataError(f"{table}:1: experiment {name} must have {LEAST_GENES} genes or more to rank, got "
                            f"{len(own)}")  # fmt: skip
    named = np.array([row["experiment"] for row in rows], object), np.array(series, object)
    return FoldChanges(np.array(label, np.float32), pairs.mirna, pairs.gene, pairs.utr, pairs.utr_id, *named)


def _sign(row: dict[str, str]) -> int:
    """Of repression where the miRNA was added or taken away: it is -log2 of the fold change, or that."""
    kind = row.get("type") or "OE"
    if kind not in ("OE", "KO"):
        raise DataError(f"{row['where']}: type must be OE or KO, got {kind}")
    return 1 if kind == "KO" else -1


def _finite(row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{row['where']}: {name} must be a finite number, got {row[name]!r}")
    return value


def load_clash(folder: Path, split: str = "train", table: str = CLASH) -> Pairs:
    """Windows of CLASH as pairs: each a UTR of 50 nt. A window stands as its own gene, since the table names none.

    Raises:
        DataError: the table is damaged or has no such split, as ``file:line: ...``.
    """
    return _some(load_pairs(folder / table, folder), columns(folder / table, "split")[0] == split, folder / table,
                 f"of split {split}")  # fmt: skip


def load_instances(table: Path) -> Pairs:
    """Windows that :func:`load_sites` leaves out, since they lie in a labelled pair of their miRNA, each as a UTR of
    40 nt and its own gene.

    Raises:
        DataError: the table is damaged or has no such window, as ``file:line: ...``.
    """
    rows = load_pairs(table)
    marked = columns(table, "in_miraw_pair")[0] != ""
    return _some(replace(rows, gene=rows.utr), marked, table, "with a mark in in_miraw_pair")


def _some(rows: Pairs, mask: NDArray[np.bool_], table: Path, which: str) -> Pairs:
    if not mask.any():
        raise DataError(f"{table}:1: table must have rows {which}, got none; set its source to 0")
    return rows.take(mask)
