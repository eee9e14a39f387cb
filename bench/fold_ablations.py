"""What recycling, axial attention, the convolution, each option and more data are worth to a structure model.

Command: python bench/fold_ablations.py DATA OUT [ROW ...]. A trained row is kept in OUT and read the next time. Every
row learns RNAfold's pair probabilities of sequences up to 40 nt, where attention among all cells can be afforded, and
is scored by its F1 on RNAfold's structures of 1,000 sequences that no row sees. ViennaRNA is needed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pairformer.data import load_utrs
from pairformer.fold_config import FoldConfig, FoldTrainConfig, fold_recipe
from pairformer.folding import decode, f1
from pairformer.metrics import interval
from pairformer.models import RNAformer
from pairformer.models.rnaformer import pair_probabilities
from pairformer.structures import load_known, rnafold, teacher_sequences
from pairformer.training.fold import held_out, train_fold

LENGTH, ASKED, THREADS = 40, 1_000, 1
BASE = "axial attention, convolution, 1 or 2 passes"


@dataclass(frozen=True)
class Row:
    """Changes to the first row."""

    model: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    passes: int | None = None
    """Made when asked; None: as trained."""
    teacher: int = 32_000
    """Sequences learnt from."""
    of: str = ""
    """Row whose weights are asked; "": its own."""
    than: str = BASE
    """Row whose F1 is taken from its own."""


def once(**model) -> Row:
    """Another model, of one pass throughout."""
    return Row({"passes": 1, **model}, {"most_passes": 1}, than="no recycling")


ROWS = {
    BASE: Row(),
    "the same asked with 1 pass": Row(passes=1, of=BASE),
    "the same asked with 4 passes": Row(passes=4, of=BASE),
    "no recycling": Row({"passes": 1}, {"most_passes": 1}),
    "no recycling, absolute positions": once(distance_buckets=0),
    "no recycling, letters apart": once(pair_types=False),
    "no recycling, logits as they are": once(symmetric=False),
    "no recycling, two classes without a bias": once(final_bias=None),
    "no recycling, 1 head of 32": once(heads=1),
    "no recycling, 4 heads of 8": once(heads=4),
    "full attention": Row({"attention": "full"}),
    "position-wise feed-forward": Row({"transition": "pointwise"}),
    "full attention, position-wise feed-forward": Row({"attention": "full", "transition": "pointwise"}),
    "8,000 sequences": Row(teacher=8_000),
    "2,000 sequences": Row(teacher=2_000),
    "500 sequences": Row(teacher=500),
}


def configs(row: Row) -> tuple[FoldConfig, FoldTrainConfig]:
    model, config = fold_recipe("cpu")
    stage = replace(config.teach, epochs=1)
    config = replace(config, teach=stage, tune=replace(stage, epochs=3), **{"most_passes": 2} | row.train)
    return replace(model, max_length=LENGTH, **{"passes": 2} | row.model), config


def main(data: Path, out: Path, *names: str) -> None:
    if unknown := [name for name in names if name not in ROWS]:
        sys.exit(f"row must be one of {'; '.join(ROWS)}, got {unknown[0]}")
    known = load_known(data, LENGTH)
    rng = np.random.default_rng(2020)
    largest = max(row.teacher for row in ROWS.values())
    utrs, pool = list(load_utrs(data).values()), known.take(~held_out(known, 20))
    drawn = dict.fromkeys(teacher_sequences(pool, utrs, 2 * largest, LENGTH, rng))  # of equal ones the first
    sequences = np.array(list(drawn))[rng.permutation(len(drawn))].tolist()
    asked = rnafold(sequences[:ASKED], THREADS, None)
    teacher = rnafold(sequences[ASKED : ASKED + largest], THREADS)
    scores: dict[str, np.ndarray] = {}
    print("| row | parameters | F1 [95 %] | less | F1 of |\n|---|---|---|---|---|", flush=True)
    for name in dict.fromkeys((BASE, *(part for row in names or ROWS for part in (ROWS[row].than, row)))):
        row = ROWS[name]
        place = out / (row.of or name).replace(",", "").replace(" ", "-")
        if not (place / "model" / "config.json").exists():
            taught = teacher.take(np.arange(min(row.teacher, len(teacher))))
            train_fold(known, taught, place, *configs(row), threads=THREADS)
        model = RNAformer.load(place / "model")
        found = pair_probabilities(model, asked.sequence.tolist(), row.passes or model.config.passes, THREADS)
        pairs = (decode(p, 0.5, "matching", min_loop=3) for p in found)
        score = np.array([f1(one, true) for one, true in zip(pairs, asked.pairs, strict=True)])
        scores[name] = score
        reference = scores[row.than]
        drawn_rows = rng.integers(len(score), size=(1000, len(score)))
        low, high = interval(score[drawn_rows].mean(1))
        gain = (score - reference)[drawn_rows].mean(1)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"| {name} | {count:,} | {score.mean():.3f} [{low:.3f}, {high:.3f}] | {(score - reference).mean():+.3f} "
              "[{:+.3f}, {:+.3f}] | {} |".format(*interval(gain), row.than), flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("row", nargs="*", default=[], help="; ".join(ROWS))
    options = parser.parse_args()
    main(options.data, options.out, *options.row)
