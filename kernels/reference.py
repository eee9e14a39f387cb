"""Plain PyTorch twins of the kernels, for tests and for reading."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pairformer import _core

if TYPE_CHECKING:
    from pairformer.bags import Candidates
    from pairformer.models.encoders import CheapEncoder


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
    weight = score.softmax(3) if score.shape[3] else score
    weight = weight.masked_fill((score == -torch.inf).all(3, keepdim=True), 0.0)  # of no key
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


@torch.no_grad()
def cheap_scan(encoder: CheapEncoder, candidates: Candidates, rng_seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """As :class:`pairformer.kernels.cheap_scan.CheapScan`, and the embedding, of an encoder in evaluation mode."""
    inputs = (candidates.encode(), candidates.esa_score, candidates.position)
    logit, embedding = encoder(*map(torch.from_numpy, inputs))
    dims = torch.from_numpy(_core.simhash_dims(rng_seed, embedding.shape[1]))
    bits = (embedding[:, dims] > 0).long() << torch.arange(len(dims))
    return logit, bits.sum(1).to(torch.int32), embedding


def axial_attention(qkv: Tensor, axis: str, lengths: Tensor) -> Tensor:
    """As :func:`pairformer.kernels.axial_attention.axial_attention`: each line of the square is a bag."""
    side = qkv.shape[1]
    real = torch.arange(side, device=qkv.device) < lengths[:, None]  # (B, L)
    past = ~(real[:, :, None] & real[:, None, :])[..., None, None]  # (B, L, L, 1, 1)
    lines = qkv.masked_fill(past[..., None], 0.0)
    lines = lines if axis == "row" else lines.transpose(1, 2)
    out = set_attention(*lines.flatten(0, 1).unbind(2), real.repeat_interleave(side, 0)).unflatten(0, lines.shape[:2])
    return (out if axis == "row" else out.transpose(1, 2)).masked_fill(past, 0.0)
