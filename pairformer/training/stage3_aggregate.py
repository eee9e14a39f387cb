"""Stage 3: ``pairformer train stage3``. Fits the aggregator on pairs, then aggregator and expensive encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from pairformer.data import Pairs
from pairformer.evaluation import ranking
from pairformer.models import PairFormer
from pairformer.models.pair_former import pack_tokens
from pairformer.scan import scan
from pairformer.training.config import TrainConfig
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss, class_weights


def train_aggregator(
    model: PairFormer, pairs: Pairs, held_out: Pairs | None, config: TrainConfig, run_dir: Path
) -> None:
    """Train ``model.aggregator`` on the budgeted forward, at the end with ``model.expensive``.

    The cheap encoder is frozen, so each pair's candidates are scored and selected once; tokens are
    computed once for the epochs in which the expensive encoder is frozen too. Pairs without a candidate
    have a constant logit and nothing to teach: they are left out of training, not of validation.
    """
    model.eval()
    bags = _Bags(model, pairs)
    kept = np.flatnonzero(bags.candidates.n_candidates)
    validation = _Bags(model, held_out) if held_out is not None else None
    label = torch.from_numpy(pairs.label[kept])
    weight = class_weights(label)
    trained = nn.ModuleDict({"aggregator": model.aggregator, "expensive": model.expensive})
    first_joint = config.stage3.epochs - config.stage3.joint_epochs

    def step(rows, epoch):
        tokens, mask = bags.tokens(kept[rows], frozen=epoch < first_joint)
        return binary_loss(model.aggregator(tokens, mask), label[rows], weight[rows], config.loss)

    def validate() -> dict[str, float]:
        assert held_out is not None
        assert validation is not None
        return ranking(held_out.label, validation.logits())

    fit("stage3", trained, len(kept), step, config.stage3, run_dir, config.rng_seed,
        validate if validation is not None else None, joint=model.expensive)  # fmt: skip


class _Bags:
    """Selected candidates of many pairs; their tokens, cached for as long as the encoder is frozen."""

    def __init__(self, model: PairFormer, pairs: Pairs) -> None:
        self.model = model
        self.candidates = scan(pairs.mirna, pairs.utr, model.config.esa_min, strict=True)
        selection = model.select(self.candidates, *model.cheap_scan(self.candidates))
        self.rows, self.offsets = selection.rows, selection.offsets
        self._frozen: torch.Tensor | None = None

    def tokens(self, bags, frozen: bool):
        """Padded tokens and mask of some bags; ``frozen`` reads the cache, else gradients reach the encoder."""
        spans = [slice(*self.offsets[bag : bag + 2]) for bag in bags]
        offsets = np.cumsum([0] + [span.stop - span.start for span in spans])
        if frozen:
            return pack_tokens(torch.cat([self._cached()[span] for span in spans]), offsets)
        return pack_tokens(self._encode(np.concatenate([self.rows[span] for span in spans])), offsets)

    def logits(self) -> np.ndarray:
        """(B,) pair logits with the model as it is now."""
        count = len(self.offsets) - 1
        parts = [self.tokens(range(b, min(b + 64, count)), frozen=False) for b in range(0, count, 64)]
        return torch.cat([self.model.aggregator(*part) for part in parts]).numpy()

    def _encode(self, rows):
        embedding, logit = self.model.encode_selected(self.candidates, rows)
        return self.model.tokenize(self.candidates, rows, embedding, logit)

    @torch.no_grad()
    def _cached(self):
        if self._frozen is None:
            self._frozen = self._encode(self.rows)
        return self._frozen
