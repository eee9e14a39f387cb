"""The three stages in order, on everything or with one fold held out."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from pairformer.bags import WINDOW
from pairformer.config import ModelConfig
from pairformer.data import PAIRS, SITES, UTRS, Pairs, Sites, load_pairs, load_sites
from pairformer.evaluation import (
    balanced_loss,
    balanced_scale,
    disjoint_folds,
    identity_baselines,
    ranking,
    shape_baselines,
    within_mirna,
)
from pairformer.models import PairFormer
from pairformer.scan import scan
from pairformer.training.config import TrainConfig
from pairformer.training.stage1_encoder import train_encoder
from pairformer.training.stage2_distill import distill
from pairformer.training.stage3_aggregate import train_aggregator

STAGES: dict[str, Callable[..., None]] = {"stage1": train_encoder, "stage2": distill, "stage3": train_aggregator}
N_FOLDS = 3


def train(
    stage: str,
    folder: Path,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    fold: int | None = None,
    folds: dict | None = None,
) -> PairFormer:
    """Train up to a stage; a directory that was stopped is taken up where it stood.

    Args:
        stage: "stage1", "stage2", "stage3" or "all". Earlier stages must be finished in ``out``.
        folder: the data folder.
        out: checkpoints, ``log.jsonl``, ``run.json`` and, at the end, ``model/``.
        model_config: the model.
        config: the training.
        fold: hold out this fold of pairs, with its genes' and families' windows; writes ``held_out.json``.
        folds: summary of held-out folds to scale the probability by and to record with the weights.

    Raises:
        ValueError: ``out`` holds a run with other settings, ``fold`` is out of range, or ``folds`` are of
            another model, training or data.
        FileNotFoundError: an earlier stage is missing.
    """
    if fold is not None and not 0 <= fold < N_FOLDS:
        raise ValueError(f"fold must be in 0..{N_FOLDS - 1}, got {fold}")
    data = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (SITES, PAIRS, UTRS)}
    run = {"model": model_config.to_dict(), "train": asdict(config), "fold": fold, "data_sha256": data}
    if folds is not None and folds.get("run") != json.loads(json.dumps({**run, "fold": None})):
        raise ValueError("folds must be of the same model, training and data; run `pairformer train folds` with them")
    _claim(out, run)
    sites, counts = load_sites(folder, model_config.esa_min)
    pairs, held_pairs, held_sites = load_pairs(folder), None, None
    if fold is not None:
        sites, held_sites, pairs, held_pairs = hold_out(sites, pairs, fold)
    torch.manual_seed(config.rng_seed)
    model = PairFormer(model_config)
    last = "stage3" if stage == "all" else stage
    for name, run_stage in STAGES.items():
        if stage not in ("all", name) and not _finished(out / f"{name}.pt", getattr(config, name).epochs):
            raise FileNotFoundError(f"{stage} needs {name} finished in {out}; run `pairformer train {name}` first")
        rows = (pairs, held_pairs) if name == "stage3" else (sites, held_sites)
        run_stage(model, *rows, config, out)
        if name == last:
            break
    if last != "stage3":
        return model
    metadata = {
        "trained_on": {"pairs": len(pairs), "positive_pairs": int(pairs.label.sum()), "sites": len(sites)},
        "sites_left_out": counts,
        "command": shlex.join(["pairformer", *sys.argv[1:]]),
        "torch": torch.__version__,
        "weights_licence": "MIT; the miRAW training data state no licence of their own",
        **{name: run[name] for name in ("train", "data_sha256")},
    }
    if folds is not None:
        model.config = replace(model.config, logit_scale=folds["logit_scale"])
        metadata["held_out_folds"] = {name: value for name, value in folds.items() if name != "run"}
    model.save(out / "model", metadata, half=True)
    if held_pairs is not None:
        _write_held_out(out, pairs, held_pairs)
    return model


def train_folds(folder: Path, out: Path, model_config: ModelConfig, config: TrainConfig) -> dict:
    """Train with each fold held out; write and return ``folds.json``: metrics, baselines, probability scale."""
    reports = []
    for fold in range(N_FOLDS):
        train("all", folder, out / f"fold{fold}", model_config, config, fold=fold)
        reports.append(json.loads((out / f"fold{fold}/held_out.json").read_text()))
    names = reports[0]["metrics"]
    labels, logits = ([np.array(r[key]) for r in reports] for key in ("label", "logit"))
    run = json.loads((out / "fold0/run.json").read_text())
    # Each fold's loss with the scale that the other folds would choose; ln 2 = 0.693 is what even odds cost.
    losses = []
    for fold in range(N_FOLDS):
        others = [np.concatenate([x for f, x in enumerate(parts) if f != fold]) for parts in (labels, logits)]
        losses.append(round(balanced_loss(labels[fold], balanced_scale(*others) * logits[fold]), 4))
    summary = {
        "run": {**run, "fold": None},
        "protocol": f"{N_FOLDS} folds disjoint in gene and miRNA family, encoders held out too",
        "pairs_held_out": [len(r["label"]) for r in reports],
        "negatives_held_out": [int(len(r["label"]) - sum(r["label"])) for r in reports],
        "comparisons_within_mirna": [r["comparisons"] for r in reports],
        "metrics": {
            name: {
                key: {"folds": values, "mean": round(float(np.mean(values)), 4)}
                for key in ("pr_auc", "roc_auc", "within_mirna")
                for values in [[r["metrics"][name][key] for r in reports]]
            }
            for name in names
        },
        "logit_scale": round(balanced_scale(np.concatenate(labels), np.concatenate(logits)), 4),
        "balanced_loss_scaled_by_the_others": losses,
    }
    (out / "folds.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def hold_out(sites: Sites, pairs: Pairs, fold: int) -> tuple[Sites, Sites, Pairs, Pairs]:
    """Training sites, held-out sites, training pairs, held-out pairs of one fold.

    No gene and no family of the fold's held-out pairs is in a training row of any stage, and no training
    window stands letter by letter in a held-out UTR.
    """
    train_rows, held_rows = disjoint_folds(pairs, N_FOLDS)[fold]
    seen, held = pairs.take(train_rows), pairs.take(held_rows)
    genes = set(held.gene)
    in_gene = np.array([not genes.isdisjoint(names.split(",")) for names in sites.gene])
    in_family = np.isin(sites.family, held.family)
    held_windows = {utr[i : i + WINDOW] for utr in set(held.utr) for i in range(len(utr) - WINDOW + 1)}
    copied = np.array([window in held_windows for window in sites.window])
    return sites.take(~in_gene & ~in_family & ~copied), sites.take(in_gene & in_family), seen, held


def _write_held_out(out: Path, seen: Pairs, held: Pairs) -> None:
    """Score the held-out pairs with the weights as they were saved, and with the baselines."""
    model = PairFormer.load(out / "model")
    logit = model(scan(held.mirna, held.utr, model.config.esa_min)).pair_logit.numpy()
    scores = {"pair-former": logit, **identity_baselines(seen, held), **shape_baselines(held)}
    metrics, comparisons = {}, 0
    for name, score in scores.items():
        within, comparisons = within_mirna(held.mirna, held.label, score)
        values = {**ranking(held.label, score), "within_mirna": within}
        metrics[name] = {metric: round(value, 4) for metric, value in values.items()}
    report = {
        "metrics": metrics,
        "comparisons": comparisons,
        "label": held.label.tolist(),
        "logit": logit.round(5).tolist(),
    }
    (out / "held_out.json").write_text(json.dumps(report) + "\n")


def _claim(out: Path, run: dict) -> None:
    """Write ``run.json``, or check that the one there asks for the same."""
    path = out / "run.json"
    text = json.dumps(run, indent=2)
    if path.exists() and path.read_text() != text:
        raise ValueError(f"out must be a new directory or hold the same run, got {out} with other settings in run.json")
    out.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def _finished(checkpoint: Path, epochs: int) -> bool:
    return checkpoint.exists() and torch.load(checkpoint, weights_only=True)["epochs_done"] >= epochs
