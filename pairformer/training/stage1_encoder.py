"""Stage 1: ``pairformer train stage1``. Fits the expensive encoder on labelled windows."""

from __future__ import annotations

from pathlib import Path

import torch

from pairformer.data import Sites
from pairformer.evaluation import ranking
from pairformer.models import PairFormer
from pairformer.models.pair_former import EXPENSIVE_CHUNK
from pairformer.training.config import TrainConfig
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss, class_weights


def train_encoder(model: PairFormer, sites: Sites, held_out: Sites | None, config: TrainConfig, run_dir: Path) -> None:
    """Train ``model.expensive`` on sites; PR-AUC and ROC-AUC of ``held_out`` after each epoch."""
    windows = torch.from_numpy(sites.one_hot)
    label = torch.from_numpy(sites.label)
    weight = class_weights(label)

    def step(rows, epoch):
        _, logit = model.expensive(windows[rows])
        return binary_loss(logit, label[rows], weight[rows], config.loss)

    def validate() -> dict[str, float]:
        assert held_out is not None
        logit = torch.cat(
            [model.expensive(part)[1] for part in torch.from_numpy(held_out.one_hot).split(EXPENSIVE_CHUNK)]
        )
        return ranking(held_out.label, logit.numpy())

    fit("stage1", model.expensive, len(sites), step, config.stage1, run_dir, config.rng_seed,
        validate if held_out is not None else None)  # fmt: skip
