"""Secondary structures: letters -> pair probabilities by energies -> base pairs, dot-brackets, and how good they are.

Positions count from 0. Pairs are (N, 2) int64, rows (i, j) with i < j in ascending order.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pairformer import _core
from pairformer._core import LONGEST
from pairformer.config import as_int, check, check_number, usable_threads

ALPHABET = "ACGUN"
LETTERS = len(ALPHABET)
CELLS = 4_000_000  # of the squares that energies are at a time
METHODS = ("nested", "matching", "raw")
CHOICES = (0.1, 0.2, 0.3, 0.4, 0.5)  # thresholds, of which each RNA can have its own
OPENING = "([{<" + string.ascii_uppercase
CLOSING = ")]}>" + string.ascii_lowercase


def equilibrium(sequences: Sequence[str], threads: int = 1) -> list[NDArray[np.float32]]:
    """Probabilities that bases pair in thermal equilibrium at 37 degrees C, by the energies of helices and loops.

    Args:
        sequences: letters ACGUN, 500 at most; N pairs with nothing.
        threads: 0 for all this process may use.

    Returns:
        Symmetric (L, L) for each.

    Raises:
        ValueError: a sequence is longer or has another letter, or there is one that is in no list.

    Source: McCaskill, Biopolymers 1990; energies of Mathews et al., PNAS 2004, but for those of single loops.
    """
    threads = usable_threads(threads)
    check(not isinstance(sequences, str), "sequences", "be a list of strings", repr(sequences))
    longest = max(map(len, sequences), default=0)
    check(longest <= LONGEST, "sequences", f"have {LONGEST} letters at most", f"{longest}; pairformer.fold with "
          'model="energies" folds longer ones in windows')  # fmt: skip
    strange = sorted(set("".join(sequences)) - set(ALPHABET))
    check(not strange, "sequences", f"have letters {ALPHABET}", "".join(strange))
    found: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    while order:  # the longest that are left, as many as fit
        count = max(1, CELLS // max(1, len(sequences[order[0]])) ** 2)
        rows, order = order[:count], order[count:]
        codes, lengths = letter_codes([sequences[row] for row in rows])
        for row, n, matrix in zip(rows, lengths, _core.pair_probabilities(codes, lengths, threads), strict=True):
            found[row] = matrix[:n, :n].copy()  # not a view, which would keep all of them
    return found


def letter_codes(sequences: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Codes (B, L), A0 C1 G2 U3 and N4, also past a sequence's length, and lengths (B,)."""
    code = np.full(256, 4, np.uint8)
    code[list(ALPHABET.encode())] = range(LETTERS)
    codes = np.full((len(sequences), max(map(len, sequences), default=0)), 4, np.uint8)
    for row, sequence in zip(codes, sequences, strict=True):
        row[: len(sequence)] = code[np.frombuffer(sequence.encode(), np.uint8)]
    return codes, np.array([len(sequence) for sequence in sequences], np.int64)


def decode(
    probability: ArrayLike, threshold: float | None = 0.5, method: str = "nested", min_loop: int = 0
) -> NDArray[np.int64]:
    """Base pairs of a matrix of pair probabilities.

    Args:
        probability: (L, L) in [0, 1]; averaged with its transpose, on the diagonal anything in this range.
        threshold: A pair's probability is above this. None: that of 0.1, 0.2, 0.3, 0.4 and 0.5 whose pairs have the
            greatest :func:`expected_f1`.
        method: "nested": each base pairs at most once; the pairs without crossings whose probabilities less the
            threshold have the greatest sum, then, of bases left over, pairs above (1 + threshold) / 2 as "matching"
            takes them: what crosses has to be sure. "matching": the most probable pair first, of equals that with the
            smaller i, then j. "raw": every pair above the threshold, as published; a base can then have several.
        min_loop: Least number of bases between two that pair; 0 as in the published targets, 3 for what can fold.

    Returns:
        (N, 2) int64.

    Raises:
        ValueError: the matrix is not square or a value not a probability, or a setting is out of its range.
        TypeError: ``min_loop`` is not an integer.

    Source: RNAformer (arXiv 2307.10073), inference, for "raw"; Nussinov et al., SIAM J Appl Math 1978, for "nested";
    Hamada et al., BMC Bioinformatics 2010, for what an RNA's own threshold is.
    """
    values = np.asarray(probability, np.float64)
    check(values.ndim == 2 and values.shape[0] == values.shape[1], "probability", "have shape (L, L)", values.shape)
    outside = values[~((values >= 0) & (values <= 1))]
    check(len(outside) == 0, "probability", "be in [0, 1]", outside[:1])
    if threshold is not None:
        check_number("threshold", threshold)
    check(method in METHODS, "method", f"be one of {', '.join(METHODS)}", repr(method))
    check(as_int("min_loop", min_loop) >= 0, "min_loop", "be 0 or more", min_loop)
    values = (values + values.T) / 2
    pairs = np.argwhere(np.triu(values > (threshold or 0), 1 + min(min_loop, len(values))))
    return drawn(pairs, values[tuple(pairs.T)], threshold, method)[0]


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
    given = _two_columns(pairs)
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


def expected_f1(chosen: NDArray[np.int64], pairs: NDArray[np.int64], probability: NDArray) -> float:
    """F1 of the pairs that are chosen, were each pair true with its probability: 2 s / (n + a) for n pairs, the sum s
    of their probabilities and that of all pairs, a; where none is chosen 0, or 1 if none is possible.

    Args:
        chosen: (n, 2), some of ``pairs``.
        pairs: (N, 2) in ascending order.
        probability: (N,) theirs.
    """
    key = [1 + pairs.max(initial=0), 1]  # of a pair, one number
    found = probability[np.searchsorted(pairs @ key, chosen @ key)].sum(dtype=np.float64)
    true = probability.sum(dtype=np.float64)
    return float(2 * found / (len(chosen) + true)) if len(chosen) else float(true == 0)


def matches(predicted: ArrayLike, true: ArrayLike, slip: int = 0) -> tuple[int, int, int, int]:
    """What :func:`f1` is made of: predicted pairs as good as a true one, all predicted, true pairs as good as a
    predicted one, all true."""
    check(slip >= 0, "slip", "be 0 or more", slip)
    one, other = (set(map(tuple, _sorted(pairs).tolist())) for pairs in (predicted, true))
    return _found(one, other, slip), len(one), _found(other, one, slip), len(other)


def drawn(
    pairs: NDArray[np.int64], value: NDArray, threshold: float | None, method: str
) -> tuple[NDArray[np.int64], float]:
    """Of pairs (N, 2) in ascending order those that :func:`decode` draws, by their probabilities; and the threshold."""
    value = value.astype(np.float64)
    if threshold is None:
        choices = (drawn(pairs, value, choice, method) for choice in CHOICES)
        return max(choices, key=lambda found: expected_f1(found[0], pairs, value))
    above = value > threshold
    pairs, value = pairs[above], value[above]
    if method == "raw":
        return _sorted(pairs), threshold
    if method == "matching":
        return _matching(pairs, value), threshold
    chosen = _nested(pairs, value - threshold)
    rest = ~np.isin(pairs, pairs[chosen]).any(1) & (value > (1 + threshold) / 2)
    return _sorted(np.concatenate([pairs[chosen], _matching(pairs[rest], value[rest])])), threshold


def _nested(pairs: NDArray[np.int64], gain: NDArray[np.float64]) -> list[int]:
    """Row numbers of the pairs, none of which cross or share a base, with the greatest sum of gains, all above 0."""
    bases, place = np.unique(pairs, return_inverse=True)
    count, place = len(bases), place.reshape(-1, 2)  # bases that can pair, numbered through
    last, begin = place[:, 1], np.searchsorted(place[:, 0], np.arange(count + 1))
    reach = int((last - place[:, 0]).max(initial=0))
    best = np.zeros((count + 2, reach + 1))  # [a, n]: of the n bases from a on
    total = np.zeros(count + 2)  # of all from a on
    for a in range(count - 1, -1, -1):
        best[a, 1:], total[a] = best[a + 1, :-1], total[a + 1]
        for row in range(begin[a], begin[a + 1]):
            size = last[row] - a + 1  # bases from a to its partner
            inner = gain[row] + best[a + 1, size - 2]
            np.maximum(best[a, size:], inner + best[last[row] + 1, : reach + 1 - size], out=best[a, size:])
            total[a] = max(total[a], inner + total[last[row] + 1])

    def most(a: int, n: int) -> float:
        return best[a, n] if n <= reach else total[a]

    chosen, left = [], [(0, count)]
    while left:
        a, n = left.pop()
        while n > 0 and most(a, n) == most(a + 1, n - 1):
            a, n = a + 1, n - 1
        if n > 0:  # a's partner is that of the first pair that gives the sum
            sizes = ((row, int(last[row]) - a + 1) for row in range(begin[a], begin[a + 1]))
            row, size = next(
                (row, size) for row, size in sizes
                if size <= n and gain[row] + best[a + 1, size - 2] + most(a + size, n - size) == most(a, n)
            )  # fmt: skip
            chosen.append(row)
            left += [(a + 1, size - 2), (a + size, n - size)]
    return chosen


def _matching(pairs: NDArray[np.int64], value: NDArray) -> NDArray[np.int64]:
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


def _two_columns(pairs: ArrayLike) -> NDArray[np.int64]:
    """(N, 2) int64 of whatever holds whole numbers in pairs, or nothing."""
    given = np.asarray(pairs)
    if given.size == 0:
        return np.empty((0, 2), np.int64)
    check(given.ndim == 2 and given.shape[1] == 2, "pairs", "have shape (N, 2)", given.shape)
    check(bool(np.all(given == given.astype(np.int64))), "pairs", "hold whole numbers", given.dtype)
    return given.astype(np.int64)


def _sorted(pairs: ArrayLike) -> NDArray[np.int64]:
    """(N, 2) int64, i < j, rows in ascending order."""
    rows = np.sort(_two_columns(pairs), 1)
    return np.ascontiguousarray(rows[np.lexsort(rows.T[::-1])])
