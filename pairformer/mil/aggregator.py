"""Bags of vectors -> one logit each, by attention among the instances."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pairformer.config import AggregatorConfig
from pairformer.mil.forms import Form, bool_mask, is_nested
from pairformer.models.pair_former import pack_tokens
from pairformer.models.set_transformer import SetTransformer
from pairformer.saved import FILES, write_model


class SetAggregator(SetTransformer):
    """Set Transformer: projection, self-attention blocks, pooling by learned queries, a head of two layers.

    Neither the order of instances, nor padding, nor the rest of the batch matters. A bag without an instance has the
    logit ``empty``, a learned number that starts at 0, and no attention.

    Args:
        in_width: D, width of an instance.
        width, layers, heads, hidden, dropout: size of the attention blocks.
        pool_seeds: learned queries of the pooling (PMA); several are averaged.
        inducing_points: 0 for full self-attention (SAB), quadratic in the largest bag; else through this many points
            (ISAB), linear in it.

    Raises:
        ValueError: a size is out of its range.

    Source: Lee et al., Set Transformer, ICML 2019, as in PAIR-Former sec. 4.5.
    """

    def __init__(
        self, in_width: int, width: int = 64, layers: int = 2, heads: int = 2, hidden: int = 128, dropout: float = 0.1,
        pool_seeds: int = 1, inducing_points: int = 0,
    ) -> None:  # fmt: skip
        sizes = {"width": width, "layers": layers, "heads": heads, "hidden": hidden, "dropout": dropout,
                 "pool_seeds": pool_seeds, "inducing_points": inducing_points}  # fmt: skip
        super().__init__(in_width, AggregatorConfig(**sizes))  # type: ignore[arg-type]
        self.arguments = {"in_width": in_width, **sizes}
        self.empty = nn.Parameter(torch.zeros(()))

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None, return_att: bool = False, *, offsets: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logit of each bag.

        Args:
            x: (B, P, D) padded; or (N, D) ragged, with ``offsets``; or (B, j, D) jagged. Floats.
            mask: (B, P) bool, or integers 0 and 1, True = real; None for all of a padded ``x``. What stands in other
                places is not read.
            return_att: also give the attention of the pooling.
            offsets: (B + 1,) integers.

        Returns:
            logits (B,), the same with and without attention; and with ``return_att`` the attention, the mean over
            heads and queries: (B, P), zero on padding, or (N,) for ragged and jagged input; it sums to 1 over the
            instances of a bag that has any.

        Raises:
            ValueError: shapes disagree, offsets are malformed, or mask holds a number other than 0 and 1.
            TypeError: mask holds floats, it or x is no tensor, or x is of another dtype than the weights.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}; pass torch.from_numpy(x) of an array")
        ragged = offsets is not None or is_nested(x)
        if ragged:
            if mask is not None:
                raise ValueError("mask must be None for ragged bags, got one beside offsets")
            form = Form.of(x, offsets, name="x")
            self._check_width(x, 2 if offsets is not None else 3)
            x, mask = pack_tokens(form.rows("x", x), form.offsets)
        self._check_width(x, 3)
        mask = _checked(mask, x)
        if x.shape[1] == 0:
            logits, att = self.empty.expand(len(x)), mask.to(x.dtype)
        else:
            inner, attended = self.related(x, mask)
            logits = torch.where(mask.any(1), self.pooled(inner, attended), self.empty)
            att = self._attention(inner, attended) * mask if return_att else mask
        return (logits, att[mask] if ragged else att) if return_att else logits

    def _check_width(self, x: Tensor, ndim: int) -> None:
        width, weight = self.project.in_features, self.project.weight
        if x.ndim != ndim or x.shape[-1] != width:
            raise ValueError(f"x must have shape (B, P, {width}), or (N, {width}) with offsets, got {tuple(x.shape)}")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x must be {weight.dtype} as the weights, got {x.dtype}; pass x.to({weight.dtype})")

    def _attention(self, x: Tensor, mask: Tensor) -> Tensor:
        """The weights inside ``self.pool(x, mask)``, (B, P)."""
        attend = self.pool.attend
        query, key = (
            part.unflatten(-1, (attend.heads, -1)).transpose(-3, -2)
            for part in (attend.query(self.pool.seeds), attend.key(self.pool.feed_forward(x)))
        )  # (H, S, D / H), (B, H, P, D / H)
        score = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5  # (B, H, S, P)
        return score.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(3).mean((1, 2))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``config.json`` (the arguments) and ``model.safetensors``, as Hugging Face's model mixin does."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        write_model(directory, self.arguments, save(weights, {"format": "pt"}))

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> SetAggregator:
        """Read what :meth:`save_pretrained` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: the directory lacks a file.
            ValueError: a file is damaged, or weights and arguments disagree.
        """
        config, weights = (Path(directory) / name for name in FILES)
        try:
            module = cls(**json.loads(config.read_text(encoding="utf-8")))
            module.load_state_dict(load_file(weights))
        except (ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"directory must hold what save_pretrained wrote, got {directory}: {error}") from error
        return module.eval()


def _checked(mask: Tensor | None, x: Tensor) -> Tensor:
    if mask is None:
        return x.new_ones(x.shape[:2], dtype=torch.bool)
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    if mask.dtype.is_floating_point:
        raise TypeError(f"mask must be bool or integers 0 and 1, got {mask.dtype}; pass mask.bool() where 1 = real")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"mask must have shape {tuple(x.shape[:2])} (as x), got {tuple(mask.shape)}")
    if mask.dtype != torch.bool and not torch.compiler.is_compiling():
        bool_mask(mask)  # which refuses other numbers
    return mask.bool()
