"""Stage 1: ``pairformer train stage1``. Fits the expensive encoder on labelled windows."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import torch

from pairformer.config import SourceConfig, TrainConfig
from pairformer.data import Sites, best_windows
from pairformer.models import PairFormer
from pairformer.sources import MoreSources
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss, class_weights, mirna_weights


def weighted_windows(sites: Sites, more: MoreSources, sources: SourceConfig, esa_min: int) -> Sites:
    """Windows of all sources of stages 1 and 2, weighted by share and class.

    CLASH is weighted within each miRNA, so that a miRNA's frequency among its positives teaches nothing.
    """
    parts = [replace(sites, weight=(sources.windows * class_weights(torch.from_numpy(sites.label))).numpy())]
    for pairs, share in ((more.clash, sources.clash_windows), (more.clash_original, sources.clash_original)):
        if pairs is not None and share:
            best = best_windows(pairs, esa_min)
            weight = share * mirna_weights(torch.from_numpy(best.label), best.mirna)
            parts.append(replace(best, weight=weight.numpy()))
    joined = functools.reduce(Sites.join, parts)
    return joined.take(joined.weight > 0)  # the others teach nothing


def train_encoder(model: PairFormer, sites: Sites, config: TrainConfig, run_dir: Path) -> None:
    """Train ``model.expensive`` on windows."""
    windows, label, weight = (
        torch.from_numpy(column).to(model.device) for column in (sites.one_hot, sites.label, sites.weight)
    )

    def step(rows, epoch):
        _, logit = model.expensive(windows[rows])
        return binary_loss(logit, label[rows], weight[rows], config.loss)

    fit("stage1", model.expensive, len(sites), step, config.stage1, run_dir, config.rng_seed)
