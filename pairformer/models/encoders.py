"""The two site encoders: one reads every candidate, the other only the selected ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairformer.config import CheapConfig, ExpensiveConfig

CHANNELS = 10
COLUMNS = 50


class ExpensiveEncoder(nn.Module):
    """Residual 1-D CNN over the aligned window, with channel attention.

    Convolutions have no bias; blocks activate before they convolve; after the last block the channels
    are scaled by 1 + gate, averaged into ``pooled_length`` bins and flattened channel-major.

    Source: PAIR-Former sec. 5 (TargetNet's encoder with squeeze-excitation); 14,241 parameters by default.
    """

    def __init__(self, config: ExpensiveConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ExpensiveConfig()
        widths = config.channels
        self.stem = _conv(CHANNELS, widths[0], config.stem_kernel)
        self.blocks = nn.ModuleList(
            _ResidualBlock(a, b, config.block_kernel, config.dropout) for a, b in pairwise(widths)
        )
        squeezed = max(1, widths[-1] // config.se_reduction)
        self.squeeze = nn.Linear(widths[-1], squeezed, bias=False)
        self.excite = nn.Linear(squeezed, widths[-1], bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("bins", _mean_bins(COLUMNS, config.pooled_length), persistent=False)
        self.head = nn.Linear(config.width, 1)
        _initialise(self)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Encode windows.

        Args:
            windows: (M, 10, 50), one-hot, any dtype.

        Returns:
            embedding h (M, 384) and logit z (M,), both float.
        """
        x = self.stem(windows.to(self.stem.weight.dtype))  # (M, 16, 50)
        for block in self.blocks:
            x = block(x)  # (M, 32, 50)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(2)))))  # (M, 32)
        x = self.dropout(F.relu(x * (1 + gate)[:, :, None]))
        embedding = (x @ self.bins).flatten(1)  # (M, 384)
        return embedding, self.head(embedding)[:, 0]


class CheapEncoder(nn.Module):
    """Two strided convolutions and a mean; ESA score and position enter the logit only.

    Source: PAIR-Former sec. 4.3; 6,801 parameters by default.
    """

    def __init__(self, config: CheapConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CheapConfig()
        first, second = config.channels
        self.conv1 = nn.Conv1d(CHANNELS, first, 5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(first, second, 3, stride=2, padding=1)
        self.embed = nn.Linear(second, config.width)
        self.score1 = nn.Linear(second + 2, config.hidden)
        self.score2 = nn.Linear(config.hidden, 1)
        self.meta_dropout = nn.Dropout(config.meta_dropout)
        _initialise(self)

    def forward(self, windows: Tensor, esa_score: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Score windows.

        Args:
            windows: (N, 10, 50), one-hot, any dtype.
            esa_score: (N,) 0-10.
            position: (N,) in [0, 1].

        Returns:
            cheap_logit (N,) and cheap_embedding (N, 64), not normalised. Only the signs and directions
            of the embedding are used; ``F.normalize`` gives the paper's unit vectors.
        """
        x = F.relu(self.conv1(windows.to(self.conv1.weight.dtype)))  # (N, 16, 25)
        content = F.relu(self.conv2(x)).mean(2)  # (N, 32)
        meta = torch.stack([esa_score.to(content.dtype), position.to(content.dtype)], 1)
        score = F.relu(self.score1(torch.cat([content, self.meta_dropout(meta)], 1)))
        return self.score2(score)[:, 0], self.embed(content)


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, kernel)
        self.conv2 = _conv(outputs, outputs, kernel)
        self.skip = nn.Identity() if inputs == outputs else _conv(inputs, outputs, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.dropout(F.relu(x)))
        return self.skip(x) + self.conv2(self.dropout(F.relu(y)))


def _mean_bins(columns: int, bins: int) -> Tensor:
    """(columns, bins): column t averages columns floor(columns t / bins) .. ceil(columns (t + 1) / bins) - 1."""
    return F.adaptive_avg_pool1d(torch.eye(columns), bins)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, padding="same", bias=False)


def _modules(root: nn.Module, kind: type) -> Iterator:
    return (module for module in root.modules() if isinstance(module, kind))


def _initialise(encoder: nn.Module) -> None:
    """Convolutions Kaiming normal fan-out, linears fan-in, biases zero."""
    for conv in _modules(encoder, nn.Conv1d):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    for linear in _modules(encoder, nn.Linear):
        nn.init.kaiming_normal_(linear.weight, mode="fan_in", nonlinearity="relu")
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
