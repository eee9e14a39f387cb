"""Folds that share no gene and no miRNA family, metrics, and what simple scores achieve on the same rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pairformer.data import Pairs
from pairformer.scan import Strings, scan
from pairformer.sites import seed_matches


def ranking(label: ArrayLike, score: ArrayLike) -> dict[str, float]:
    """Class-balanced PR-AUC (average precision, each class weighing 0.5) and ROC-AUC.

    Args:
        label: (M,) 0 or 1, both present.
        score: (M,) higher means positive.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "pr_auc": float(average_precision_score(label, score, sample_weight=_class_weights(label))),
        "roc_auc": float(roc_auc_score(label, score)),
    }


def within_mirna(mirna: Strings, label: ArrayLike, score: ArrayLike) -> tuple[float, int]:
    """ROC-AUC over pairs of rows that share the miRNA, and how many such (positive, negative) pairs there are.

    What a score knows of the transcript once the miRNA's identity is taken out; NaN where no miRNA has both.
    """
    mirna, label, score = np.asarray(mirna), np.asarray(label), np.asarray(score)
    won, count = 0.0, 0
    for name in set(mirna[label < 0.5]):
        margin = np.subtract.outer(score[(mirna == name) & (label > 0.5)], score[(mirna == name) & (label < 0.5)])
        won += (margin > 0).sum() + 0.5 * (margin == 0).sum()
        count += margin.size
    return (float(won / count) if count else float("nan")), count


def group_folds(groups: Strings, negative: NDArray[np.bool_], n_folds: int) -> NDArray[np.int64]:
    """Fold of each row; a group is never split.

    Groups are dealt greedily, the largest first: those with negatives to the fold with the fewest
    negatives, then the others to the fold with the fewest rows.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    negatives = np.bincount(index, weights=negative)
    rows = np.bincount(index)
    load = np.zeros((n_folds, 2))
    fold_of = np.empty(len(names), np.int64)
    for group in sorted(range(len(names)), key=lambda g: (-negatives[g], -rows[g], names[g])):
        fold = int(load[:, 0 if negatives[group] else 1].argmin())
        fold_of[group] = fold
        load[fold] += negatives[group], rows[group]
    return fold_of[index]


def disjoint_folds(pairs: Pairs, n_folds: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(training rows, held-out rows) per fold, sharing neither gene nor miRNA family.

    Genes and families are split into ``n_folds`` groups each; fold f holds out the pairs with gene and
    family in group f and trains on those with neither. Pairs with one of the two are left out.
    """
    gene = group_folds(pairs.gene, pairs.label < 0.5, n_folds)
    family = group_folds(pairs.family, pairs.label < 0.5, n_folds)
    return [
        (np.flatnonzero((gene != f) & (family != f)), np.flatnonzero((gene == f) & (family == f)))
        for f in range(n_folds)
    ]


def identity_baselines(train: Pairs, test: Pairs) -> dict[str, NDArray[np.float64]]:
    """Scores of ``test`` that look at no sequence.

    Returns:
        look_up: 0 where the pair was a training negative, else 1; mirna_prior and gene_prior: log odds of
        the entity's training labels with 0.5 added to each count, 0 for an unseen one.
    """
    negatives = {pair for pair, label in zip(_keys(train), train.label, strict=True) if label < 0.5}
    return {
        "look_up": np.array([float(pair not in negatives) for pair in _keys(test)]),
        "mirna_prior": _prior(train.mirna, train.label, test.mirna),
        "gene_prior": _prior(train.gene, train.label, test.gene),
    }


def shape_baselines(pairs: Pairs) -> dict[str, NDArray[np.float64]]:
    """Scores without training.

    Returns:
        mirna_au: share of A and U in the miRNA; utr_length: nt; seed_type: the best seed match in the UTR,
        0 none to 5 8mer.
    """
    candidates = scan(pairs.mirna, pairs.utr)
    kind = seed_matches(candidates, np.arange(len(candidates.start)))[0]
    best = np.zeros(len(pairs))
    np.maximum.at(best, candidates.bag_of(), kind)
    return {
        "seed_type": best,
        "mirna_au": np.array([(m.count("A") + m.count("U")) / len(m) for m in pairs.mirna]),
        "utr_length": np.array([len(utr) for utr in pairs.utr], float),
    }


def balanced_loss(label: ArrayLike, logit: ArrayLike) -> float:
    """Mean negative log-likelihood of sigmoid(logit), both classes weighing the same."""
    label, logit = np.asarray(label, float), np.asarray(logit, float)
    return float((_class_weights(label) * np.logaddexp(0, np.where(label > 0.5, -logit, logit))).mean())


def balanced_scale(label: ArrayLike, logit: ArrayLike) -> float:
    """Factor c in 0.01-10 with the least :func:`balanced_loss` of c * logit."""
    scales = np.geomspace(0.01, 10, 601)
    return float(min(scales, key=lambda scale: balanced_loss(label, scale * np.asarray(logit))))


def _class_weights(label: ArrayLike) -> NDArray[np.float64]:
    """Weights under which both classes count equally and the mean weight is 1."""
    label = np.asarray(label)
    return np.where(label > 0.5, 0.5 / label.mean(), 0.5 / (1 - label.mean()))


def _keys(pairs: Pairs) -> list[tuple[str, str]]:
    return list(zip(pairs.mirna, pairs.utr_id, strict=True))


def _prior(seen: Strings, label: NDArray, asked: Strings) -> NDArray[np.float64]:
    counts: dict[str, list[float]] = {}
    for name, positive in zip(seen, label, strict=True):
        counts.setdefault(name, [0.5, 0.5])[int(positive)] += 1
    return np.array([np.log(counts[n][1] / counts[n][0]) if n in counts else 0.0 for n in asked])
