"""Energies of the best duplexes of selected windows, equal to those of the CPU.

A thread takes a window: letter after letter of the miRNA, the 40 columns of the window in its registers.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from pairformer.kernels.cheap_scan import PAIR_DTYPES, ROW_DTYPES, WINDOW, check_tensor, checked_tensors, locate
from pairformer.kernels.esa_scan import DevicePairs, Rows
from pairformer.kernels.launch import INTERPRETED
from torch import Tensor

from pairformer import _core

WORD = tl.constexpr(32)  # letters in a word of 64 bits


@triton.jit(do_not_specialize=["n_bags", "m"])
def _energies(
    out, mirna, mirna_offsets, utr, utr_offsets, bag_mirna, bag_utr, offsets, n_bags, starts, selected, m, stack, end,
    FAR: tl.constexpr, OPEN: tl.constexpr, LETTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[lane] = the least energy, in kcal/mol, of its row.

    helix[c] ends with a pair of the miRNA's letter and column c, loop[c] goes up to both; ``before`` is of the columns
    and letters before. Column 0 is the window's last letter.
    """
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(selected + tl.minimum(lane, m - 1))
    pairs = (mirna, mirna_offsets, utr, utr_offsets, bag_mirna, bag_utr)
    first, length, last = locate(pairs, offsets, n_bags, starts, row)

    low = tl.zeros([BLOCK], tl.int64)  # letters 0-31 of the window, two bits each
    high = tl.zeros([BLOCK], tl.int64)  # 8-39
    far = tl.full([BLOCK], FAR, tl.int32)
    helix: tl.tuple = ()
    loop: tl.tuple = ()
    for c in tl.static_range(WINDOW):
        opposite = tl.load(last - c).to(tl.int64)
        if c < WORD:
            low |= opposite << 2 * c
        if c >= WINDOW - WORD:
            high |= opposite << 2 * (c - WINDOW + WORD)
        helix = helix + (far,)  # noqa: RUF005, Triton cannot unpack here
        loop = loop + (far,)  # noqa: RUF005
    best = tl.zeros([BLOCK], tl.int32)
    before = best
    for i in range(tl.max(length, 0)):
        inside = i < length
        letter = tl.load(first + i, mask=inside, other=0).to(tl.int32)
        stacks, ends = stack + (4 * before + letter) * 16, end + 4 * letter
        before = letter
        helix_before, loop_before, left, loop_left = far, far, far, far
        new: tl.tuple = ()
        new_loop: tl.tuple = ()
        for c in tl.static_range(WINDOW):
            # This column's letter and, in the lower bits, the one before.
            if c == 0:
                code = (low << 2 & 0xF).to(tl.int32)
            elif c < WORD:
                code = (low >> 2 * (c - 1) & 0xF).to(tl.int32)
            else:
                code = (high >> 2 * (c - 1 - WINDOW + WORD) & 0xF).to(tl.int32)
            cost = tl.load(ends + (code >> 2))
            mine = tl.minimum(tl.minimum(loop_before, 0) + cost, helix_before + tl.load(stacks + code)) + cost
            best = tl.where(inside, tl.minimum(best, mine), best)
            opened = tl.minimum(helix[c], left) + OPEN
            helix_before, loop_before = helix[c], loop[c]
            left = tl.minimum(mine, FAR)
            loop_left = tl.minimum(tl.minimum(loop[c], loop_left), opened) + LETTER
            new = new + (left,)  # noqa: RUF005
            new_loop = new_loop + (loop_left,)  # noqa: RUF005
        helix, loop = new, new_loop
    tl.store(out + lane, tl.div_rn(best.to(tl.float32), 10.0), mask=lane < m)


def duplex_energy(pairs: DevicePairs, rows: Rows, selected: Tensor) -> Tensor:
    """How strongly a whole miRNA can pair with each of some windows.

    Args:
        pairs: the coded sequences; miRNAs of at most 35 letters.
        rows: N candidates of them, bag by bag.
        selected: (M,) int64 row numbers, any order.

    Returns:
        (M,) float32 kcal/mol, what ``Candidates.duplex_energy``, its plain twin, returns of the same rows.

    Raises:
        TypeError, ValueError: as :class:`pairformer.kernels.cheap_scan.CheapScan`.
    """
    device = rows.start.device
    sequences = checked_tensors(pairs, PAIR_DTYPES, device)
    offsets, start, *_ = checked_tensors(rows, ROW_DTYPES, device)
    check_tensor("selected", selected, torch.int64, device)
    m, block = len(selected), 512 if INTERPRETED else 128
    out = torch.empty(m, device=device)
    if m:
        *tables, far, opened, letter = _costs(device)
        with torch.cuda.device_of(out):
            _energies[(triton.cdiv(m, block),)](
                out, *sequences, offsets, len(offsets) - 1, start, selected, m, *tables, far, opened, letter, block
            )
    return out


@functools.cache
def _costs(device: torch.device) -> tuple[Tensor, Tensor, int, int, int]:
    """Stacks by the miRNA's letter before and its letter, the window's and the one before; ends; and the rest."""
    stack, end, *others = _core.duplex_costs()
    return (*(torch.from_numpy(t).int().contiguous().to(device) for t in (stack.swapaxes(2, 3), end)), *others)
