"""What simple scores reach on the same rows: identity, untrained seed matches, and site scores pooled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from pairformer import _core
from pairformer.bags import WINDOW, Candidates
from pairformer.data import Pairs, Sites, gene_names
from pairformer.models.pair_former import EXPENSIVE_CHUNK, chunks
from pairformer.scan import Strings, scan

Scores = dict[str, NDArray[np.floating]]
# Mean log2 repression of one site of each type, as measured for sites in 3'UTRs.
SEED_WEIGHTS = {"8mer": 0.31, "7mer-m8": 0.161, "7mer-A1": 0.099, "6mer": 0.03, "offset 6mer": 0.015}
MEAN_AU = 0.55
FLANK = 30  # nt on either side of a site whose A and U are counted
DUPLEX_STEP = 20  # nt from one window to the next
DUPLEX_PAIRS = 1024  # pairs worked on at once
TOP = 8
_COMPLEMENT = str.maketrans("ACGUacguTt", "UGCAUGCAAA")


def identity_scores(train: Pairs, asked: Pairs, sites: Sites | None = None) -> Scores:
    """Scores of ``asked`` that look at no sequence, learnt from ``train`` alone.

    Returns:
        look_up: 0 where the miRNA with that gene or UTR was a training negative, else 1; mirna_prior and gene_prior:
        log odds of the entity's training labels and one more of the training rows' mean label, which an unseen one has
        alone; mirna_and_gene_prior: a logistic regression on both, each training row's own label left out of its
        priors; with_site_prior: the same with the prior of the miRNA's windows in ``sites``; length_and_n: one on UTR
        length, candidates and their density.
    """
    negatives = set[tuple[str, str]]().union(*_keys(train.take(train.label < 0.5)))
    kinds = [("mirna", lambda rows: rows.mirna), ("gene", lambda rows: rows.gene)]
    seen = np.stack([_prior(name(train), train.label) for _, name in kinds], 1)
    priors = np.stack([_prior(name(train), train.label, name(asked)) for _, name in kinds], 1)
    scores = {
        "look_up": np.array([float(not keys & negatives) for keys in _keys(asked)]),
        **{f"{kind}_prior": priors[:, column] for column, (kind, _) in enumerate(kinds)},
        "mirna_and_gene_prior": _logistic(seen, train.label, priors),
    }
    if sites is not None:
        site_prior = [_prior(sites.mirna, sites.label, rows.mirna)[:, None] for rows in (train, asked)]
        scores["with_site_prior"] = _logistic(
            np.hstack([seen, site_prior[0]]), train.label, np.hstack([priors, site_prior[1]])
        )
    scores["length_and_n"] = _logistic(_shape(train), train.label, _shape(asked))
    return scores


def untrained_scores(pairs: Pairs) -> Scores:
    """Scores that need no training.

    Returns:
        seed_score: sum of ``SEED_WEIGHTS`` over all seed matches; seed_score_au: each weighted by the share of A and
        U in the ``FLANK`` nt on either side over ``MEAN_AU``; duplex: kcal/mol below 0 of the best duplex
        (``Candidates.duplex_energy``) with a window, of those that begin every ``DUPLEX_STEP`` nt and the last;
        mirna_au: share of A and U in the miRNA; utr_length: nt.
    """
    plain, weighted = np.zeros(len(pairs)), np.zeros(len(pairs))
    parts = np.split(np.arange(len(pairs)), range(DUPLEX_PAIRS, len(pairs), DUPLEX_PAIRS))
    energies = [_duplex(pairs.take(rows)) for rows in parts]
    for row, (mirna, utr) in enumerate(zip(pairs.mirna, pairs.utr, strict=True)):
        for start, end, kind in seed_sites(mirna, utr):
            flank = utr[max(0, start - FLANK) : start] + utr[end : end + FLANK]
            plain[row] += SEED_WEIGHTS[kind]
            weighted[row] += SEED_WEIGHTS[kind] * _share_of_au(flank) / MEAN_AU
    return {
        "seed_score": plain,
        "seed_score_au": weighted,
        "duplex": np.concatenate(energies),
        "mirna_au": np.array([_share_of_au(mirna) for mirna in pairs.mirna]),
        "utr_length": np.array([len(utr) for utr in pairs.utr], float),
    }


def _duplex(pairs: Pairs) -> NDArray[np.float64]:
    number, best = np.arange(len(pairs), dtype=np.int32), np.zeros(len(pairs))
    batch = _core.PairBatch(list(pairs.mirna), list(pairs.utr), number, number, 1)
    found = []
    for bag, utr in enumerate(pairs.utr):
        last = len(utr) - WINDOW
        starts = [*range(0, last, DUPLEX_STEP), last] if last >= 0 else []
        found += [(bag, start) for start in starts if not set(utr[start : start + WINDOW]) - set("ACGU")]
    rows, start = np.array(found, np.int64).reshape(-1, 2).T.copy()
    np.maximum.at(best, rows, -_core.duplex_energy(batch, rows, start.astype(np.int32), 1))
    return best


def seed_sites(mirna: str, utr: str) -> Iterator[tuple[int, int, str]]:
    """Seed matches anywhere in a UTR as (start, end, type), half-open, 5'->3'.

    8mer: pairs with miRNA 2-8 and an A opposite 1; 7mer-m8: 2-8; 7mer-A1: 2-7 and the A; 6mer: 2-7; offset 6mer: 3-8.

    Source: Bartel, Cell 2009.
    """
    utr = utr.upper().replace("T", "U")
    two_to_eight = mirna[1:8].translate(_COMPLEMENT)[::-1]
    if len(two_to_eight) < 7:
        return
    first, core, last = two_to_eight[0], two_to_eight[1:6], two_to_eight[6]  # opposite 8, 7-3, 2
    for match in re.finditer(f"(?={core})", utr):
        at = match.start()
        paired8 = utr[at - 1 : at] == first if at else False
        paired2 = utr[at + 5 : at + 6] == last
        has_a = utr[at + 6 : at + 7] == "A"
        if paired2:
            kind = ("6mer", "7mer-A1", "7mer-m8", "8mer")[2 * paired8 + has_a]
            yield at - paired8, at + 6 + has_a, kind
        elif paired8:
            yield at - 1, at + 5, "offset 6mer"


@torch.inference_mode()
def site_logits(score: Callable[[torch.Tensor], torch.Tensor], candidates: Candidates) -> NDArray[np.float32]:
    """(N,) logit of every candidate; only ``EXPENSIVE_CHUNK`` windows exist at once.

    Args:
        score: windows (M, 10, 50) uint8 -> logit (M,).
        candidates: bags.
    """
    logits = np.empty(len(candidates.start), np.float32)
    for rows in chunks(len(logits), EXPENSIVE_CHUNK):
        windows = candidates.encode(np.arange(rows.start, rows.stop))
        logits[rows] = score(torch.from_numpy(windows)).numpy()
    return logits


def pooled_scores(logit: NDArray[np.float32], offsets: NDArray[np.int64], empty: float = 0.0) -> Scores:
    """Site logits of B bags in one number a bag.

    Args:
        logit: (N,) float.
        offsets: (B + 1,) int64.
        empty: score of a bag without candidates.

    Returns:
        (B,) logits. max; mean; top_mean: of the ``TOP`` highest; softmax: mean weighted by softmax of the logits;
        log_sum_exp; noisy_or: logit of 1 - product of (1 - sigmoid).
    """
    z = logit.astype(float)
    full = np.flatnonzero(np.diff(offsets))
    starts, sizes = offsets[full], np.diff(offsets)[full]
    bag = np.repeat(np.arange(len(full)), sizes)
    highest = np.maximum.reduceat(z, starts) if len(full) else np.empty(0)
    exponential = np.exp(z - highest[bag])
    total = _sums(exponential, starts)
    pooled = {
        "max": highest,
        "mean": _sums(z, starts) / sizes,
        "top_mean": np.array([np.partition(z[a:b], -TOP)[-TOP:].mean() if b - a > TOP else z[a:b].mean()
                              for a, b in pairwise([*starts, len(z)])][: len(full)]),
        "softmax": _sums(exponential * z, starts) / total,
        "log_sum_exp": highest + np.log(total),
    }  # fmt: skip
    missed = _sums(np.logaddexp(0, z), starts)  # -log of the chance that no site works
    pooled["noisy_or"] = missed + np.log(np.maximum(-np.expm1(-missed), np.finfo(float).tiny))
    scores = {name: np.full(len(offsets) - 1, empty) for name in pooled}
    for name, values in pooled.items():
        scores[name][full] = values
    return scores


def _sums(values: NDArray, starts: NDArray) -> NDArray:
    return np.add.reduceat(values, starts) if len(starts) else np.empty(0)


def _share_of_au(sequence: str) -> float:
    return sum(map(sequence.upper().count, "AUT")) / max(1, len(sequence))


def _shape(pairs: Pairs) -> NDArray[np.float64]:
    """(B, 3) log length, log candidates, candidates per nt."""
    length = np.array([len(utr) for utr in pairs.utr], float)
    n = scan(pairs.mirna, pairs.utr).n_candidates
    return np.stack([np.log1p(length), np.log1p(n), n / np.maximum(1, length)], 1)


def _logistic(features: NDArray, label: NDArray, asked: NDArray) -> NDArray[np.float64]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
    return model.fit(features, label > 0.5).decision_function(asked)


def _keys(pairs: Pairs) -> list[set[tuple[str, str]]]:
    """What makes two rows one pair: the miRNA with a gene's name, or with a UTR."""
    return [
        {(mirna, other) for other in (*gene_names(genes), utr)}
        for mirna, genes, utr in zip(pairs.mirna, pairs.gene, pairs.utr, strict=True)
    ]


def _prior(seen: Strings, label: NDArray, asked: Strings | None = None) -> NDArray[np.float64]:
    """Log odds of each name's labels; for the rows themselves (``asked`` None) without their own label."""
    counts: dict[str, list[float]] = {}
    share = float(np.mean(label)) if len(set(label)) > 1 else 0.5
    one = [1 - share, share]
    for name, positive in zip(seen, label, strict=True):
        counts.setdefault(name, [*one])[int(positive)] += 1
    if asked is not None:
        return np.array([np.log(positives / negatives) for negatives, positives in (counts.get(n, one) for n in asked)])
    own = [
        (counts[name][1] - positive, counts[name][0] - (1 - positive))
        for name, positive in zip(seen, label, strict=True)
    ]
    return np.array([np.log(positives / negatives) for positives, negatives in own])
