"""Cheap signals -> at most ``k_max`` rows per bag."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pairformer import _core
from pairformer.bags import padded_rows
from pairformer.config import SelectorConfig, usable_threads


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that ``STSelector.select`` kept; arrays of the kind that went in."""

    rows: Any
    """(M,) int64, rows of the inputs, bag by bag, ascending within a bag."""

    offsets: Any
    """(B + 1,) int64, bag b owns rows[offsets[b]:offsets[b + 1]]."""

    reason: Any
    """(M,) uint8, 0 top logit, 1 coverage, 2 fill, 3 kept as asked."""

    def padded(self, k_max: int) -> tuple[Any, Any]:
        """Give every bag ``k_max`` places.

        Args:
            k_max: places per bag, at least the size of the largest bag.

        Returns:
            indices (B, k_max) int64, rows of the inputs or -1; mask (B, k_max) bool, True = real.

        Raises:
            ValueError: a bag has more than ``k_max`` rows.
        """
        indices, mask = padded_rows(to_numpy("offsets", self.offsets), k_max)
        indices[mask] = to_numpy("rows", self.rows)
        return like(self.rows, indices), like(self.rows, mask)

    def gather(self, values: Any) -> Any:
        """The selected rows of an array.

        Args:
            values: (N, ...) as the inputs; any dtype, a tensor on any device, gradient passes.

        Returns:
            (M, ...), bag by bag at ``offsets``.
        """
        return values[like(values, to_numpy("rows", self.rows))]


class STSelector:
    """Choose at most ``k_max`` diverse candidates per bag.

    Args:
        k_max: the budget.
        rho: share of the budget for the best logits.
        variant: "S0" top-K, "S1" + position bins and quotas, "S2" + SimHash duplicates.
        **fields: other fields of ``SelectorConfig``.

    Where the coverage share equals the number of bins and every bin still has a candidate (k_max 64, rho 0.5
    and 32 bins, on most transcripts), each bin gives its best and S2 selects what S1 does: neither weights nor
    hash keys have anything to decide.

    Raises:
        ValueError: a field is out of its range.

    Source: PAIR-Former sec. 4.4 and App. D.
    """

    def __init__(self, k_max: int = 64, rho: float = 0.5, variant: str = "S2", **fields: Any) -> None:
        self.config = SelectorConfig(k_max=k_max, rho=rho, variant=variant, **fields)

    @classmethod
    def from_config(cls, config: SelectorConfig, k_max: int | None = None) -> STSelector:
        """A selector with these settings, or with another budget."""
        return cls(**{**asdict(config), **({} if k_max is None else {"k_max": k_max})})

    def select(
        self, cheap_logit: Any, cheap_embedding: Any, position: Any, offsets: Any, threads: int = 0, keep: Any = None
    ) -> Selection:
        """Choose rows of each bag.

        Part of the budget goes to the best cheap logits; the rest is spread over the transcript,
        dropping near-duplicates in embedding space. A bag of n rows gets exactly min(k_max, n).

        Args:
            cheap_logit: (N,) float32, student score before the sigmoid.
            cheap_embedding: (N, D) float32, of which only signs are used; or (N,) uint32 from ``keys``
                (in PyTorch also int32 of the same bits); or None for S0 and S1.
            position: (N,) float32 in [0, 1], window centre over UTR length; or None for S0.
            offsets: (B + 1,) int64.
            threads: most threads to use, 0 for all the process may use.
            keep: (N,) bool or uint8, rows (not 0) that are kept before all others; where they are more than the
                budget those of the highest number, of equal ones the best. The others share the places left as if
                these were the budget. None for no such rows.

        Returns:
            Selection, of NumPy arrays or of PyTorch tensors as ``cheap_logit`` is. If n <= k_max all rows
            of the bag are kept, with reason 0.

        Raises:
            ValueError: offsets do not cover the inputs, shapes disagree, or a logit or position is not
                finite.
            TypeError: a dtype is another one, or a tensor is not on the CPU.

        Source: PAIR-Former App. D, steps A-E, quotas by largest remainder. Equal scores go to the smaller
        position, then the smaller row.
        """
        rows, ends, reason = _core.select(
            to_numpy("cheap_logit", cheap_logit),
            None if cheap_embedding is None else _keys_or_embedding(cheap_embedding),
            None if position is None else to_numpy("position", position),
            to_numpy("offsets", offsets),
            self.config,
            usable_threads(threads),
            None if keep is None else _marks(to_numpy("keep", keep)),
        )
        return Selection(like(cheap_logit, rows), like(cheap_logit, ends), like(cheap_logit, reason))

    def keys(self, embedding: Any, threads: int = 0, offsets: Any = None) -> Any:
        """SimHash keys, which ``select`` takes in place of embeddings.

        Args:
            embedding: (N, D) float32.
            threads: most threads to use, 0 for all the process may use.
            offsets: (B + 1,) int64; each bag's mean is then taken off its embeddings, summed in float64.

        Returns:
            (N,) uint32; bit t is 1 where embedding[:, dims[t]] > 0, dims being the first min(32, D) entries
            of a permutation seeded with ``rng_seed``.
        """
        ends, threads = None if offsets is None else to_numpy("offsets", offsets), usable_threads(threads)
        keys = _core.simhash_keys(to_numpy("embedding", embedding), self.config.rng_seed, threads, ends)
        return like(embedding, keys)


def is_tensor(value: Any) -> bool:
    """Whether this is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(name: str, value: Any) -> np.ndarray:
    """The same memory as an array.

    Raises:
        TypeError: it is neither a plain array nor a tensor, or a tensor on another device or of a dtype NumPy lacks.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one; pass the rows that count")
    if isinstance(value, np.ndarray):
        return value
    if not is_tensor(value):
        raise TypeError(f"{name} must be a NumPy array or a CPU tensor, got {type(value).__name__}")
    if value.device.type != "cpu":
        raise TypeError(f"{name} must be on the CPU, got {value.device}; pass {name}.cpu()")
    try:
        return value.detach().numpy()
    except TypeError:
        raise TypeError(f"{name} must have a dtype that NumPy has, got {value.dtype}") from None


def _keys_or_embedding(value: Any) -> np.ndarray:
    array = to_numpy("cheap_embedding", value)
    is_bit_pattern = is_tensor(value) and array.ndim == 1 and array.dtype == np.int32
    return array.view(np.uint32) if is_bit_pattern else array


def like(kind: Any, array: np.ndarray) -> Any:
    """The array, or a tensor of it on the device of ``kind`` if that is one."""
    return sys.modules["torch"].from_numpy(array).to(kind.device) if is_tensor(kind) else array


def _marks(keep: np.ndarray) -> np.ndarray:
    return keep.view(np.uint8) if keep.dtype == bool else keep
