"""What the paper's theory says of one bag, measured: how much each token matters, and what a selection leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pairformer.bags import Candidates
from pairformer.models import PairFormer

Aggregator = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Influence:
    """Sensitivities of an aggregator to the n tokens of a bag, PAIR-Former Lemma B.4 and Theorem B.8."""

    sensitivity: NDArray[np.float64]
    """(n,) g_i: largest gradient norm seen among the masks that were tried. The lemma's supremum is over all 2^n, so
    this is a lower bound of it."""
    norm: NDArray[np.float64]
    """(n,) of the tokens; R is the largest, and the padding token is 0."""

    @property
    def weight(self) -> NDArray[np.float64]:
        """(n,) w_i = g_i / G, sum 1; equal weights where nothing matters."""
        total = self.sensitivity.sum()
        return self.sensitivity / total if total > 0 else np.full(len(self.norm), 1 / len(self.norm))

    def uncovered(self, rows: NDArray[np.int64]) -> float:
        """epsilon (eq. 13): weight of the tokens that are not selected."""
        return float(1 - self.weight[rows].sum())

    def tail(self, k_max: int) -> float:
        """psi (eq. 14): the least weight that any selection of ``k_max`` leaves uncovered."""
        return float(np.sort(self.weight)[::-1][k_max:].sum())

    def bound(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """What |full - budgeted| should not exceed: 2 G R epsilon (eq. 16), and the sharper sum of eq. 12."""
        left = np.ones(len(self.norm), bool)
        left[rows] = False
        mass = float(self.sensitivity[left].sum())
        return 2 * mass * float(self.norm.max(initial=0.0)), float((self.sensitivity * self.norm)[left].sum())


def influence(aggregate: Aggregator, tokens: Tensor, n_masks: int = 16) -> Influence:
    """Gradient norms of a bag's logit by each token, all present and under random masks.

    Args:
        aggregate: (tokens (1, n, T), mask (1, n)) -> logit (1,), such as a Set Transformer in eval mode.
        tokens: (n, T) of one bag, n at least 1.
        n_masks: subsets tried beside the whole; sizes are drawn log-uniformly from 1 to n.
    """
    n, rng = len(tokens), np.random.default_rng(2020)
    variable = tokens.detach()[None].requires_grad_()
    sensitivity = torch.zeros(n, dtype=torch.float64)
    for number in range(n_masks + 1):
        mask = torch.ones(1, n, dtype=torch.bool)
        if number:
            size = round(np.exp(rng.uniform(0, np.log(n))))
            mask[0, torch.from_numpy(rng.permutation(n)[size:])] = False
        (gradient,) = torch.autograd.grad(aggregate(variable, mask).sum(), variable)
        sensitivity = torch.maximum(sensitivity, gradient[0].norm(dim=1).double() * mask[0])
    return Influence(sensitivity.numpy(), tokens.detach().norm(dim=1).double().numpy())


@torch.no_grad()
def all_tokens(model: PairFormer, candidates: Candidates) -> Tensor:
    """(n, T) tokens of every candidate of one bag, as if the budget were n.

    Raises:
        ValueError: there is more than one bag, or no candidate.
    """
    n = len(candidates.start)
    if len(candidates) != 1 or n == 0:
        raise ValueError(f"candidates must be of one bag with at least one, got {len(candidates)} bags with {n}")
    rows = np.arange(n)
    embedding, logit = model.encode_selected(candidates, rows)
    return model.tokenize(candidates, rows, np.array([0, n]), embedding, logit).padded[0]


@torch.no_grad()
def masked_logits(aggregate: Aggregator, tokens: Tensor, subsets: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """(len(subsets),) logits with only some of the n tokens present (eq. 11)."""
    found = [aggregate(tokens[rows][None], torch.ones(1, len(rows), dtype=torch.bool)) for rows in subsets]
    return np.array([float(logit) for logit in found])
