"""Stage 1: ``pairformer train stage1``. Fits the expensive encoder on labelled windows."""

from __future__ import annotations

from pathlib import Path

import torch

from pairformer.config import TrainConfig
from pairformer.data import Sites
from pairformer.models import PairFormer
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss, class_weights


def train_encoder(model: PairFormer, sites: Sites, config: TrainConfig, run_dir: Path) -> None:
    """Train ``model.expensive`` on sites."""
    windows = torch.from_numpy(sites.one_hot)
    label = torch.from_numpy(sites.label)
    weight = class_weights(label)

    def step(rows, epoch):
        _, logit = model.expensive(windows[rows])
        return binary_loss(logit, label[rows], weight[rows], config.loss)

    fit("stage1", model.expensive, len(sites), step, config.stage1, run_dir, config.rng_seed)
