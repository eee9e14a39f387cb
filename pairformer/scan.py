"""Sequences -> candidate target sites: every 40-nt window whose extended seed alignment scores enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pairformer import _core
from pairformer.bags import WINDOW, Candidates
from pairformer.config import as_bool, as_int, check, usable_threads

ESA_MIN = 6
MIRNA_MAX, UTR_MAX = 35, 2**31 - 1


class Column(Protocol):
    """Of a table, such as a pandas Series: what NumPy makes an array of."""

    def __array__(self) -> NDArray: ...


Strings = Sequence[str] | NDArray[np.object_]
Texts = str | Strings | Column
IUPAC = frozenset("ACGUTRYSWKMBDHVNacgutryswkmbdhvn")
_MIRNA_LETTERS = "ACGUTacgut"
_BLANKS = "\n \r\t"
_NONE = ("NA", "NAN")  # letters of the code, and what tables have where there is no sequence


def scan(
    mirna: Texts,
    utr: Texts,
    esa_min: int = ESA_MIN,
    *,
    threads: int = 0,
    strict: bool = False,
    variant: str = "auto",
) -> Candidates:
    """Find the candidate target sites of one pair or of many.

    Every window of 40 nt, stride 1, is aligned with the miRNA's first ten letters; A-U, C-G and the
    wobble G-U score 1, gaps and mismatches 0. Windows scoring at least ``esa_min`` are candidates.

    Args:
        mirna: 1-35 letters ACGU, 5'->3', any case, T read as U; or a sequence or a table's column of them.
        utr: 3'UTR, 5'->3', any length; windows holding a letter outside ACGU are dropped and counted. Under 40 nt it
            has letters of the IUPAC code alone, and is not "NA" or "NaN". Two sequences must be equally long; a single
            string is broadcast.
        esa_min: least score kept, 0-10.
        threads: 0 for all this process may use, at most those. The result does not depend on it.
        strict: raise for an invalid pair also in a list; else its bag is empty, its status "invalid"
            and its reason in ``messages``.
        variant: one of ``pairformer._core.variants()``; all give the same rows.

    Returns:
        Candidates of B pairs. A UTR under 40 nt or without a candidate is an empty bag.

    Raises:
        ValueError: an invalid pair (single strings, or ``strict``), lists of different length, or
            ``esa_min`` out of range.
        TypeError: ``mirna`` or ``utr`` is neither a string nor a sequence, or a number is no int.

    Source: PAIR-Former sec. 4.1 (ESA of Min et al., TargetNet, 2022); ties as Biopython's pairwise2.
    """
    esa_min, threads = as_int("esa_min", esa_min), usable_threads(threads)
    check(0 <= esa_min <= 10, "esa_min", "be in 0..10", esa_min)
    strict, single = as_bool("strict", strict), isinstance(mirna, str) and isinstance(utr, str)
    mirnas, utrs = broadcast_pairs(mirna, utr)
    messages: dict[int, str] = {}
    mirna_number: dict[str, int] = {}  # distinct strings, numbered in order of first use
    utr_number: dict[int, int] = {}  # by identity: hashing 10 Mb would cost as much as scanning them
    distinct_utrs: list[str] = []  # keeps those identities taken
    bag_mirna = np.empty(len(mirnas), np.int32)
    bag_utr = np.empty(len(mirnas), np.int32)
    utr_length = np.zeros(len(mirnas), np.int64)
    for bag, (m, u) in enumerate(zip(mirnas, utrs, strict=True)):
        message = _text_fault(m, u)
        utr_length[bag] = len(u) if isinstance(u, str) else 0
        if message is not None:
            if single or strict:
                raise ValueError(message)
            messages[bag] = message
            m = u = ""
        bag_mirna[bag] = mirna_number.setdefault(m, len(mirna_number))
        bag_utr[bag] = utr_number.setdefault(id(u), len(distinct_utrs))
        if bag_utr[bag] == len(distinct_utrs):
            distinct_utrs.append(u)
    batch = _core.PairBatch(list(mirna_number), distinct_utrs, bag_mirna, bag_utr, threads)
    # The batch has looked for letters outside ACGU on all threads; blanks are such.
    faults = {number: fault for number in batch.utrs_with_others if (fault := _blank_fault(distinct_utrs[number]))}
    if faults:
        messages |= {bag: faults[number] for bag, number in enumerate(bag_utr.tolist()) if number in faults}
        if single or strict:
            raise ValueError(messages[min(messages)])
        for number in faults:
            distinct_utrs[number] = ""
        batch = _core.PairBatch(list(mirna_number), distinct_utrs, bag_mirna, bag_utr, threads)
    return Candidates.of(batch, utr_length, messages, esa_min, threads, variant)


def broadcast_pairs(mirna: Texts, utr: Texts) -> tuple[Strings, Strings]:
    """Two equally long sequences from strings or sequences; a single string is repeated."""
    mirnas, utrs = as_strings("mirna", mirna), as_strings("utr", utr)
    if isinstance(mirnas, str):
        mirnas = [mirnas] * (1 if isinstance(utrs, str) else len(utrs))
    if isinstance(utrs, str):
        utrs = [utrs] * len(mirnas)
    if len(mirnas) != len(utrs):
        raise ValueError(f"utr must be as many as mirna ({len(mirnas)}), got {len(utrs)}")
    return mirnas, utrs


def as_strings(name: str, value: Any) -> str | Strings:
    """A string or a sequence as it is, a column of strings as an array; TypeError for what is neither."""
    is_bytes = isinstance(value, (bytes, bytearray))
    if (isinstance(value, np.ndarray) and value.ndim == 1) or (isinstance(value, (str, Sequence)) and not is_bytes):
        return value
    if getattr(value, "ndim", 1) == 1 and (column := _column(value)) is not None:
        return column
    if is_bytes:
        hint = f"{name}.decode()"
    elif isinstance(value, np.ndarray):
        hint = f"{name}.ravel()"
    elif getattr(value, "ndim", 1) == 2:
        hint = "one of its columns"
    else:
        hint = f"list({name})" if isinstance(value, Iterable) else "its letters"
    raise TypeError(f"{name} must be a string or a sequence of strings, got {type(value).__name__}; pass {hint}")


def _column(value: Any) -> NDArray | None:
    """What a table's column holds, where that are strings or, as floats, nothing at all; else None."""
    try:
        found = np.asarray(value) if hasattr(value, "__array__") else np.array(None)
    except RuntimeError:  # such as of a tensor with a gradient
        return None
    empty = found.dtype.kind == "f" and bool(np.isnan(found).all())
    return found.astype(object) if found.ndim == 1 and (empty or found.dtype.kind in "OUT") else None


def pair_fault(mirna: object, utr: object) -> str | None:
    """Why a pair cannot be scanned, or None. A UTR is any string without blanks, under 40 nt of letters for
    nucleotides."""
    fault = _text_fault(mirna, utr)
    return _blank_fault(utr) if fault is None and isinstance(utr, str) else fault


def _text_fault(mirna: object, utr: object) -> str | None:
    """What is told without reading a UTR of 40 nt or more."""
    if not isinstance(mirna, str):
        return f"mirna must be a string, got {type(mirna).__name__}"
    if not isinstance(utr, str):
        return f"utr must be a string, got {type(utr).__name__}"
    if not 1 <= len(mirna) <= MIRNA_MAX:
        hint = "; is it a hairpin, or a UTR?" if mirna else ""
        return f"mirna must have 1 to {MIRNA_MAX} letters, got {len(mirna)}{hint}"
    if len(utr) > UTR_MAX:
        return f"utr must have at most {UTR_MAX} letters, got {len(utr)}"
    if wrong := mirna.strip(_MIRNA_LETTERS):
        return f"mirna must have letters ACGU (or T) only, got {wrong[0]!r} at position {mirna.index(wrong[0]) + 1}"
    if len(utr) <= 3 and utr.upper() in _NONE:
        return f"utr must be a sequence, got {utr!r}, which stands for none; leave the pair out"
    if len(utr) < WINDOW and not set(utr) <= IUPAC:  # longer ones lose windows, which is told
        odd = next(letter for letter in utr if letter not in IUPAC)
        return _blank_fault(utr) or (
            f"utr must hold letters of the IUPAC nucleic acid code, got {odd!r} at position {utr.index(odd) + 1}"
        )
    return None


def _blank_fault(utr: str) -> str | None:
    blank = next((letter for letter in _BLANKS if letter in utr), None)
    if blank is None:
        return None
    return f"utr must hold no blanks, got {blank!r} at position {utr.index(blank) + 1}; pass ''.join(utr.split())"
