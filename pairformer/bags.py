"""Ragged bags: arrays plus offsets, and the one place they are padded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pairformer import _core
from pairformer.config import as_int, check, usable_threads

WINDOW = 40
STATUS = ("ok", "no_window", "no_candidate", "invalid")


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidate target sites of B pairs: N rows, bag by bag, ascending start.

    Source: PAIR-Former sec. 4.1; position is the window's centre, (start + 19.5) / (utr_length - 1).
    """

    offsets: NDArray[np.int64]
    """(B + 1,) bag b owns rows ``offsets[b]:offsets[b + 1]``."""
    start: NDArray[np.int32]
    """(N,) 0-based 5'->3' position of the window's first nucleotide."""
    esa_score: NDArray[np.uint8]
    """(N,) extended seed alignment score, ``esa_min``-10."""
    position: NDArray[np.float32]
    """(N,) centre of the window over the UTR, in [0, 1]."""
    alignment: NDArray[np.uint32]
    """(N,) paired letters: bit i miRNA letter i, bit 10 + j letter j of the window's seed part (from its 3' end)."""
    utr_length: NDArray[np.int64]
    """(B,) nt."""
    n_dropped: NDArray[np.int64]
    """(B,) windows passed over because they hold a letter outside ACGU."""
    messages: dict[int, str] = field(repr=False)
    """Bag number -> why the pair is invalid."""
    batch: _core.PairBatch = field(repr=False)
    """The coded sequences the rows point into."""

    @classmethod
    def of(
        cls, batch: _core.PairBatch, utr_length: NDArray[np.int64], messages: dict[int, str], esa_min: int,
        threads: int = 0, variant: str = "auto",
    ) -> Candidates:  # fmt: skip
        """The candidates of coded sequences.

        Args:
            batch: B pairs, as :func:`pairformer.scan` codes them; empty where a pair is invalid.
            utr_length: (B,) nt.
            messages: bag number -> why the pair is invalid.
            esa_min, threads, variant: as there.

        Returns:
            Candidates of B pairs.
        """
        offsets, start, score, position, alignment, n_dropped = _core.scan(batch, esa_min, threads, variant)
        return cls(offsets, start, score, position, alignment, utr_length, n_dropped, messages, batch)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_candidates(self) -> NDArray[np.int64]:
        """(B,) candidates per bag."""
        return np.diff(self.offsets)

    @property
    def status(self) -> NDArray[np.str_]:
        """(B,) "ok", "no_window" (UTR < 40 nt), "no_candidate" or "invalid"."""
        code = np.where(self.n_candidates > 0, 0, np.where(self.utr_length < WINDOW, 1, 2))
        code[list(self.messages)] = 3
        return np.array(STATUS)[code]

    def bag_of(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Bag number of each row (of all rows: None)."""
        if rows is None:
            return np.repeat(np.arange(len(self)), self.n_candidates)
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def take(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> Candidates:
        """The bags with only the given rows (M,), ascending, bag by bag at ``offsets`` (B + 1,)."""
        parts = (self.start[rows], self.esa_score[rows], self.position[rows], self.alignment[rows])
        return replace(self, offsets=offsets, start=parts[0], esa_score=parts[1], position=parts[2], alignment=parts[3])

    def alone(self, bag: int) -> Candidates:
        """One bag with its own two sequences, nothing of the others'."""
        batch, rows, number = self.batch, slice(*self.offsets[bag : bag + 2]), np.zeros(1, np.int32)
        sides = ((batch.mirna, batch.mirna_offsets, batch.bag_mirna), (batch.utr, batch.utr_offsets, batch.bag_utr))
        mirna, utr = (text_of(codes[slice(*ends[of[bag] : of[bag] + 2])]) for codes, ends, of in sides)
        return Candidates(
            self.offsets[bag : bag + 2] - self.offsets[bag], self.start[rows], self.esa_score[rows],
            self.position[rows], self.alignment[rows], self.utr_length[bag : bag + 1], self.n_dropped[bag : bag + 1],
            {0: self.messages[bag]} if bag in self.messages else {}, _core.PairBatch([mirna], [utr], number, number, 1),
        )  # fmt: skip

    def encode(self, rows: NDArray[np.int64] | None = None, threads: int = 1) -> NDArray[np.uint8]:
        """One-hot windows in TargetNet's layout.

        Args:
            rows: (M,) int64 row numbers, any order; None for all.
            threads: 0 for all this process may use.

        Returns:
            (M, 10, 50) uint8: channels miRNA A C G U gap, window A C G U gap; the window reads 3'->5'.

        Source: TargetNet's layout with the extended seed alignment at columns 5 onwards.
        """
        return _core.encode(self.batch, *self._rows(rows), usable_threads(threads))

    def site_features(self, rows: NDArray[np.int64] | None = None, threads: int = 1) -> NDArray[np.float32]:
        """Target-site features of the windows.

        Args:
            rows: (M,) int64 row numbers, any order; None for all.
            threads: 0 for all this process may use.

        Returns:
            (M, 10): offset 6mer, 6mer, 7mer-A1, 7mer-m8, 8mer (1 for the one there is, see
            :func:`pairformer.sites.seed_matches`); share of A and U in the 30 nt on either side of the matched letters;
            3'-supplementary pairing score over 4; log(1 + letters before), log(1 + letters after) and log(1 + UTR
            length), each over 10. A window without a match stands for its letters 26-35.

        Source: Grimson et al., Mol Cell 2007 (local A and U, 3' pairing: 1 for each pair of miRNA 13-16 and 1/2 for
            each other in one run, less 1/2 for each nt out of register beyond two).
        """
        bag, start, _ = self._rows(rows)
        return _core.site_features(self.batch, bag, start, usable_threads(threads))

    def duplex_energy(self, rows: NDArray[np.int64] | None = None, threads: int = 1) -> NDArray[np.float32]:
        """How strongly the whole miRNA can pair with the windows, whatever the register.

        Args:
            rows: (M,) int64 row numbers, any order; None for all.
            threads: 0 for all this process may use.

        Returns:
            (M,) kcal/mol of the best duplex, 0 for none: stacks as Turner 2004, GU among them; between two helices a
            loop costs 2 and 0.3 for each letter in it, on either side; an end of a helix with AU or GU costs 0.5.

        Source: Rehmsmeier et al., RNA 2004 (RNAhybrid); Mathews et al., PNAS 2004 (stacks). Loops are simplified.
        """
        bag, start, _ = self._rows(rows)
        return _core.duplex_energy(self.batch, bag, start, usable_threads(threads))

    def site_context(self, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        """Where each window lies among the others selected with it.

        Args:
            rows: (M,) int64, ascending, bag by bag.
            offsets: (B + 1,) int64 of ``rows``.

        Returns:
            (M, 3): 1 for the window that stands for its site (of the bag's windows over one seed match the one that
            sees most of it, of equal ones the first), else 0; log(1 + distance) over 10 to the nearest other site of
            the bag's rows upstream, and downstream, in nt, at most 10,000 and that much where there is none.
        """
        bag, start, _ = self._rows(rows)
        feature = _core.site_context(self.batch, offsets, start)
        check(bool(np.all(bag == np.repeat(np.arange(len(self)), np.diff(offsets)))), "rows",
              "be bag by bag at offsets", "rows of other bags")  # fmt: skip
        return feature

    def bag_features(self) -> NDArray[np.float32]:
        """Features of the pairs without their sites.

        Returns:
            (B, 12): log(1 + UTR length) - 7; shares of A, C and G in the UTR, less 1/4, times 16; log(1 + candidates)
            - 7; shares of A, C and G in the miRNA, less 1/4, times 8; the same in its letters 2-8, times 4; log(1 +
            places of the UTR with an A opposite letter 1 and letters 2-6 paired, weak sites among them).
        """
        return _core.bag_features(self.batch, self.n_candidates)

    def aligned(self, row: int) -> tuple[str, str]:
        """The two gapped strings of one row: miRNA 5'->3', window's seed part 3'->5'."""
        mirna, window = self.aligned_rows(np.array([row], np.int64))[0]
        return str(mirna), str(window)

    def aligned_rows(self, rows: NDArray[np.int64]) -> NDArray[np.str_]:
        """(M, 2) gapped strings of many rows at once; see :meth:`aligned`."""
        return _core.aligned(self.batch, *self._rows(rows)).astype(str)

    def _rows(self, rows: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint32]]:
        if rows is None:
            return self.bag_of(), self.start, self.alignment
        rows = np.asarray(rows)
        if rows.dtype.kind not in "iu" and rows.size:
            raise TypeError(f"rows must be row numbers, got {rows.dtype}; pass np.flatnonzero(mask) for a mask")
        check(rows.ndim == 1, "rows", "have shape (M,)", rows.shape)
        rows = rows.astype(np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self.start)):
            raise ValueError(f"rows must be in 0..{len(self.start) - 1}, got {rows.min()}..{rows.max()}")
        return self.bag_of(rows), self.start[rows], self.alignment[rows]


def text_of(codes: NDArray[np.uint8]) -> str:
    """The letters of codes in a batch, N for what is none of ACGU."""
    return np.frombuffer(b"ACGUN", np.uint8)[codes].tobytes().decode()


def padded_rows(offsets: NDArray[np.int64], k_max: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Row numbers of ragged bags as a padded table.

    Args:
        offsets: (B + 1,) int64.
        k_max: columns; at least the largest bag.

    Returns:
        rows (B, k_max) int64 with -1 where there is none, mask (B, k_max) True = real.
    """
    sizes = np.diff(offsets)
    if len(sizes) and sizes.max() > k_max:
        raise ValueError(f"k_max must be at least {sizes.max()} (the largest bag), got {k_max}")
    column = np.arange(as_int("k_max", k_max))
    mask = column < sizes[:, None]
    return np.where(mask, offsets[:-1, None] + column, -1), mask
