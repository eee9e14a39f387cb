"""How much of a fold change sites can explain: python bench/ceiling.py DATA

Two experiments of one seed family share what its sites do and what that does to other genes. Genes without a seed site
in their UTR share the second alone: what their covariance, weighted to the UTR lengths of all genes, is below that of
all genes is the sites' part, about the highest r2 a predictor from sites can have. Beside it r2 of the additive heads
of the default recipe, which learnt from other families and genes, for the miRNAs that ``fold-change`` asks for.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from levers import held_out_experiments, scores

from pairformer.config import recipe
from pairformer.evaluation.fold_change import experiment_metrics
from pairformer.evaluation.protocols import PROTOCOLS
from pairformer.sources import FoldChanges, load_fold_changes
from pairformer.training.stage3_aggregate import read_seed_sites

LENGTHS = 5
"""Classes of UTR length."""


def shares(first: FoldChanges, second: FoldChanges, esa_min: int) -> tuple[int, float, float]:
    """Genes without a site, and the covariance of all and of these over the standard deviations of all."""
    siteless = np.diff(read_seed_sites(first, esa_min).offsets) == 0
    length = np.array([len(utr) for utr in first.utr])
    group = np.searchsorted(np.quantile(length, np.arange(1, LENGTHS) / LENGTHS), length)
    genes, without = (np.bincount(groups, minlength=LENGTHS) for groups in (group, group[siteless]))
    weight = (genes / np.maximum(without, 1))[group[siteless]]
    every = np.cov(first.label, second.label)
    indirect = np.cov(first.label[siteless], second.label[siteless], aweights=weight)
    return siteless.sum(), *(cov[0, 1] / np.sqrt(every[0, 0] * every[1, 1]) for cov in (every, indirect))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    effects, protocol = load_fold_changes(folder), PROTOCOLS["fold-change"]
    esa_min, components = recipe("default")[0].esa_min, recipe("default")[1].sources.components
    centred, r2 = effects.centred(), dict[str, list[float]]()
    of = [centred.take(centred.experiment == name) for name in np.unique(centred.experiment)]
    related = [(a, b) for a, b in itertools.combinations(of, 2) if a.family[0] == b.family[0]]
    wanted = {pairs.mirna[0] for both in related for pairs in both}
    for fold in protocol.folds(folder):
        if not wanted & set(fold.test.mirna):
            continue
        experiments = [held_out_experiments(effects, fold, protocol.claims, esa_min, components)]
        score = scores("fold-change", [fold.whole()], experiments, "default", {"site": [], "bag": []})[0]
        for mirna in wanted & set(fold.test.mirna):
            rows = fold.test.mirna == mirna
            metrics = experiment_metrics(*(part[rows] for part in (fold.test.label, fold.test.raw, score)))
            r2.setdefault(mirna, []).append(metrics[1])
    print(
        "| experiments | genes, without a site | correlation | of genes without a site | of sites | r2 of the heads |"
    )
    print("|---|---|---|---|---|---|")
    for a, b in related:
        _, i, j = np.intersect1d(a.utr_id, b.utr_id, return_indices=True)
        siteless, both, indirect = shares(a.take(i), b.take(j), esa_min)
        asked = [pairs for pairs in (a, b) if pairs.series[0] == "GSE124530"]  # the experiments of fold-change
        heads = ", ".join(f"{np.mean(r2[pairs.mirna[0]]):.3f}" for pairs in asked)
        print(f"| {a.experiment[0]}, {b.experiment[0]} | {len(i):,}, {siteless:,} | {both:.3f} | {indirect:.3f} | "
              f"{both - indirect:.3f} | {heads} |")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
