"""TargetNet with its official weights, as a site scorer to compare with. Nothing but the evaluation loads it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHTS = "targetnet_weights/TargetNet.pt"


class TargetNet(nn.Module):
    """Residual 1-D CNN over the aligned window: channels 16, 16, 32, blocks 2, 1, 1, max pooling over 3 columns.

    Convolutions have no bias; a block whose width grows pads its input with zero channels. 8,737 parameters.
    Submodules carry the names of the published state dict.

    Source: Min et al., Bioinformatics 2022.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleList([_conv(10, 16, 5), _conv(16, 16, 5)])
        self.stage1 = _pair_of_convolutions(16, 16)
        self.stage2 = _pair_of_convolutions(16, 32)
        self.linear = nn.Linear(512, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Logit (M,) of windows (M, 10, 50), one-hot, any dtype."""
        x = self.stem[1](F.relu(self.stem[0](windows.to(self.linear.weight.dtype))))  # (M, 16, 50)
        for first, second in (self.stage1, self.stage2):
            y = second(F.relu(first(F.relu(x))))
            x = y + F.pad(x, (0, 0, 0, y.shape[1] - x.shape[1]))  # (M, 32, 50) after the second
        return self.linear(F.max_pool1d(F.relu(x), 3).flatten(1))[:, 0]

    @classmethod
    def load(cls, path: Path) -> TargetNet:
        """Read the published state dict.

        Raises:
            ValueError: the file holds other arrays.
        """
        weights = torch.load(path, weights_only=True)
        model = cls()
        # stem.0.conv.1.weight -> stem.0.weight, stage1.0.conv2.1.weight -> stage1.1.weight
        renamed = {
            name.replace(".conv.1.", ".").replace(".0.conv1.1.", ".0.").replace(".0.conv2.1.", ".1."): value
            for name, value in weights.items()
        }
        try:
            model.load_state_dict(renamed)
        except RuntimeError as error:
            raise ValueError(f"TargetNet.pt must be the published state dict, got {path}; {error}") from error
        return model.eval()


def _pair_of_convolutions(inputs: int, outputs: int) -> nn.ModuleList:
    return nn.ModuleList([_conv(inputs, outputs, 3), _conv(outputs, outputs, 3)])


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, padding="same", bias=False)
