"""Theorem 5.2 measured: python bench/generalisation.py DATA > table; the plot is docs/generalisation.svg.

The gap between test and training loss of the paper's aggregator (default size, encoders and selection of
``model="paper"`` fixed) against the budget K and the number of bags M. Rows of ``rewired``, positives and decoys, drawn
at random: M to train on, 3,000 others to test on. Every cell takes 750 steps, or the few more that whole epochs need,
without weight decay.
"""

import contextlib
import functools
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from pairformer.config import LossConfig, StageConfig
from pairformer.data import Pairs
from pairformer.evaluation.protocols import PROTOCOLS
from pairformer.evaluation.report import svg_figure
from pairformer.models import PairFormer
from pairformer.training import Bags
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss

BUDGETS, BAGS, SEEDS, TESTED, STEPS, BATCH = (8, 32, 128), (250, 1000, 4000), (2020, 2025, 2026), 3000, 750, 32
LOG_LOSS = LossConfig(bce_weight=1.0, focal_weight=0.0, smoothing=0.0)
PLOT = Path(__file__).parent.parent / "docs" / "generalisation.svg"


def gap(model: PairFormer, train: Bags, test: Bags, k_max: int, seed: int) -> tuple[float, float]:
    """Training and test loss of an aggregator trained anew."""
    torch.manual_seed(seed)
    model.new_aggregators()

    def loss(bags: Bags, rows: np.ndarray) -> torch.Tensor:
        logit = model.members(bags.tokens(rows, frozen=True, k_max=k_max))[0]
        return binary_loss(logit, torch.from_numpy(bags.pairs.label[rows]), torch.ones(len(rows)), LOG_LOSS)

    epochs = STEPS * BATCH // len(train.pairs)
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
        stage = StageConfig(epochs, BATCH, 5e-4)
        fit("stage3", model.aggregators, len(train.pairs), lambda rows, _: loss(train, rows), stage, Path(place), seed)
    with torch.no_grad():
        parts = [[float(loss(bags, rows)) for rows in np.array_split(np.arange(len(bags.pairs)), 25)]
                 for bags in (train, test)]  # fmt: skip
    return float(np.mean(parts[0])), float(np.mean(parts[1]))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folds, model = PROTOCOLS["rewired"].folds(folder), PairFormer.load("paper")
    pairs = functools.reduce(Pairs.join, (fold.test for fold in folds))
    found: dict[tuple[int, int], list[tuple[float, float]]] = {(m, k): [] for m in BAGS for k in BUDGETS}
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(pairs))
        test = Bags(model, pairs.take(order[:TESTED]), BUDGETS)
        for m in BAGS:
            train = Bags(model, pairs.take(order[TESTED : TESTED + m]), BUDGETS)
            for k in BUDGETS:
                found[m, k].append(gap(model, train, test, k, seed))
    print("| bags M | K | training loss | test loss | gap, ± over three draws |\n" + "|---" * 5 + "|")
    for (m, k), losses in found.items():
        train_loss, test_loss = np.transpose(losses)
        gaps = test_loss - train_loss
        print(
            f"| {m} | {k} | {train_loss.mean():.4f} | {test_loss.mean():.4f} | {gaps.mean():.4f} ± {gaps.std():.4f} |"
        )
    mean = {cell: np.mean([b - a for a, b in losses]) for cell, losses in found.items()}
    if min(mean.values()) <= 0:
        sys.exit("gaps must be positive to have a power of M and K, got the table above")
    design = np.array([[1, np.log(m), np.log(k)] for m, k in mean])
    powers = np.linalg.lstsq(design, np.log(list(mean.values())), rcond=None)[0]
    print(
        f"\ngap ~ M^{powers[1]:.2f} K^{powers[2]:.2f} by least squares of logarithms; the theorem's rate: M^-0.5 K^0.5"
    )
    draw(mean)


def draw(mean: dict[tuple[int, int], float]) -> None:
    with svg_figure(PLOT, 5, 3.2) as figure:
        axes = figure.subplots()
        for k in BUDGETS:
            axes.plot(BAGS, [mean[m, k] for m in BAGS], "o-", label=f"K = {k}")
        rate = mean[BAGS[0], BUDGETS[0]] * np.sqrt(BAGS[0] / np.array(BAGS))
        axes.plot(BAGS, rate, "k--", label="rate of the theorem in M")
        axes.set(xscale="log", yscale="log", xlabel="bags M", ylabel="test loss - training loss")
        axes.set_xticks(BAGS, map(str, BAGS), minor=False)
        axes.minorticks_off()
        axes.legend(fontsize=7)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
