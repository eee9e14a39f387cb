"""Secondary structures: pair probabilities -> base pairs, dot-brackets, and how good they are.

Positions count from 0. Pairs are (N, 2) int64, rows (i, j) with i < j in ascending order.
"""

from __future__ import annotations

import string

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pairformer.config import check

METHODS = ("matching", "raw")
OPENING = "([{<" + string.ascii_uppercase
CLOSING = ")]}>" + string.ascii_lowercase


def decode(
    probability: ArrayLike, threshold: float = 0.5, method: str = "matching", min_loop: int = 0
) -> NDArray[np.int64]:
    """Base pairs of a matrix of pair probabilities.

    Args:
        probability: (L, L) in [0, 1]; averaged with its transpose, the diagonal has no meaning.
        threshold: A pair's probability is above this.
        method: "matching": each base pairs at most once; the most probable pair first, of equals that with the
            smaller i, then j. Greedy, so half the greatest possible sum of probabilities at the least. "raw": every
            pair above the threshold, as published; a base can then have several.
        min_loop: Least number of bases between two that pair; 0 as in the published targets, 3 for what can fold.

    Returns:
        (N, 2) int64.

    Raises:
        ValueError: the matrix is not square or a value not a probability, or the method is unknown.

    Source: RNAformer (arXiv 2307.10073), inference; the matching is not published.
    """
    values = np.asarray(probability, np.float64)
    check(values.ndim == 2 and values.shape[0] == values.shape[1], "probability", "have shape (L, L)", values.shape)
    outside = values[~((values >= 0) & (values <= 1))]
    check(len(outside) == 0, "probability", "be in [0, 1]", outside[:1])
    check(method in METHODS, "method", f"be one of {', '.join(METHODS)}", repr(method))
    check(min_loop >= 0, "min_loop", "be 0 or more", min_loop)
    values = (values + values.T) / 2
    pairs = np.argwhere(np.triu(values > threshold, 1 + min_loop))
    return _sorted(pairs) if method == "raw" else matching(pairs, values[tuple(pairs.T)])


def dot_bracket(pairs: ArrayLike, length: int, skip: bool = False) -> str:
    """Structure as text: "." for a base without partner, brackets of one kind for pairs that do not cross.

    The kinds are (), [], {}, <>, Aa to Zz. Pair by pair in ascending order, each gets the first kind in which it
    crosses none.

    Args:
        pairs: (N, 2) integers, in any order, also within a pair.
        length: L.
        skip: leave out a pair that crosses all 30 kinds, which is an error otherwise.

    Raises:
        ValueError: a position is not in the sequence, a base pairs twice or with itself, or 30 kinds do not do.
    """
    given = np.asarray(pairs, np.int64).reshape(-1, 2)
    inside = bool(np.all((given >= 0) & (given < length)))
    check(inside, "pairs", f"hold positions from 0 to {length - 1}", given[((given < 0) | (given >= length)).any(1)])
    bases, times = np.unique(given, return_counts=True)
    check(bool(np.all(times == 1)), "pairs", "have each base once", f"{bases[times > 1]} more often")
    text = ["."] * length
    pages: list[list[int]] = []  # of each kind, partners of the pairs that are open, innermost last
    for i, j in _sorted(given).tolist():
        for page in pages:
            while page and page[-1] < i:
                page.pop()
        kind = next((k for k, page in enumerate(pages) if not page or page[-1] > j), len(pages))
        if skip and kind == len(OPENING):
            continue
        check(kind < len(OPENING), "pairs", f"cross so that {len(OPENING)} kinds of brackets do", f"({i}, {j}) beyond")
        if kind == len(pages):
            pages.append([])
        pages[kind].append(j)
        text[i], text[j] = OPENING[kind], CLOSING[kind]
    return "".join(text)


def pairs_of(structure: str) -> NDArray[np.int64]:
    """Inverse of :func:`dot_bracket`.

    Raises:
        ValueError: a letter is none of a structure, or a bracket has no partner.
    """
    opened: dict[str, list[int]] = {kind: [] for kind in OPENING}
    pairs = []
    for at, letter in enumerate(structure):
        if letter in opened:
            opened[letter].append(at)
        elif letter in CLOSING:
            kind = OPENING[CLOSING.index(letter)]
            check(bool(opened[kind]), "structure", f"open every bracket with {kind!r}", f"{letter!r} at position {at}")
            pairs.append((opened[kind].pop(), at))
        else:
            check(letter == ".", "structure", "hold dots and brackets", f"{letter!r} at position {at}")
    left = [(at, kind) for kind, places in opened.items() for at in places]
    check(not left, "structure", "close every bracket", "{1!r} at position {0}".format(*min(left, default=(0, ""))))
    return _sorted(pairs)


def f1(predicted: ArrayLike, true: ArrayLike, slip: int = 0) -> float:
    """Harmonic mean of precision and recall over the pairs of one sequence.

    Args:
        predicted, true: (N, 2) and (M, 2) integers, in any order; a base can have several pairs.
        slip: 0: strict. Else a pair (i, j) is as good as (i + s, j) and (i, j + s) for s from -slip to slip; precision
            is then the share of predicted pairs that are as good as a true one, recall that of true pairs as good as
            a predicted one.

    Returns:
        0 to 1; 1 if there is neither a true nor a predicted pair, 0 if there are pairs on one side alone.
    """
    return float(f1_of(np.array([matches(predicted, true, slip)]))[0])


def f1_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 (B,) of counts (B, 4), each as :func:`matches` gives them, or sums of such."""
    precise, predicted, recalled, true = counts.T.astype(float)
    precision, recall = precise / np.maximum(predicted, 1), recalled / np.maximum(true, 1)
    found = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.where((predicted == 0) & (true == 0), 1.0, found)


def matches(predicted: ArrayLike, true: ArrayLike, slip: int = 0) -> tuple[int, int, int, int]:
    """What :func:`f1` is made of: predicted pairs as good as a true one, all predicted, true pairs as good as a
    predicted one, all true."""
    check(slip >= 0, "slip", "be 0 or more", slip)
    one, other = (set(map(tuple, _sorted(pairs).tolist())) for pairs in (predicted, true))
    return _found(one, other, slip), len(one), _found(other, one, slip), len(other)


def matching(pairs: NDArray[np.int64], value: NDArray) -> NDArray[np.int64]:
    """Of pairs in ascending order the best, then the best whose bases are free, and so on."""
    taken: set[int] = set()
    chosen = []
    for i, j in pairs[np.argsort(-value, kind="stable")].tolist():
        if i not in taken and j not in taken:
            taken |= {i, j}
            chosen.append((i, j))
    return _sorted(chosen)


def _found(pairs: set, among: set, slip: int) -> int:
    """Pairs as good as one among others."""
    steps = range(-slip, slip + 1)
    return sum(any((i + s, j) in among or (i, j + s) in among for s in steps) for i, j in pairs)


def _sorted(pairs: ArrayLike) -> NDArray[np.int64]:
    """(N, 2) int64, i < j, rows in ascending order."""
    rows = np.sort(np.asarray(pairs, np.int64).reshape(-1, 2), 1)
    return np.ascontiguousarray(rows[np.lexsort(rows.T[::-1])])
