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

from pairformer.config import ModelConfig
from pairformer.data import Pairs, Sites, load_pairs, load_sites
from pairformer.evaluation import balanced_scale, disjoint_folds, identity_baselines, ranking, within_mirna
from pairformer.models import PairFormer
from pairformer.scan import scan
from pairformer.training.config import TrainConfig
from pairformer.training.stage1_encoder import train_encoder
from pairformer.training.stage2_distill import distill
from pairformer.training.stage3_aggregate import train_aggregator

STAGES: dict[str, Callable[..., None]] = {"stage1": train_encoder, "stage2": distill, "stage3": train_aggregator}
DATA_FILES = ("miraw_cts/cts.tsv.gz", "miraw_pairs/pairs.tsv", "utr3_human/utr3_human.tsv.gz")
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
        ValueError: ``out`` holds a run with other settings.
        FileNotFoundError: an earlier stage is missing.
    """
    data = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in DATA_FILES}
    run = {"model": model_config.to_dict(), "train": asdict(config), "fold": fold, "data_sha256": data}
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
    metadata = {
        "stage": last,
        "trained_on": {"pairs": len(pairs), "positive_pairs": int(pairs.label.sum()), "sites": len(sites)},
        "sites_left_out": counts,
        "command": shlex.join(["pairformer", *sys.argv[1:]]),
        "torch": torch.__version__,
        "weights_licence": "MIT; the miRAW training data state no licence of their own",
        **{name: run[name] for name in ("train", "data_sha256")},
    }
    if folds is not None:
        model.config = replace(model.config, logit_scale=folds["logit_scale"])
        metadata["held_out_folds"] = folds
    model.save(out / "model", metadata, half=True)
    if held_pairs is not None and last == "stage3":
        _write_held_out(out, model, pairs, held_pairs)
    return model


def train_folds(folder: Path, out: Path, model_config: ModelConfig, config: TrainConfig) -> dict:
    """Train with each fold held out; write and return ``folds.json``: metrics, baselines, probability scale."""
    reports = []
    for fold in range(N_FOLDS):
        train("all", folder, out / f"fold{fold}", model_config, config, fold=fold)
        reports.append(json.loads((out / f"fold{fold}/held_out.json").read_text()))
    names = reports[0]["metrics"]
    summary = {
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
        "logit_scale": round(balanced_scale(*(np.concatenate([r[k] for r in reports]) for k in ("label", "logit"))), 4),
    }
    (out / "folds.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def hold_out(sites: Sites, pairs: Pairs, fold: int) -> tuple[Sites, Sites, Pairs, Pairs]:
    """Training sites, held-out sites, training pairs, held-out pairs of one fold.

    No gene and no family of the fold's held-out pairs is in a training row of any stage.
    """
    train_rows, held_rows = disjoint_folds(pairs, N_FOLDS)[fold]
    seen, held = pairs.take(train_rows), pairs.take(held_rows)
    in_gene, in_family = np.isin(sites.gene, held.gene), np.isin(sites.family, held.family)
    return sites.take(~in_gene & ~in_family), sites.take(in_gene & in_family), seen, held


def _write_held_out(out: Path, model: PairFormer, seen: Pairs, held: Pairs) -> None:
    logit = model(scan(held.mirna, held.utr, model.config.esa_min)).pair_logit.numpy()
    scores = {"pair-former": logit, **identity_baselines(seen, held)}
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
    path.write_text(text)


def _finished(checkpoint: Path, epochs: int) -> bool:
    return checkpoint.exists() and torch.load(checkpoint, weights_only=True)["epochs_done"] >= epochs
