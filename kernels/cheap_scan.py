"""Packed candidates -> cheap logit and SimHash key in one pass; and the one-hot windows of selected rows.

A window is never written out for the cheap encoder. Its columns come from the coded sequences and the alignment one
after the other; the first convolution is three table rows a column, summed; the second follows at once in registers.

A candidate costs 23,000 multiply-adds (of which 20,000 the second convolution), 75 table rows of 64 bytes and, of DRAM,
some 20 bytes in and 8 out, so fp32 arithmetic bounds the pass, not memory.

Source: PAIR-Former eq. 3 and sec. 4.3; App. D, step C for the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from pairformer.kernels.esa_scan import DevicePairs, Rows, bag_at
from pairformer.kernels.launch import INTERPRETED, tuned
from torch import Tensor

from pairformer import _core

if TYPE_CHECKING:
    from pairformer.models.encoders import CheapEncoder

# A column's letters are codes of A C G U, GAP or EMPTY; its symbol is the miRNA's times LETTERS plus the window's.
GAP = tl.constexpr(4)
EMPTY = tl.constexpr(5)
LETTERS = tl.constexpr(6)
SYMBOLS = tl.constexpr(36)
WINDOW = tl.constexpr(40)
COLUMNS = tl.constexpr(50)
SEED_PART = tl.constexpr(10)  # letters of an extended seed, and of the window's part that it is aligned with
SEED_COLUMN = tl.constexpr(5)  # the first aligned column
POOLED = tl.constexpr(13)  # columns of the second convolution
TUNED_ROWS = 1 << 17  # candidates that keep every core of a device busy
CHUNK = tl.constexpr(16)  # channels of the first convolution made at once
TILE = tl.constexpr(32)  # outputs of the heads made at once; bits of a key

PAIR_DTYPES = {"mirna": torch.uint8, "mirna_offsets": torch.int64, "utr": torch.uint8, "utr_offsets": torch.int64,
               "bag_mirna": torch.int32, "bag_utr": torch.int32}  # fmt: skip
ROW_DTYPES = {"offsets": torch.int64, "start": torch.int32, "esa_score": torch.uint8, "position": torch.float32,
              "alignment": torch.int32}  # fmt: skip
_AS_LONG_AS = {"esa_score": "start", "position": "start", "alignment": "start", "bag_utr": "bag_mirna"}


@triton.jit
def locate(pairs, offsets, n_bags, starts, row):
    """Of each row: where its miRNA begins and its length, and its window's last letter."""
    mirna, mirna_offsets, utr, utr_offsets, bag_mirna, bag_utr = pairs
    bag = bag_at(offsets, 0, n_bags - 1, row)
    number = tl.load(bag_mirna + bag)
    first = tl.load(mirna_offsets + number)
    length = (tl.load(mirna_offsets + number + 1) - first).to(tl.int32)
    last = utr + tl.load(utr_offsets + tl.load(bag_utr + bag)) + tl.load(starts + row) + (WINDOW - 1)
    return mirna + first, length, last


@triton.jit
def _gaps(length, alignments, row):
    """Of each row its gaps as bit masks over columns, of the miRNA's and of the window's.

    Between two paired columns the miRNA's unpaired letters come first, then the window's.
    """
    alignment = tl.load(alignments + row)
    open_mirna = ~alignment & ((1 << tl.minimum(length, SEED_PART)) - 1)
    open_window = ~(alignment >> SEED_PART) & 0x3FF
    mirna_gaps = tl.zeros_like(alignment)
    window_gaps = tl.zeros_like(alignment)
    for k in tl.static_range(SEED_COLUMN, SEED_COLUMN + 2 * SEED_PART):
        mirna_alone = open_mirna & 1
        window_alone = open_window & ~open_mirna & 1
        mirna_gaps |= window_alone << k
        window_gaps |= mirna_alone << k
        open_mirna >>= 1 - window_alone
        open_window >>= 1 - mirna_alone
    return mirna_gaps, window_gaps


@triton.jit
def _letters(texts, i, j, mirna_gap, window_gap):
    """A column's letters, given how many were used before it: i of the miRNA, negative while it waits; j of the window.

    Every candidate's window ends before column 50, its miRNA too if it has at most 35 letters.
    """
    mirna, length, last = texts
    top = tl.load(mirna + i, mask=(i >= 0) & (i < length), other=EMPTY).to(tl.int32)
    bottom = tl.load(last - j, mask=j < WINDOW, other=EMPTY).to(tl.int32)
    return tl.where(mirna_gap != 0, GAP, top), tl.where(window_gap != 0, GAP, bottom)


@triton.jit
def _next_symbol(texts, i, j, mirna_gaps, window_gaps):
    """The symbol of the column that bit 0 of the gaps is about -> symbol, and i, j and the gaps for the next."""
    mirna_gap, window_gap = mirna_gaps & 1, window_gaps & 1
    top, bottom = _letters(texts, i, j, mirna_gap, window_gap)
    return top * LETTERS + bottom, i + 1 - mirna_gap, j + 1 - window_gap, mirna_gaps >> 1, window_gaps >> 1


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)  # a broken model's logits shall not look sound


@triton.jit
def _tap(x, weight, row, sums, CHUNK: tl.constexpr, SECOND: tl.constexpr):
    """sums (BLOCK, SECOND) + x (BLOCK, CHUNK) times the matrix's rows from `row` on."""
    place = (row + tl.arange(0, CHUNK))[:, None] * SECOND + tl.arange(0, SECOND)
    return tl.dot(x, tl.load(weight + place), sums, input_precision="ieee")


@triton.jit
def _linear(x, weight, first, width, ROWS: tl.constexpr, TILE: tl.constexpr):
    """x (BLOCK, ROWS) times TILE of the matrix's `width` columns, and the bias, which is its row ROWS."""
    place = weight + first + tl.arange(0, TILE)
    bias = tl.broadcast_to(tl.load(place + ROWS * width)[None, :], x.shape[0], TILE)
    return tl.dot(x, tl.load(place + tl.arange(0, ROWS)[:, None] * width), bias, input_precision="ieee")


def _configs() -> list[triton.Config]:
    """Rows of a program and warps: 16 outputs of the second convolution a thread, of (64, 2) 32, of the last 8."""
    choices = ((64, 4),) if INTERPRETED else ((64, 4), (32, 2), (16, 1), (64, 2), (32, 4))
    return [triton.Config({"BLOCK": block}, num_warps=warps, num_stages=1) for block, warps in choices]


@tuned(_configs(), key=["FIRST", "SECOND", "HIDDEN"])
@triton.jit(do_not_specialize=["n_bags", "n"])
def _cheap_scan(
    logits, keys, mirna, mirna_offsets, utr, utr_offsets, bag_mirna, bag_utr, offsets, n_bags,
    starts, esa_scores, positions, alignments, n, pair_table, table, conv2, score, score_bias, hashed,
    FIRST: tl.constexpr, SECOND: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x = relu(conv1(window)); content = mean(relu(conv2(x))); the heads are linear in content, esa_score, position.

    Column c of x is pair_table[0][s(2c - 2), s(2c - 1)] + pair_table[1][s(2c), s(2c + 1)] + table[s(2c + 2)].
    """
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.minimum(lane, n - 1)  # lanes past the last row repeat it, so no load needs a mask
    pairs = (mirna, mirna_offsets, utr, utr_offsets, bag_mirna, bag_utr)
    texts = locate(pairs, offsets, n_bags, starts, row)
    mirna_gaps, window_gaps = _gaps(texts[1], alignments, row)

    i = tl.full([BLOCK], -SEED_COLUMN, tl.int32)
    j = tl.zeros([BLOCK], tl.int32)
    symbol, i, j, mirna_gaps, window_gaps = _next_symbol(texts, i, j, mirna_gaps, window_gaps)

    channel = tl.arange(0, CHUNK)
    bias = tl.broadcast_to(tl.load(conv2 + 3 * FIRST * SECOND + tl.arange(0, SECOND))[None, :], BLOCK, SECOND)
    before = tl.full([BLOCK, 1], EMPTY * (LETTERS + 1) * (SYMBOLS + 1), tl.int32)  # columns 4 k - 2 and 4 k - 1
    carried = bias  # and what column 2 k - 1 adds to output k: 0 for column -1
    total = tl.zeros([BLOCK, SECOND], tl.float32)
    for k in range(POOLED):
        # Five symbols in one word: it goes to the threads that hold a row's channels in one exchange.
        word = symbol
        for place in tl.static_range(6, 30, 6):
            symbol, i, j, mirna_gaps, window_gaps = _next_symbol(texts, i, j, mirna_gaps, window_gaps)
            word |= symbol << place
        word = word[:, None]
        third, fifth = word >> 12 & 63, word >> 24
        here, after = (word & 63) * SYMBOLS + (word >> 6 & 63), third * SYMBOLS + (word >> 18 & 63)
        out = carried
        carried = bias
        for c in tl.static_range(0, FIRST, CHUNK):
            left, single = pair_table + c + channel, table + c + channel
            right = left + FIRST
            even = tl.load(left + before * (2 * FIRST)) + tl.load(right + here * (2 * FIRST))
            even = _relu(even + tl.load(single + third * FIRST))
            odd = tl.load(left + here * (2 * FIRST)) + tl.load(right + after * (2 * FIRST))
            odd = _relu(odd + tl.load(single + fifth * FIRST))
            odd = tl.where(k < POOLED - 1, odd, 0.0)  # column 25 is padding
            out = _tap(even, conv2, FIRST + c, out, CHUNK, SECOND)
            out = _tap(odd, conv2, 2 * FIRST + c, out, CHUNK, SECOND)
            carried = _tap(odd, conv2, c, carried, CHUNK, SECOND)
        total += _relu(out)
        before = after
    content = total / POOLED

    stored = lane < n
    tile = tl.arange(0, TILE)
    sign = _linear(content, hashed, 0, TILE, SECOND, TILE)
    tl.store(keys + row, tl.xor_sum(tl.where(sign > 0, 1 << tile, 0), 1), mask=stored)
    esa_score = tl.load(esa_scores + row).to(tl.float32)[:, None]
    position = tl.load(positions + row)[:, None]
    logit = tl.full([BLOCK], 0.0, tl.float32) + score_bias
    for h in range(0, HIDDEN, TILE):
        meta = score + (SECOND + 1) * HIDDEN + h + tile  # the rows of esa_score and position, and the second layer's
        hidden = _linear(content, score, h, HIDDEN, SECOND, TILE)
        hidden = _relu(hidden + esa_score * tl.load(meta) + position * tl.load(meta + HIDDEN))
        logit += tl.sum(hidden * tl.load(meta + 2 * HIDDEN), 1)
    tl.store(logits + row, logit, mask=stored)


@triton.jit(do_not_specialize=["n_bags", "m"])
def _windows(
    out, mirna, mirna_offsets, utr, utr_offsets, bag_mirna, bag_utr, offsets, n_bags, starts, alignments, selected, m,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out[lane, c, k] = 1 where column k's miRNA letter is c, or its window's letter c - 5."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(selected + tl.minimum(lane, m - 1))
    pairs = (mirna, mirna_offsets, utr, utr_offsets, bag_mirna, bag_utr)
    texts = locate(pairs, offsets, n_bags, starts, row)
    mirna_gaps, window_gaps = _gaps(texts[1], alignments, row)
    texts = (texts[0][:, None], texts[1][:, None], texts[2][:, None])
    column = tl.arange(0, 64)
    shift = tl.minimum(column, 31)  # no gap stands past column 24
    mirna_gap, window_gap = mirna_gaps[:, None] >> shift & 1, window_gaps[:, None] >> shift & 1
    i = column - SEED_COLUMN - (tl.cumsum(mirna_gap, 1) - mirna_gap)
    j = column - (tl.cumsum(window_gap, 1) - window_gap)
    top, bottom = _letters(texts, i, j, mirna_gap, window_gap)
    place = out + lane[:, None] * (2 * (GAP + 1) * COLUMNS) + column
    stored = (lane < m)[:, None] & (column < COLUMNS)
    for letter in tl.static_range(GAP + 1):
        tl.store(place + letter * COLUMNS, tl.where(top == letter, 1.0, 0.0), mask=stored)
        tl.store(place + (GAP + 1 + letter) * COLUMNS, tl.where(bottom == letter, 1.0, 0.0), mask=stored)


class CheapScan:
    """A cheap encoder's weights as the kernel reads them.

    Args:
        encoder: its weights are copied as they are now.
        rng_seed: of the selector, whose keys are made.
        device: a CUDA device, or the CPU under Triton's interpreter.
    """

    def __init__(self, encoder: CheapEncoder, rng_seed: int, device: torch.device | str) -> None:
        w = {name: value.detach().float().cpu() for name, value in encoder.state_dict().items()}
        channels = encoder.config.channels
        first, second = _multiple(channels[0], CHUNK.value), max(16, triton.next_power_of_2(channels[1]))
        hidden = _multiple(encoder.config.hidden, TILE.value)

        letters = w["conv1.weight"].permute(2, 1, 0).unflatten(1, (2, -1))  # (5 taps, miRNA or window, 5 letters, C1)
        letters = F.pad(letters, (0, first - channels[0], 0, 1))  # EMPTY adds nothing
        taps = (letters[:, 0, :, None] + letters[:, 1, None]).flatten(1, 2)  # (5, SYMBOLS, FIRST)
        taps[2, :, : channels[0]] += w["conv1.bias"]  # the tap that lies inside the window for every column
        pair_table = torch.stack([taps[0, :, None] + taps[1], taps[2, :, None] + taps[3]], 2)
        conv2 = _padded(w["conv2.weight"].permute(2, 1, 0), first, second).flatten(0, 1)
        score1 = w["score1.weight"].T
        score = [_padded(score1[:-2], second, hidden), _padded(w["score1.bias"][None], 1, hidden),
                 _padded(score1[-2:], 2, hidden), _padded(w["score2.weight"], 1, hidden)]  # fmt: skip
        dims = torch.from_numpy(_core.simhash_dims(rng_seed, encoder.config.width))
        vector = [w["embed.weight"].T, w["embed.bias"][None]]
        hashed = [_padded(part[:, dims], rows, TILE.value) for part, rows in zip(vector, (second, 1), strict=True)]

        self._tables = [
            table.contiguous().to(device)
            for table in (pair_table, taps[4], torch.cat([conv2, _padded(w["conv2.bias"][None], 1, second)]),
                          torch.cat(score), torch.cat(hashed))
        ]  # fmt: skip
        self._score_bias = w["score2.bias"].item()
        self._sizes = (first, second, hidden)
        self._tuned = INTERPRETED

    def __call__(self, pairs: DevicePairs, rows: Rows) -> tuple[Tensor, Tensor]:
        """Score every candidate as the encoder does in evaluation mode, in fp32 throughout.

        Args:
            pairs: the coded sequences; miRNAs of at most 35 letters.
            rows: N candidates of them, bag by bag.

        Returns:
            cheap_logit (N,) float32; keys (N,) int32, the bits of ``STSelector.keys``: bit t is 1 where dimension
            ``simhash_dims(rng_seed, width)[t]`` of the embedding is above 0. No other dimension is computed.

        Raises:
            TypeError: an input is of another dtype.
            ValueError: an input is on another device, not contiguous, or not as long as ``start``.
        """
        device = self._tables[0].device
        sequences = checked_tensors(pairs, PAIR_DTYPES, device)
        offsets, start, esa_score, position, alignment = checked_tensors(rows, ROW_DTYPES, device)
        n = len(start)
        logit, keys = torch.empty_like(position), torch.empty_like(start)
        if n:
            *tables, hashed = self._tables
            # What the first call is tuned to is kept for good: it is given enough programs, those past n in vain.
            least, self._tuned = 0 if self._tuned else TUNED_ROWS, True
            with torch.cuda.device_of(logit):
                _cheap_scan[lambda meta: (triton.cdiv(max(n, least), meta["BLOCK"]),)](
                    logit, keys, *sequences, offsets, len(offsets) - 1, start, esa_score, position, alignment, n,
                    # Triton 3.10 is to split each multiply-add in two unless asked.
                    *tables, self._score_bias, hashed, *self._sizes, enable_fp_fusion=True,
                )  # fmt: skip
        return logit, keys


def windows(pairs: DevicePairs, rows: Rows, selected: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """One-hot windows of selected rows, made on the device that reads them.

    Args:
        pairs: the coded sequences; miRNAs of at most 35 letters.
        rows: N candidates of them, bag by bag.
        selected: (M,) int64 row numbers, any order.
        dtype: of the result.

    Returns:
        (M, 10, 50), what ``Candidates.encode`` returns of the same rows.

    Raises:
        TypeError, ValueError: as :class:`CheapScan`.

    Source: TargetNet's layout with the extended seed alignment at columns 5 onwards.
    """
    device = rows.start.device
    sequences = checked_tensors(pairs, PAIR_DTYPES, device)
    offsets, start, _, _, alignment = checked_tensors(rows, ROW_DTYPES, device)
    check_tensor("selected", selected, torch.int64, device)
    m, block = len(selected), 16
    out = torch.empty(m, 2 * (GAP.value + 1), COLUMNS.value, dtype=dtype, device=device)
    if m:
        with torch.cuda.device_of(out):
            _windows[(triton.cdiv(m, block),)](
                out, *sequences, offsets, len(offsets) - 1, start, alignment, selected, m, block
            )
    return out


def checked_tensors(source: DevicePairs | Rows, dtypes: dict[str, torch.dtype], device: torch.device) -> list[Tensor]:
    """Those of the given names, each of its dtype and on the device, as long as they must be."""
    found = {name: getattr(source, name) for name in dtypes}
    for name, values in found.items():
        check_tensor(name, values, dtypes[name], device)
    for name, other in _AS_LONG_AS.items():
        if name in found and len(found[name]) != len(found[other]):
            raise ValueError(f"{name} must have {len(found[other])} entries as {other}, got {len(found[name])}")
    return list(found.values())


def check_tensor(name: str, values: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    if values.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {values.dtype}")
    if values.device != device:
        raise ValueError(f"{name} must be on {device}, got {values.device}; move it there")
    if values.ndim != 1 or not values.is_contiguous():
        raise ValueError(f"{name} must be one contiguous axis, got {tuple(values.shape)} of strides {values.stride()}")


def _multiple(size: int, unit: int) -> int:
    return triton.cdiv(size, unit) * unit


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """(..., r, c) -> (..., rows, columns), zeros below and to the right."""
    return F.pad(matrix, (0, columns - matrix.shape[-1], 0, rows - matrix.shape[-2]))
