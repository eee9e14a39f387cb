"""How many seed sites each selector keeps, on all miRAW pairs: python bench/recall.py DATA MODEL.

A site is a place in a UTR whose letters pair with miRNA 2-8 without a wobble (7mer-m8 or 8mer); it is kept where one
of the selected windows sees the match. "All" is the share of pairs, of those with 1 to K sites, that lose none.
"""

import sys
from pathlib import Path

import numpy as np

import pairformer
from pairformer.config import recipe
from pairformer.data import PAIRS, load_pairs
from pairformer.engines import NativeEngine
from pairformer.sites import SEED_TYPES, seed_matches, seed_windows

PERFECT = "7mer-m8"


def main(folder: Path, model: str) -> None:
    pairs = load_pairs(folder / PAIRS, folder)
    candidates = pairformer.scan(pairs.mirna, pairs.utr)
    cheap_logit, keys = NativeEngine.load(model).model.cheap_scan(candidates)
    keep = seed_windows(candidates, cheap_logit, recipe("default")[0].keep_seed)
    kind, _, _, anchor = seed_matches(candidates, np.arange(len(cheap_logit)))
    bag = candidates.bag_of()

    def sites_per_bag(rows):
        rows = rows[kind[rows] >= SEED_TYPES.index(PERFECT)]
        distinct = np.unique(np.stack([bag[rows], anchor[rows]]), axis=1)
        return np.bincount(distinct[0], minlength=len(candidates))

    total = sites_per_bag(np.arange(len(bag)))
    print(f"{len(candidates)} pairs, {len(bag)} candidates, {total.sum()} sites in {np.count_nonzero(total)} pairs\n")
    print("| K | " + " | ".join(f"{v}: sites, all" for v in ("S0", "S1", "S2", "all sites first")) + " |")
    print("|---" * 5 + "|")
    for k_max in (8, 16, 32, 64):
        cells = []
        for variant, mask in (("S0", None), ("S1", None), ("S2", None), ("S2", keep)):
            selector = pairformer.STSelector(k_max, variant=variant)
            chosen = selector.select(cheap_logit, keys, candidates.position, candidates.offsets, keep=mask)
            found, fits = sites_per_bag(chosen.rows), (total > 0) & (total <= k_max)
            cells.append(f"{found.sum() / total.sum():.3f}, {(found == total)[fits].mean():.3f}")
        print(f"| {k_max} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
