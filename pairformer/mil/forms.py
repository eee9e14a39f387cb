"""The forms bags come in, and the one the work is done in: rows, bag by bag, with offsets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairformer.selector import is_tensor, like, to_numpy


@dataclass(frozen=True, eq=False)
class Form:
    """How B bags with N instances lie in a caller's arrays."""

    offsets: NDArray[np.int64]
    """(B + 1,) bag b owns rows ``offsets[b]:offsets[b + 1]``."""
    mask: NDArray[np.bool_] | None = None
    """(B, P) True = real, where the arrays are padded to P places; rows are the real places, bag by bag."""
    jagged: bool = False
    """Whether the arrays are torch tensors of the layout ``torch.jagged``; rows are those of ``.values()``."""

    @classmethod
    def of(cls, values: Any, offsets: Any = None, mask: Any = None, name: str = "scores") -> Form:
        """The form of ``values``.

        Args:
            values: (N, ...) with ``offsets``, or without as one bag; (B, P, ...) with ``mask``; or torch jagged.
            offsets: (B + 1,) of an integer dtype, such as PyG's ``ptr`` or ``cu_seqlens``.
            mask: (B, P) bool, or numbers 0 and 1; True = real.
            name: of ``values``, for messages.

        Raises:
            ValueError: shapes disagree, offsets or mask are malformed, or both are given.
            TypeError: an argument is of another kind.
        """
        if is_nested(values):
            if offsets is not None or mask is not None:
                raise ValueError(f"offsets and mask must be None for jagged {name}, got one; it has its own offsets")
            return cls(_jagged_offsets(name, values), jagged=True)
        shape = _shape(name, values)
        if mask is not None:
            if offsets is not None:
                raise ValueError("offsets must be None where mask is given, got both; pass one of them")
            mask = bool_mask(mask)
            if shape[:2] != mask.shape:
                raise ValueError(f"{name} must have shape {mask.shape} as mask has, got {shape}")
            return cls(np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int64), mask)
        if offsets is None:
            if len(shape) != 1:
                raise ValueError(f"offsets or mask must be given for {name} of shape {shape}, got neither")
            return cls(np.array([0, shape[0]]))
        return cls(_offsets(offsets, shape[0], name))

    @property
    def n_rows(self) -> int:
        """N, the real instances of all bags."""
        return int(self.offsets[-1])

    def rows(self, name: str, values: Any) -> Any:
        """The real instances of an array of this form, (N, ...), of the kind and on the device it was.

        Raises:
            ValueError: ``values`` is not of this form.
            TypeError: it is neither an array nor a tensor.
        """
        if self.jagged or is_nested(values):
            if not (self.jagged and is_nested(values)):
                raise ValueError(f"{name} must be {'' if self.jagged else 'not '}jagged as scores, got the other")
            if not np.array_equal(_jagged_offsets(name, values), self.offsets):
                raise ValueError(f"{name} must have the offsets of scores, got others")
            return values.values()
        shape = _shape(name, values)
        if self.mask is None:
            if shape[:1] != (self.n_rows,):
                raise ValueError(f"{name} must have {self.n_rows} rows (as scores), got shape {shape}")
            return values
        if shape[:2] != self.mask.shape:
            raise ValueError(f"{name} must have shape {self.mask.shape} in front as mask has, got {shape}")
        return values[like(values, self.mask)]

    def places(self) -> NDArray[np.int64]:
        """(N,) where a row stands: its column in its padded bag, or its own number in the other forms."""
        return np.arange(self.n_rows) if self.mask is None else np.nonzero(self.mask)[1]


def is_nested(value: Any) -> bool:
    """Whether this is a nested torch tensor."""
    return is_tensor(value) and value.is_nested


def numpy_of(name: str, value: Any) -> NDArray:
    """As :func:`pairformer.selector.to_numpy`, and bfloat16 as float32."""
    is_brain = is_tensor(value) and value.dtype is sys.modules["torch"].bfloat16
    return to_numpy(name, value.float() if is_brain else value)


def finite_floats(name: str, value: Any, dtype: type = np.float32) -> NDArray:
    """Floating-point numbers as a C-contiguous array of ``dtype``, all finite in it.

    Raises:
        TypeError: it holds no floating-point numbers.
        ValueError: a number is NaN, infinite, or too large for ``dtype``.
    """
    array = numpy_of(name, value)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must hold floating-point numbers, got {array.dtype}; pass it as float32")
    with np.errstate(over="ignore"):  # what overflows is refused by name below
        cast: NDArray = np.ascontiguousarray(array, dtype)
    finite = np.isfinite(cast)
    if not finite.all():
        row = np.argwhere(~finite)[0]
        raise ValueError(
            f"{name} must be finite in {np.dtype(dtype)}, got {array[tuple(row)]} at row {row[0]}; drop such rows"
        )
    return cast


def _shape(name: str, values: Any) -> tuple[int, ...]:
    if not (isinstance(values, np.ndarray) or is_tensor(values)):
        raise TypeError(f"{name} must be a NumPy array or a tensor, got {type(values).__name__}")
    if values.ndim == 0:
        raise ValueError(f"{name} must have a dimension of instances, got a single number")
    return tuple(values.shape)


def _on_cpu(value: Any) -> Any:
    """Offsets and masks are small and only read: they may lie on any device."""
    return value.detach().cpu().numpy() if is_tensor(value) else value


def _offsets(offsets: Any, n: int, name: str) -> NDArray[np.int64]:
    ends = np.asarray(_on_cpu(offsets))
    if ends.dtype.kind not in "iu":
        raise TypeError(f"offsets must hold integers, got {ends.dtype}")
    if ends.ndim != 1 or not len(ends) or ends[0] != 0:
        raise ValueError(f"offsets must be (B + 1,) and start at 0, got {ends.tolist()[:5]} of shape {ends.shape}")
    ends = ends.astype(np.int64)
    falls = np.flatnonzero(np.diff(ends) < 0)
    if len(falls):
        raise ValueError(f"offsets must not fall, got {ends[falls[0] + 1]} after {ends[falls[0]]}")
    if ends[-1] != n:
        raise ValueError(f"offsets must end at {n} (rows of {name}), got {ends[-1]}")
    return ends


def bool_mask(mask: Any) -> NDArray[np.bool_]:
    """(B, P) of bool, or of 0 and 1; ValueError for other numbers."""
    values = np.asarray(_on_cpu(mask))
    if values.ndim != 2:
        raise ValueError(f"mask must have shape (B, P), got {values.shape}")
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise ValueError(f"mask must hold only 0 and 1, got {values[~np.isin(values, (0, 1))][0]}; True = real")
    return values.astype(bool)


def _jagged_offsets(name: str, values: Any) -> NDArray[np.int64]:
    torch = sys.modules["torch"]
    if values.layout is not torch.jagged:
        raise ValueError(f"{name} must have the layout torch.jagged, got {values.layout}")
    if values.lengths() is not None:
        raise ValueError(f"{name} must be contiguous, got lengths beside offsets; pass {name}.contiguous()")
    return _offsets(values.offsets(), len(values.values()), name)
