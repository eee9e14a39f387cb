"""Theorem B.8 measured on real bags: python bench/theory.py DATA [BAGS] > table; the plot is docs/theory.svg.

``model="paper"`` on miRAW pairs of 128 to 2,048 candidates, the aggregator reading all of them against K selected ones.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from pairformer.analysis import all_tokens, influence, masked_logits
from pairformer.data import PAIRS, load_pairs
from pairformer.engines import NativeEngine
from pairformer.evaluation.report import svg_figure
from pairformer.models import PairFormer
from pairformer.scan import scan
from pairformer.selector import STSelector

BUDGETS, VARIANTS, MASKS = (8, 16, 32, 64, 128, 256), ("S0", "S1", "S2", "random"), 16
PLOT = Path(__file__).parent.parent / "docs" / "theory.svg"


def measure(model, pairs) -> dict[tuple[str, int], np.ndarray]:
    """(variant, K) -> (bags, 6): uncovered, psi, gap, bound of eq. 16, bound of eq. 12, change by the best K."""
    rng = np.random.default_rng(2020)
    native, rows = NativeEngine.of(model).model, {(v, k): [] for v in VARIANTS for k in BUDGETS}
    for mirna, utr in zip(pairs.mirna, pairs.utr, strict=True):
        candidates = scan([mirna], [utr])
        logit, keys = native.cheap_scan(candidates)
        tokens = all_tokens(model, candidates)
        found = influence(model.aggregators[0], tokens, MASKS)
        order = np.argsort(-found.weight, kind="stable")
        shuffled = rng.permutation(len(tokens))
        chosen = {}
        for v, k in rows:
            if v == "random":
                chosen[v, k] = np.sort(shuffled[:k])
            else:
                selector = STSelector(k, variant=v)
                chosen[v, k] = selector.select(logit, keys, candidates.position, candidates.offsets).rows
        subsets = [np.arange(len(tokens)), *chosen.values(), *(np.sort(order[:k]) for k in BUDGETS)]
        full, *parts = masked_logits(model.aggregators[0], tokens, subsets)
        best = dict(zip(BUDGETS, parts[len(chosen) :], strict=True))
        for (key, selected), part in zip(chosen.items(), parts, strict=False):
            values = (found.uncovered(selected), found.tail(key[1]), abs(full - part), *found.bound(selected))
            rows[key].append((*values, abs(full - best[key[1]])))
    return {key: np.array(values) for key, values in rows.items()}


def plot(found) -> None:
    with svg_figure(PLOT, 9, 3.4) as figure:
        mass, gap = figure.subplots(1, 2)
        for variant in VARIANTS:
            means = np.array([found[variant, k].mean(0) for k in BUDGETS])
            mass.plot(BUDGETS, means[:, 0], marker="o", label=variant)
            gap.plot(BUDGETS, means[:, 2], marker="o", label=f"{variant}: |full - budgeted|")
        mass.plot(BUDGETS, means[:, 1], "k--", label="best K (psi)")
        gap.plot(BUDGETS, means[:, 4], "k:", label="bound, eq. 12")
        gap.plot(BUDGETS, means[:, 3], "k--", label="bound, eq. 16")
        mass.set(xscale="log", xlabel="budget K", ylabel="uncovered weight", ylim=(0, 1))
        gap.set(xscale="log", yscale="log", xlabel="budget K", ylabel="logit")
        for axes in (mass, gap):
            axes.set_xticks(BUDGETS, map(str, BUDGETS), minor=False)
            axes.minorticks_off()
            axes.legend(fontsize=7)


def main(folder: Path, bags: int = 60) -> None:
    torch.set_num_threads(1)
    pairs = load_pairs(folder / PAIRS, folder)
    counts = scan(pairs.mirna, pairs.utr).n_candidates
    fits = np.flatnonzero((counts >= 128) & (counts <= 2048))
    pairs = pairs.take(np.sort(np.random.default_rng(2020).choice(fits, bags, replace=False)))
    found = measure(PairFormer.load("paper").eval(), pairs)
    print(f"{bags} bags, {MASKS} masks each, seed 2020\n")
    print("| K | selector | uncovered | psi | delta | gap | gap of the K heaviest | eq. 12 | eq. 16 | within eq. 12 |")
    print("|---" * 10 + "|")
    for k in BUDGETS:
        for variant in VARIANTS:
            values = found[variant, k]
            eps, psi, gap, loose, sharp, best = values.mean(0)
            inside = (values[:, 2] <= values[:, 4]).mean()
            print(
                f"| {k} | {variant} | {eps:.3f} | {psi:.3f} | {eps - psi:.3f} | {gap:.3f} ± {values[:, 2].std():.3f} "
                f"| {best:.3f} | {sharp:.3g} | {loose:.3g} | {inside:.0%} |"
            )
    plot(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
