"""Masked attention within sets of up to some hundred tokens, forward and backward.

Padded or ragged bags are the same to the kernels: rows of one flat array, of which a bag owns a span. A program holds a
block of queries of one head of one bag; scores and weights never leave the chip. Nothing is summed by atomics, so equal
inputs give equal results.

Source: Set Transformer eq. 6 (attention of a MAB), computed block by block with a running softmax (Milakov and
Gimelshein, 2018) and its weights formed again in the backward pass (Dao et al., FlashAttention, 2022).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from pairformer.kernels.launch import INTERPRETED, precision, tuned
from torch import Tensor

from pairformer.config import check

LOG2_E = tl.constexpr(1.4426950408889634)
TILE = 90 << 10  # bytes: a bag whose arrays and scores are not larger has its backward pass in one program


def set_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(query key^T / sqrt(D) + bias) value over the real keys of each bag.

    Args:
        query: (B, Q, H, D) float32, bfloat16 or float16; D from 1 to 128.
        key, value: (B, K, H, D) likewise.
        mask: (B, K) bool, True = real key; None for all. What a masked key holds, NaN too, has no effect.
        bias: (B, H or 1, Q, K) added to the scores, with its gradient; None for none.
        dropout: share of the weights set to 0, the others grow by 1 / (1 - dropout).
        seed: (1,) int64 on the device, of the weights dropped; None draws one from PyTorch's generator.

    Returns:
        (B, Q, H, D) of the dtype of ``query``; 0 for every query of a bag without a real key, with gradients 0.

    Raises:
        ValueError: shapes or dtypes disagree, or a size has no kernel.

    Source: PAIR-Former sec. 4.5; scale by head width.
    """
    check(query.ndim == 4, "query", "have shape (B, Q, H, D)", tuple(query.shape))
    bags, n_query, heads, width = query.shape
    check(key.ndim == 4, "key", "have shape (B, K, H, D)", tuple(key.shape))
    n_key = key.shape[1]
    for name, part in (("key", key), ("value", value)):
        check(part.shape == (bags, n_key, heads, width), name, f"have shape {(bags, n_key, heads, width)}",
               tuple(part.shape))  # fmt: skip
    if mask is not None:
        check(mask.shape == (bags, n_key), "mask", f"have shape {(bags, n_key)}", tuple(mask.shape))
        check(mask.dtype == torch.bool, "mask", "be bool, True = real", mask.dtype)
        mask = mask.reshape(-1)
    rows = (part.reshape(-1, heads, width) for part in (query, key, value))
    out = _attend(*rows, mask, bias, dropout, seed, None, None, bags, n_query, n_key)
    return out.view(query.shape)


def ragged_set_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    max_query: int,
    max_key: int,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """:func:`set_attention` of bags that lie one after the other.

    Args:
        query: (M, H, D).
        key, value: (N, H, D).
        cu_query: (B + 1,) int32 or int64 on the device, bag b owns rows cu_query[b]:cu_query[b + 1]; rows of no bag
            have output and gradients 0.
        cu_key: (B + 1,) of the keys.
        max_query: at least the queries of the largest bag.
        max_key: at least its keys.
        bias: (B, H or 1, max_query, max_key), of which each bag's first rows and columns are read.
        dropout, seed: as there.

    Returns:
        (M, H, D).
    """
    check(query.ndim == 3, "query", "have shape (M, H, D)", tuple(query.shape))
    for name, part in (("key", key), ("value", value)):
        expected = (len(key), *query.shape[1:])
        check(part.shape == expected, name, f"have shape {expected}", tuple(part.shape))
    bags = len(cu_query) - 1
    for name, part in (("cu_query", cu_query), ("cu_key", cu_key)):
        check(part.shape == (bags + 1,) and bags >= 0, name, f"have shape {(bags + 1,)}", tuple(part.shape))
        check(part.dtype in (torch.int32, torch.int64), name, "be int32 or int64", part.dtype)
    return _attend(query, key, value, None, bias, dropout, seed, cu_query, cu_key, bags, max_query, max_key)


@torch.compiler.disable  # a compiled model has a break here, and the kernels as they are
def _attend(query, key, value, mask, bias, dropout, seed, cu_query, cu_key, bags, n_query, n_key) -> Tensor:
    heads, width = query.shape[1:]
    for name, part, rows in (("query", query, n_query), ("key", key, n_key), ("value", value, n_key)):
        check(rows * part.stride(0) < 2**31, name, "have bags within 2^31 elements", rows * part.stride(0))
        check(part.dtype in (torch.float32, torch.bfloat16, torch.float16) and part.dtype == query.dtype, name,
               "be float32, bfloat16 or float16 as the others", part.dtype)  # fmt: skip
        check(part.device == query.device, name, f"be on {query.device}", part.device)
    check(1 <= width <= 128, "head width", "be from 1 to 128", width)
    check(0 <= dropout < 1, "dropout", "be in [0, 1)", dropout)
    if bias is not None:
        expected = (bags, heads, n_query, n_key)
        shape = tuple(bias.shape)
        check(shape in (expected, (bags, 1, *expected[2:])), "bias", f"have shape {expected} or one head", shape)
    if dropout and seed is None:
        seed = torch.randint(2**31, (1,), device=query.device)
    with torch.cuda.device_of(query):
        return _Attention.apply(query, key, value, mask, bias, dropout, seed, cu_query, cu_key, bags, n_query, n_key)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, bias, dropout, seed, cu_query, cu_key, bags, n_query, n_key):
        query, key, value = (_rows(part) for part in (query, key, value))
        if bias is not None and bias.stride(3) != 1:
            bias = bias.contiguous()
        mask, cu_query, cu_key = (part if part is None else part.contiguous() for part in (mask, cu_query, cu_key))
        heads = query.shape[1]
        make = torch.empty_like if cu_query is None else torch.zeros_like  # ragged, rows may belong to no bag
        out = make(query, memory_format=torch.contiguous_format)
        lse = query.new_empty(heads, len(query), dtype=torch.float32)
        ctx.sizes = (bags, n_query, n_key, dropout)
        if len(query):
            common = _arguments(query, key, value, mask, bias, seed, cu_query, cu_key, ctx.sizes)
            _forward[_grid(bags * heads, n_query)](OUT=out, LSE=lse, **common)
        ctx.save_for_backward(query, key, value, mask, bias, seed, cu_query, cu_key, out, lse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value, mask, bias, seed, cu_query, cu_key, out, lse = ctx.saved_tensors
        bags, n_query, n_key, _ = ctx.sizes
        heads = query.shape[1]
        make = torch.empty_like if cu_query is None else torch.zeros_like
        grads = [make(part, memory_format=torch.contiguous_format) for part in (query, key, value)]
        d_bias = None
        if bias is not None and ctx.needs_input_grad[4]:
            d_bias = make(bias.expand(-1, heads, -1, -1), memory_format=torch.contiguous_format)
        common = _arguments(query, key, value, mask, bias, seed, cu_query, cu_key, ctx.sizes)
        common |= {
            "OUT": out,
            "LSE": lse,
            "D_OUT": grad.contiguous(),
            "D_BIAS": d_bias,
            "BIAS_GRAD": d_bias is not None,
        }
        if len(query) == 0 or len(key) == 0 or n_query == 0 or n_key == 0:
            for part in grads:
                part.zero_()
        elif _tile_bytes(common, query.element_size()) <= TILE:
            _backward_tile[(bags * heads,)](D_QUERY=grads[0], D_KEY=grads[1], D_VALUE=grads[2], **common)
        else:
            delta = torch.empty_like(lse)
            _backward_query[_grid(bags * heads, n_query)](D_QUERY=grads[0], DELTA=delta, **common)
            _backward_key[_grid(bags * heads, n_key, "BLOCK_K")](
                D_KEY=grads[1], D_VALUE=grads[2], DELTA=delta, **{n: common[n] for n in common if n not in
                                                                   ("OUT", "D_BIAS", "BIAS_GRAD")})  # fmt: skip
        if d_bias is not None and bias.shape[1] == 1:
            d_bias = d_bias.sum(1, keepdim=True)
        return (*grads, None, d_bias, *(None,) * 7)


def _rows(part: Tensor) -> Tensor:
    """Rows whose heads lie side by side; views of a joint projection stay as they are."""
    width = part.shape[2]
    return part if part.stride(2) == 1 and part.stride(1) == width else part.contiguous()


def _arguments(query, key, value, mask, bias, seed, cu_query, cu_key, sizes) -> dict[str, Any]:
    """What all kernels are given."""
    _, n_query, n_key, dropout = sizes
    _, heads, width = query.shape
    b_bag, b_head, b_row = (0, 0, 0) if bias is None else bias.stride()[:3]
    if bias is not None and bias.shape[1] == 1:
        b_head = 0
    return {
        "Q": query, "K": key, "V": value, "MASK": mask, "BIAS": bias, "SEED": seed,
        "CU_Q": cu_query, "CU_K": cu_key, "n_query": n_query, "n_key": n_key, "heads": heads,
        "scale": width**-0.5, "dropout": dropout,
        "n_rows": len(query), "q_row": query.stride(0), "k_row": key.stride(0), "v_row": value.stride(0),
        "b_bag": b_bag, "b_head": b_head, "b_row": b_row,
        "WIDTH": width, "BLOCK_D": max(16, triton.next_power_of_2(width)),
        "RAGGED": cu_query is not None, "MASKED": mask is not None, "BIASED": bias is not None,
        "DROPS": bool(dropout > 0), "PRECISION": precision(query.dtype), "WIDEN": INTERPRETED,
        "POWER_Q": max(16, triton.next_power_of_2(n_query)), "POWER_K": max(16, triton.next_power_of_2(n_key)),
    }  # fmt: skip


def _grid(bag_heads: int, rows: int, block: str = "BLOCK_Q"):
    return lambda meta: (bag_heads * triton.cdiv(rows, meta[block]),)


def _configs() -> list[triton.Config]:
    """Blocks for chips with 100 KiB of shared memory a core (RTX 30 and 40) and with more (A100, H100)."""
    if INTERPRETED:
        return [triton.Config({"BLOCK_Q": 32, "BLOCK_K": 32})]
    return [
        triton.Config({"BLOCK_Q": q, "BLOCK_K": k}, num_warps=warps, num_stages=stages, maxnreg=registers)
        for q, k, warps, stages, registers in (
            (64, 64, 4, 2, None), (64, 64, 4, 1, None), (64, 64, 4, 1, 128), (64, 64, 4, 1, 64), (64, 64, 8, 2, None),
            (128, 64, 8, 2, None), (64, 32, 4, 2, None), (32, 64, 4, 2, None), (32, 32, 2, 2, None),
            (16, 64, 4, 2, None), (16, 32, 2, 2, None),
        )
    ]  # fmt: skip


def _fitting(configs, named_args, **kwargs) -> list[triton.Config]:
    """Those whose blocks are not larger than the bags, or as small as there are. What is of no use is not compiled:
    smaller blocks in half precision, few registers in float32."""
    most = {"BLOCK_Q": kwargs["POWER_Q"], "BLOCK_K": max(32, kwargs["POWER_K"])}
    fitting = [c for c in configs if all(c.kwargs[name] <= size for name, size in most.items())] or configs[:1]
    if kwargs["Q"].element_size() == 2:
        return [c for c in fitting if c.kwargs["BLOCK_Q"] >= min(64, kwargs["POWER_Q"])] or fitting
    return [c for c in fitting if c.maxnreg is None]


def _tile_bytes(arguments: dict[str, Any], size: int) -> int:
    """Shared memory of the backward pass of one bag in one program; RTX 30 and 40 have 99 KiB for it."""
    queries, keys, width = arguments["POWER_Q"], arguments["POWER_K"], arguments["BLOCK_D"]
    return max(size * (2 * (queries + keys) * width + queries * keys), 8 * queries * width)


def _wide_enough(configs, named_args, **kwargs) -> list[triton.Config]:
    """Few threads for small bags alone, one warp for those in half precision: more would not fit their registers. Few
    registers are of no use in float32."""
    small, size = kwargs["POWER_Q"] * kwargs["POWER_K"] <= 32 * 32, kwargs["Q"].element_size()
    return [c for c in configs if c.num_warps >= (size // 2 if small else 4) and (size == 2 or c.maxnreg is None)]


_TUNED = ["POWER_Q", "POWER_K", "BLOCK_D", "MASKED", "BIASED", "DROPS", "RAGGED", "PRECISION"]
_tuned = tuned(_configs(), key=_TUNED, prune_configs_by={"early_config_prune": _fitting})
_tuned_tile = tuned(
    [triton.Config({}, num_warps=warps, num_stages=1, maxnreg=registers)
     for warps, registers in (((4, None),) if INTERPRETED else ((4, None), (4, 80), (8, None), (2, None), (1, None)))],
    key=_TUNED, prune_configs_by={"early_config_prune": _wide_enough},
)  # fmt: skip


@triton.jit
def _span(CU, bag, n, RAGGED: tl.constexpr):
    """First row and rows of a bag."""
    if RAGGED:
        begin = tl.load(CU + bag).to(tl.int64)
        count = (tl.load(CU + bag + 1) - begin).to(tl.int32)
    else:
        begin = bag.to(tl.int64) * n
        count = n
    return begin, count


@triton.jit
def _load(X, begin, rows, keep, row_stride, head, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) of one head, 0 where there is no row."""
    column = tl.arange(0, BLOCK_D)
    at = rows[:, None] * row_stride + column[None, :]
    return tl.load(X + begin * row_stride + head * WIDTH + at, keep[:, None] & (column < WIDTH)[None, :], 0.0)


@triton.jit
def _store(X, value, begin, rows, keep, heads, head, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    column = tl.arange(0, BLOCK_D)
    at = X + begin * (heads * WIDTH) + head * WIDTH + (rows[:, None] * (heads * WIDTH) + column[None, :])
    tl.store(at, value.to(X.dtype.element_ty), keep[:, None] & (column < WIDTH)[None, :])


@triton.jit
def _block(CU_Q, CU_K, n_query, n_key, heads, n, b_bag, b_head, RAGGED: tl.constexpr, BLOCK: tl.constexpr,
           POWER: tl.constexpr):  # fmt: skip
    """Of a program: which of n rows it holds, its bag and head as one number and its head, where the bias of these
    begins, and first row and rows of the bag's queries and keys."""
    bag_head, rows = tl.program_id(0), tl.arange(0, BLOCK)
    if POWER > BLOCK:
        blocks = tl.cdiv(n, BLOCK)
        rows += bag_head % blocks * BLOCK
        bag_head //= blocks
    bag, head = bag_head // heads, bag_head % heads
    q_begin, q_count = _span(CU_Q, bag, n_query, RAGGED)
    k_begin, k_count = _span(CU_K, bag, n_key, RAGGED)
    return rows, bag_head, head, bag.to(tl.int64) * b_bag + head * b_head, q_begin, q_count, k_begin, k_count


@triton.jit
def _sums(begin, n_rows, head):
    """Where the log-sums of a bag's queries begin."""
    return head.to(tl.int64) * n_rows + begin


@triton.jit
def _keys(K, V, MASK, begin, rows, count, k_row, v_row, head, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
          MASKED: tl.constexpr):  # fmt: skip
    """Which rows are real keys; keys and values, 0 where not."""
    real = rows < count
    if MASKED:
        real = real & (tl.load(MASK + begin + rows, real, 0) != 0)
    k = _load(K, begin, rows, real, k_row, head, WIDTH, BLOCK_D)
    v = _load(V, begin, rows, real, v_row, head, WIDTH, BLOCK_D)
    return real, k, v


@triton.jit
def _outcome(
    Q, OUT, D_OUT, LSE, begin, rows, real, n_rows, q_row, heads, head, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Queries, gradient of what they gave, log-sum, and delta = gradient . output."""
    q = _load(Q, begin, rows, real, q_row, head, WIDTH, BLOCK_D)
    d_out = _load(D_OUT, begin, rows, real, heads * WIDTH, head, WIDTH, BLOCK_D)
    out = _load(OUT, begin, rows, real, heads * WIDTH, head, WIDTH, BLOCK_D)
    lse = tl.load(LSE + _sums(begin, n_rows, head) + rows, real, float("inf"))  # no weight where there is no query
    return q, d_out, lse, tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)


@triton.jit
def _product(a, b, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    if WIDEN:  # the interpreter has no product of bfloat16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _hidden(score, real, ROWS: tl.constexpr, WIDEN: tl.constexpr):
    """Scores, -inf where a column is not real: by the matrix units, in whose layout a thread has many columns."""
    first = tl.full((ROWS, 16), 1.0, tl.float32).to(tl.bfloat16)
    gone = tl.broadcast_to(tl.where(real, 0.0, float("-inf")).to(tl.bfloat16)[None, :], 16, real.shape[0])
    if WIDEN:
        return score + tl.dot(first.to(tl.float32), gone.to(tl.float32))
    return tl.dot(first, gone, score)


@triton.jit
def _scores(q, k, BIAS, bias_at, q_rows, k_rows, q_real, k_real, scale, b_row, BIASED: tl.constexpr,
            PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """(Q, K) before their scale, -inf where there is no key."""
    score = _product(q, tl.trans(k), PRECISION, WIDEN)
    if BIASED:
        at = bias_at + q_rows[:, None].to(tl.int64) * b_row + k_rows[None, :]
        bias = tl.load(BIAS + at, q_real[:, None] & k_real[None, :], 0.0).to(tl.float32)
        score += bias / scale
    return _hidden(score, k_real, q.shape[0], WIDEN)


@triton.jit
def keep_weights(SEED, bag_head, q_rows, k_rows, n_key, dropout, BY_KEYS: tl.constexpr = False):
    """(Q, K), or (K, Q), 1 / (1 - dropout) for the weights that stay, 0 for the others."""
    q, k = (q_rows[None, :], k_rows[:, None]) if BY_KEYS else (q_rows[:, None], k_rows[None, :])
    at = q * n_key + k
    return tl.where(tl.rand(tl.load(SEED) + bag_head, at) >= dropout, 1 / (1 - dropout), 0.0)


@triton.jit
def _attended(top, total, out, q, K, V, MASK, BIAS, SEED, bias_at, bag_head, head, q_rows, q_real, begin, k_begin,
              k_count, n_key, scale, dropout, k_row, v_row, b_row, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
              MASKED: tl.constexpr, BIASED: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr,
              WIDEN: tl.constexpr, BLOCK_K: tl.constexpr, ALONE: tl.constexpr):  # fmt: skip
    """Highest score, sum of weights and weighted values after the keys from ``begin`` on, and which are real."""
    k_rows = begin + tl.arange(0, BLOCK_K)
    k_real, k, v = _keys(K, V, MASK, k_begin, k_rows, k_count, k_row, v_row, head, WIDTH, BLOCK_D, MASKED)
    score = _scores(q, k, BIAS, bias_at, q_rows, k_rows, q_real, k_real, scale, b_row, BIASED, PRECISION, WIDEN)
    unit = scale * LOG2_E
    higher = tl.maximum(top, tl.max(score, 1) * unit)
    base = tl.where(higher == float("-inf"), 0.0, higher)  # no key so far
    weight = tl.exp2(score * unit - base[:, None])
    summed = tl.sum(weight, 1)
    if DROPS:
        weight *= keep_weights(SEED, bag_head, q_rows, k_rows, n_key, dropout)
    if ALONE:
        return higher, summed, _product(weight.to(v.dtype), v, PRECISION, WIDEN), k_real.to(tl.int32)
    shrink = tl.exp2(top - base)
    out = out * shrink[:, None] + _product(weight.to(v.dtype), v, PRECISION, WIDEN)
    return higher, total * shrink + summed, out, k_real.to(tl.int32)


@_tuned
@triton.jit
def _forward(Q, K, V, MASK, BIAS, SEED, CU_Q, CU_K, OUT, LSE, n_query, n_key, heads: tl.constexpr, scale, dropout,
             n_rows, q_row, k_row, v_row, b_bag, b_head, b_row, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
             RAGGED: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr, DROPS: tl.constexpr,
             PRECISION: tl.constexpr, WIDEN: tl.constexpr, POWER_Q: tl.constexpr, POWER_K: tl.constexpr,
             BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    q_rows, bag_head, head, bias_at, q_begin, q_count, k_begin, k_count = _block(
        CU_Q, CU_K, n_query, n_key, heads, n_query, b_bag, b_head, RAGGED, BLOCK_Q, POWER_Q)  # fmt: skip
    q_real = q_rows < q_count
    q = _load(Q, q_begin, q_rows, q_real, q_row, head, WIDTH, BLOCK_D)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    out = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    seen = tl.zeros((BLOCK_K,), tl.int32)
    if POWER_K <= BLOCK_K:  # one block, before which there was nothing
        top, total, out, seen = _attended(
            top, total, out, q, K, V, MASK, BIAS, SEED, bias_at, bag_head, head, q_rows, q_real, 0, k_begin, k_count,
            n_key, scale, dropout, k_row, v_row, b_row, WIDTH, BLOCK_D, MASKED, BIASED, DROPS, PRECISION, WIDEN,
            BLOCK_K, True)  # fmt: skip
    else:
        for begin in range(0, k_count, BLOCK_K):
            top, total, out, real = _attended(
                top, total, out, q, K, V, MASK, BIAS, SEED, bias_at, bag_head, head, q_rows, q_real, begin, k_begin,
                k_count, n_key, scale, dropout, k_row, v_row, b_row, WIDTH, BLOCK_D, MASKED, BIASED, DROPS, PRECISION,
                WIDEN, BLOCK_K, False)  # fmt: skip
            seen = tl.maximum(seen, real)
    full = total > 0
    out = out * (1.0 / tl.where(full, total, 1.0))[:, None]
    out = tl.where(tl.max(seen, 0) > 0, out, 0.0)  # of no key nothing, whatever the queries hold
    _store(OUT, out, q_begin, q_rows, q_real, heads, head, WIDTH, BLOCK_D)
    lse = tl.where(full, top + tl.log2(tl.where(full, total, 1.0)), 0.0)
    tl.store(LSE + _sums(q_begin, n_rows, head) + q_rows, lse, q_real)


@triton.jit
def _weights_and_slopes(q, k, v, d_out, lse, delta, BIAS, SEED, bias_at, bag_head, q_rows, k_rows, q_real, k_real,
                        n_key, scale, dropout, b_row, BIASED: tl.constexpr, DROPS: tl.constexpr,
                        PRECISION: tl.constexpr, WIDEN: tl.constexpr):  # fmt: skip
    """(Q, K) weights as they met the values, and gradient of the scores."""
    score = _scores(q, k, BIAS, bias_at, q_rows, k_rows, q_real, k_real, scale, b_row, BIASED, PRECISION, WIDEN)
    weight = tl.exp2(score * (scale * LOG2_E) - lse[:, None])
    slope = _product(d_out, tl.trans(v), PRECISION, WIDEN)
    used = weight
    if DROPS:
        keep = keep_weights(SEED, bag_head, q_rows, k_rows, n_key, dropout)
        used, slope = weight * keep, slope * keep
    return used, weight * (slope - delta[:, None])


@triton.jit
def _by_keys(q, k, v, d_out, lse, delta, BIAS, SEED, bias_at, bag_head, q_rows, k_rows, q_real, k_real, n_key, scale,
             dropout, b_row, HIDE: tl.constexpr, BIASED: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr,
             WIDEN: tl.constexpr):  # fmt: skip
    """The same as (K, Q), which the products that sum over queries take from registers; unless ``HIDE``, rows of keys
    that are not real hold anything."""
    score = _product(k, tl.trans(q), PRECISION, WIDEN)
    if BIASED:
        at = bias_at + q_rows[None, :].to(tl.int64) * b_row + k_rows[:, None]
        score += tl.load(BIAS + at, q_real[None, :] & k_real[:, None], 0.0).to(tl.float32) / scale
    if HIDE:
        score = tl.where(k_real[:, None], score, float("-inf"))
    weight = tl.exp2(score * (scale * LOG2_E) - lse[None, :])
    slope = _product(v, tl.trans(d_out), PRECISION, WIDEN)
    used = weight
    if DROPS:
        keep = keep_weights(SEED, bag_head, q_rows, k_rows, n_key, dropout, True)
        used, slope = weight * keep, slope * keep
    return used, weight * (slope - delta[None, :])


@triton.jit
def _store_slopes(D_BIAS, slope, bag_head, n_query, n_key, q_rows, k_rows, keep):
    """``q_rows`` and ``k_rows`` along their axes."""
    at = bag_head.to(tl.int64) * n_query * n_key + q_rows.to(tl.int64) * n_key + k_rows
    tl.store(D_BIAS + at, slope.to(D_BIAS.dtype.element_ty), keep)


@_tuned_tile
@triton.jit
def _backward_tile(Q, K, V, MASK, BIAS, SEED, CU_Q, CU_K, OUT, LSE, D_OUT, D_BIAS, D_QUERY, D_KEY, D_VALUE, n_query,
                   n_key, heads: tl.constexpr, scale, dropout, n_rows, q_row, k_row, v_row, b_bag, b_head, b_row,
                   WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, RAGGED: tl.constexpr, MASKED: tl.constexpr,
                   BIASED: tl.constexpr, BIAS_GRAD: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr,
                   WIDEN: tl.constexpr, POWER_Q: tl.constexpr, POWER_K: tl.constexpr):  # fmt: skip
    q_rows, bag_head, head, bias_at, q_begin, q_count, k_begin, k_count = _block(
        CU_Q, CU_K, n_query, n_key, heads, n_query, b_bag, b_head, RAGGED, POWER_Q, POWER_Q)  # fmt: skip
    q_real, k_rows = q_rows < q_count, tl.arange(0, POWER_K)
    q, d_out, lse, delta = _outcome(Q, OUT, D_OUT, LSE, q_begin, q_rows, q_real, n_rows, q_row, heads, head, WIDTH,
                                   BLOCK_D)  # fmt: skip
    k_real, k, v = _keys(K, V, MASK, k_begin, k_rows, k_count, k_row, v_row, head, WIDTH, BLOCK_D, MASKED)
    weight, slope = _by_keys(
        q, k, v, d_out, lse, delta, BIAS, SEED, bias_at, bag_head, q_rows, k_rows, q_real, k_real, n_key, scale,
        dropout, b_row, True, BIASED, DROPS, PRECISION, WIDEN)  # fmt: skip
    if BIAS_GRAD:
        _store_slopes(D_BIAS, slope, bag_head, n_query, n_key, q_rows[None, :], k_rows[:, None],
                      q_real[None, :] & (k_rows < k_count)[:, None])  # fmt: skip
    d_value = _product(weight.to(d_out.dtype), d_out, PRECISION, WIDEN)
    _store(D_VALUE, d_value, k_begin, k_rows, k_rows < k_count, heads, head, WIDTH, BLOCK_D)
    slope = slope.to(q.dtype)
    d_key = _product(slope, q, PRECISION, WIDEN) * scale
    _store(D_KEY, d_key, k_begin, k_rows, k_rows < k_count, heads, head, WIDTH, BLOCK_D)
    d_query = _product(tl.trans(slope), k, PRECISION, WIDEN) * scale
    _store(D_QUERY, d_query, q_begin, q_rows, q_real, heads, head, WIDTH, BLOCK_D)


@_tuned
@triton.jit
def _backward_query(Q, K, V, MASK, BIAS, SEED, CU_Q, CU_K, OUT, LSE, D_OUT, D_BIAS, D_QUERY, DELTA, n_query, n_key,
                    heads: tl.constexpr, scale, dropout, n_rows, q_row, k_row, v_row, b_bag, b_head, b_row,
                    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, RAGGED: tl.constexpr, MASKED: tl.constexpr,
                    BIASED: tl.constexpr, BIAS_GRAD: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr,
                    WIDEN: tl.constexpr, POWER_Q: tl.constexpr, POWER_K: tl.constexpr, BLOCK_Q: tl.constexpr,
                    BLOCK_K: tl.constexpr):  # fmt: skip
    q_rows, bag_head, head, bias_at, q_begin, q_count, k_begin, k_count = _block(
        CU_Q, CU_K, n_query, n_key, heads, n_query, b_bag, b_head, RAGGED, BLOCK_Q, POWER_Q)  # fmt: skip
    q_real = q_rows < q_count
    q, d_out, lse, delta = _outcome(Q, OUT, D_OUT, LSE, q_begin, q_rows, q_real, n_rows, q_row, heads, head, WIDTH,
                                   BLOCK_D)  # fmt: skip
    tl.store(DELTA + _sums(q_begin, n_rows, head) + q_rows, delta, q_real)
    d_query = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    seen = tl.zeros((BLOCK_K,), tl.int32)
    for begin in range(0, k_count, BLOCK_K):
        k_rows = begin + tl.arange(0, BLOCK_K)
        k_real, k, v = _keys(K, V, MASK, k_begin, k_rows, k_count, k_row, v_row, head, WIDTH, BLOCK_D, MASKED)
        seen = tl.maximum(seen, k_real.to(tl.int32))
        _, slope = _weights_and_slopes(
            q, k, v, d_out, lse, delta, BIAS, SEED, bias_at, bag_head, q_rows, k_rows, q_real, k_real, n_key, scale,
            dropout, b_row, BIASED, DROPS, PRECISION, WIDEN)  # fmt: skip
        if BIAS_GRAD:
            _store_slopes(D_BIAS, slope, bag_head, n_query, n_key, q_rows[:, None], k_rows[None, :],
                          q_real[:, None] & (k_rows < k_count)[None, :])  # fmt: skip
        d_query += _product(slope.to(k.dtype), k, PRECISION, WIDEN)
    d_query = tl.where(tl.max(seen, 0) > 0, d_query, 0.0)
    _store(D_QUERY, d_query * scale, q_begin, q_rows, q_real, heads, head, WIDTH, BLOCK_D)


@_tuned
@triton.jit
def _backward_key(Q, K, V, MASK, BIAS, SEED, CU_Q, CU_K, LSE, D_OUT, D_KEY, D_VALUE, DELTA, n_query, n_key,
                  heads: tl.constexpr, scale, dropout, n_rows, q_row, k_row, v_row, b_bag, b_head, b_row,
                  WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, RAGGED: tl.constexpr, MASKED: tl.constexpr,
                  BIASED: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
                  POWER_Q: tl.constexpr, POWER_K: tl.constexpr, BLOCK_Q: tl.constexpr,
                  BLOCK_K: tl.constexpr):  # fmt: skip
    k_rows, bag_head, head, bias_at, q_begin, q_count, k_begin, k_count = _block(
        CU_Q, CU_K, n_query, n_key, heads, n_key, b_bag, b_head, RAGGED, BLOCK_K, POWER_K)  # fmt: skip
    k_real, k, v = _keys(K, V, MASK, k_begin, k_rows, k_count, k_row, v_row, head, WIDTH, BLOCK_D, MASKED)
    d_key = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    d_value = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for begin in range(0, q_count, BLOCK_Q):
        q_rows = begin + tl.arange(0, BLOCK_Q)
        q_real = q_rows < q_count
        q = _load(Q, q_begin, q_rows, q_real, q_row, head, WIDTH, BLOCK_D)
        d_out = _load(D_OUT, q_begin, q_rows, q_real, heads * WIDTH, head, WIDTH, BLOCK_D)
        at = _sums(q_begin, n_rows, head) + q_rows
        lse, delta = tl.load(LSE + at, q_real, float("inf")), tl.load(DELTA + at, q_real, 0.0)
        weight, slope = _by_keys(
            q, k, v, d_out, lse, delta, BIAS, SEED, bias_at, bag_head, q_rows, k_rows, q_real, k_real, n_key, scale,
            dropout, b_row, False, BIASED, DROPS, PRECISION, WIDEN)  # fmt: skip
        d_value += _product(weight.to(d_out.dtype), d_out, PRECISION, WIDEN)
        d_key += _product(slope.to(q.dtype), q, PRECISION, WIDEN)
    d_key, d_value = tl.where(k_real[:, None], d_key * scale, 0.0), tl.where(k_real[:, None], d_value, 0.0)
    _store(D_VALUE, d_value, k_begin, k_rows, k_rows < k_count, heads, head, WIDTH, BLOCK_D)
    _store(D_KEY, d_key, k_begin, k_rows, k_rows < k_count, heads, head, WIDTH, BLOCK_D)
