"""Selected candidates as a table a biologist reads: seed match, place, duplex."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pairformer import _core
from pairformer.bags import WINDOW, Candidates, text_of
from pairformer.config import SEED_TYPES, ModelConfig, check, usable_threads
from pairformer.selector import Selection, STSelector

SURROUNDINGS = 80  # letters that are folded to see whether a seed match is open
FOLDED = 1000  # of them at a time
REASONS = ("top", "coverage", "fill", "seed")
SITE = np.dtype(
    [
        ("start", np.int32),
        ("end", np.int32),
        ("seed_start", np.int32),
        ("seed_end", np.int32),
        ("site_id", np.int32),
        ("seed_type", "U11"),
        ("esa_score", np.uint8),
        ("cheap_logit", np.float32),
        ("logit", np.float32),
        ("position", np.float32),
        ("reason", "U8"),
    ]
)


def seed_matches(candidates: Candidates, rows: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Longest Watson-Crick seed match in the seed part of each window.

    Letters paired with miRNA 2-8 must lie in the window's letters 25-34; the A opposite miRNA 1 may lie
    beside them. 8mer: 2-8 and A1; 7mer-m8: 2-8; 7mer-A1: 2-7 and A1; 6mer: 2-7; offset 6mer: 3-8. Of equal
    matches in one window the one nearest its 3' end counts.

    Args:
        candidates: bags.
        rows: (M,) int64.

    Returns:
        kind (M,) index into ``SEED_TYPES``; start and end (M,) of the matched letters in the UTR, half-open,
        -1 for none; anchor (M,), the UTR position opposite miRNA 1, -1 for none.

    Source: Bartel, Cell 2009 (site types).
    """
    bag, start, _ = candidates._rows(rows)
    return _core.seed_matches(candidates.batch, bag, start)


def seed_windows(
    candidates: Candidates, cheap_logit: NDArray[np.float32], seed_type: str, threads: int = 0
) -> NDArray[np.uint8] | None:
    """One window of every site with this seed match or a longer one, for ``STSelector.select(keep=...)``.

    Args:
        candidates: bags.
        cheap_logit: (N,) float32.
        seed_type: one of ``SEED_TYPES``.
        threads: most threads to use, 0 for all the process may use.

    Returns:
        (N,) uint8, index into ``SEED_TYPES``, so that longer matches come first, or 0: of the windows of a site the
        one that sees the longest match, of those the one of the best logit,
        of those the first. None for "none".
    """
    check(seed_type in SEED_TYPES, "seed_type", f"be one of {', '.join(SEED_TYPES)}", repr(seed_type))
    least, threads = SEED_TYPES.index(seed_type), usable_threads(threads)
    return _core.seed_windows(candidates, cheap_logit, least, threads) if least else None


def select_sites(
    config: ModelConfig,
    candidates: Candidates,
    cheap_logit: NDArray[np.float32],
    keys: NDArray[np.uint32],
    k_max: int | None = None,
    threads: int = 0,
) -> Selection:
    """At most ``k_max`` rows per bag from cheap signals, by a model's selector and the sites it always keeps."""
    keep = seed_windows(candidates, cheap_logit, config.keep_seed, threads)
    selector = STSelector.from_config(config.selector, k_max)
    return selector.select(cheap_logit, keys, candidates.position, candidates.offsets, threads, keep)


def site_table(
    candidates: Candidates,
    rows: NDArray[np.int64],
    cheap_logit: NDArray[np.float32],
    logit: NDArray[np.float32],
    reason: NDArray[np.uint8],
    extra: dict[str, NDArray[np.float32] | None],
    folding_threads: int | None = None,
) -> NDArray[np.void]:
    """Structured array (M,) of selected candidates, in the order of ``rows``.

    Fields: start, end (0-based, half-open); seed_start, seed_end (the matched letters, -1 for none);
    site_id (0, 1, ... per pair from the 5' end, shared by windows over one seed match, -1 for none);
    seed_type; esa_score; cheap_logit; logit; position; reason; and those of ``extra`` that are there: contribution,
    the site's part of the log2 fold change (0 where another window stands for the site, or there is no seed match), and
    weight, the pair logit minus the pair logit without this token. Last, where ``folding_threads`` says how many may
    fold: unpaired, as :func:`accessibility` finds it.
    """
    kind, seed_start, seed_end, anchor = seed_matches(candidates, rows)
    if folding_threads is not None:
        extra = extra | {"unpaired": accessibility(candidates, rows, seed_start, seed_end, folding_threads)}
    more = {name: values for name, values in extra.items() if values is not None}
    table = np.empty(len(rows), [*SITE.descr, *((name, np.float32) for name in more)])
    table["start"] = candidates.start[rows]
    table["end"] = table["start"] + WINDOW
    table["seed_start"], table["seed_end"] = seed_start, seed_end
    table["site_id"] = _number_sites(candidates.bag_of(rows), anchor)
    table["seed_type"] = np.array(SEED_TYPES)[kind]
    table["esa_score"], table["position"] = candidates.esa_score[rows], candidates.position[rows]
    table["cheap_logit"], table["logit"] = cheap_logit, logit
    table["reason"] = np.array(REASONS)[reason]
    for name, values in more.items():
        table[name] = values
    return table


def accessibility(
    candidates: Candidates,
    rows: NDArray[np.int64],
    seed_start: NDArray[np.int32],
    seed_end: NDArray[np.int32],
    threads: int = 0,
) -> NDArray[np.float32]:
    """How open seed matches are: the mean probability of their letters to have no partner, by energies alone.

    Folded are ``SURROUNDINGS`` letters of the UTR with the match in their middle, or at the UTR's end.

    Args:
        candidates: bags.
        rows: (M,) int64.
        seed_start, seed_end: (M,) as of :func:`seed_matches`.
        threads: most threads to use, 0 for all the process may use.

    Returns:
        (M,) 0 to 1, NaN without a seed match.

    Source: McCaskill, Biopolymers 1990; Bernhart et al., Bioinformatics 2006 (local folds tell what is accessible).
    """
    batch, typed = candidates.batch, np.flatnonzero(seed_start >= 0)
    utr = batch.bag_utr[candidates.bag_of(rows[typed])]
    matches, which = np.unique(np.stack([utr, seed_start[typed], seed_end[typed]], 1), axis=0, return_inverse=True)
    matches = matches.astype(np.int64)
    begin, end = (batch.utr_offsets[matches[:, 0] + side] for side in (0, 1))
    first = begin + (matches[:, 1] + matches[:, 2] - SURROUNDINGS) // 2
    first = np.maximum(begin, np.minimum(first, end - SURROUNDINGS))
    opened = np.empty(len(matches), np.float32)
    place = np.arange(SURROUNDINGS)
    for some in np.array_split(np.arange(len(matches)), len(matches) // FOLDED + 1):
        letters = batch.utr[np.minimum(first[some, None] + place, len(batch.utr) - 1)]
        length = np.minimum(end - first, SURROUNDINGS)[some]
        unpaired = 1 - _core.pair_probabilities(letters, length, threads).sum(2)
        seed = (begin + matches[:, 1:].T - first)[:, some, None]  # where it begins and ends there
        opened[some] = unpaired.mean(1, where=(place >= seed[0]) & (place < seed[1]))
    found = np.full(len(rows), np.nan, np.float32)
    found[typed] = np.clip(opened, 0, 1)[which.reshape(-1)]
    return found


def draw(candidates: Candidates, row: int) -> str:
    """One window's duplex as text: the UTR 5'->3' above the miRNA 3'->5', '|' Watson-Crick, ':' wobble.

    Of a window with a seed match the miRNA lies opposite it without gaps; of another, letters 1-10 as they were aligned
    and the others beside them. Letters 1-10 alone have marks.
    """
    batch, bag, start = candidates.batch, int(candidates.bag_of(np.array([row]))[0]), int(candidates.start[row])
    utr_start, m = batch.utr_offsets[batch.bag_utr[bag]] + start, batch.bag_mirna[bag]
    window = text_of(batch.utr[utr_start : utr_start + WINDOW])
    mirna = text_of(batch.mirna[batch.mirna_offsets[m] : batch.mirna_offsets[m + 1]])[::-1]
    kind, _, _, (anchor,) = seed_matches(candidates, np.array([row]))
    if kind[0]:
        before = max(0, len(mirna) - 1 - (anchor - start))  # letters past the window's first
        seed, utr = before + anchor - start - 9, " " * before + window  # letter 10 stands at seed
        mirna = mirna.rjust(seed + 10)
    else:
        top, bottom = candidates.aligned(row)
        seed, utr, mirna = 25, window[:25] + bottom[::-1] + window[35:], mirna[:-10].rjust(25) + top[::-1]
    bonds = {"AU": "|", "UA": "|", "CG": "|", "GC": "|", "GU": ":", "UG": ":"}
    marks = " " * seed + "".join(bonds.get(a + b, " ") for a, b in zip(utr[seed:], mirna[seed:], strict=False))
    return f"UTR   5' {utr} 3'  {start + 1}-{start + WINDOW}\n         {marks.rstrip()}\nmiRNA 3' {mirna} 5'"


def _number_sites(bag: NDArray[np.int64], anchor: NDArray[np.int64]) -> NDArray[np.int32]:
    """Number distinct anchors 0, 1, ... within each bag; -1 stays -1."""
    number = np.full(len(anchor), -1, np.int32)
    real = np.flatnonzero(anchor >= 0)
    if len(real):
        distinct, index = np.unique(np.stack([bag[real], anchor[real]]), axis=1, return_inverse=True)
        first = np.searchsorted(distinct[0], distinct[0])
        number[real] = (np.arange(distinct.shape[1]) - first)[index.reshape(-1)]
    return number
