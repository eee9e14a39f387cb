"""Tables of docs/mil.md: rules of selection by time, coverage and accuracy; aggregators on five data sets of bags.

Command: OMP_NUM_THREADS=1 python bench/mil.py DATA [--quick] [--seeds N] [--only PART]

DATA has mil_classic/{musk1,musk2,elephant,fox,tiger}.tsv.gz: bag, label, features. Ten stratified folds. The epoch is
picked by a fifth of the training bags, which are not trained on; test bags decide nothing. Numbers after the sign are
standard deviations over all folds and seeds.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from torch import nn

from pairformer import mil, testing
from pairformer.config import AggregatorConfig
from pairformer.mil.for_sklearn import BagClassifier
from pairformer.models import DeepSets, GatedAttention

SETS = ("musk1", "musk2", "elephant", "fox", "tiger")
TRAINING = {"epochs": 25, "batch_size": 32, "learning_rate": 2e-3, "validation": 0.2}
SIZE = AggregatorConfig(width=64, hidden=64)
ALL = 1 << 20
N_BAGS, N, K, CHUNK, SECONDS = 10_000, 1000, 64, 100, 10.0


class Pooled(nn.Module):
    """A logit of each instance, and their mean or maximum."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))
        self.how = how

    def forward(self, x, mask):
        logit = self.score(x)[:, :, 0]
        if self.how == "max":
            return logit.masked_fill(~mask, -torch.inf).amax(1)
        return (logit * mask).sum(1) / mask.sum(1)


def budgeted(k: int):
    def module(width: int) -> nn.Module:
        encoder = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64))
        return mil.BudgetedMIL(nn.Linear(width, 1), encoder, mil.SetAggregator(64, layers=1), mil.STSelector(k))

    return module


MODELS = {
    "mean pooling": lambda width: Pooled(width, "mean"),
    "max pooling": lambda width: Pooled(width, "max"),
    "ABMIL (gated attention)": lambda width: GatedAttention(width, SIZE),
    "DeepSets": lambda width: DeepSets(width, SIZE),
    "full attention": budgeted(ALL),
    "BudgetedMIL, K = 4": budgeted(4),
}
RULES = {
    "STSelector": mil.STSelector, "TopK": mil.TopK, "Random": mil.Random, "FarthestPoint": mil.FarthestPoint,
    "KMeansPlusPlus": mil.KMeansPlusPlus, "MMR": mil.MMR, "FacilityLocation": mil.FacilityLocation,
}  # fmt: skip


def load(data: Path, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Bags (n, D) and labels."""
    with gzip.open(data / "mil_classic" / f"{name}.tsv.gz", "rt") as lines:
        table = np.loadtxt(lines, delimiter="\t", skiprows=1, dtype=str)
    names, first = np.unique(table[:, 0], return_index=True)
    bags = [table[table[:, 0] == one, 2:].astype(np.float32) for one in names]
    return bags, table[first, 1].astype(float).astype(int)


def folds(y: np.ndarray, seed: int, quick: bool):
    parts = list(StratifiedKFold(10, shuffle=True, random_state=seed).split(y, y))
    return parts[:2] if quick else parts


def scored(module, bags, y, train, test, seed) -> tuple[float, float]:
    """Accuracy on the test bags, and milliseconds a bag of predicting all bags."""
    classifier = BagClassifier(module, rng_seed=seed, **TRAINING)
    classifier.fit([bags[i] for i in train], y[train])
    accuracy = classifier.score([bags[i] for i in test], y[test])
    began = time.perf_counter()
    classifier.decision_function(bags)
    return accuracy, (time.perf_counter() - began) / len(bags) * 1e3


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def row(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def header(*cells: str) -> None:
    print()
    row(*cells)
    row(*["---"] * len(cells))


def aggregators(data: Path, seeds: int, quick: bool) -> None:
    loaded = {name: load(data, name) for name in SETS}
    header("accuracy", *SETS)
    row("larger class", *(f"{max(y.mean(), 1 - y.mean()):.3f}" for _, y in loaded.values()))
    for model, module in MODELS.items():
        row(model, *(
            spread([
                scored(module, bags, y, train, test, seed)[0]
                for seed in range(seeds) for train, test in folds(y, seed, quick)
            ])
            for bags, y in loaded.values()
        ))  # fmt: skip


def budgets(data: Path, seeds: int, quick: bool) -> None:
    bags, y = load(data, "musk2")
    header("Musk2, K", "accuracy", "ms a bag (all 102)")
    for k in (1, 4, 16, 64, ALL):
        found = [
            scored(budgeted(k), bags, y, train, test, seed)
            for seed in range(seeds) for train, test in folds(y, seed, quick)
        ]  # fmt: skip
        row("all" if k == ALL else k, spread([a for a, _ in found]), f"{np.median([ms for _, ms in found]):.2f}")


def rules_on_musk2(data: Path, seeds: int, quick: bool) -> None:
    """Bags pruned by each rule with the scores of a logistic regression on instances, then gated attention."""
    bags, y = load(data, "musk2")
    sizes = np.array([len(bag) for bag in bags])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    values, budgets_ = np.concatenate(bags), (2, 8, 32)
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {(rule, k): [] for rule in RULES for k in budgets_}
    for seed in range(seeds):
        for train, test in folds(y, seed, quick):
            used = np.isin(np.repeat(np.arange(len(bags)), sizes), train)
            scaled = (values - values[used].mean(0)) / values[used].std(0).clip(1e-6)
            cheap = LogisticRegression(C=0.01, class_weight="balanced", max_iter=100)
            cheap.fit(scaled[used], np.repeat(y, sizes)[used])
            scores = cheap.decision_function(scaled).astype(np.float32)
            for rule, k in found:
                select = RULES[rule](k).select
                began = time.perf_counter()
                kept = select(scores, scaled, None, offsets)
                spent = (time.perf_counter() - began) / len(bags) * 1e6
                near = [nearest(scaled[a:b], kept.rows[c:d] - a) for (a, b), (c, d)
                        in zip(pairwise(offsets), pairwise(kept.offsets), strict=True)]  # fmt: skip
                pruned = np.split(kept.gather(values), kept.offsets[1:-1])
                module = MODELS["ABMIL (gated attention)"]
                accuracy = scored(module, pruned, y, train, test, seed)[0]
                found[rule, k].append((accuracy, float(np.mean(near)), spent))
    header("Musk2, rule", *(f"K = {k}: accuracy, nearest kept, µs a bag" for k in budgets_))
    for rule in RULES:
        cells = (tuple(zip(*found[rule, k], strict=True)) for k in budgets_)
        row(rule, *(f"{spread(a)}, {np.mean(near):.3f}, {np.median(spent):.0f}" for a, near, spent in cells))


def rules(quick: bool) -> None:
    """Time, coverage and scores on bags of runs of near-duplicates; a rule stops after ``SECONDS`` of its own."""
    st = {"S0": mil.STSelector(K, variant="S0"), "S1": mil.STSelector(K, variant="S1"), "S2": mil.STSelector(K)}
    named = {
        "STSelector S2": lambda s, e, p, o: st["S2"].select(s, e, p, o, threads=1),
        "STSelector S2, no positions": lambda s, e, p, o: st["S2"].select(s, e, None, o, threads=1),
        "STSelector S1, no embeddings": lambda s, e, p, o: st["S1"].select(s, None, p, o, threads=1),
        "STSelector S0": lambda s, e, p, o: st["S0"].select(s, None, None, o, threads=1),
        "torch.topk": lambda s, e, p, o: torch.topk(torch.from_numpy(s).view(-1, N), K).indices,
        **{rule.__name__: rule(K).select for rule in (mil.TopK, mil.Random, mil.UniformPosition, mil.FarthestPoint,
                                                      mil.KMeansPlusPlus, mil.MMR, mil.FacilityLocation)},
    }  # fmt: skip
    if importlib.util.find_spec("submodlib"):
        named["submodlib facility location"] = mil.FacilityLocation(K, impl="submodlib").select
    spent, timed, worth = dict.fromkeys(named, 0.0), dict.fromkeys(named, 0), {}
    rng = np.random.default_rng(0)
    for chunk in range(0, 1000 if quick else N_BAGS, CHUNK):
        bags = testing.bags_of_sizes(rng, np.full(CHUNK, N))
        for name, select in named.items():
            if spent[name] > (1 if quick else SECONDS):
                continue
            count = min(CHUNK, 10) if "acility" in name else CHUNK
            few = tuple(part[: count * N] for part in tuple(bags)[:3])
            began = time.perf_counter()
            kept = select(*few, bags.offsets[: count + 1])
            spent[name] += time.perf_counter() - began
            timed[name] += count
            if chunk == 0:
                worth[name] = quality(name, kept, *few)
    header("rule", "µs a bag", "bags timed", "nearest kept (cosine)", "of 32 stretches", "score (sd)")
    for name in named:
        row(name, f"{spent[name] / timed[name] * 1e6:.0f}", f"{timed[name]:,}", *worth[name])


def nearest(embeddings: np.ndarray, kept: np.ndarray) -> float:
    """Mean over instances of the largest cosine to one kept."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return float((unit @ unit[kept].T).max(1).mean())


def quality(name: str, kept, scores, embeddings, positions, n_bags: int = 10) -> list[str]:
    """Means over bags: an instance's largest cosine to one kept, stretches of positions reached, score of the kept."""
    near, reached, score = [], [], []
    for bag in range(n_bags):
        own = kept[bag].numpy() if name == "torch.topk" else kept.rows[bag * K : (bag + 1) * K] - bag * N
        part = slice(bag * N, (bag + 1) * N)
        near.append(nearest(embeddings[part], own))
        reached.append(len(set(np.minimum(31, positions[part][own] * 32).astype(int).tolist())))
        score.append((scores[part][own].mean() - scores[part].mean()) / scores[part].std())
    return [f"{np.mean(near):.3f}", f"{np.mean(reached):.1f}", f"{np.mean(score):+.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="two folds, one seed, a tenth of the bags")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["rules", "rules_on_musk2", "budgets", "aggregators"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = 1 if options.quick else options.seeds
    if options.only in (None, "rules"):
        rules(options.quick)
    for part in (rules_on_musk2, budgets, aggregators):
        if options.only in (None, part.__name__):
            part(options.data, seeds, options.quick)


if __name__ == "__main__":
    main()
