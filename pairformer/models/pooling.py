"""Aggregators without relations between tokens, to compare the Set Transformer with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pairformer.config import AggregatorConfig
from pairformer.models.set_transformer import head


class DeepSets(nn.Module):
    """logit = rho(sum over tokens of phi(t)).

    Source: Zaheer et al., Deep Sets, theorem 2; phi has two layers, rho three with a LayerNorm on the sum.
    """

    def __init__(self, token_width: int, config: AggregatorConfig | None = None, empty_logit: float = 0.0) -> None:
        super().__init__()
        config = config or AggregatorConfig()
        self.empty_logit = empty_logit
        self.project = nn.Linear(token_width, config.hidden)
        self.phi = nn.Sequential(nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, config.width))
        self.head = head(config)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, K, T) float, mask (B, K) bool True = real -> pair_logit (B,); ``empty_logit`` without a token."""
        real = mask[:, :, None]
        x = self.phi(self.project(tokens.masked_fill(~real, 0.0)))  # (B, K, D)
        return _logit(self.head, x.masked_fill(~real, 0.0).sum(1), mask, self.empty_logit)


class GatedAttention(nn.Module):
    """logit = head(sum over tokens of a x), a = softmax(w (tanh(V x) * sigmoid(U x))), x = relu(P t).

    Source: Ilse et al., Attention-based deep multiple instance learning, eq. 9.
    """

    def __init__(self, token_width: int, config: AggregatorConfig | None = None, empty_logit: float = 0.0) -> None:
        super().__init__()
        config = config or AggregatorConfig()
        self.empty_logit = empty_logit
        self.project = nn.Linear(token_width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.value = nn.Linear(config.width, config.hidden)
        self.gate = nn.Linear(config.width, config.hidden)
        self.weight = nn.Linear(config.hidden, 1, bias=False)
        self.head = head(config)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (B, K, T) float, mask (B, K) bool True = real -> pair_logit (B,); ``empty_logit`` without a token."""
        real = mask[:, :, None]
        x = self.dropout(torch.relu(self.project(tokens.masked_fill(~real, 0.0))))  # (B, K, D)
        score = self.weight(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))  # (B, K, 1)
        # The lowest finite number, not -inf: a bag without a token has a softmax too, which is then not used.
        attention = score.masked_fill(~real, torch.finfo(score.dtype).min).softmax(1) if mask.shape[1] else score
        return _logit(self.head, (attention * x).sum(1), mask, self.empty_logit)


def _logit(head: nn.Module, bag: Tensor, mask: Tensor, empty_logit: float) -> Tensor:
    logit = head(bag)[:, 0]
    return torch.where(mask.any(1), logit, torch.full_like(logit, empty_logit))
