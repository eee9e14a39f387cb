"""Triton kernels, each with a plain twin: attention in :mod:`pairformer.kernels.reference`, the scan and its windows in
:mod:`pairformer`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def use_kernels(model: nn.Module) -> None:
    """Have every attention block of a model attend by the fused kernels, in training and inference.

    Blocks are those of a Set Transformer (SAB, ISAB, PMA) and of an RNAformer.

    Raises:
        ImportError: Triton is missing.
    """
    from pairformer.kernels.axial_attention import axial_attention
    from pairformer.kernels.set_attention import set_attention

    from pairformer.models.rnaformer import AxialAttention
    from pairformer.models.set_transformer import MAB

    for module in model.modules():
        if isinstance(module, MAB):
            module.attention = set_attention
        elif isinstance(module, AxialAttention) and module.axis != "all":
            module.attention = axial_attention
