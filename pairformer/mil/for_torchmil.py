"""torchmil: our modules as its models, and a collate function that prunes bags before they are padded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmil.data import collate_fn
from torchmil.models import MILModel

from pairformer.mil.budgeted import check_one_loss
from pairformer.mil.selectors import Selector, STSelector


class TorchMILModel(MILModel):
    """A module of bags, such as ``SetAggregator`` or ``BudgetedMIL``, with the calls of torchmil's models.

    Args:
        module: (B, P, D), mask (B, P), True = real -> logits (B,); with ``return_att`` as ``SetAggregator`` has it for
            predictions of instances.
        criterion: loss of logits and labels.
    """

    def __init__(self, module: nn.Module, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.module = module
        self.criterion = criterion or nn.BCEWithLogitsLoss()

    def forward(self, X: Tensor, mask: Tensor | None = None, return_att: bool = False) -> Any:
        """Logits (B,), and with ``return_att`` attention (B, P), zero on padding."""
        mask = X.new_ones(X.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        return self.module(X, mask, return_att=True) if return_att else self.module(X, mask)

    def compute_loss(self, Y: Tensor, X: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B,) and the criterion by its name."""
        if self.training:
            check_one_loss(self.module)
        logits = self(X, mask)
        return logits, {type(self.criterion).__name__: self.criterion(logits.float(), Y.float())}

    def predict(self, X: Tensor, mask: Tensor | None = None, return_inst_pred: bool = True) -> Any:
        """Logits (B,), and with ``return_inst_pred`` the attention as prediction of instances (B, P)."""
        return self(X, mask, return_att=return_inst_pred)


class SelectCollate:
    """Prune every bag with a selector, then pad with ``torchmil.data.collate_fn``; for ``DataLoader(collate_fn=...)``.

    Args:
        selector: any of ``pairformer.mil``, or a budget K for ``STSelector``.
        scorer: X (n, D) -> scores (n,) or (n, 1), without gradient; None for the Euclidean norm of X, a stand-in.
        features: key of the instances (n, D), which the selector covers too.
        coords: key of their positions; not used by bags that lack it.
        label: key of the bag's label, which is left as it is.

    Other entries of n rows are pruned with the bag, ``adj`` (n, n) in both dimensions, sparse or not.
    """

    def __init__(
        self, selector: Selector | int, scorer: Callable[[Tensor], Tensor] | None = None, features: str = "X",
        coords: str = "coords", label: str = "Y",
    ) -> None:  # fmt: skip
        self.selector, self.scorer = selector if isinstance(selector, Selector) else STSelector(selector), scorer
        self.features, self.coords, self.label = features, coords, label

    def __call__(self, bags: list[dict[str, Tensor]]) -> Any:
        """The batch as ``torchmil.data.collate_fn`` makes it."""
        return collate_fn([self._pruned(bag) for bag in bags])

    @torch.no_grad()
    def _pruned(self, bag: dict[str, Tensor]) -> dict[str, Tensor]:
        x = bag[self.features]
        scores = x.norm(dim=1) if self.scorer is None else self.scorer(x)
        scores = scores[:, 0] if scores.shape == (len(x), 1) else scores
        rows = self.selector.select(scores, x, bag.get(self.coords)).rows
        pruned = {}
        for key, value in bag.items():
            for dimension in range(2 if key == "adj" else key != self.label):
                if value.ndim > dimension and value.shape[dimension] == len(x):
                    value = value.index_select(dimension, rows)
            pruned[key] = value
        return pruned
