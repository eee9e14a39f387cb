"""Repression as a sum over sites, which act independently, and what an aggregator beside it counts for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairformer.config import BAG_FEATURES, CONTEXT_FEATURES, SITE_FEATURES

LEAST_SHARE = 1e-6


class AdditiveHead(nn.Module):
    """repression = sum over sites of c(site) + g(bag), with c >= 0; of several windows over a site one counts.

    ``gain`` times the repression is what it adds to the pair logit.

    Source: Grimson et al., Mol Cell 2007 (sites more than 8 nt apart repress independently).
    """

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.site = nn.Sequential(
            nn.Linear(SITE_FEATURES + CONTEXT_FEATURES, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )
        self.bag = nn.Sequential(nn.Linear(BAG_FEATURES, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))
        self.gain = nn.Parameter(torch.ones(()))
        nn.init.constant_(self.site[-1].bias, -2.0)  # type: ignore[arg-type]

    def forward(self, site: Tensor, count: Tensor, bag: Tensor) -> tuple[Tensor, Tensor]:
        """Repression of B bags and what each of their M windows contributes.

        Args:
            site: (M, 13) site features, then context, bag by bag.
            count: (B,) int64 windows of each bag.
            bag: (B, 12) bag features.

        Returns:
            repression (B,), the sum of a bag's contributions and a term of the bag alone; contribution (M,), 0 for a
            window that does not stand for a site.
        """
        stands = site[:, SITE_FEATURES]
        contribution = F.softplus(self.site(site)[:, 0]) * stands  # (M,)
        # Not index_add, which adds floats in no fixed order on a GPU.
        total = torch.segment_reduce(contribution, "sum", lengths=count, unsafe=True)
        return self.bag(bag)[:, 0] + total, contribution

    @torch.no_grad()
    def shrink(self, share: float, bag: Tensor) -> None:
        """Keep a share of what the term of the bag alone adds to its mean over bags (B, 12)."""
        last, mean = self.bag[-1], self.bag(bag).mean()
        last.weight.mul_(share)  # type: ignore[operator]
        last.bias.mul_(share).add_((1 - share) * mean)  # type: ignore[operator]


class LengthGate(nn.Module):
    """Share of an aggregator's logit in the pair logit: sigmoid(10 (bias - slope ln((1 + L) / 51))), UTR length L; 0
    where that is under a millionth.

    At first 0.88 at 50 nt, the length of a window bound in CLASH; with a slope of 1.05, 0.19 at 70, 0.01 at 100 and 0
    from 229 on. The 10 has both numbers learn faster than weights do.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(0.2))
        self.slope = nn.Parameter(torch.tensor(float(slope)))

    def forward(self, bag: Tensor) -> Tensor:
        """bag (B, 12) bag features, of which the first is ln(1 + L) - 7 -> (B,)."""
        share = torch.sigmoid(10 * (self.bias - self.slope * (bag[:, 0] + 7 - math.log(51))))
        return torch.where(share < LEAST_SHARE, 0.0, share)
