"""Structure models by protocol: F1 beside RNAfold and published predictions on the same RNAs, with paired intervals."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

import pairformer
from pairformer.config import check
from pairformer.evaluation.report import number, table, write
from pairformer.fold import ENERGIES, Fold, Folder
from pairformer.folding import f1_of, matches
from pairformer.metrics import interval, ranking
from pairformer.structures import BPRNA, TEST, Structures, known, load_known, read_parquet, rnafold
from pairformer.training import claim

RELABELLED, NEW, PEERS = "rna/ts0_rfam_relabel.parquet", "rna/bprna_new.parquet", "rna/ts0_peer_f1.csv"
CANONICAL = {"AU", "UA", "CG", "GC", "GU", "UG"}
TRUTHS = ("all pairs", "canonical nested")
LENGTHS = (80, 160, 320)  # bases; RNAs up to each, longer than the one before, have figures of their own


@dataclass(frozen=True)
class StructureProtocol:
    """RNAs of known structure, and what is worth knowing of them."""

    statement: str
    rows: Callable[[Path], Structures]
    warning: str = ""


def _test_set(folder: Path, split: str, name: str) -> Structures:
    return known((row for row in read_parquet(folder / TEST) if row["split"] == split), name)


def _ts0(folder: Path) -> Structures:
    rows = _test_set(folder, "bprna_ts0", "bprna_id")
    family = {row["bprna_id"]: row["rfam_acc"] for row in read_parquet(folder / BPRNA) if row["split"] == "TS0"}
    return replace(rows, family=np.array([family.get(rna, "") for rna in rows.name], object))


PROTOCOLS = {
    "ts0": StructureProtocol(
        "TS0 of bpRNA, labels as released.",
        _ts0,
        "TS0 shares RNA families with every training set for it, and 27 % of its Rfam labels are not the family's "
        "consensus, 5 % not in half of the pairs.",
    ),
    "ts0-rfam": StructureProtocol(
        "TS0's RNAs that are Rfam 14.2 seeds, with the family's consensus as the label.",
        lambda folder: known(read_parquet(folder / RELABELLED), "bprna_id", "rfam_acc", "pairs_rfam142"),
        "TS0 shares RNA families with every training set for it.",
    ),
    "synthetic": StructureProtocol(
        "RNAformer's synthetic test set: the labels are RNAfold's structures of least free energy.",
        lambda folder: _test_set(folder, "synthetic_test", "source_id"),
        "RNAfold made the labels, so its own F1 is 1: this is how well it is imitated.",
    ),
    "bprna-new": StructureProtocol(
        "bpRNA-new: families that joined Rfam after those trained on; labels projected from Rfam 14.2.",
        lambda folder: known(read_parquet(folder / NEW), "id", "rfam_acc"),
    ),
}


def evaluate_structure(
    name: str,
    folder: Path,
    out: Path,
    model: str | Path = "fold",
    threads: int = 0,
    n_resamples: int = 1000,
    device: str = "auto",
) -> dict:
    """Fold the RNAs of a protocol; write ``report.json``, ``report.md`` and, RNA by RNA, ``rnas.tsv``.

    F1 counts pairs of one RNA, (i, j) alone or as good as a pair one base away; macro is the mean over RNAs, micro is
    of all pairs together. The truth is all labelled pairs, or those of AU, GC and GU without the ones that cross:
    the pair that crosses most others goes first. Predictions are the same for all of them. ROC-AUC and Brier score say
    how well the probability to be unpaired tells bases without a labelled pair, all RNAs together.

    Args:
        name: one of ``PROTOCOLS``.
        folder: data folder.
        out: made where there is none.
        model, threads, device: see :func:`pairformer.fold`; "energies" has a row beside any model.
        n_resamples: of the families, for intervals; an RNA without one is drawn by itself.

    Returns:
        The report. ``summary[group][predictor]``: ``n``, and for each truth, ``macro``, ``micro``, ``slip_macro`` and
        ``slip_micro``; ``unpaired``: ``roc_auc`` and ``brier``, of those that say a probability; of other predictors
        ``difference``: the model's macro F1 on all pairs less theirs on the same RNAs, with 95 % interval.

    Raises:
        ValueError: no such protocol, a model that did not learn, or ``out`` is of another protocol, model or data.
    """
    check(name in PROTOCOLS, "protocol", f"be one of {', '.join(PROTOCOLS)}", repr(name))
    check(model != ENERGIES, "model", "be one that learnt, energies have a row beside it", repr(model))
    protocol = PROTOCOLS[name]
    rows = protocol.rows(folder)
    check(len(rows) > 0, "protocol", "have RNAs in the data folder", name)
    peers = folder / PEERS if name == "ts0" and (folder / PEERS).is_file() else None
    score = _peers(peers, rows) if peers else {}
    pool = load_known(folder)
    trained = set(pool.sequence.tolist())
    folding = Folder(model, threads=threads, device=device)
    assert folding.model is not None
    run = {
        "pairformer": pairformer.__version__,
        "protocol": name,
        "rows_sha256": {"asked": rows.sha256(), "pool": pool.sha256()},
        "peers_sha256": hashlib.sha256(peers.read_bytes()).hexdigest() if peers else None,
        "model": folding.model.metadata["model_sha256"],
    }
    claim(out, run)
    began = time.perf_counter()
    order = np.argsort(rows.length, kind="stable")  # windows of one length share batches
    sorted_folds = folding.fold(rows.sequence[order].tolist())
    folds = [sorted_folds[place] for place in np.argsort(order)]
    seconds = time.perf_counter() - began
    sequences = rows.sequence.tolist()
    alone = Folder(ENERGIES, threads=threads).fold(sequences)
    predicted = {"model": [fold.pairs for fold in folds], ENERGIES: [fold.pairs for fold in alone]}
    unpaired = {"model": _unpaired(folds, rows), ENERGIES: _unpaired(alone, rows)}
    if importlib.util.find_spec("RNA"):
        predicted["RNAfold"] = list(rnafold(sequences, folding.threads, None).pairs)
        unpaired["RNAfold"] = rnafold(sequences, folding.threads, 1e-5).unpaired()
    open_bases = rows.unpaired()
    truths = dict(zip(TRUTHS, (rows.pairs.tolist(), [*map(canonical_nested, rows.sequence, rows.pairs)]), strict=True))
    counts = {
        key: {(truth, slip): np.array([matches(p, t, slip) for p, t in zip(pairs, true, strict=True)])
              for truth, true in truths.items() for slip in (0, 1)}
        for key, pairs in predicted.items()
    }  # fmt: skip
    score = {key: f1_of(found[TRUTHS[0], 0]) for key, found in counts.items()} | score
    longest, length = folding.config.max_length, rows.length
    groups = {
        "all": length >= 0,
        f"up to {LENGTHS[0]} nt": length <= LENGTHS[0],
        **{f"{least + 1} to {most} nt": (least < length) & (length <= most) for least, most in pairwise(LENGTHS)},
        f"longer than {LENGTHS[-1]} nt": length > LENGTHS[-1],
    }
    if (length > longest).any():
        groups[f"up to {longest} nt, the longest learnt"] = length <= longest
    drawn = [family or str(name) for family, name in zip(rows.family, rows.name, strict=True)]
    family = np.unique(drawn, return_inverse=True)[1]
    summary = {
        group: {key: figures(counts.get(key), score[key], score["model"], mask, family, n_resamples)
                | _openness(unpaired.get(key), open_bases, np.repeat(mask, length))
                for key in score if (mask & ~np.isnan(score[key])).any()}
        for group, mask in groups.items() if mask.any()
    }  # fmt: skip
    same = sum(sequence in trained for sequence in rows.sequence)
    failed = sum(fold.message is not None for fold in folds)
    expected = [fold.expected_f1 for fold in folds]
    report: dict = {
        "protocol": name,
        "statement": protocol.statement,
        "run": {
            "command": shlex.join(["pairformer", *sys.argv[1:]]),
            "model": f"{model} (sha256 {run['model'][:12]})",
            "passes": folding.config.passes,
            "threshold": folding.config.threshold,
            "versions": f"pairformer {pairformer.__version__}, torch {torch.__version__}",
            "machine": f"{platform.machine()}, {folding.model.head.weight.device}, {folding.threads} threads",
            "seconds": round(seconds),
        },
        "audit": [
            f"{same} of {len(rows)} sequences stand letter for letter in the training pool",
            f"{failed} sequences could not be folded and count as without pairs",
            f"trained on RNAs of up to {longest} bases; those longer than {folding.window} are folded in windows",
            f"intervals are of {len(set(drawn))} families, drawn with replacement",
            f"the model expects a macro F1 of {np.nanmean(expected):.3f}",
        ],
        "summary": summary,
    }
    if protocol.warning:
        report["warning"] = protocol.warning
    write(report, [], out, tables=[_group_table(group, scores) for group, scores in summary.items()])
    lines = ["\t".join(["name", "length", "expected", *score])]
    cells = zip(rows.name, rows.length, expected, *score.values(), strict=True)
    lines += ["\t".join([str(n), str(length), *(f"{value:.4f}" for value in values)]) for n, length, *values in cells]
    (out / "rnas.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    click.echo(f"{name}: {len(rows)} RNAs folded in {seconds:.0f} s", err=True)
    return report


def canonical_nested(sequence: str, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs AU, GC and GU of which none cross or share a base: the one that conflicts with most others goes first."""
    kept = np.array([pair for pair in pairs if sequence[pair[0]] + sequence[pair[1]] in CANONICAL], np.int64)
    kept = kept.reshape(-1, 2)
    i, j = kept.T[:, :, None], kept.T[:, None]  # (2, N, 1) and (2, 1, N)
    crosses = (i[0] < j[0]) & (j[0] < i[1]) & (i[1] < j[1])
    shares = (i[0] == j[0]) | (i[0] == j[1]) | (i[1] == j[0]) | (i[1] == j[1])
    conflict = (crosses | crosses.T | shares) & ~np.eye(len(kept), dtype=bool)
    while conflict.any():
        stays = np.arange(len(kept)) != len(kept) - 1 - np.argmax(conflict.sum(0)[::-1])  # of equals the last
        kept, conflict = kept[stays], conflict[np.ix_(stays, stays)]
    return kept


def figures(counts, score, own, mask, family, n_resamples) -> dict:
    """Of one predictor on the RNAs of a mask: of its counts, if any, and scores (B,), and how far ``own`` are above."""
    there = mask & ~np.isnan(score)
    figures: dict = {"n": int(there.sum())}
    for truth in TRUTHS if counts else TRUTHS[:1]:
        named = figures.setdefault(truth, {"macro": float(score[there].mean())})
        for slip in (0, 1) if counts else ():
            found, kind = counts[truth, slip][there], "slip_" * slip
            named[f"{kind}macro"] = float(f1_of(found).mean())
            named[f"{kind}micro"] = float(f1_of(found.sum(0, keepdims=True))[0])
    if score is not own:
        gain, names = (own - score)[there], np.unique(family[there], return_inverse=True)[1]
        total, count = np.bincount(names, gain), np.bincount(names)
        drawn = np.random.default_rng(2020).multinomial(len(count), np.full(len(count), 1 / len(count)), n_resamples)
        ends = interval((drawn @ total) / (drawn @ count))
        figures["difference"] = dict(zip(("mean", "low", "high"), (float(gain.mean()), *ends), strict=True))
    return figures


def _unpaired(folds: list[Fold], rows: Structures) -> NDArray:
    """(bases of all RNAs,); one that could not be folded has no pairs."""
    return np.concatenate([fold.unpaired if fold.message is None else np.ones(n)
                           for fold, n in zip(folds, rows.length, strict=True)])  # fmt: skip


def _openness(unpaired: NDArray | None, open_bases: NDArray, mask: NDArray[np.bool_]) -> dict:
    """How well probabilities tell which of some bases have no labelled pair."""
    if unpaired is None:
        return {}
    said, true = unpaired[mask], open_bases[mask]
    area = ranking(true, said)["roc_auc"] if 0 < true.mean() < 1 else float("nan")
    return {"unpaired": {"roc_auc": area, "brier": float(np.square(said - true).mean())}}


def _peers(path: Path, rows: Structures) -> dict[str, NDArray[np.float64]]:
    """Published per-sequence F1 by method, NaN where a method has none; its own run of RNAfold is left out."""
    with path.open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = {row["bprna_id"]: row for row in reader}
    methods = [name for name in reader.fieldnames or () if name not in ("bprna_id", "RNAfold")]
    return {name: np.array([float(found.get(rna, {}).get(name) or "nan") for rna in rows.name]) for name in methods}


def _group_table(group: str, scores: dict) -> str:
    header = ["predictor", "RNAs", "macro F1", "micro F1", "one base off allowed: macro", "micro",
              "canonical nested truth: macro", "micro", "unpaired bases: ROC-AUC", "Brier score",
              "model's macro F1 less this [95 %]"]  # fmt: skip
    lines = []
    for name, figures in sorted(scores.items(), key=lambda item: -item[1][TRUTHS[0]]["macro"]):
        strict, nested = figures[TRUTHS[0]], figures.get(TRUTHS[1], {})
        cells = [strict.get(key) for key in ("macro", "micro", "slip_macro", "slip_micro")]
        cells += [nested.get("macro"), nested.get("micro")]
        cells += [figures.get("unpaired", {}).get(key) for key in ("roc_auc", "brier")]
        gain = figures.get("difference")
        text = f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if gain else "–"
        lines.append([f"**{name}**" if name == "model" else name, str(figures["n"]), *map(number, cells), text])
    return f"## {group.capitalize()}\n\n{table(header, lines)}"
