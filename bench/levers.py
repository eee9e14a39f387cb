"""What each part of the additive heads' training is worth: python bench/levers.py DATA PROTOCOL LEVER...

``fold-change``: 1,500 genes, 4 x 2 blocks of families and genes, scores centred as the effects are; ``rewired``: its 9
blocks. The heads of the default recipe with one thing changed, against the first lever on the same rows; encoders have
no part in it. Levers: those of SOURCES, or "without" a feature, which learn from fold changes alone where these are
what is asked, or the default with another "seed" or number of "members".
"""

import contextlib
import functools
import io
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pairformer.config import recipe
from pairformer.data import Pairs
from pairformer.evaluation.fold_change import METRICS as EFFECT_METRICS
from pairformer.evaluation.fold_change import summarise_effects
from pairformer.evaluation.protocols import PROTOCOLS, Fold, group_folds, held_out_pairs
from pairformer.metrics import ranking
from pairformer.models import PairFormer
from pairformer.sources import FoldChanges, load_fold_changes
from pairformer.training.stage3_aggregate import Experiment, read_experiments, read_seed_sites, train_heads

SITE = {"seed type": range(5), "local AU": [5], "3' pairing": [6], "distances to the ends": [7, 8],
        "distances to other sites": [11, 12], "UTR length": [9]}  # fmt: skip
BAG = {"UTR length": [0], "UTR composition": [1, 2, 3], "number of candidates": [4], "miRNA composition": range(5, 11),
       "weak sites": [11]}  # fmt: skip
SOURCES = {
    "default": {},
    "fold changes alone": {"decoys": 0.0},
    "decoys alone": {"effects": 0.0},
    "a fifth of the decoys": {"decoys": 0.2},
    "shared components": {"components": 0},
    "whole baseline": {"baseline": 1.0},
}
METRICS = {"fold-change": ("Spearman", "r2", "ROC-AUC of the top 5 %"), "rewired": ("ROC-AUC",)}


def small_folds(folder: Path) -> list[Fold]:
    """The rows of ``fold-change``, 1,500 genes in 4 x 2 blocks."""
    folds = PROTOCOLS["fold-change"].folds(folder)
    test, mirnas = functools.reduce(Pairs.join, (fold.test for fold in folds)), folds[0].mirnas
    genes = np.random.default_rng(2020).choice(np.unique(test.gene), 1500, replace=False)
    test = test.take(np.isin(test.gene, genes))
    pairs = functools.reduce(Pairs.join, (fold.train.join(fold.validation) for fold in folds))
    _, first = np.unique([f"{m} {g}" for m, g in zip(pairs.mirna, pairs.gene, strict=True)], return_index=True)
    pairs, blocks = pairs.take(first), []
    family, gene = (group_folds(names, np.ones(len(test)), n) for names, n in ((test.family, 4), (test.gene, 2)))
    for f, g in np.ndindex(4, 2):
        rows = test.take((family == f) & (gene == g))
        allowed = pairs.take(held_out_pairs(pairs, rows, PROTOCOLS["fold-change"].claims))
        blocks.append(Fold(f"families {f}, genes {g}", allowed, allowed.take(np.arange(0)), rows, mirnas))
    return blocks


def held_out_experiments(
    effects: FoldChanges, fold: Fold, claims: tuple[str, ...], esa_min: int, components: int
) -> list[Experiment]:
    """Experiments with the genes and families that a fold may learn from."""
    allowed = effects.take(held_out_pairs(effects, fold.test, claims))
    return list(read_experiments(allowed, esa_min, components))


def scores(
    name: str, folds: list[Fold], experiments: list[list[Experiment]], lever: str, mask_of: dict[str, list[int]]
) -> list[np.ndarray]:
    """Repression of each fold's test rows by heads trained with a lever."""
    config, train = recipe("default")
    alone = name == "fold-change" and lever.startswith("without ")
    changed = SOURCES["fold changes alone" if alone else lever if lever in SOURCES else "default"]
    seed = int(lever.removeprefix("seed ")) if lever.startswith("seed ") else train.rng_seed
    members = int(lever.removeprefix("members ")) if lever.startswith("members ") else config.aggregator.members
    train = replace(train, rng_seed=seed, sources=replace(train.sources, **changed))
    found = []
    for fold, measured in zip(folds, experiments, strict=True):
        torch.manual_seed(train.rng_seed)
        model = PairFormer(replace(config, aggregator=replace(config.aggregator, kind="none", members=members)))
        for head in model.additives:
            for layer, gone in ((head.site[0], mask_of["site"]), (head.bag[0], mask_of["bag"])):
                kept = torch.ones(layer.weight.shape[1])
                kept[list(gone)] = 0
                layer.weight.data *= kept  # what a weight of zero reads it does not know; decay keeps it zero
                layer.weight.register_hook(lambda gradient, kept=kept: gradient * kept)
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
            train_heads(model, fold.train, train, Path(place), measured)
        with torch.no_grad():
            arguments = read_seed_sites(fold.everywhere() if fold.mirnas else fold.test, config.esa_min).all()
            said = torch.stack([head(*arguments)[0] for head in model.additives]).mean(0).numpy()
            found.append(fold.centred(said) if fold.mirnas else said)
    return found


def table(name: str, folds: list[Fold], found: list[np.ndarray]) -> np.ndarray:
    """(units, metrics): by experiment, or by block."""
    if name == "rewired":
        return np.array([[ranking(f.test.label, s)["roc_auc"]] for f, s in zip(folds, found, strict=True)])
    columns = ([getattr(fold.test, column) for fold in folds] for column in ("mirna", "label", "raw"))
    summary = summarise_effects(*columns, [{"heads": score} for score in found], "heads", 1)["scores"]["heads"]
    return np.array([summary[metric]["values"] for metric in EFFECT_METRICS[:3]]).T


def cells(values: np.ndarray, first: np.ndarray, n_resamples: int = 2000) -> list[str]:
    """Figures of (units, metrics), and their difference to the first row's with 95 % of the resamples of units."""
    drawn = np.random.default_rng(0).integers(len(values), size=(n_resamples, len(values)))
    low, high = np.quantile((values - first)[drawn].mean(1), (0.025, 0.975), axis=0)
    columns = zip(values.mean(0), values.std(0), (values - first).mean(0), low, high, strict=True)
    return [f"{m:.4f} ± {s:.3f}, {d:+.4f} [{a:+.4f}, {b:+.4f}]" for m, s, d, a, b in columns]


def main(folder: Path, name: str, levers: list[str]) -> None:
    torch.set_num_threads(1)
    folds = small_folds(folder) if name == "fold-change" else [fold.whole() for fold in PROTOCOLS[name].folds(folder)]
    effects, claims, least = load_fold_changes(folder), PROTOCOLS[name].claims, recipe("default")[0].esa_min
    default = recipe("default")[1].sources.components

    @functools.cache
    def experiments(components: int) -> list[list[Experiment]]:
        return [held_out_experiments(effects, fold, claims, least, components) for fold in folds]

    print("| lever | " + " | ".join(f"{m}, difference to the first row" for m in METRICS[name]) + " |")
    print("|---" * (1 + len(METRICS[name])) + "|")
    first = None
    for lever in levers:
        gone = lever.removeprefix("without ") if lever.startswith("without ") else ""
        mask_of = {"site": SITE.get(gone, []), "bag": BAG.get(gone, [])}
        if not (lever in SOURCES or gone in {**SITE, **BAG} or re.fullmatch(r"(seed|members) \d+", lever)):
            features = (f"without {name}" for name in {**SITE, **BAG})
            sys.exit(f"lever must be one of {', '.join((*SOURCES, *features))}, seed N or members N, got {lever}")
        components = int(SOURCES.get(lever, {}).get("components", default))
        values = table(name, folds, scores(name, folds, experiments(components), lever, mask_of))
        first = values if first is None else first
        print(f"| {lever} | " + " | ".join(cells(values, first)) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
