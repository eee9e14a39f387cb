"""Triton kernels; every one has its plain twin in :mod:`pairformer.kernels.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def use_kernels(model: nn.Module) -> None:
    """Have every attention block of a model (SAB, ISAB, PMA) attend by the fused kernel, in training and inference.

    Raises:
        ImportError: Triton is missing.
    """
    from pairformer.kernels.set_attention import set_attention

    from pairformer.models.set_transformer import MAB

    for module in model.modules():
        if isinstance(module, MAB):
            module.attention = set_attention
