"""The three stages in order, and the directories their work is found in again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import torch

from pairformer.config import ModelConfig, SourceConfig, TrainConfig, check
from pairformer.data import Labelled, Pairs, Sites
from pairformer.models import PairFormer
from pairformer.saved import whole_file
from pairformer.sources import MoreSources
from pairformer.training.stage1_encoder import train_encoder, weighted_windows
from pairformer.training.stage2_distill import distill
from pairformer.training.stage3_aggregate import NOTHING_MORE, Bags, train_aggregator

__all__ = [
    "Bags", "check_sources", "claim", "content_hash", "encoders_key", "finished", "load_encoders", "train",
    "train_aggregator", "train_encoders",
]  # fmt: skip
ENCODER_STAGES: dict[str, Callable[[PairFormer, Sites, TrainConfig, Path], None]] = {
    "stage1": train_encoder,
    "stage2": distill,
}


def train(
    stage: str,
    sites: Sites | None,
    pairs: Pairs,
    validation: Pairs | None,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    encoders: str | Path | None = None,
    more: MoreSources = NOTHING_MORE,
    calibration: dict | None = None,
    metadata: dict | None = None,
    device: str = "cpu",
) -> PairFormer:
    """Train up to a stage; a directory that was stopped is taken up where it stood.

    Args:
        stage: "stage1", "stage2", "stage3" or "all". Earlier stages must be finished in ``out``.
        sites: windows of stages 1 and 2; None with ``encoders``.
        pairs: pairs of stage 3.
        validation: pairs to pick stage 3's epoch by.
        out: checkpoints, ``log.jsonl``, ``run.json`` and, at the end, ``model/``.
        model_config: the model.
        config: the training.
        encoders: name or directory of a saved model whose encoders are taken in place of stages 1 and 2.
        more: what is learnt from beside ``sites`` and ``pairs``.
        calibration: fields of the saved model's config that held-out folds gave, such as logit_scale.
        metadata: recorded with the weights.
        device: where models learn, on a GPU with the fused attention; scan, selection and frozen encoders stay on the
            CPU.

    Raises:
        ValueError: ``out`` holds a run with other settings or rows, pairs have one label only, there are neither
            sites nor encoders, or a source has a share that nothing learns from (``check_sources``).
        FileNotFoundError: an earlier stage is missing.
    """
    check_sources(model_config, config.sources)
    for name, part in (("pairs", pairs), ("validation pairs", validation)):
        if part is not None and len(np.unique(part.label)) < 2:
            raise ValueError(f"{name} must have both labels, got {len(part)} with one")
    if sites is None and encoders is None:
        raise ValueError("sites must be given, or encoders that are trained, got neither")
    served = replace(model_config, **(calibration or {}))
    source = PairFormer.load(encoders) if encoders is not None else None
    tables = {"sites": sites, "pairs": pairs, "validation": validation, **dict(more.items())}
    rows = {name: content_hash(part) for name, part in tables.items() if part is not None}
    run = {"model": model_config.to_dict(), "train": asdict(config), "rows_sha256": rows}
    run |= {"encoders": source.metadata["model_sha256"]} if source else {}
    if (out / "run.json").exists():
        claim(out, run)
    for name in ENCODER_STAGES if source is None and stage != "all" else ():
        if name == stage:
            break
        if not finished(out / f"{name}.pt", getattr(config, name).epochs):
            raise FileNotFoundError(f"{stage} needs {name} finished in {out}; run `pairformer train {name}` first")
    claim(out, run)
    torch.manual_seed(config.rng_seed)
    model = PairFormer(model_config).to(device)
    if source is not None:
        load_encoders(model, source)
    elif sites is not None:
        windows = weighted_windows(sites, more, config.sources, model_config.esa_min)
        last = stage if stage in ENCODER_STAGES else "stage2"
        for name, run_stage in ENCODER_STAGES.items():
            run_stage(model, windows, config, out)
            if name == last:
                break
    if stage in ENCODER_STAGES:
        return model
    bags = Bags(model.eval(), pairs, config.budgets)
    train_aggregator(model, bags, Bags(model, validation) if validation is not None else None, config, out, more)
    model.config = served
    trained_on = {"pairs": len(pairs), "positive_pairs": int(pairs.label.sum()),
                  "pairs_without_candidate": int((bags.candidates.n_candidates == 0).sum())}  # fmt: skip
    trained_on |= {name: len(part) for name, part in (("sites", sites), *more.items()) if part is not None}
    model.metadata = {"trained_on": trained_on, **(metadata or {}), "rows_sha256": rows, "train": asdict(config),
                      "torch": torch.__version__}  # fmt: skip
    model.save(out / "model", model.metadata)
    return model


def check_sources(model_config: ModelConfig, sources: SourceConfig) -> None:
    """ValueError where a source has a share and the model has no part that learns from it."""
    parts = model_config.aggregator
    check(parts.additive > 0 or not sources.effects, "effects",
          "be 0 without additive heads, which alone learn from fold changes", sources.effects)  # fmt: skip
    for name in ("clash", "instances"):
        share = getattr(sources, name)
        check(
            parts.kind != "none" or not share, name, "be 0 where kind is none: aggregators alone learn from it", share
        )


def train_encoders(
    model: PairFormer, sites: Sites, config: TrainConfig, cache: Path, more: MoreSources = NOTHING_MORE
) -> str:
    """Stages 1 and 2 in the folder of ``cache`` that is named by all they depend on; a finished one is read.

    Returns:
        The name: sha256 of the windows' rows, the encoders' configs and the part of the training they see.
    """
    windows = weighted_windows(sites, more, config.sources, model.config.esa_min)
    key = encoders_key(model.config, windows, config)
    for run_stage in ENCODER_STAGES.values():
        run_stage(model, windows, config, cache / key)
    return key


def encoders_key(model_config: ModelConfig, sites: Sites, config: TrainConfig) -> str:
    """Name of a pair of trained encoders: a hash of all their weights depend on but the machine and its libraries."""
    seen = {
        **{name: asdict(getattr(model_config, name)) for name in ("expensive", "cheap")},
        **{name: asdict(config)[name] for name in ("rng_seed", "loss", "distill", "stage1", "stage2")},
        "sites": content_hash(sites),
    }
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def load_encoders(model: PairFormer, source: PairFormer) -> None:
    """Take both encoders of another model of the same encoder sizes.

    Raises:
        ValueError: the sizes differ.
    """
    for name in ("expensive", "cheap"):
        own, other = getattr(model.config, name), getattr(source.config, name)
        if own != other:
            raise ValueError(f"encoders must have the {name} encoder's config {own}, got {other}")
        getattr(model, name).load_state_dict(getattr(source, name).state_dict())


def content_hash(rows: Labelled) -> str:
    """sha256 of every column of a table, row by row."""
    digest = hashlib.sha256()
    for f in fields(rows):
        column = getattr(rows, f.name)
        digest.update(f"{f.name}:{len(column)}:".encode())
        text = column.dtype == object
        digest.update("\n".join(column).encode(errors="surrogateescape") if text else column.tobytes())
    return digest.hexdigest()


def claim(out: Path, run: dict) -> None:
    """Write ``run.json``, or check that the one there asks for the same."""
    path = out / "run.json"
    text = json.dumps(run, indent=2)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"out must be a new directory or hold the same run, got {out} with other settings in run.json")
    with whole_file(path) as file:
        file.write(text.encode())


def finished(checkpoint: Path, epochs: int) -> bool:
    return (
        checkpoint.exists() and torch.load(checkpoint, map_location="cpu", weights_only=True)["epochs_done"] >= epochs
    )
