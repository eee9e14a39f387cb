"""The paper's ablations, on rows that leak and on rows that do not: python bench/ablations.py DATA OUT PROTOCOL ROW...

Without arguments: docs/budgets.svg, the paper's Fig. 2 and 5, from the tables kept in docs/reproduction.md.

``half-split`` trains on labels and keeps the epoch of the best validation PR-AUC, as the paper does. ``rewired`` (three
of its nine blocks, in which every family and gene is tested once) and ``fold-change`` (1,500 genes, four of 4 x 2
blocks, every family once) train on positives against decoys drawn anew each epoch. The paper's form in the default
size, encoders frozen, seed 2020. A row is one of ROWS, or a set of them: one of SETS. Scores are kept in OUT, so rows
can be asked for again; the first is what the others are compared with.
"""

import contextlib
import functools
import io
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from levers import METRICS, cells, small_folds, table
from torch import nn

from pairformer.config import AggregatorConfig, JointStageConfig, ModelConfig, SelectorConfig, TrainConfig
from pairformer.data import SITES, load_sites, rewire
from pairformer.evaluation.protocols import PROTOCOLS, Fold, held_out_sites
from pairformer.evaluation.report import svg_figure
from pairformer.metrics import bootstrap, decisions, interval, ranking, sigmoid
from pairformer.models import PairFormer
from pairformer.saved import whole_file
from pairformer.selector import Selection, STSelector
from pairformer.training import Bags, train_encoders
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss, class_weights

EPOCHS = {"half-split": 12, "rewired": 6, "fold-change": 3}  # about 800 steps without labels
BLOCKS = {"half-split": (0,), "rewired": (0, 4, 8), "fold-change": (0, 3, 4, 7)}
BUDGETS = (8, 16, 32, 64, 128, 256, 512)
DOCS = Path(__file__).parent.parent / "docs"


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


VARIANTS = {f"{v}, K={k}": Row(k, v) for k in BUDGETS[:4] for v in ("S0", "S1", "S2")}
VARIANTS["S2, K=64"] = Row(pools=(64, 128, 256, 512, 1024, 2048))
RETRAINED = {f"S2, K={k}": Row(k, at=BUDGETS[:-1] if k == BUDGETS[-1] else ()) for k in BUDGETS[4:]}
FORMS = {
    "no attention between tokens": Row(aggregator=AggregatorConfig(layers=0)),
    "ISAB, 16 points": Row(aggregator=AggregatorConfig(inducing_points=16)),
    "ISAB, 16 points, K=256": Row(256, aggregator=AggregatorConfig(inducing_points=16), at=(2048,)),
    "no attention, K=256": Row(256, aggregator=AggregatorConfig(layers=0), at=(2048,)),
}
ROWS = {**VARIANTS, **RETRAINED, **FORMS}
SETS = {"table-2": tuple(VARIANTS), "figure-2": (*(f"S2, K={k}" for k in BUDGETS),), "forms": ("S2, K=64", *FORMS)}


PANELS = (
    ("half-split, PR-AUC against K", {
        "half-split, PR-AUC": "trained at each K", "trained at 512": "trained at 512, asked at K",
        "trained at 64": "trained at 64, asked at K", "trained with `--budgets 4,8,16,32,64`": "trained at five K",
    }, (0.9972, "names alone")),
    ("rewired, ROC-AUC against K", {
        "`rewired`, ROC-AUC": "trained at each K", "trained at 512, `rewired`": "trained at 512, asked at K",
    }, (0.5932, "seed matches")),
    ("half-split, PR-AUC against the pool", {"half-split, PR-AUC, of a pool": "K = 64"}, (0.9972, "names alone")),
)  # fmt: skip
"""Of docs/budgets.svg: title, rows of the tables and what they are called, what the same rows give without a model."""


def folds_of(folder: Path, protocol: str) -> list[Fold]:
    folds = small_folds(folder) if protocol == "fold-change" else PROTOCOLS[protocol].folds(folder)
    return [folds[number] for number in BLOCKS[protocol]]


def fit_row(model: PairFormer, fold: Fold, protocol: str, config: TrainConfig) -> None:
    """Train the aggregator: on labels, or on positives against decoys of each epoch."""
    check = None
    if protocol == "half-split":
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
            return Bags(model, positives.join(rewire(positives, fold.train, [config.rng_seed, epoch])))

    def step(rows, epoch):
        bags = bags_of(epoch)
        logit = model.members(bags.tokens(rows, frozen=True))[0]
        label = torch.from_numpy(bags.pairs.label)
        return binary_loss(logit, label[rows], class_weights(label)[rows], config.loss)

    trained = nn.ModuleDict({"aggregators": model.aggregators})
    with tempfile.TemporaryDirectory() as place:
        fit("stage3", trained, n_rows, step, config.stage3, Path(place), config.rng_seed, check)


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
    fit_row(model, fold, protocol, config)
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


def draw() -> None:
    """Fig. 2 on both protocols, and Fig. 5."""
    kept: dict[str, dict[str, float]] = {}
    head: list[str] = []
    for line in (DOCS / "reproduction.md").read_text().splitlines():
        first, *row = [cell.strip() for cell in line.strip("|").split("|")]
        if head and row and re.match(r"0\.\d", row[0]):
            kept[first] = {name: float(value.split()[0]) for name, value in zip(head, row, strict=True)}
        elif not line.startswith("|--"):
            head = row if first in ("K", "visible pool n") else []
    with svg_figure(DOCS / "budgets.svg", 10, 3.2) as figure:
        for panel, (title, rows, names) in zip(figure.subplots(1, 3), PANELS, strict=True):
            ticks = list(dict.fromkeys(name for row in rows for name in kept[row]))
            ticks.sort(key=lambda name: int(name.replace(",", "").replace("all", "999999")))
            for row, label in rows.items():
                panel.plot(
                    [ticks.index(name) for name in kept[row]], kept[row].values(), "o-", label=label, markersize=4
                )
            panel.axhline(names[0], color="grey", linestyle="--", linewidth=1, label=names[1])
            panel.set_xticks(range(len(ticks)), ticks, fontsize=7)
            panel.set(title=title)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(fontsize=7)


def main(folder: Path, out: Path, protocol: str, *asked: str) -> None:
    torch.set_num_threads(1)
    names = [name for part in asked for name in SETS.get(part, (part,))]
    if unknown := [name for name in names if name not in ROWS]:
        sys.exit(f"row must be one of {'; '.join((*SETS, *ROWS))}, got {unknown[0]}")
    folds = folds_of(folder, protocol)
    sites, _ = load_sites(folder / SITES, folder)
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
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]) if len(sys.argv) > 1 else draw()
