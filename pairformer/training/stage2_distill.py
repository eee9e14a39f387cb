"""Stage 2: ``pairformer train stage2``. Fits the cheap encoder to the labels and to the expensive encoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pairformer.config import TrainConfig
from pairformer.data import Sites
from pairformer.models import PairFormer
from pairformer.models.pair_former import EXPENSIVE_CHUNK
from pairformer.training.loop import fit
from pairformer.training.losses import (
    binary_loss,
    distill_feature,
    distill_logit,
    distill_relation,
    distill_share,
)


def distill(model: PairFormer, sites: Sites, config: TrainConfig, run_dir: Path) -> None:
    """Train ``model.cheap``; the teacher, ``model.expensive``, is frozen and read once."""
    columns = (sites.one_hot, sites.esa_score, sites.position, sites.label, sites.weight)
    windows, esa_score, position, label, weight = (torch.from_numpy(column).to(model.device) for column in columns)
    model.eval()
    with torch.no_grad():
        parts = [model.expensive(part) for part in windows.split(EXPENSIVE_CHUNK)]
    teacher_embedding, teacher_logit = torch.cat([h for h, _ in parts]), torch.cat([z for _, z in parts])
    # The projection only serves the feature term; it is trained beside the student and then dropped. Its seed is
    # its own, so that it does not matter whether stage 1 ran just now or was loaded.
    torch.manual_seed(config.rng_seed)
    student = nn.ModuleDict(
        {"cheap": model.cheap, "project": nn.Linear(model.config.cheap.width, model.config.expensive.width)}
    ).to(model.device)
    terms = config.distill

    def step(rows, epoch):
        logit, embedding = student["cheap"](windows[rows], esa_score[rows], position[rows])
        supervised = binary_loss(logit, label[rows], weight[rows], config.loss)
        share = distill_share(epoch, config.stage2.epochs, terms)
        return (
            (1 - share) * supervised
            + share * distill_logit(logit, teacher_logit[rows], terms.temperature)
            + terms.feature_weight * distill_feature(student["project"](embedding), teacher_embedding[rows])
            + terms.relation_weight * distill_relation(F.normalize(embedding), teacher_embedding[rows])
        )

    fit("stage2", student, len(sites), step, config.stage2, run_dir, config.rng_seed)
