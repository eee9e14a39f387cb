"""Plain PyTorch twins of the kernels, for tests and for reading."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def set_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As :func:`pairformer.kernels.set_attention.set_attention`.

    ``keep`` (B, H, Q, K) multiplies the weights, in place of dropout and seed.
    """
    score = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[3] ** -0.5
    if bias is not None:
        score = score + bias
    if mask is not None:
        score = score.masked_fill(~mask[:, None, None, :], -torch.inf)
        value = value.masked_fill(~mask[:, :, None, None], 0.0)
    weight = torch.nan_to_num(score.softmax(3)) if score.shape[3] else score  # of no key: 0
    return torch.einsum("bhqk,bkhd->bqhd", weight if keep is None else weight * keep, value)


def ragged_set_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_query: Tensor, cu_key: Tensor, bias: Tensor | None = None
) -> Tensor:
    """As :func:`pairformer.kernels.set_attention.ragged_set_attention`, bag by bag."""
    bags = zip(pairwise(cu_query.tolist()), pairwise(cu_key.tolist()), strict=True)
    return torch.cat([
        set_attention(query[None, a:b], key[None, c:d], value[None, c:d],
                      bias=None if bias is None else bias[bag : bag + 1, :, : b - a, : d - c])[0]
        for bag, ((a, b), (c, d)) in enumerate(bags)
    ])  # fmt: skip
