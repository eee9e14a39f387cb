"""Folding: bases a second of short RNAs, of a long one in windows, of energies alone, and of RNAfold.

Command: python bench/bench_fold.py DATA prints what energies alone find beside ViennaRNA on TS0's RNAs of up to 200 nt.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from pairformer import folding, structures, testing  # noqa: E402
from pairformer.evaluation import structure  # noqa: E402
from pairformer.fold import Folder  # noqa: E402

THREADS, ROUNDS, LONGEST = 2, 3, 200
pytestmark = pytest.mark.benchmark(group="folding, two threads, and RNAfold on one")


def sequences(count, length):
    rng = random.Random(2020)
    return [testing.random_rna(rng, length) for _ in range(count)]


@pytest.mark.parametrize("model", ["fold", "energies"])
@pytest.mark.parametrize(("count", "length"), [(64, 40), (64, 80), (1, 2000)])
def bench_fold(timed, model, count, length):
    given, folder = sequences(count, length), Folder(model, threads=THREADS)
    found = timed(lambda: folder.fold(given), count * length, "base", rounds=5)
    assert len(found) == count
    for fold in found:
        assert len(fold.structure) == length
        assert (fold.matrix()[tuple(fold.pairs.T)] > (folder.config.threshold or 0.1)).all()


@pytest.mark.parametrize(("count", "length"), [(64, 40), (64, 80)])
def bench_rnafold(timed, count, length):
    pytest.importorskip("RNA")
    given = sequences(count, length)
    assert structures.rnafold(given).sequence.tolist() == given
    timed(lambda: structures.rnafold(given), count * length, "base", rounds=5)


def vienna(sequence):
    """Seconds of the processor for the structure of least free energy, and for probabilities, neither read out yet;
    its pairs, (L, L) probabilities."""
    import RNA

    clock = [time.process_time()]
    fold = RNA.fold_compound(sequence)
    best, energy = fold.mfe()
    clock.append(time.process_time())
    fold.exp_params_rescale(energy)
    fold.pf()
    clock.append(time.process_time())
    upper = np.array(fold.bpp(), np.float32)[1:, 1:]  # counted from 1
    return np.diff(clock), folding.pairs_of(best), np.minimum(upper + upper.T, 1)


def beside_vienna(data):
    """Print the table of ``docs/fold.md``: both probabilities drawn alike, as ``model="energies"`` draws them."""
    rows = structure.PROTOCOLS["ts0"].rows(data)
    rows = rows.take(rows.length <= LONGEST)
    given, length, true = rows.sequence.tolist(), rows.length, rows.pairs
    seconds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        ours = folding.equilibrium(given)
        own = time.process_time() - begin
        each, best, theirs = zip(*map(vienna, given), strict=True)
        seconds.append([own, *sum(each)])
    drawn, other = ([folding.decode(p, 0.5, min_loop=3) for p in found] for found in (ours, theirs))

    def scores(predicted, known):
        return np.array([folding.f1(*pair) for pair in zip(predicted, known, strict=True)])

    score, beside, least = (scores(pairs, true) for pairs in (drawn, other, best))
    same = scores(drawn, other)
    opens = [np.concatenate([np.clip(1 - p.sum(0), 0, 1) for p in found]) for found in (ours, theirs)]
    off = np.abs(opens[0] - opens[1])
    mean_off = np.add.reduceat(off, np.cumsum(length) - length) / length
    family = np.unique([f or str(n) for f, n in zip(rows.family, rows.name, strict=True)], return_inverse=True)[1]
    print("| RNAs | n | F1: energies | ViennaRNA, drawn alike | less this | its MFE structure | less this | "
          "F1 of both's pairs | open bases: r | mean difference | RNAs with one above 0.1 |")  # fmt: skip
    print("|---" * 11 + "|")
    for name, mask in ((f"up to {LONGEST} nt", length > 0), ("up to 80 nt", length <= 80), ("longer", length > 80)):
        figures = [structure.figures(None, s, score, mask, family, 1000)["difference"] for s in (beside, least)]
        gains = ["{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**figure) for figure in figures]
        bases = np.repeat(mask, length)
        print(f"| {name} | {mask.sum():,} | {score[mask].mean():.3f} | {beside[mask].mean():.3f} | {gains[0]} | "
              f"{least[mask].mean():.3f} | {gains[1]} | {same[mask].mean():.3f} | "
              f"{np.corrcoef(opens[0][bases], opens[1][bases])[0, 1]:.3f} | {off[bases].mean():.3f} | "
              f"{(mean_off > 0.1)[mask].mean():.1%} |")  # fmt: skip
    print(f"\n{(same == 1).mean():.0%} of RNAs have the same pairs, {(same < 0.5).mean():.1%} F1 under 0.5; furthest:")
    for row in np.argsort(-mean_off)[:3]:
        print(f"{rows.name[row]}, {length[row]} nt: mean difference {mean_off[row]:.2f}, F1 {same[row]:.2f}")
    each = 1e6 * np.array(seconds).T / length.sum()
    for what, found in zip(("energies", "ViennaRNA's MFE structures", "its probabilities"), each, strict=True):
        print(f"{what}: {np.median(found):.0f} us a base, {min(found):.0f} to {max(found):.0f} in {ROUNDS} rounds")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    beside_vienna(parser.parse_args().data)
