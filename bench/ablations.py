"""The paper's ablations, on rows that leak and on rows that do not: python bench/ablations.py DATA OUT PROTOCOL ROW...

``half-split`` trains on labels and keeps the epoch of the best validation PR-AUC, as the paper does. ``rewired`` (three
of its nine blocks, in which every family and gene is tested once) and ``fold-change`` (1,500 genes, four of 4 x 2
blocks, every family once) train on positives against decoys drawn anew each epoch. The paper's form in the default
size, encoders frozen, seed 2020. A row is one of ROWS, or a set of them: one of SETS. Scores are kept in OUT, so rows
can be asked for again; the first is what the others are compared with.
"""

import contextlib
import functools
import io
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from levers import METRICS, cells, small_folds, table
from scipy.stats import spearmanr
from torch import nn

from pairformer.config import AggregatorConfig, JointStageConfig, ModelConfig, SelectorConfig, StageConfig, TrainConfig
from pairformer.data import SITES, load_sites, rewire
from pairformer.engines import NativeEngine
from pairformer.evaluation.protocols import PROTOCOLS, Fold, held_out_sites
from pairformer.metrics import bootstrap, decisions, interval, ranking, sigmoid
from pairformer.models import PairFormer
from pairformer.models.pair_former import chunks
from pairformer.saved import whole_file
from pairformer.scan import scan
from pairformer.selector import Selection, STSelector
from pairformer.training import Bags, train_encoders
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss, class_weights
from pairformer.training.stage3_aggregate import _spans

EPOCHS = {"half-split": 12, "rewired": 6, "fold-change": 3}  # about 800 steps without labels
BLOCKS = {"half-split": (0,), "rewired": (0, 4, 8), "fold-change": (0, 3, 4, 7)}
BUDGETS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Row:
    """One model, and what it is asked."""

    k_max: int = 64
    variant: str = "S2"
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    at: tuple[int, ...] = ()
    """Other budgets it is asked at too, parameters fixed."""
    pools: tuple[int, ...] = ()
    """Visible pools it is asked at too: the selector sees the best so many cheap logits of a bag."""
    select: str = "cheap logit"
    """What the selector reads: that, "expensive logit", "random", "noise" (Gumbel noise on it in training), "gate"
    (the straight-through gradient reaches the cheap encoder), "ranked" (the cheap encoder learnt to rank real bags)."""
    linear: bool = False
    """Whether blocks attend linearly."""


VARIANTS = {f"{v}, K={k}": Row(k, v) for k in BUDGETS[:4] for v in ("S0", "S1", "S2")}
VARIANTS["S2, K=64"] = Row(pools=(64, 128, 256, 512, 1024, 2048))
RETRAINED = {f"S2, K={k}": Row(k, at=BUDGETS[:-1] if k == BUDGETS[-1] else ()) for k in BUDGETS[4:]}
FORMS = {
    "no attention between tokens": Row(aggregator=AggregatorConfig(layers=0)),
    "ISAB, 16 points": Row(aggregator=AggregatorConfig(inducing_points=16)),
    "ISAB, 16 points, K=256": Row(256, aggregator=AggregatorConfig(inducing_points=16), at=(2048,)),
    "no attention, K=256": Row(256, aggregator=AggregatorConfig(layers=0), at=(2048,)),
}
FORMS |= {"linear attention": Row(linear=True), "linear attention, K=256": Row(256, at=(2048,), linear=True)}
SELECTED = {
    f"selected by {name}": Row(select=name) for name in ("random", "expensive logit", "noise", "gate", "ranked")
}
ROWS = {**VARIANTS, **RETRAINED, **FORMS, **SELECTED}
SETS = {"table-2": tuple(VARIANTS), "figure-2": (*(f"S2, K={k}" for k in BUDGETS),), "forms": ("S2, K=64", *FORMS),
        "selected": ("S2, K=64", *SELECTED)}  # fmt: skip


def folds_of(folder: Path, protocol: str) -> list[Fold]:
    folds = small_folds(folder) if protocol == "fold-change" else PROTOCOLS[protocol].folds(folder)
    return [folds[number] for number in BLOCKS[protocol]]


class LinearAttention(nn.Module):
    """A SAB whose attention is phi(Q) (phi(K)^T V) / phi(Q) sum phi(K), phi = elu + 1, without dropout on it.

    Source: Katharopoulos et al., Transformers are RNNs, 2020, eq. 5-7.
    """

    def __init__(self, block) -> None:
        super().__init__()
        self.attend = block.attend  # under the name that the native engine's weights have

    def forward(self, x, mask):
        block, real = self.attend, mask[:, None, :, None]
        query, key, value = (layer(x).unflatten(2, (block.heads, -1)).transpose(1, 2)
                             for layer in (block.query, block.key, block.value))  # fmt: skip
        query, key = F.elu(query) + 1, (F.elu(key) + 1) * real
        total = query @ key.sum(2)[:, :, :, None]
        attended = query @ (key.transpose(2, 3) @ value) / total
        h = block.norm1(x + block.dropout(block.out(attended.transpose(1, 2).flatten(2))))
        return block.norm2(h + block.dropout(block.feed_forward(h))) * mask[:, :, None]


def rank_bags(model: PairFormer, pairs, config: TrainConfig) -> None:
    """Teach the cheap encoder the order of the expensive logits in 1,000 bags, pair by pair of their candidates."""
    rng = np.random.default_rng(config.rng_seed)
    pairs = pairs.take(np.sort(rng.choice(len(pairs), min(1000, len(pairs)), replace=False)))
    candidates = scan(pairs.mirna, pairs.utr)
    logit = torch.from_numpy(expensive_logit(model, candidates))
    filled = np.flatnonzero(candidates.n_candidates > 1)

    def step(rows, epoch):
        first, last = candidates.offsets[:-1][filled[rows]], candidates.offsets[1:][filled[rows]]
        drawn = rng.integers(first[:, None], last[:, None], (len(rows), 512)).ravel()
        esa, position = torch.from_numpy(candidates.esa_score[drawn]), torch.from_numpy(candidates.position[drawn])
        cheap = model.cheap(torch.from_numpy(candidates.encode(drawn)), esa, position)[0].view(len(rows), 2, -1)
        gap = logit[drawn].view(len(rows), 2, -1).diff(dim=1)
        return (F.softplus(-cheap.diff(dim=1) * gap.sign()) * gap.abs()).mean()

    with tempfile.TemporaryDirectory() as place:
        fit("rank", model.cheap, len(filled), step, StageConfig(4, 8, 2e-3), Path(place), config.rng_seed)


def expensive_logit(model: PairFormer, candidates) -> np.ndarray:
    """(N,) of all candidates."""
    native = NativeEngine.of(model).model
    parts = [np.arange(part.start, part.stop) for part in chunks(len(candidates.start), 1 << 16)]
    return np.concatenate([native.encode(candidates, rows, threads=1)[1] for rows in parts])


def in_bag_rho(model: PairFormer, pairs) -> float:
    """Mean rank correlation of cheap and expensive logit within 200 bags."""
    pairs = pairs.take(np.random.default_rng(2020).permutation(len(pairs))[:200])
    candidates = scan(pairs.mirna, pairs.utr)
    cheap, own = NativeEngine.of(model).model.cheap_scan(candidates, threads=1)[0], expensive_logit(model, candidates)
    ends = pairwise(candidates.offsets)
    return float(np.mean([spearmanr(cheap[a:b], own[a:b]).statistic for a, b in ends if b - a > 10]))


def select_by(model: PairFormer, row: Row, epoch: int | None) -> None:
    """Have the model select as the row says; no epoch in evaluation."""
    rng = np.random.default_rng([2020, 0 if epoch is None else epoch + 1])

    def select(candidates, cheap_logit, keys, k_max=None, threads=0):
        if row.select == "random":
            cheap_logit = rng.random(len(cheap_logit), np.float32)
        elif row.select == "noise" and epoch is not None:
            cheap_logit = cheap_logit + rng.gumbel(size=len(cheap_logit)).astype(np.float32)
        elif row.select == "expensive logit":
            cheap_logit = expensive_logit(model, candidates)
        return PairFormer.select(model, candidates, cheap_logit, keys, k_max, threads)

    model.select = select


def fit_row(model: PairFormer, row: Row, fold: Fold, protocol: str, config: TrainConfig) -> None:
    """Train the aggregator: on labels, or on positives against decoys of each epoch."""
    check = None
    if protocol == "half-split":
        if row.select != "cheap logit":
            raise ValueError(f"rows of half-split must select by the cheap logit, got {row.select}")
        fixed, validation, n_rows = Bags(model, fold.train), Bags(model, fold.validation), len(fold.train)

        def bags_of(_):
            return fixed

        def check():
            return ranking(fold.validation.label, validation.logits(True))
    else:
        positives = fold.train.take(fold.train.label > 0.5)
        n_rows = 2 * len(positives)

        @functools.lru_cache(1)
        def bags_of(epoch):
            decoys = rewire(positives, fold.train, [config.rng_seed, epoch])
            select_by(model, row, epoch)
            return Bags(model, positives.join(decoys))

    def step(rows, epoch):
        bags = bags_of(epoch)
        tokens = bags.tokens(rows, frozen=True)
        if gated:
            chosen = bags._selected[None]
            mine = chosen.rows[_spans(chosen.offsets, rows)[0]]
            facts = [torch.from_numpy(part[mine]) for part in (bags.candidates.esa_score, bags.candidates.position)]
            gate = torch.sigmoid(model.cheap(torch.from_numpy(bags.candidates.encode(mine)), *facts)[0])
            padded = tokens.padded.clone()
            padded[tokens.mask] *= (1 + gate - gate.detach())[:, None]
            tokens = replace(tokens, padded=padded)
        logit = model.members(tokens)[0]
        label = torch.from_numpy(bags.pairs.label)
        return binary_loss(logit, label[rows], class_weights(label)[rows], config.loss)

    gated = row.select == "gate"
    trained = nn.ModuleDict({"aggregators": model.aggregators} | ({"cheap": model.cheap} if gated else {}))
    stage = replace(config.stage3, joint_epochs=config.stage3.epochs, joint_lr=3e-4) if gated else config.stage3
    with tempfile.TemporaryDirectory() as place:
        fit("stage3", trained, n_rows, step, stage, Path(place), config.rng_seed, check, model.cheap if gated else None)
    select_by(model, row, None)


def see(model: PairFormer, pool: int) -> None:
    """Let the selector see the best ``pool`` cheap logits of each bag."""

    def select(candidates, cheap_logit, keys, k_max=None, threads=0):
        seen = STSelector(pool, variant="S0").select(cheap_logit, None, candidates.position, candidates.offsets)
        rows = seen.rows
        selector = STSelector.from_config(model.config.selector, k_max)
        found = selector.select(cheap_logit[rows], keys[rows], candidates.position[rows], seen.offsets)
        return Selection(rows[found.rows], found.offsets, found.reason)

    model.select = select


def scores(row: Row, fold: Fold, protocol: str, sites, cache: Path) -> dict[str, np.ndarray]:
    """Logits of the test rows, by what was asked ("" for the row as it is)."""
    config = TrainConfig(stage3=JointStageConfig(EPOCHS[protocol], 32, 5e-4, 1e-2))
    claims = PROTOCOLS[protocol].claims
    torch.manual_seed(config.rng_seed)
    model = PairFormer(ModelConfig(aggregator=row.aggregator, selector=SelectorConfig(row.k_max, variant=row.variant)))
    train_encoders(model, sites.take(held_out_sites(sites, fold.test, claims)), config, cache)
    torch.manual_seed(config.rng_seed)
    model.new_aggregators()
    if row.linear:
        for aggregator in model.aggregators:
            aggregator.layers = nn.ModuleList(LinearAttention(block) for block in aggregator.layers)
    taught = row.select in ("ranked", "gate")
    before = in_bag_rho(model, fold.test) if taught else 0.0
    if row.select == "ranked":
        rank_bags(model, fold.train, config)
    fit_row(model, row, fold, protocol, config)
    if taught:
        after = in_bag_rho(model, fold.test)
        print(f"{protocol} {fold.name}: rho in bags {before:.3f}, then {after:.3f}", file=sys.__stderr__, flush=True)
    bags = Bags(model, fold.test, row.at)
    found = {"": bags.logits(True)} | {f", asked at {k}": bags.logits(True, k) for k in row.at}
    for pool in row.pools:
        see(model, pool)
        found[f", pool {pool}"] = Bags(model, fold.test).logits(True)
    return found


def measured(protocol: str, folds: list[Fold], found: list[np.ndarray], first: list[np.ndarray]) -> list[str]:
    """Cells: figures, and their difference to the first row with 95 % of 1,000 resamples."""
    if protocol == "fold-change":
        return cells(table(protocol, folds, found), table(protocol, folds, first), 1000)
    labels, both = [fold.test.label for fold in folds], zip(found, first, strict=True)
    draws = bootstrap(labels, [np.stack(pair) for pair in both], [fold.test.mirna for fold in folds])
    columns = []
    for column, name in enumerate(("pr_auc", "roc_auc")):
        figures = np.array(
            [[ranking(y, s)[name] for y, s in zip(labels, part, strict=True)] for part in (found, first)]
        )
        low, high = interval(draws[:, 0, column] - draws[:, 1, column])
        mean, base = figures.mean(1)
        columns.append(f"{mean:.4f} ± {figures[0].std():.4f}, {mean - base:+.4f} [{low:+.4f}, {high:+.4f}]")
    f1 = np.mean([decisions(y, sigmoid(s))["f1"] for y, s in zip(labels, found, strict=True)])
    return [*columns, f"{f1:.4f}"]


def main(folder: Path, out: Path, protocol: str, *asked: str) -> None:
    torch.set_num_threads(1)
    folds = folds_of(folder, protocol)
    sites, _ = load_sites(folder / SITES, folder)
    names = [name for part in asked for name in SETS.get(part, (part,))]
    columns = METRICS["fold-change"] if protocol == "fold-change" else ("PR-AUC", "ROC-AUC", "F1 at 0.5")
    print(f"| {protocol} | " + " | ".join(columns) + " | minutes |\n" + "|---" * (2 + len(columns)) + "|", flush=True)
    first = None
    for name in names:
        parts: list[dict] = []
        for number, fold in zip(BLOCKS[protocol], folds, strict=True):
            path = out / protocol / name / f"{number}.npz"
            if not path.exists():
                began = time.perf_counter()
                with contextlib.redirect_stderr(io.StringIO()):
                    found = scores(ROWS[name], fold, protocol, sites, out / "encoders")
                with whole_file(path) as file:
                    np.savez_compressed(file, seconds=time.perf_counter() - began, **found)
            with np.load(path) as arrays:
                parts.append(dict(arrays))
        minutes = sum(float(part.pop("seconds")) for part in parts) / 60
        for what in parts[0]:
            found = [part[what] for part in parts]
            first = first or found
            figures = measured(protocol, folds, found, first)
            print(f"| {name}{what} | " + " | ".join(figures) + f" | {minutes:.0f} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
