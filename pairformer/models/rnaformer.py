"""RNAformer: an RNA's letters -> a logit for each pair of its bases, by axial attention, convolution and recycling.

Source: RNAformer (arXiv 2307.10073), the workshop's form, as its code has it where the text is silent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pairformer import _core
from pairformer.config import check
from pairformer.fold_config import FoldConfig
from pairformer.folding import LETTERS, letter_codes
from pairformer.models.saved_module import SavedModule
from pairformer.models.set_transformer import sdp_attention

CELLS = 200_000  # of the squares of a batch
RARE = 1e-4  # the odds of a pair of less probability by its energies are those of this


def sdp_axial_attention(qkv: Tensor, axis: str, lengths: Tensor | None) -> Tensor:
    """softmax(query key^T / sqrt(D)) value along rows or columns, by PyTorch.

    Args:
        qkv: (B, L, L, 3, H, D).
        axis: "row": cell (i, j) attends the cells (i, .); "column": the cells (., j); "all": every cell.
        lengths: (B,) real rows and columns of each sample; None: all are.

    Returns:
        (B, L, L, H, D); anything finite in padded cells. Computed in float32 on a CPU, where PyTorch's backward pass
        of half precision takes five times as long.
    """
    side = qkv.shape[1]
    lines = {"row": qkv, "column": qkv.transpose(1, 2), "all": qkv.flatten(1, 2)[:, None]}[axis]
    lines = lines.float() if lines.device.type == "cpu" else lines
    query, key, value = lines.flatten(0, 1).unbind(2)  # (B L, L, H, D) each
    mask = None
    if lengths is not None:  # a sample of no length attends to its first position: no softmax runs over nothing
        real = torch.arange(side, device=qkv.device) < lengths.clamp(min=1)[:, None]
        square = (real[:, :, None] & real[:, None]).flatten(1)  # (B, L L)
        mask = square if axis == "all" else real.repeat_interleave(side, 0)
    with torch.autocast("cpu", enabled=False):
        out = sdp_attention(query, key, value, mask).unflatten(0, lines.shape[:2])
    if axis == "all":
        out = out[:, 0].unflatten(1, (side, side))
    return (out.transpose(1, 2) if axis == "column" else out).to(qkv.dtype)


class AxialAttention(nn.Module):
    """out(attention(qkv(LN(Z)))) along rows, along columns or, unpublished, among all cells; no gate, no pair bias.

    Source: RNAformer (arXiv 2307.10073), axial attention; biases everywhere, scale by head width.
    """

    attention: Callable[[Tensor, str, Tensor | None], Tensor] = staticmethod(sdp_axial_attention)
    """What attends; :func:`pairformer.kernels.use_kernels` puts the fused kernel here."""

    def __init__(self, config: FoldConfig, axis: str) -> None:
        super().__init__()
        self.axis, self.heads = axis, config.heads
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, latent: Tensor, lengths: Tensor | None) -> Tensor:
        """latent (B, L, L, W), lengths (B,) or None for no padding -> (B, L, L, W)."""
        qkv = self.qkv(self.norm(latent)).unflatten(3, (3, self.heads, -1))  # (B, L, L, 3, H, W / H)
        return self.out(self.attention(qkv, self.axis, lengths).flatten(3))


class SquareNorm(nn.Module):
    """Zero mean and unit variance over the real cells and all channels of a sample, then scale and shift.

    GroupNorm with one group, except that padded cells do not count and come out as 0. With those in its statistics, as
    published, a sequence's result depends on the longest of its batch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, latent: Tensor, past: Tensor | None) -> Tensor:
        """latent (B, L, L, W), past (B, L, L, 1) True = padding or None for none -> (B, L, L, W)."""
        if past is None:
            return F.group_norm(latent.permute(0, 3, 1, 2), 1, self.weight, self.bias).permute(0, 2, 3, 1)
        x = latent.float().masked_fill(past, 0.0)
        count = ((~past).sum((1, 2, 3), keepdim=True) * x.shape[3]).clamp(min=1)
        x = (x - x.sum((1, 2, 3), keepdim=True) / count).masked_fill(past, 0.0)
        variance = x.square().sum((1, 2, 3), keepdim=True) / count
        x = x * torch.rsqrt(variance + 1e-5) * self.weight + self.bias
        return x.masked_fill(past, 0.0).to(latent.dtype)


class Transition(nn.Module):
    """Convolution of the square to the hidden width, SiLU, convolution back; padded cells are as what lies outside.

    Source: RNAformer (arXiv 2307.10073), transition; only "conv3" is published.
    """

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        hidden = config.width * config.expand
        kernel, padding = (3, 1) if config.transition == "conv3" else (1, 0)
        self.norm = SquareNorm(config.width)
        self.enter = nn.Conv2d(config.width, hidden, kernel, padding=padding)
        self.out = nn.Conv2d(hidden, config.width, kernel, padding=padding)

    def forward(self, latent: Tensor, past: Tensor | None) -> Tensor:
        """latent (B, L, L, W), past (B, L, L, 1) True = padding or None for none -> (B, L, L, W)."""
        x = F.silu(self.enter(self.norm(latent, past).permute(0, 3, 1, 2)))  # (B, hidden, L, L)
        if past is not None:
            x = x.masked_fill(past.permute(0, 3, 1, 2), 0.0)
        return self.out(x).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Row attention, column attention and transition, each added to the latent.

    Source: RNAformer (arXiv 2307.10073), block.
    """

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        axial = config.attention == "axial"
        self.row = AxialAttention(config, "row" if axial else "all")
        self.column = AxialAttention(config, "column") if axial else None
        self.transition = Transition(config)
        self.attention_dropout = nn.Dropout(config.dropout / 2)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, latent: Tensor, lengths: Tensor | None, past: Tensor | None) -> Tensor:
        """latent (B, L, L, W), lengths (B,), past (B, L, L, 1) True = padding, both None for none -> (B, L, L, W)."""
        latent = latent + self.attention_dropout(self.row(latent, lengths))
        if self.column is not None:
            latent = latent + self.attention_dropout(self.column(latent, lengths))
        return latent + self.dropout(self.transition(latent, past))


class PairEmbedding(nn.Module):
    """Z[i, j] = LN(E1[j] + E2[i]), each E a letter's embedding times sqrt(width / 2) plus its position's.

    Source: RNAformer (arXiv 2307.10073), input; distance buckets, pair types and energies are not published.
    """

    def __init__(self, config: FoldConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.column_letter, self.row_letter = nn.Embedding(LETTERS, width), nn.Embedding(LETTERS, width)
        if config.distance_buckets:
            self.distance = nn.Embedding(2 * config.distance_buckets - 1, width)
        else:
            self.column_position = nn.Embedding(config.max_length, width)
            self.row_position = nn.Embedding(config.max_length, width)
        if config.pair_types:
            self.pair = nn.Embedding(LETTERS**2, width)
        if config.energies:
            self.energy = nn.Linear(2, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """tokens (B, L), lengths (B,) or None for no padding -> (B, L, L, W)."""
        config = self.config
        scale = math.sqrt(config.width // 2)
        column, row = self.column_letter(tokens) * scale, self.row_letter(tokens) * scale  # (B, L, W)
        position = torch.arange(tokens.shape[1], device=tokens.device)
        if not config.distance_buckets:
            place = position.clamp(max=config.max_length - 1)
            column, row = column + self.column_position(place), row + self.row_position(place)
        latent = column[:, None] + row[:, :, None]  # (B, L, L, W)
        if config.distance_buckets:
            bucket = distance_bucket(position - position[:, None], config.distance_buckets, config.max_length)
            latent = latent + self.distance(bucket + config.distance_buckets - 1)
        if config.pair_types:
            latent = latent + self.pair(LETTERS * tokens[:, :, None] + tokens[:, None])
        if config.energies:
            latent = latent + self.energy(energy_features(tokens, lengths).to(latent.dtype))
        return self.norm(latent)


class RNAformer(SavedModule):
    """An RNA -> the logit of each pair of bases; neither padding nor the rest of the batch matters.

    2,038,528, 8,009,216 and 31,747,072 parameters at widths W of 64, 128 and 256: each block has 80 W^2 + 19 W, with
    biases everywhere, and 1,018 W lie outside: two tables of 5 letters and 500 positions, the LayerNorms of input,
    recycled latent and output (2 W each), and a head of two classes without a bias (2 W).

    Deviations from the published code: padded cells count neither in the norm of the transition nor in its
    convolutions, and the logit of a pair is the difference of its two classes, of which the sigmoid is the softmax.

    Source: RNAformer (arXiv 2307.10073).
    """

    kind = FoldConfig

    def __init__(self, config: FoldConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FoldConfig()
        self.metadata: dict = {}
        self.embed = PairEmbedding(config)
        self.recycle = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, 2 if config.final_bias is None else 1, bias=config.final_bias is not None)
        self._initialise()

    def forward(self, tokens: Tensor, lengths: Tensor | None = None, passes: int = 6) -> Tensor:
        """Pair logits after some passes over the stack, of which the last alone has gradients.

        Args:
            tokens: (B, L) integers, codes A0 C1 G2 U3 N4; past a sequence's length anything.
            lengths: (B,) int32 or int64 on the device, 0 to L. None: all are L, and nothing is spent on padding.
            passes: 1 or more; published are 6, and 2 to 6 at random in training.

        Returns:
            (B, L, L) float32; 0 in padded cells.

        Raises:
            ValueError: shapes disagree, or there is no pass.
        """
        check(tokens.ndim == 2, "tokens", "have shape (B, L)", tuple(tokens.shape))
        check(not tokens.is_floating_point(), "tokens", "be integers", tokens.dtype)
        if lengths is not None:
            check(lengths.shape == tokens.shape[:1], "lengths", f"have shape {(len(tokens),)}", tuple(lengths.shape))
        check(passes >= 1, "passes", "be 1 or more", passes)
        if tokens.numel() == 0:  # PyTorch has no convolution of an empty square
            return torch.zeros(*tokens.shape, tokens.shape[1], device=tokens.device)
        tokens, past = tokens.long(), None
        if lengths is not None:
            real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]  # (B, L)
            past = ~(real[:, :, None] & real[:, None, :])[..., None]  # (B, L, L, 1)
            tokens = tokens.masked_fill(~real, 0)
        start = self.embed(tokens, lengths)  # (B, L, L, W)
        latent = torch.zeros_like(start)
        with torch.no_grad():
            for _ in range(passes - 1):
                latent = self._stack(start, latent, lengths, past)
        logit = self.head(self._stack(start, latent, lengths, past)).float()  # (B, L, L, 1 or 2)
        logit = logit[..., 0] if self.config.final_bias is not None else logit[..., 1] - logit[..., 0]
        if self.config.symmetric:
            logit = (logit + logit.transpose(1, 2)) / 2
        return logit if past is None else logit.masked_fill(past[..., 0], 0.0)

    def _stack(self, start: Tensor, latent: Tensor, lengths: Tensor | None, past: Tensor | None) -> Tensor:
        """One pass; ``latent`` is the previous one's, 0 for the first."""
        latent = start + self.recycle(latent)
        for block in self.blocks:
            latent = block(latent, lengths, past)
        return self.norm(latent)

    def _initialise(self) -> None:
        """N(0, 0.02), biases 0; what leaves a branch is smaller by sqrt(2 blocks)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, (AxialAttention, Transition)):
                module.out.weight.data /= math.sqrt(2 * self.config.layers)
        if self.config.final_bias is not None:
            nn.init.constant_(self.head.bias, self.config.final_bias)


def distance_bucket(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    """Signed integers -> -(buckets - 1) to buckets - 1 of the same sign.

    Distances below ``buckets // 2`` have one each; the others share the rest, whose bounds grow in equal ratios up to
    ``farthest``.
    """
    near = buckets // 2
    size = distance.abs()
    ratio = torch.log(size.clamp(min=near) / near) / math.log(farthest / near)
    far = (near + (ratio * (buckets - near)).long()).clamp(max=buckets - 1)
    return distance.sign() * torch.where(size < near, size, far)


def energy_features(tokens: Tensor, lengths: Tensor | None) -> Tensor:
    """What :func:`pairformer.folding.equilibrium` says of each pair: its probability, and the logarithm of its odds.

    Args:
        tokens: (B, L) integers, codes A0 C1 G2 U3; others pair with nothing. At most 500.
        lengths: (B,) integers; None: all are L.

    Returns:
        (B, L, L, 2) float32 on the device of ``tokens``: 0 to 1, and -1 to 1 for probabilities from 0.0001 and less to
        0.9999 and more. A CPU makes them, with as many threads as PyTorch has there, also for another device.
    """
    lengths = torch.full((len(tokens),), tokens.shape[1]) if lengths is None else lengths
    codes = np.ascontiguousarray(tokens.cpu().numpy().astype(np.uint8))
    found = _core.pair_probabilities(codes, lengths.cpu().numpy().astype(np.int64), torch.get_num_threads())
    probability = torch.from_numpy(found).to(tokens.device)
    odds = torch.logit(probability, RARE) / -math.log(RARE)
    return torch.stack([probability, odds], 3)


def fold_loss(
    logit: Tensor, target: Tensor, lengths: Tensor, keep_share: float = 0.5, generator: torch.Generator | None = None
) -> Tensor:
    """Cross-entropy of the real cells that are kept, averaged per sample, then over samples.

    A cell in the 3x3 neighbourhood of a true pair is always kept, any other with probability ``keep_share``. Samples
    of which no cell is kept do not count.

    Args:
        logit: (B, L, L).
        target: (B, L, L) bool, or float in [0, 1] of which above 0.5 is a true pair; in padded cells anything.
        lengths: (B,) int32 or int64.
        keep_share: 0 to 1; 1 keeps all.
        generator: of the cells kept, on the device of ``logit``; None for PyTorch's own.

    Returns:
        () float32; 0 if no cell is kept.

    Raises:
        ValueError: shapes disagree, or the share is not one.

    Source: RNAformer (arXiv 2307.10073), training, without the published factor 100; two classes have the same loss
    as the difference of their logits.
    """
    check(target.shape == logit.shape, "target", f"have shape {tuple(logit.shape)}", tuple(target.shape))
    check(lengths.shape == logit.shape[:1], "lengths", f"have shape {(len(logit),)}", tuple(lengths.shape))
    check(0 <= keep_share <= 1, "keep_share", "be in [0, 1]", keep_share)
    real = torch.arange(logit.shape[1], device=logit.device) < lengths[:, None]  # (B, L)
    real = real[:, :, None] & real[:, None, :]  # (B, L, L)
    target = target.float().masked_fill(~real, 0.0)
    near = F.max_pool2d(target[:, None], 3, stride=1, padding=1)[:, 0] > 0.5
    drawn = torch.rand(logit.shape, generator=generator, device=logit.device) < keep_share
    kept = real & (near | drawn)
    cell = F.binary_cross_entropy_with_logits(logit.float().masked_fill(~real, 0.0), target, reduction="none")
    count = kept.sum((1, 2))  # (B,)
    mean = cell.masked_fill(~kept, 0.0).sum((1, 2)) / count.clamp(min=1)
    return mean.sum() / (count > 0).sum().clamp(min=1)


def encode(sequences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Codes (B, L) int64, A0 C1 G2 U3 and N4, also past a sequence's length, and lengths (B,) int64."""
    codes, lengths = letter_codes(sequences)
    return torch.from_numpy(codes.astype(np.int64)), torch.from_numpy(lengths)


def load_onto(name_or_path: str | Path, device: str) -> RNAformer:
    """Read a saved model, as :meth:`RNAformer.load` does, to use it on a device.

    On a GPU it attends by the fused kernels, as in training; without Triton, which folding does not ask for, by
    PyTorch's.
    """
    model = RNAformer.load(name_or_path).to(device)
    if model.head.weight.is_cuda and importlib.util.find_spec("triton"):
        from pairformer.kernels import use_kernels

        use_kernels(model)
    return model


@contextlib.contextmanager
def each_on_one_core(model: nn.Module, threads: int) -> Iterator[Callable]:
    """A ``map`` whose calls run side by side on a CPU, each with one of PyTorch's threads, else one after the other.

    Operations of small models are too short to be shared by threads; whole calls are not. The number of PyTorch's
    threads is what it was afterwards.
    """
    if next(model.parameters()).device.type != "cpu":
        yield map
        return
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(before)


def pair_probabilities(
    model: RNAformer, sequences: Sequence[str], passes: int, threads: int = 1, half: bool = False
) -> list[NDArray[np.float32]]:
    """Symmetric (L, L) float32 for each sequence, of letters ACGUN, in one piece each.

    Args:
        model: on any device.
        sequences: folded in batches of equal length, of which every thread takes one at a time on a CPU.
        passes: over the stack.
        threads: on a CPU.
        half: Whether matrix products and convolutions run in bfloat16.
    """
    device = next(model.parameters()).device
    found: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * len(sequences)

    def run(rows: NDArray[np.int64]) -> None:
        tokens = encode([sequences[row] for row in rows])[0].to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
            probability = torch.sigmoid(model(tokens, None, passes))
        probability = (probability + probability.transpose(1, 2)) / 2
        for row, matrix in zip(rows, probability.cpu().numpy(), strict=True):
            found[row] = matrix

    with each_on_one_core(model, threads) as work:
        list(work(run, _of_one_length(np.array([len(sequence) for sequence in sequences], np.int64))))
    return found


def _of_one_length(length: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows of equal length, at most ``CELLS`` pairs of bases together."""
    for size in np.unique(length):
        rows = np.flatnonzero(length == size)
        count = max(1, CELLS // max(1, int(size) ** 2))
        yield from np.split(rows, range(count, len(rows), count))
