"""What two tables of labelled rows share: pairs, miRNAs, families, genes and stretches of 3'UTR."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pairformer.bags import WINDOW
from pairformer.data import UTRS, Pairs, as_rna, columns, gene_names
from pairformer.scan import Strings

RELATIONS = ("pair", "mirna", "family", "gene", "window", "near_identical")
# A window of more UTRs than this is counted for neighbours in alphabetical order only, so that counting stays linear.
# The most common 40-mer of the 6,652 distinct human UTRs of utr3_human stands in 58 of them.
NEIGHBOURS = 64
WORD = 20  # nt that a window and a UTR have in common by chance once in 1e12 places
# Sequences are compared by their windows of known letters, one under 40 nt as a whole: the others equal nothing.
_KNOWN = re.compile(rf"[ACGU]{{{WINDOW}}}|\A[ACGU]+\Z")


@dataclass(frozen=True, eq=False)
class Overlap:
    """Which rows of table b have a counterpart in table a. Masks are (M,), one for each row of b."""

    pair: NDArray[np.bool_]
    """Same miRNA, and the same UTR sequence or a shared gene."""
    mirna: NDArray[np.bool_]
    """Same miRNA sequence."""
    family: NDArray[np.bool_]
    """Same miRNA letters 2-8."""
    gene: NDArray[np.bool_]
    """A shared gene name."""
    window: NDArray[np.bool_]
    """A shared window of 40 nt; of sequences under 40 nt, the same sequence."""
    near_identical: NDArray[np.bool_]
    """At least half of the distinct windows of the UTR that has fewer are shared, or the sequences are the same."""
    same_label: NDArray[np.bool_]
    """A counterpart by ``pair`` has the same label; rows whose label is not 0 or 1 have none."""
    opposite_label: NDArray[np.bool_]
    """A counterpart by ``pair`` has the opposite label; both are true where table a contradicts itself."""
    negative: NDArray[np.bool_]
    """The row's label is 0."""
    names: dict[str, list[str]] = field(repr=False)
    """By relation, what each row of b shares with a, "" where nothing."""

    @property
    def shares(self) -> dict[str, float]:
        """By relation, the share of b's rows that have a counterpart; 0 for an empty table."""
        return {relation: self._count(relation) / max(1, len(self.negative)) for relation in RELATIONS}

    def lines(self, a_name: str, b_name: str) -> list[str]:
        """One sentence per relation: how many rows and negatives of b stand in a, and up to three of them."""
        return [self._line(relation, a_name, b_name) for relation in RELATIONS]

    def violations(self, claims: Iterable[str]) -> list[str]:
        """One sentence for each relation claimed to be empty that is not, with its first row, counted from 1.

        Raises:
            ValueError: a claim is not one of ``RELATIONS``.
        """
        sentences = []
        for relation in claims:
            if relation not in RELATIONS:
                raise ValueError(f"claims must be among {', '.join(RELATIONS)}, got {relation!r}")
            if count := self._count(relation):
                row = int(getattr(self, relation).argmax()) + 1
                name = _brief(self.names[relation][row - 1])
                sentences.append(f"{relation}: {count:,} of {len(self.negative):,} rows, such as {name} of row {row}")
        return sentences

    def _count(self, relation: str) -> int:
        return int(getattr(self, relation).sum())

    def _agreement(self) -> str:
        labelled, differ = int((self.same_label | self.opposite_label).sum()), int(self.opposite_label.sum())
        if not labelled:
            return ""
        rest = f", differ in {differ:,}" if differ else ""
        return f"; labels agree in {_percent(labelled - differ, labelled)}{rest}"

    def _line(self, relation: str, a_name: str, b_name: str) -> str:
        found, count, rows = getattr(self, relation), self._count(relation), len(self.negative)
        if not count:
            return f"{relation}: none of {rows:,} rows of {b_name} stands in {a_name} too"
        line = f"{relation}: {count:,} of {rows:,} rows of {b_name} ({_percent(count, rows)}) stand in {a_name} too"
        if negatives := int(self.negative.sum()):
            hit = int((found & self.negative).sum())
            line += f" ({'all' if hit == negatives else f'{hit:,} of'} {negatives:,} negatives)"
        if relation == "pair":
            line += self._agreement()
        examples = [_brief(name) for name in dict.fromkeys(self.names[relation]) if name][:3]
        return f"{line}; such as {', '.join(examples)}" if examples else line


def overlap(a: Pairs, b: Pairs) -> Overlap:
    """Find which rows of ``b`` have a counterpart in ``a``.

    T is read as U and lower case as upper. A letter outside ACGU matches nothing: a window or miRNA that holds one
    is passed over, and a UTR without any other window equals nothing, itself included. Nor do empty names match.

    Args:
        a: what is known already, such as training rows; labelled windows count as UTRs of 40 nt.
        b: what is claimed to be new, such as test rows. A row of either may name several genes, with commas.
    """
    sequences, (a_utr, b_utr) = _distinct(a.utr, b.utr)
    known = np.array([bool(_KNOWN.search(sequence)) for sequence in sequences], bool)
    a_keys, b_keys = _keys(a, a_utr, known), _keys(b, b_utr, known)
    masks, names = {}, {}
    for relation in a_keys:
        shared = _shared(a_keys[relation], b_keys[relation])
        masks[relation] = _any(shared)
        names[relation] = [min(found, key=str, default="") for found in shared]
    rows = zip(b.mirna, b.gene, masks["pair"], strict=True)
    names["pair"] = [f"{mirna} with {gene}" if found else "" for mirna, gene, found in rows]
    negative, positive = b.label == 0, b.label == 1
    like_negative, like_positive = (
        _any(_shared(list(compress(a_keys["pair"], a.label == label)), b_keys["pair"])) for label in (0, 1)
    )

    ids: dict[int, set[str]] = {}
    for number, name in zip(a_utr.tolist(), a.utr_id, strict=True):
        ids.setdefault(number, set()).add(name)
    sharing, near = _counterparts(sequences, known, a_utr, b_utr)
    for relation, other in (("window", sharing[b_utr]), ("near_identical", near[b_utr])):
        masks[relation] = other >= 0
        named = zip(b.utr_id, other.tolist(), strict=True)
        names[relation] = [_with_twin(name, ids[number]) if number >= 0 else "" for name, number in named]
    same = like_negative & negative | like_positive & positive
    opposite = like_positive & negative | like_negative & positive
    return Overlap(**masks, same_label=same, opposite_label=opposite, negative=negative, names=names)


def near_identical_groups(utrs: Strings) -> NDArray[np.int64]:
    """Group number of each of M sequences, (M,) from 0: whatever is linked by near-identical UTRs is one group.

    Equal sequences are always in one group; for the rest see ``Overlap.near_identical``.
    """
    sequences, (number,) = _distinct(utrs)
    first, second = _near(*_windows(sequences))
    group, before = np.arange(len(sequences)), np.full(len(sequences), -1)
    while (group != before).any():  # each step hands the least number on, and doubles the reach
        before = group.copy()
        low = np.minimum(group[first], group[second])
        np.minimum.at(group, first, low)
        np.minimum.at(group, second, low)
        group = group[group]
    return np.unique(group, return_inverse=True)[1].astype(np.int64)[number]


def name_genes(windows: Pairs, folder: Path) -> Pairs:
    """Windows with the symbols of all genes added, between commas, whose UTR has ``WORD`` nt in common with them.

    A window that names no gene may lie in any; where a gene is held out, so is a window that may be its own.
    """
    symbol, utr_id, sequence = columns(folder / UTRS, "gene_symbol", "utr_id", "utr_seq")
    names = np.where(symbol == "", utr_id, symbol)
    sequences, number = np.unique(windows.utr, return_inverse=True)
    asked, window = _words(sequences)
    word, utr = _words([as_rna(text) for text in sequence])
    hit = np.isin(word, asked)
    word, utr = np.unique(np.stack([word[hit], utr[hit]]), axis=1)
    first, last = (np.searchsorted(asked, word, side) for side in ("left", "right"))
    found: list[set[str]] = [set() for _ in sequences]
    for low, high, name in zip(first, last, names[utr], strict=True):
        for i in window[low:high]:
            found[i].add(name)
    genes = [",".join([gene, *sorted(found[i])]) for gene, i in zip(windows.gene, number, strict=True)]
    return replace(windows, gene=np.array(genes, object))


def _words(sequences: Sequence[str] | NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Every ``WORD`` letters of some sequences as a number, ascending, and the number of its sequence."""
    letters, clean, owner = _letters(sequences, WORD)
    words = np.zeros(len(clean), np.int64)
    for i in range(WORD):
        words = words * 4 + (letters[i : i + len(words)] & 3)
    words = words[clean]
    order = np.argsort(words, kind="stable")
    return words[order], owner[order]


def _letters(
    sequences: Sequence[str] | NDArray[np.object_], width: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int32]]:
    """Sequences in a row as 0-3, 4 for other letters and between two; where ``width`` known ones begin, and whose."""
    text = np.frombuffer("N".join(sequences).encode("ascii", "replace"), np.uint8)
    code = np.full(256, 4, np.uint8)
    code[list(b"ACGU")] = range(4)
    letters = code[text]
    unknown = np.concatenate([[0], np.cumsum(letters > 3, dtype=np.int32)])
    clean = unknown[width:] == unknown[:-width]
    lengths = np.array([len(sequence) + 1 for sequence in sequences], np.int64)
    return letters, clean, np.repeat(np.arange(len(sequences), dtype=np.int32), lengths)[: len(clean)][clean]


def _with_twin(name: str, ids: set[str]) -> str:
    return name if name in ids else f"{name} (as {min(ids)})"


def _brief(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _distinct(*columns: Strings) -> tuple[list[str], list[NDArray[np.int64]]]:
    """The distinct sequences of all columns, ascending, and by column the number of each row's."""
    clean = {raw: as_rna(raw) for column in columns for raw in set(column)}
    sequences = sorted(set(clean.values()))
    number = {sequence: i for i, sequence in enumerate(sequences)}
    return sequences, [np.array([number[clean[raw]] for raw in column], np.int64) for column in columns]


def _keys(pairs: Pairs, utr: NDArray[np.int64], known: NDArray[np.bool_]) -> dict[str, list[set]]:
    """By relation, what each row has that another row may have too."""
    mirnas = [{mirna} if re.fullmatch("[ACGU]+", mirna) else set() for mirna in map(as_rna, pairs.mirna)]
    genes = [gene_names(names) for names in pairs.gene]
    utrs = [{number} if known[number] else set() for number in utr.tolist()]
    return {
        "pair": [set(product(m, g | u)) for m, g, u in zip(mirnas, genes, utrs, strict=True)],
        "mirna": mirnas,
        "family": [{mirna[1:8] for mirna in row} - {""} for row in mirnas],
        "gene": genes,
    }


def _shared(a_keys: list[set], b_keys: list[set]) -> list[set]:
    """For each row of b, its keys that some row of a has."""
    seen = set().union(*a_keys)
    return [keys & seen for keys in b_keys]


def _any(rows: list[set]) -> NDArray[np.bool_]:
    return np.array([bool(found) for found in rows], bool)


def _counterparts(
    sequences: list[str], known: NDArray[np.bool_], a_utr: NDArray[np.int64], b_utr: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each sequence, one of a that shares a window and one that is near identical, or -1."""
    in_a, new = np.zeros((2, len(sequences)), bool)
    in_a[a_utr] = new[b_utr] = True
    new &= ~in_a
    sharing = np.where(in_a & known, np.arange(len(sequences)), -1)
    near = sharing.copy()
    if not new.any():  # nothing but whole sequences to compare
        return sharing, near

    window, owner, n_windows = _windows(sequences)
    owner_in_a = np.full(window.max(initial=-1) + 1, -1)
    owner_in_a[window[in_a[owner]]] = owner[in_a[owner]]
    asked = np.zeros(len(owner_in_a), bool)
    asked[window[new[owner]]] = True
    both = (asked & (owner_in_a >= 0))[window]
    window, owner = window[both], owner[both]
    sharing[owner[new[owner]]] = owner_in_a[window[new[owner]]]
    first, second = _near(window, owner, n_windows)
    for x, y in ((first, second), (second, first)):
        link = new[x] & in_a[y]
        near[x[link]] = y[link]
    return sharing, near


def _windows(sequences: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Every distinct window of every sequence.

    Windows are told apart by 64-bit hashes: among 30 million, the chance of one false match is 3 in 100,000.
    The 9,810,793 of utr3_human have as many hashes.

    Returns:
        window (N,) number, ascending; owner (N,) sequence number, ascending within a window;
        n_windows (len(sequences),) how many each owns.
    """
    letters, clean, owner = _letters(sequences, WINDOW)
    word = (letters & 3).astype(np.uint64)  # 2 bits a letter
    for width in (1, 2, 4, 8, 16):
        word = word[:-width] << np.uint64(2 * width) | word[width:]
    first, last = word[: 32 - WINDOW], word[WINDOW - 32 :]  # the 32 letters a window begins and ends with
    hashed = (_mix(first) + last)[clean]

    order = np.argsort(hashed, kind="stable")
    hashed, owner = hashed[order], owner[order]
    new_hash = hashed[1:] != hashed[:-1]
    distinct = np.concatenate([[True], new_hash | (owner[1:] != owner[:-1])])[: len(owner)]
    window = np.concatenate([[0], np.cumsum(new_hash)])[: len(owner)]
    window, owner = window[distinct], owner[distinct]
    return window, owner, np.bincount(owner, minlength=len(sequences))


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection after which near words are far apart."""
    word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return word ^ word >> np.uint64(31)


def _near(
    window: NDArray[np.int64], owner: NDArray[np.int32], n_windows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of sequences that share at least half of the distinct windows of the one that has fewer.

    Two owners of a window are counted if fewer than ``NEIGHBOURS`` others stand between them. So all pairs are exact
    whose windows have up to ``NEIGHBOURS`` + 1 owners; of windows that have more (repeats, libraries of variants)
    some pairs far apart in the alphabet may be missed, and none is made up.
    """
    rows = np.arange(len(window))
    keys, counts = [], []
    for gap in range(1, NEIGHBOURS + 1):
        rows = rows[: np.searchsorted(rows, len(window) - gap)]
        rows = rows[window[rows] == window[rows + gap]]
        key, count = np.unique(owner[rows].astype(np.int64) * len(n_windows) + owner[rows + gap], return_counts=True)
        keys.append(key)
        counts.append(count)
    pair, place = np.unique(np.concatenate(keys), return_inverse=True)
    first, second = np.divmod(pair, len(n_windows))
    shared = np.bincount(place, np.concatenate(counts), len(pair))
    near = 2 * shared >= np.minimum(n_windows[first], n_windows[second])
    return first[near], second[near]
