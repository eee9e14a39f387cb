"""STSelector for bags of any kind, and what all selectors share: the call, the forms of input and the result."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairformer import selector
from pairformer.config import as_bool, as_int, usable_threads
from pairformer.mil.forms import Form, finite_floats, numpy_of
from pairformer.selector import is_tensor, like

TOP, COVERAGE = 0, 1  # and fill, 2


@dataclass(frozen=True, eq=False)
class Selection(selector.Selection):
    """What a selector kept of B bags; tensors if the scores were one, else NumPy arrays.

    ``rows`` (M,), ``offsets`` (B + 1,) and ``reason`` (M,) are ragged: rows number the real instances, bag by bag,
    which are ``values`` of ragged input, ``values[mask]`` of padded and ``values.values()`` of jagged.
    """

    form: Form
    """How the caller's arrays are laid out."""

    def padded(self, k_max: int) -> tuple[Any, Any]:
        """Give every bag ``k_max`` places.

        Args:
            k_max: places per bag, at least the size of the largest selected bag.

        Returns:
            indices (B, k_max) int64, -1 where there is none: for padded input the columns of the caller's (B, P)
            arrays, ready for ``take_along_axis`` and ``torch.gather`` once clipped to 0; else rows of the values.
            mask (B, k_max) bool, True = real.

        Raises:
            ValueError: a bag has more than ``k_max`` rows.
        """
        indices, mask = super().padded(k_max)
        places = like(indices, self.form.places())
        indices[mask] = places[indices[mask]]
        return indices, mask

    def gather(self, values: Any) -> Any:
        """The selected instances of an array in the form that was selected from.

        Args:
            values: (N, ...), (B, P, ...) or jagged (B, j, ...); any dtype and device, gradient passes.

        Returns:
            (M, ...), bag by bag at ``offsets``.

        Raises:
            ValueError: ``values`` has another form.
        """
        rows = self.form.rows("values", values)
        index = np.asarray(self.rows)
        return rows[like(rows, index)]

    def gather_padded(self, values: Any, k_max: int) -> tuple[Any, Any]:
        """The same as (B, k_max, ...) with zeros where there is none, and mask (B, k_max), True = real."""
        rows = self.gather(values)
        mask = like(rows, np.asarray(super().padded(k_max)[1]))
        shape = (*mask.shape, *rows.shape[1:])
        out = rows.new_zeros(shape) if is_tensor(rows) else np.zeros(shape, rows.dtype)
        out[mask] = rows
        return out, mask


@dataclass(frozen=True, eq=False)
class Bags:
    """What a selector reads, in the one form the work is done in."""

    scores: NDArray[np.float32]
    """(N,) finite."""
    embeddings: NDArray | None
    """(N, D) float32, finite; or (N,) uint32 keys; or None."""
    positions: NDArray[np.float64] | None
    """(N, 1) or (N, 2), finite, scaled so that every bag spans [0, 1]; or None."""
    offsets: NDArray[np.int64]
    """(B + 1,)."""

    def __iter__(self):
        """(rows, scores, embeddings, positions) of each bag."""
        for first, last in pairwise(self.offsets):
            bag = slice(first, last)
            yield (np.arange(first, last), self.scores[bag],
                   *(None if part is None else part[bag] for part in (self.embeddings, self.positions)))  # fmt: skip


class Selector(ABC):
    """Choose at most ``k_max`` instances per bag: exactly min(k_max, n) of a bag of n."""

    needs: tuple[str, ...] = ()
    """Inputs that must be given, of "embeddings" and "positions"."""

    def __init__(self, k_max: int = 64) -> None:
        self.k_max = as_int("k_max", k_max)
        if self.k_max < 1:
            raise ValueError(f"k_max must be 1 or more, got {k_max}")

    def select(
        self, scores: Any, embeddings: Any = None, positions: Any = None, offsets: Any = None, *, mask: Any = None,
        threads: int = 0,
    ) -> Selection:  # fmt: skip
        """Choose instances of each bag.

        NumPy arrays or CPU tensors, in one of three forms, all arguments in the same: ragged, (N, ...) with
        ``offsets`` (without: one bag); padded, (B, P, ...) with ``mask``; torch tensors of layout ``torch.jagged``.

        Args:
            scores: (N,), (B, P) or jagged; any floating-point dtype, cast to float32; higher is better.
            embeddings: (N, D) or (B, P, D), any floating-point dtype, cast to float32; or uint32 keys (N,) or
                (B, P) of STSelector; or None.
            positions: (N,) or (N, 1) along a line, (N, 2) in a plane, (B, P) or (B, P, 2) likewise, of any range:
                each bag's are scaled to [0, 1]; integers or floats; or None.
            offsets: (B + 1,) integers; PyG's ``ptr`` is the same.
            mask: (B, P) bool or 0 and 1, True = real; what stands in other places is not read.
            threads: most threads to use, 0 for all the process may use; only STSelector has more than one.

        Returns:
            Selection. If n <= k_max all rows of the bag are kept, with reason 0.

        Raises:
            ValueError: shapes disagree, offsets or mask are malformed, a value is not finite, or an input that the
                rule needs is missing.
            TypeError: a dtype is of another kind, or a tensor is not on the CPU.
        """
        torch = sys.modules.get("torch")
        if torch is not None and torch.compiler.is_compiling():  # the work is NumPy's: a break in the graph
            select = torch.compiler.disable(self.select)
            return select(scores, embeddings, positions, offsets, mask=mask, threads=threads)
        threads = usable_threads(threads)
        form = Form.of(scores, offsets, mask)
        bags = Bags(
            _scores(form, scores),
            None if embeddings is None else _embeddings(form, embeddings),
            None if positions is None else _positions(form, positions),
            form.offsets,
        )
        for name in self.needs:
            if getattr(bags, name) is None:
                raise ValueError(f"{name} must be given for {type(self).__name__}, got None")
        rows, ends, reason = self._choose(bags, threads)
        return Selection(like(scores, rows), like(scores, ends), like(scores, reason), form)

    @abstractmethod
    def _choose(self, bags: Bags, threads: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        """Rows (M,), bag by bag, ascending in each; offsets (B + 1,); reason (M,)."""


class STSelector(Selector):
    """The best scores, and the rest of the budget spread over positions or embeddings.

    The core's rule and code, ``pairformer.STSelector``, with bins made from what there is:

    - positions on a line: ``n_bins`` equal bins over the bag's range;
    - positions in a plane: ``grid`` x ``grid`` equal cells over the bag's bounding box;
    - embeddings alone: 2^b cells of embedding space, by the signs of b of its coordinates;
    - neither: there is nothing to cover, so plain top-K.

    With embeddings, "S2" also keeps at most ``key_cap`` instances of one bin that share all ``hash_bits`` signs.
    Without them it selects as "S1" does. A budget's share rho is top scores (reason 0); the rest gives each bin a
    place and more to bins of high scores (1); what bins cannot fill goes to the best scores left (2).

    Args:
        k_max: the budget K.
        rho: share of the budget for the best scores.
        variant: "S0" top-K, "S1" + bins and quotas, "S2" + duplicates.
        grid: cells per side for positions in a plane; None for the largest whose cells all get a place,
            isqrt(K - floor(rho K)).
        center: take each bag's mean off its embeddings before their signs. Features behind a ReLU are never
            negative, so that without it all of them look alike.
        **fields: other fields of ``pairformer.config.SelectorConfig``.

    Raises:
        ValueError: a field is out of its range.

    Source: PAIR-Former (arXiv 2602.00465) sec. 4.4 and App. D. Equal scores go to the smaller position or cell, then
    to the smaller row.
    """

    def __init__(
        self, k_max: int = 64, rho: float = 0.5, variant: str = "S2", *, grid: int | None = None, center: bool = True,
        **fields: Any,
    ) -> None:  # fmt: skip
        super().__init__(k_max)
        self.config = selector.STSelector(self.k_max, rho, variant, **fields).config
        places = self.k_max - math.floor(rho * self.k_max)
        self.grid = min(max(1, math.isqrt(places)), 256) if grid is None else as_int("grid", grid)
        if not 1 <= self.grid <= 256:
            raise ValueError(f"grid must be in 1..256, got {grid}")
        self.sign_bits = min(max(1, places).bit_length() - 1, 16)  # at most as many cells as places
        self.center = as_bool("center", center)

    def keys(self, embeddings: Any, offsets: Any = None, threads: int = 0) -> Any:
        """SimHash keys (N,) uint32, which ``select`` takes in place of ragged embeddings (N, D); see ``center``."""
        form = Form(np.array([0, len(embeddings)])) if offsets is None else Form.of(embeddings, offsets)
        return like(embeddings, self._keys(_embeddings(form, embeddings), form.offsets, threads))

    def _keys(self, embeddings: NDArray[np.float32], offsets: NDArray[np.int64], threads: int) -> NDArray[np.uint32]:
        core = selector.STSelector.from_config(self.config)
        return core.keys(embeddings, threads, offsets if self.center else None)

    def _choose(self, bags: Bags, threads: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
        config, keys, position = self.config, None, None
        read = config.variant == "S2" or (config.variant == "S1" and bags.positions is None)
        if bags.embeddings is not None and read:
            is_keys = bags.embeddings.ndim == 1
            keys = bags.embeddings if is_keys else self._keys(bags.embeddings, bags.offsets, threads)
        if bags.positions is not None:
            position = bags.positions[:, 0]
            if bags.positions.shape[1] == 2:
                cell = np.minimum(np.floor(bags.positions * self.grid), self.grid - 1) @ [self.grid, 1]
                config, position = replace(config, n_bins=self.grid**2), (cell + 0.5) / self.grid**2
        elif keys is not None:
            cells = 2**self.sign_bits
            config, position = replace(config, n_bins=cells), ((keys & np.uint32(cells - 1)) + 0.5) / cells
        if position is None:
            config = replace(config, variant="S0")
        elif config.variant == "S2" and keys is None:
            config = replace(config, variant="S1")
        found = selector.STSelector.from_config(config).select(
            bags.scores,
            keys if config.variant == "S2" else None,
            None if position is None else position.astype(np.float32),
            bags.offsets,
            threads,
        )
        return found.rows, found.offsets, found.reason


def _scores(form: Form, scores: Any) -> NDArray[np.float32]:
    rows = form.rows("scores", scores)
    if rows.ndim != 1:
        raise ValueError(f"scores must be one number per instance, got shape {tuple(scores.shape)}")
    return finite_floats("scores", rows)


def _embeddings(form: Form, embeddings: Any) -> NDArray:
    rows = numpy_of("embeddings", form.rows("embeddings", embeddings))
    if rows.ndim == 1 and rows.dtype == np.uint32:
        return np.ascontiguousarray(rows)
    if rows.ndim != 2:
        raise ValueError(f"embeddings must be one vector, or one uint32 key, per instance, got {rows.dtype} rows of "
                         f"shape {rows.shape[1:]}")  # fmt: skip
    return finite_floats("embeddings", rows)


def _positions(form: Form, positions: Any) -> NDArray[np.float64]:
    """(N, 1) or (N, 2) scaled bag by bag; a direction in which a bag has no extent is all 0."""
    rows = numpy_of("positions", form.rows("positions", positions))
    rows = finite_floats("positions", rows.astype(np.float64) if rows.dtype.kind in "iu" else rows, np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] not in (1, 2):
        raise ValueError(f"positions must be on a line or in a plane, (N,), (N, 1) or (N, 2), got {rows.shape}")
    filled = form.offsets[:-1][np.diff(form.offsets) > 0]
    sizes = np.diff(form.offsets)[np.diff(form.offsets) > 0]
    if not len(filled):
        return rows
    low, high = (np.repeat(f.reduceat(rows, filled), sizes, axis=0) for f in (np.minimum, np.maximum))
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (rows - low) / np.where(high > low, high - low, 1)
    if not np.isfinite(scaled).all():
        raise ValueError("positions must span less than the largest float64 in a bag, got more")
    return scaled
