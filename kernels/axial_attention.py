"""Axial attention on a pair latent, row by row or column by column, forward and backward.

Both axes read the joint projection where one Linear left it: a line is a first cell and a step to the next, so columns
cost no transpose. A program holds a block of one line and one head; scores and weights never leave the chip. Nothing is
summed by atomics, so equal inputs give equal results.

For the backward pass each call keeps, besides the projection (3 B L^2 H D values, which any form keeps) and its output
(B L^2 H D values), a float32 log-sum per cell and head, 4 B L^2 H bytes. Eager attention keeps scores and weights
instead, 2 B L^3 H values: at L = 500 and 4 heads in bfloat16 2 GB per sample and call, against 4 MB.

Source: RNAformer (arXiv 2307.10073), axial attention of its block; computed as in
:mod:`pairformer.kernels.set_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from pairformer.kernels.launch import INTERPRETED, precision, tuned
from pairformer.kernels.set_attention import LOG2_E, _configs, _grid, _load, _product, _store
from pairformer.kernels.set_attention import _fitting as _fitting_sets
from torch import Tensor

from pairformer.config import check


@torch.compiler.disable  # as of attention within sets
def axial_attention(qkv: Tensor, axis: str, lengths: Tensor | None) -> Tensor:
    """softmax(query key^T / sqrt(D)) value along the lines of each sample's real square.

    Args:
        qkv: (B, L, L, 3, H, D) float32, bfloat16 or float16: query, key and value of each cell; D from 1 to 128.
        axis: "row": cell (i, j) attends the cells (i, .); "column": the cells (., j).
        lengths: (B,) int32 or int64 on the device, real rows and columns of each sample, 0 to L; None: all are. What
            other cells hold, NaN too, has no effect.

    Returns:
        (B, L, L, H, D) of the dtype of ``qkv``, contiguous; 0 in cells past a sample's length, with gradients 0.

    Raises:
        ValueError: shapes or dtypes disagree, the axis is unknown, or a size has no kernel.

    Source: RNAformer (arXiv 2307.10073), axial attention; scale by head width.
    """
    square = qkv.ndim == 6 and qkv.shape[1] == qkv.shape[2] and qkv.shape[3] == 3
    check(square, "qkv", "have shape (B, L, L, 3, H, D)", tuple(qkv.shape))
    check(qkv.dtype in (torch.float32, torch.bfloat16, torch.float16), "qkv", "be float32, bfloat16 or float16",
           qkv.dtype)  # fmt: skip
    check(1 <= qkv.shape[5] <= 128, "head width", "be from 1 to 128", qkv.shape[5])
    check(axis in ("row", "column"), "axis", "be row or column", repr(axis))
    if lengths is None:
        lengths = torch.full((len(qkv),), qkv.shape[1], dtype=torch.int32, device=qkv.device)
    check(lengths.shape == qkv.shape[:1], "lengths", f"have shape {(len(qkv),)}", tuple(lengths.shape))
    check(lengths.dtype in (torch.int32, torch.int64), "lengths", "be int32 or int64", lengths.dtype)
    check(lengths.device == qkv.device, "lengths", f"be on {qkv.device}", lengths.device)
    with torch.cuda.device_of(qkv):
        return _AxialAttention.apply(qkv, lengths, axis == "column")


class _AxialAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, lengths, columns):
        qkv, lengths = qkv.contiguous(), lengths.contiguous()
        samples, side, _, _, heads, width = qkv.shape
        out = qkv.new_empty(samples, side, side, heads, width)
        # Of a line side by side, on either axis, and past its end what makes weights 0: read without a mask.
        shape = (samples, side, heads, _padded(side))
        lse = torch.full(shape, torch.inf, dtype=torch.float32, device=qkv.device)
        if out.numel():
            _axial_forward[_grid(samples * side * heads, side)](OUT=out, LSE=lse, **_arguments(qkv, lengths, columns))
        ctx.save_for_backward(qkv, lengths, out, lse)
        ctx.columns = columns
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        qkv, lengths, out, lse = ctx.saved_tensors
        samples, side, _, _, heads, _ = qkv.shape
        d_qkv, delta = torch.empty_like(qkv), torch.zeros_like(lse)
        if out.numel():
            common = _arguments(qkv, lengths, ctx.columns)
            common |= {"LSE": lse, "DELTA": delta, "D_OUT": grad.contiguous(), "D_QKV": d_qkv}
            _axial_backward_query[_grid(samples * side * heads, side)](OUT=out, **common)
            _axial_backward_key[_grid(samples * side * heads, side, "BLOCK_K")](**common)
        return d_qkv, None, None


def _arguments(qkv: Tensor, lengths: Tensor, columns: bool) -> dict[str, Any]:
    """What all kernels are given."""
    side, heads, width = qkv.shape[1], *qkv.shape[4:]
    return {
        "QKV": qkv, "LENGTHS": lengths, "side": side, "heads": heads, "scale": width**-0.5,
        "WIDTH": width, "BLOCK_D": max(16, triton.next_power_of_2(width)), "COLUMNS": columns,
        "PRECISION": precision(qkv.dtype), "WIDEN": INTERPRETED,
        "POWER": max(16, triton.next_power_of_2(side)), "PADDED": _padded(side),
    }  # fmt: skip


def _padded(side: int) -> int:
    """Log-sums of a line, with those that its last block reads."""
    return max(128, triton.next_power_of_2(side))


def _fitting(configs, named_args, **kwargs) -> list[triton.Config]:
    """Those whose blocks are not longer than a line, or as short as there are."""
    return _fitting_sets(configs, named_args, Q=kwargs["QKV"], POWER_Q=kwargs["POWER"], POWER_K=kwargs["POWER"])


_tuned = tuned(  # columns as rows, which takes half as long
    _configs(), key=["POWER", "BLOCK_D", "PRECISION"], prune_configs_by={"early_config_prune": _fitting}
)


@triton.jit
def _line(LENGTHS, side, heads, COLUMNS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    """Of a program: its block's positions, real positions of the line, first cell, step, head and first log-sum."""
    blocks = tl.cdiv(side, BLOCK)
    line_head = tl.program_id(0) // blocks
    rows = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    line = line_head // heads
    sample, number = line // side, line % side
    length = tl.minimum(tl.load(LENGTHS + sample), side).to(tl.int32)
    count = tl.where(number < length, length, 0)
    begin, step = line.to(tl.int64) * side, tl.cast(1, tl.int64)
    if COLUMNS:
        begin, step = sample.to(tl.int64) * side * side + number, tl.cast(side, tl.int64)
    return rows, count, begin, step, line_head % heads, line_head.to(tl.int64) * PADDED


@triton.jit
def _part(QKV, PART: tl.constexpr, begin, cells, keep, heads, head, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(cells, BLOCK_D) of query, key or value (part 0, 1, 2), 0 where ``keep`` is not."""
    return _load(QKV, begin, cells, keep, 3 * heads * WIDTH, PART * heads + head, WIDTH, BLOCK_D)


@triton.jit
def _keys(QKV, begin, step, rows, count, heads, head, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which rows are real; their keys and values, 0 where not."""
    real = rows < count
    k = _part(QKV, 1, begin, rows * step, real, heads, head, WIDTH, BLOCK_D)
    v = _part(QKV, 2, begin, rows * step, real, heads, head, WIDTH, BLOCK_D)
    return real, k, v


@triton.jit
def _attended(top, total, out, q, QKV, begin, step, first, count, heads, head, scale, WIDTH: tl.constexpr,
              BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK_K: tl.constexpr,
              WHOLE: tl.constexpr):  # fmt: skip
    """Highest score, sum of weights and weighted values after the keys from ``first`` on, all of them real if WHOLE."""
    k_rows = first + tl.arange(0, BLOCK_K)
    k_real, k, v = _keys(QKV, begin, step, k_rows, count, heads, head, WIDTH, BLOCK_D)
    score = _product(q, tl.trans(k), PRECISION, WIDEN)
    if not WHOLE:
        score = tl.where(k_real[None, :], score, float("-inf"))
    unit = scale * LOG2_E
    higher = tl.maximum(top, tl.max(score, 1) * unit)
    weight = tl.exp2(score * unit - higher[:, None])
    shrink = tl.exp2(top - higher)
    out = out * shrink[:, None] + _product(weight.to(v.dtype), v, PRECISION, WIDEN)
    return higher, total * shrink + tl.sum(weight, 1), out


@triton.jit
def _query_slopes(d_query, q, d_out, lse, delta, QKV, begin, step, first, count, heads, head, scale,
                  WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
                  BLOCK_K: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """Gradient of the queries after the keys from ``first`` on."""
    k_rows = first + tl.arange(0, BLOCK_K)
    k_real, k, v = _keys(QKV, begin, step, k_rows, count, heads, head, WIDTH, BLOCK_D)
    weight = tl.exp2(_product(q, tl.trans(k), PRECISION, WIDEN) * (scale * LOG2_E) - lse[:, None])
    if not WHOLE:
        weight = tl.where(k_real[None, :], weight, 0.0)
    slope = weight * (_product(d_out, tl.trans(v), PRECISION, WIDEN) - delta[:, None])
    return d_query + _product(slope.to(k.dtype), k, PRECISION, WIDEN)


@_tuned
@triton.jit
def _axial_forward(QKV, LENGTHS, OUT, LSE, side, heads, scale, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
                   COLUMNS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, POWER: tl.constexpr,
                   PADDED: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    q_rows, count, begin, step, head, sums = _line(LENGTHS, side, heads, COLUMNS, PADDED, BLOCK_Q)
    q_real = q_rows < count
    q = _part(QKV, 0, begin, q_rows * step, q_real, heads, head, WIDTH, BLOCK_D)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    out = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    last = tl.where(tl.min(q_rows) < count, count, 0)
    whole = last // BLOCK_K * BLOCK_K
    for first in range(0, whole, BLOCK_K):
        top, total, out = _attended(top, total, out, q, QKV, begin, step, first, count, heads, head, scale, WIDTH,
                                    BLOCK_D, PRECISION, WIDEN, BLOCK_K, True)  # fmt: skip
    if whole < last:
        top, total, out = _attended(top, total, out, q, QKV, begin, step, whole, count, heads, head, scale, WIDTH,
                                    BLOCK_D, PRECISION, WIDEN, BLOCK_K, False)  # fmt: skip
    total = tl.where(q_real, total, 1.0)
    out = tl.where(q_real[:, None], out * (1.0 / total)[:, None], 0.0)
    _store(OUT, out, begin, q_rows * step, q_rows < side, heads, head, WIDTH, BLOCK_D)
    tl.store(LSE + sums + q_rows, top + tl.log2(total), q_real)


@_tuned
@triton.jit
def _axial_backward_query(QKV, LENGTHS, OUT, LSE, DELTA, D_OUT, D_QKV, side, heads, scale, WIDTH: tl.constexpr,
                          BLOCK_D: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
                          POWER: tl.constexpr, PADDED: tl.constexpr, BLOCK_Q: tl.constexpr,
                          BLOCK_K: tl.constexpr):  # fmt: skip
    q_rows, count, begin, step, head, sums = _line(LENGTHS, side, heads, COLUMNS, PADDED, BLOCK_Q)
    q_real = q_rows < count
    q = _part(QKV, 0, begin, q_rows * step, q_real, heads, head, WIDTH, BLOCK_D)
    out = _load(OUT, begin, q_rows * step, q_real, heads * WIDTH, head, WIDTH, BLOCK_D)
    d_out = _load(D_OUT, begin, q_rows * step, q_real, heads * WIDTH, head, WIDTH, BLOCK_D)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
    tl.store(DELTA + sums + q_rows, delta, q_real)
    lse = tl.load(LSE + sums + q_rows, q_real, 0.0)
    d_query = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    last = tl.where(tl.min(q_rows) < count, count, 0)
    whole = last // BLOCK_K * BLOCK_K
    for first in range(0, whole, BLOCK_K):
        d_query = _query_slopes(d_query, q, d_out, lse, delta, QKV, begin, step, first, count, heads, head, scale,
                                WIDTH, BLOCK_D, PRECISION, WIDEN, BLOCK_K, True)  # fmt: skip
    if whole < last:
        d_query = _query_slopes(d_query, q, d_out, lse, delta, QKV, begin, step, whole, count, heads, head, scale,
                                WIDTH, BLOCK_D, PRECISION, WIDEN, BLOCK_K, False)  # fmt: skip
    d_query = tl.where(q_real[:, None], d_query * scale, 0.0)
    _store(D_QKV, d_query, begin, q_rows * step, q_rows < side, 3 * heads, head, WIDTH, BLOCK_D)


@_tuned
@triton.jit
def _axial_backward_key(QKV, LENGTHS, LSE, DELTA, D_OUT, D_QKV, side, heads, scale, WIDTH: tl.constexpr,
                        BLOCK_D: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
                        POWER: tl.constexpr, PADDED: tl.constexpr, BLOCK_Q: tl.constexpr,
                        BLOCK_K: tl.constexpr):  # fmt: skip
    k_rows, count, begin, step, head, sums = _line(LENGTHS, side, heads, COLUMNS, PADDED, BLOCK_K)
    k_real, k, v = _keys(QKV, begin, step, k_rows, count, heads, head, WIDTH, BLOCK_D)
    d_key = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    d_value = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in range(0, tl.where(tl.min(k_rows) < count, count, 0), BLOCK_Q):
        q_rows = first + tl.arange(0, BLOCK_Q)
        q_real = q_rows < count
        q = _part(QKV, 0, begin, q_rows * step, q_real, heads, head, WIDTH, BLOCK_D)
        d_out = _load(D_OUT, begin, q_rows * step, q_real, heads * WIDTH, head, WIDTH, BLOCK_D)
        lse, delta = tl.load(LSE + sums + q_rows), tl.load(DELTA + sums + q_rows)
        # Keys by queries, so that both products below take their first factor from registers.
        score = _product(k, tl.trans(q), PRECISION, WIDEN) * (scale * LOG2_E)
        weight = tl.exp2(score - lse[None, :])
        slope = weight * (_product(v, tl.trans(d_out), PRECISION, WIDEN) - delta[None, :])
        d_value += _product(weight.to(d_out.dtype), d_out, PRECISION, WIDEN)
        d_key += _product(slope.to(q.dtype), q, PRECISION, WIDEN)
    d_key = tl.where(k_real[:, None], d_key * scale, 0.0)
    d_value = tl.where(k_real[:, None], d_value, 0.0)
    _store(D_QKV, d_key, begin, k_rows * step, k_rows < side, 3 * heads, heads + head, WIDTH, BLOCK_D)
    _store(D_QKV, d_value, begin, k_rows * step, k_rows < side, 3 * heads, 2 * heads + head, WIDTH, BLOCK_D)
