"""The scan on the device: every 40-nt window whose extended seed alignment scores enough, bit for bit as on the CPU.

The windows of all bags are numbered one after the other and cut into blocks of equal size; a block may span bags. One
pass counts the rows of each block, and their exclusive sums say where a second one writes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pairformer import _core
from pairformer.bags import WINDOW, Candidates
from pairformer.scan import ESA_MIN

BLOCK = 256
_SEED = tl.constexpr(10)  # letters of the extended seed, and of a window's seed part
_SEED_BITS = tl.constexpr(0x3FF)  # one for each of them
_SEED_LAST = tl.constexpr(34)  # the seed part is letters 25-34 of the window; it is read from its 3' end


@triton.jit
def bag_at(offsets, first, last, rows):
    """Of each row the last bag, from ``first`` to ``last``, that begins at or before it."""
    low = tl.zeros_like(rows).to(tl.int32) + first
    high = tl.zeros_like(rows).to(tl.int32) + last
    span = last - first
    while span > 0:
        middle = (low + high + 1) >> 1
        begun = tl.load(offsets + middle) <= rows
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle - 1)
        span >>= 1
    return low


@triton.jit
def _block_windows(window_offsets, block_bag, n_windows, BLOCK: tl.constexpr):
    """The windows of this program -> (BLOCK,) inside bool, bag int32, start int32.

    Lanes past the last window repeat it and are not inside, so no load needs a mask.
    """
    block = tl.program_id(0)
    window = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = window < n_windows
    window = tl.minimum(window, n_windows - 1)
    # The block spans one bag mostly, at times two.
    bag = bag_at(window_offsets, tl.load(block_bag + block), tl.load(block_bag + block + 1), window)
    return inside, bag, (window - tl.load(window_offsets + bag)).to(tl.int32)


@triton.jit
def _align(inside, bag, start, utr, foreign, first_letter, seed_pairs, esa_min, HAS_FOREIGN: tl.constexpr):
    """V = (V + x) | (V - x) with x = V & M, letter by letter of the seed part; the score is the zeros of V.

    M has the bits of the miRNA letters that pair with the letter. A zero of V is a row of the score matrix that has
    grown, and the carries of V + x are where it grew at this letter. V's bits from 10 on stay 1.

    Returns:
        hit (BLOCK,) bool, score (BLOCK,) int32, and of each letter M and the carries, (BLOCK,) int32.
    """
    letter = tl.load(first_letter + bag) + start
    pairs = tl.load(seed_pairs + bag)
    if HAS_FOREIGN:
        inside &= tl.load(foreign + letter) == 0
    v = tl.full(start.shape, -1, tl.int32)
    masks: tl.tuple = ()
    carries: tl.tuple = ()
    for j in tl.static_range(_SEED):
        base = tl.load(utr + letter + (_SEED_LAST - j)).to(tl.int64) & 3  # a dropped window may have any
        mask = (pairs >> base * 16).to(tl.int32) & _SEED_BITS
        x = v & mask
        total = v + x
        masks = masks + (mask,)  # noqa: RUF005, Triton cannot unpack here
        carries = carries + (total ^ v ^ x,)  # noqa: RUF005
        v = total | (v - x)
    score = ~v
    score -= score >> 1 & 0x155
    score = (score & 0x333) + (score >> 2 & 0x333)
    score = (score + (score >> 4) + (score >> 8)) & 0xF
    return inside & (score >= esa_min), score, masks, carries


@triton.jit(do_not_specialize=["n_windows", "esa_min"])
def _count_rows(
    block_rows, window_offsets, block_bag, utr, foreign, first_letter, seed_pairs, n_windows, esa_min,
    HAS_FOREIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """block_rows[block + 1] = the block's windows that score at least esa_min."""
    inside, bag, start = _block_windows(window_offsets, block_bag, n_windows, BLOCK)
    hit, _, _, _ = _align(inside, bag, start, utr, foreign, first_letter, seed_pairs, esa_min, HAS_FOREIGN)
    tl.store(block_rows + tl.program_id(0) + 1, tl.sum(hit.to(tl.int32), 0).to(tl.int64))


@triton.jit(do_not_specialize=["n_windows", "esa_min"])
def _fill_rows(
    row_start, row_score, row_position, row_alignment, bag_row, block_row, last_letter,
    window_offsets, block_bag, utr, foreign, first_letter, seed_pairs, n_windows, esa_min,
    HAS_FOREIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The block's rows from block_row[block] on; for each bag that begins in the block, bag_row[bag] = its first row.

    The alignment is traced from the last cell: a letter of the seed part is paired if the score grew there, and then
    with the last miRNA letter it pairs with among those left.
    """
    inside, bag, start = _block_windows(window_offsets, block_bag, n_windows, BLOCK)
    hit, score, masks, carries = _align(
        inside, bag, start, utr, foreign, first_letter, seed_pairs, esa_min, HAS_FOREIGN
    )
    left = tl.full([BLOCK], _SEED_BITS, tl.int32)
    alignment = tl.full([BLOCK], 0, tl.int32)
    for j in tl.static_range(_SEED - 1, -1, -1):
        last = masks[j] & left
        last |= last >> 1
        last |= last >> 2
        last |= last >> 4
        last |= last >> 8
        before = last >> 1
        grew = (carries[j] & (left + 1)) != 0
        alignment = tl.where(grew, alignment | (last ^ before) | (_SEED_BITS + 1 << j), alignment)
        left = tl.where(grew, before, left)

    row = tl.load(block_row + tl.program_id(0)) + tl.cumsum(hit.to(tl.int32), 0) - hit.to(tl.int32)
    position = (start.to(tl.float64) + 19.5) / tl.load(last_letter + bag)
    tl.store(bag_row + bag, row, mask=inside & (start == 0))
    tl.store(row_start + row, start, mask=hit)
    tl.store(row_score + row, score.to(tl.uint8), mask=hit)
    tl.store(row_position + row, position.to(tl.float32), mask=hit)
    tl.store(row_alignment + row, alignment, mask=hit)


@dataclass(frozen=True, eq=False)
class DevicePairs:
    """Coded pairs on a device: bag b is miRNA ``bag_mirna[b]`` against UTR ``bag_utr[b]``, A0 C1 G2 U3, other 4."""

    mirna: Tensor  # (letters of all miRNAs,) uint8
    mirna_offsets: Tensor  # (miRNAs + 1,) int64
    utr: Tensor  # (letters of all UTRs,) uint8
    utr_offsets: Tensor  # (UTRs + 1,) int64
    bag_mirna: Tensor  # (B,) int32
    bag_utr: Tensor  # (B,) int32
    n_windows: int  # of all bags, also those holding a letter outside ACGU
    has_foreign: bool  # a UTR has a letter outside ACGU

    @classmethod
    def of(cls, batch: _core.PairBatch, device: torch.device | str) -> DevicePairs:
        """Copy a batch to a device, without waiting for it."""
        windows = np.maximum(np.diff(batch.utr_offsets) - (WINDOW - 1), 0)
        arrays = (batch.mirna, batch.mirna_offsets, batch.utr, batch.utr_offsets, batch.bag_mirna, batch.bag_utr)
        return cls(
            *(moved(array, device) for array in arrays),
            n_windows=int(windows[batch.bag_utr].sum()),
            has_foreign=bool(batch.utrs_with_others),
        )


@dataclass(frozen=True, eq=False)
class Rows:
    """Candidate target sites on a device: N rows of B bags, equal to those of :class:`pairformer.bags.Candidates`."""

    offsets: Tensor  # (B + 1,) int64
    start: Tensor  # (N,) int32
    esa_score: Tensor  # (N,) uint8
    position: Tensor  # (N,) float32
    alignment: Tensor  # (N,) int32, the bits of the uint32
    n_dropped: Tensor  # (B,) int64

    @classmethod
    def of(cls, candidates: Candidates, device: torch.device | str) -> Rows:
        """Copy the rows of a scan on the CPU to a device, without waiting for it."""
        arrays = (candidates.offsets, candidates.start, candidates.esa_score, candidates.position,
                  candidates.alignment.view(np.int32), candidates.n_dropped)  # fmt: skip
        return cls(*(moved(array, device) for array in arrays))


def esa_scan(batch: DevicePairs, esa_min: int = ESA_MIN, *, block: int = BLOCK) -> Rows:
    """Find the candidate target sites of many pairs. Waits for the device once, to learn how many there are.

    Args:
        batch: pairs on a CUDA device, or on the CPU under Triton's interpreter.
        esa_min: least score kept, 0-10.
        block: windows a program takes, a power of two. The result does not depend on it.

    Returns:
        The rows of :func:`pairformer.scan`, its plain twin, on the device of the pairs.

    Raises:
        ValueError: ``esa_min`` or ``block`` out of range.
    """
    if not 0 <= esa_min <= 10:
        raise ValueError(f"esa_min must be in 0..10, got {esa_min}")
    if block < 1 or block & (block - 1):
        raise ValueError(f"block must be a power of two, got {block}; pass {BLOCK}")

    def empty(n: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(n, dtype=dtype, device=batch.utr.device)

    length = batch.utr_offsets.diff()[batch.bag_utr]
    windows = (length - (WINDOW - 1)).clamp(min=0)
    window_offsets = _offsets(windows)
    first_letter = batch.utr_offsets[batch.bag_utr]
    foreign, n_dropped = batch.utr, torch.zeros_like(windows)
    if batch.has_foreign:
        foreign = _foreign_windows(batch.utr)
        dropped = _offsets(foreign)
        n_dropped = dropped[first_letter + windows] - dropped[first_letter]
    n_blocks = triton.cdiv(batch.n_windows, block)
    block_first = torch.arange(n_blocks + 1, device=batch.utr.device).mul_(block).clamp_(max=batch.n_windows - 1)
    block_bag = torch.searchsorted(window_offsets, block_first, right=True, out_int32=True) - 1
    inputs = (window_offsets, block_bag, batch.utr, foreign, first_letter, _seed_pairs(batch), batch.n_windows, esa_min)
    with torch.cuda.device_of(batch.utr):
        block_row = torch.zeros_like(block_first)
        _count_rows[(n_blocks,)](block_row, *inputs, batch.has_foreign, block)
        block_row = block_row.cumsum(0)
        n = int(block_row[-1])
        rows = (empty(n, torch.int32), empty(n, torch.uint8), empty(n, torch.float32), empty(n, torch.int32))
        bag_row = torch.full_like(window_offsets, n)
        _fill_rows[(n_blocks,)](*rows, bag_row, block_row, (length - 1).double(), *inputs, batch.has_foreign, block)
    # A bag without windows begins where the next one that has some does.
    beginning = torch.searchsorted(window_offsets, window_offsets, right=True) - 1
    return Rows(bag_row[beginning], *rows, n_dropped)


def moved(array: NDArray[Any], device: torch.device | str) -> Tensor:
    """A copy on a device, from pinned memory where it is a CUDA device."""
    on_cuda = torch.device(device).type == "cuda"
    host = torch.empty(array.shape, dtype=getattr(torch, array.dtype.name), pin_memory=on_cuda)
    host.numpy()[:] = array
    return host.to(device, non_blocking=True)


def _offsets(sizes: Tensor) -> Tensor:
    """(n,) -> (n + 1,) int64."""
    return pad(sizes.cumsum(0, dtype=torch.int64), (1, 0))


def _seed_pairs(batch: DevicePairs) -> Tensor:
    """(B,) int64: bit 16 b + i says that letter i of the bag's extended seed pairs with base b."""
    place = torch.arange(_SEED.value, device=batch.mirna.device)
    letter = pad(batch.mirna, (0, _SEED.value))[batch.mirna_offsets[:-1, None] + place].long()  # (miRNAs, 10)
    there = place < batch.mirna_offsets.diff()[:, None]
    complement = there.long() << place + 16 * (3 - letter)  # A-U, C-G
    wobble = (there & (letter > 1)).long() << place + 16 * (5 - letter).clamp(max=3)  # G-U
    return (complement | wobble).sum(1)[batch.bag_mirna]


def _foreign_windows(utr: Tensor) -> Tensor:
    """Of each letter, whether one of the 40 from it on is outside ACGU: bool."""
    foreign = pad(utr > 3, (0, WINDOW - 1))
    for step in (1, 2, 4, 8, 16, 8):  # to 2, 4, 8, 16, 32 and 40 letters
        foreign = foreign[:-step] | foreign[step:]
    return foreign
