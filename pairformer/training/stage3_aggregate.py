"""Stage 3: ``pairformer train stage3``. Fits the aggregator on pairs, then aggregator and expensive encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pairformer.config import TrainConfig
from pairformer.data import Pairs
from pairformer.metrics import ranking
from pairformer.models import PairFormer
from pairformer.models.pair_former import chunks, pack_tokens
from pairformer.scan import scan
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss, class_weights

SCORED = 64  # bags scored at once


def train_aggregator(
    model: PairFormer, bags: Bags, validation: Bags | None, config: TrainConfig, run_dir: Path
) -> None:
    """Train ``model.aggregator`` on the budgeted forward, at the end with ``model.expensive``.

    Pairs without a candidate have a constant logit and nothing to teach: they are left out of training, not of
    validation. With ``config.budgets`` each batch draws one of them.

    Args:
        model: the encoders are trained.
        bags: training pairs, with ``config.budgets``.
        validation: pairs to pick the epoch by, by class-balanced PR-AUC; None for the last epoch.
        config: the training.
        run_dir: checkpoint and log.
    """
    kept = np.flatnonzero(bags.candidates.n_candidates)
    label = torch.from_numpy(bags.label[kept])
    weight = class_weights(label)
    trained = nn.ModuleDict({"aggregator": model.aggregator, "expensive": model.expensive})
    first_joint = config.stage3.epochs - config.stage3.joint_epochs
    frozen = not config.stage3.joint_epochs  # throughout: then the validation tokens stay too

    def step(rows, epoch):
        # torch's generator, which the loop seeds by epoch: a resumed run draws the same budgets
        k_max = config.budgets[int(torch.randint(len(config.budgets), ()))] if config.budgets else None
        tokens, mask = bags.tokens(kept[rows], frozen=epoch < first_joint, k_max=k_max)
        return binary_loss(model.aggregator(tokens, mask), label[rows], weight[rows], config.loss)

    fit("stage3", trained, len(kept), step, config.stage3, run_dir, config.rng_seed,
        (lambda: ranking(validation.label, validation.logits(model.aggregator, frozen))) if validation else None,
        joint=model.expensive)  # fmt: skip


class Bags:
    """Selected candidates of many pairs; their tokens, cached for as long as the encoder is frozen.

    The cheap encoder does not change in stage 3, so each pair is scanned, scored and selected once per budget.
    """

    def __init__(self, model: PairFormer, pairs: Pairs, budgets: Sequence[int] = ()) -> None:
        model.eval()
        self.model, self.label = model, pairs.label
        self.candidates = scan(pairs.mirna, pairs.utr, model.config.esa_min, strict=True)
        signals = model.cheap_scan(self.candidates)
        self._selected = {k: model.select(self.candidates, *signals, k) for k in (None, *budgets)}
        self._read = np.unique(np.concatenate([selection.rows for selection in self._selected.values()]))
        self._tokens: torch.Tensor | None = None

    def tokens(self, bags, frozen: bool, k_max: int | None = None):
        """Padded tokens and mask of some bags; ``frozen`` reads the cache, else gradients reach the encoder."""
        selection = self._selected[k_max]
        spans = [selection.rows[slice(*selection.offsets[bag : bag + 2])] for bag in bags]
        rows, offsets = np.concatenate(spans), np.cumsum([0, *map(len, spans)])
        if not frozen:
            return pack_tokens(self._encode(rows), offsets)
        if self._tokens is None:
            with torch.no_grad():
                self._tokens = self._encode(self._read)
        return pack_tokens(self._tokens[torch.from_numpy(np.searchsorted(self._read, rows))], offsets)

    @torch.no_grad()
    def logits(self, aggregator: nn.Module, frozen: bool = False, k_max: int | None = None) -> np.ndarray:
        """(B,) pair logits, with the encoder as it is now or as it was when the cache was filled."""
        parts = [range(part.start, part.stop) for part in chunks(len(self.label), SCORED)]
        return torch.cat([aggregator(*self.tokens(part, frozen, k_max)) for part in parts]).numpy()

    def _encode(self, rows):
        embedding, logit = self.model.encode_selected(self.candidates, rows)
        return self.model.tokenize(self.candidates, rows, embedding, logit)
