"""Permutation-invariant aggregation of a bag's tokens: MAB, SAB, ISAB, PMA and the Set Transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairformer.config import AggregatorConfig


def sdp_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """softmax(query key^T / sqrt(D)) value by PyTorch: (B, Q, H, D), (B, K, H, D) twice, (B, K) True = real or None."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    mask = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, mask, dropout).transpose(1, 2)


class MAB(nn.Module):
    """Attention block of two sets: H = LN(X + Att(X, Y)); out = LN(H + FF(H)).

    Source: Set Transformer eq. 6, with PAIR-Former's residual on the raw queries, scale by head width,
    GELU feed-forward and dropout.
    """

    attention = staticmethod(sdp_attention)
    """What attends; :func:`pairformer.kernels.use_kernels` puts the fused kernel here."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = _feed_forward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor, y_mask: Tensor) -> Tensor:
        """x (B, Q, D) attends y (B, K, D); y_mask (B, K) True = real, at least one per bag -> (B, Q, D)."""
        query, key, value = (
            projection(part).unflatten(2, (self.heads, -1))
            for projection, part in ((self.query, x), (self.key, y), (self.value, y))
        )  # (B, Q or K, H, D / H)
        attended = self.attention(query, key, value, y_mask, dropout=self.dropout.p if self.training else 0.0)
        h = self.norm1(x + self.dropout(self.out(attended.flatten(2))))  # (B, Q, D)
        return self.norm2(h + self.dropout(self.feed_forward(h)))


class SAB(nn.Module):
    """Self-attention of a set, MAB(X, X), padded rows zeroed."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.attend = MAB(width, heads, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, K, D), mask (B, K) True = real -> (B, K, D)."""
        return self.attend(x, x, mask) * mask[:, :, None]


class ISAB(nn.Module):
    """Self-attention through ``inducing`` learned points: MAB(X, MAB(I, X)), padded rows zeroed."""

    def __init__(self, width: int, heads: int, hidden: int, inducing: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.points = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inducing, width)))
        self.gather = MAB(width, heads, hidden, dropout)
        self.spread = MAB(width, heads, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, K, D), mask (B, K) True = real -> (B, K, D)."""
        points = self.gather(self.points.expand(len(x), -1, -1), x, mask)  # (B, I, D)
        every = mask.new_ones(points.shape[:2])
        return self.spread(x, points, every) * mask[:, :, None]


class PMA(nn.Module):
    """Pooling by ``pool_seeds`` learned queries over a row-wise feed-forward of the set."""

    def __init__(self, width: int, heads: int, hidden: int, pool_seeds: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.seeds = nn.Parameter(nn.init.xavier_uniform_(torch.empty(pool_seeds, width)))
        self.feed_forward = _feed_forward(width, hidden, dropout)
        self.attend = MAB(width, heads, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, K, D), mask (B, K) True = real -> (B, S, D)."""
        return self.attend(self.seeds.expand(len(x), -1, -1), self.feed_forward(x), mask)


class SetTransformer(nn.Module):
    """Tokens of a bag -> one logit; neither order nor padding nor the rest of the batch matters.

    Source: PAIR-Former sec. 4.5; 179,713 parameters in the default size over 387-wide tokens, 2,537,473
    in the paper's.
    """

    def __init__(self, token_width: int, config: AggregatorConfig | None = None, empty_logit: float = 0.0) -> None:
        super().__init__()
        self.config = config = config or AggregatorConfig()
        self.empty_logit = empty_logit
        size = (config.width, config.heads, config.hidden)
        self.project = nn.Linear(token_width, config.width)
        self.layers = nn.ModuleList(
            ISAB(*size, config.inducing_points, config.dropout)
            if config.inducing_points
            else SAB(*size, config.dropout)
            for _ in range(config.layers)
        )
        self.pool = PMA(*size, config.pool_seeds, config.dropout)
        self.head = head(config)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, K, T) float, mask (B, K) bool True = real -> pair_logit (B,).

        A bag without a real token gets ``empty_logit``, a constant.
        """
        if tokens.shape[1] == 0:
            return tokens.new_full((len(tokens),), self.empty_logit)
        logit = self.pooled(*self.related(tokens, mask))
        return torch.where(mask.any(1), logit, torch.full_like(logit, self.empty_logit))

    def related(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the pooling reads of sets with K > 0 places: x (B, K, D), and its mask (B, K).

        An empty bag attends to its first (zero) place, so that no softmax runs over nothing.
        """
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        attended = mask | (~mask.any(1, keepdim=True) & first)
        x = self.project(tokens.masked_fill(~mask[:, :, None], 0.0)) * attended[:, :, None]
        for layer in self.layers:
            x = layer(x, attended)
        return x, attended

    def pooled(self, x: Tensor, attended: Tensor) -> Tensor:
        """Logits (B,) of what :meth:`related` gave."""
        return self.head(self.pool(x, attended).mean(1))[:, 0]


def head(config: AggregatorConfig) -> nn.Sequential:
    """The layers after pooling, of every aggregator."""
    return nn.Sequential(
        nn.LayerNorm(config.width),
        nn.Linear(config.width, config.width),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.width, 1),
    )


def _feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
