"""Protocols: which rows train, which choose, which test, and what a protocol claims they do not share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pairformer.bags import WINDOW
from pairformer.data import PAIRS, Pairs, Sites, columns, gene_names, load_pairs, load_utrs, rewire
from pairformer.evaluation.audit import near_identical_groups, overlap
from pairformer.scan import Strings
from pairformer.sources import FUNMIRBENCH, MOST_EFFECT, load_clash

FOLD_SEED = 2020  # of every split and decoy; the training has its own seed
VALIDATION = 10  # one part in so many of the training rows
HCT116, DEEPTARGETPRO = "lfc_agarwal2015_hct116/lfc.tsv.gz", "deeptargetpro_pairs/pairs.tsv"


@dataclass(frozen=True, eq=False)
class Effects(Pairs):
    """Pairs whose label is repression (-log2 fold change): as measured, or centred, raw - elsewhere within +-1.5."""

    raw: NDArray[np.float32]
    """(B,) as measured."""
    elsewhere: NDArray[np.float32]
    """(B,) the gene's mean over the experiments of other miRNA families."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of one training and of its test."""

    name: str
    train: Pairs
    validation: Pairs
    """Chooses the epoch and the F1 threshold; set apart from ``train`` by family, else gene, where that is claimed."""
    test: Pairs
    mirnas: tuple[str, ...] = ()
    """Of all experiments, where effects are centred over them, so that scores can be too."""

    def everywhere(self) -> Pairs:
        """The genes of the test in every experiment, miRNA by miRNA; label 0."""
        _, first = np.unique(self.test.utr_id, return_index=True)
        genes = self.test.take(np.tile(first, len(self.mirnas)))
        mirna = np.repeat(np.array(self.mirnas, object), len(first))
        return Pairs(np.zeros(len(mirna), np.float32), mirna, genes.gene, genes.utr, genes.utr_id)

    def centred(self, score: NDArray) -> NDArray[np.float64]:
        """Scores of the test from those of ``everywhere``, each less its gene's mean over other families'."""
        genes, column = np.unique(self.test.utr_id, return_inverse=True)
        table = np.asarray(score, np.float64).reshape(len(self.mirnas), len(genes))
        row = [self.mirnas.index(mirna) for mirna in self.test.mirna]
        return (table - _elsewhere(table, [mirna[1:8] for mirna in self.mirnas]))[row, column]

    def lines(self) -> list[str]:
        """The rows as a TSV."""
        lines = ["role\tmirna_seq\tutr_id\tgene\tlabel\n"]
        for role in ("train", "validation", "test"):
            pairs = getattr(self, role)
            cells = zip(pairs.mirna, pairs.utr_id, pairs.gene, pairs.label, strict=True)
            lines += [f"{role}\t{mirna}\t{utr_id}\t{gene}\t{label:g}\n" for mirna, utr_id, gene, label in cells]
        return lines

    def whole(self) -> Fold:
        """The fold of a training that chooses nothing by validation rows: it learns from them too."""
        return replace(self, train=self.train.join(self.validation), validation=self.validation.take(np.arange(0)))


@dataclass(frozen=True)
class Protocol:
    """How rows are dealt."""

    statement: str
    """What it is, for the report."""
    claims: tuple[str, ...]
    """Relations (see ``audit.overlap``) that no test row has to a row of training."""
    folds: Callable[[Path], list[Fold]]
    """Data folder -> folds."""
    warning: str = ""
    """What its figures must not be used for."""
    epochs: int = 6
    """Of stage 3, at most: the one with the best validation PR-AUC is kept."""


def group_folds(groups: Strings | NDArray, weight: NDArray, n_folds: int) -> NDArray[np.int64]:
    """Fold of each row; a group is never split.

    Groups are dealt greedily, the largest first: those with weight (such as negatives) to the fold with the
    least of it, then the others to the fold with the fewest rows.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    weights = np.bincount(index, weights=weight)
    rows = np.bincount(index)
    load = np.zeros((n_folds, 2))
    fold_of = np.empty(len(names), np.int64)
    for group in sorted(range(len(names)), key=lambda g: (-weights[g], -rows[g], names[g])):
        fold = int(load[:, 0 if weights[group] else 1].argmin())
        fold_of[group] = fold
        load[fold] += weights[group], rows[group]
    return fold_of[index]


def _among(values: Iterable[str], names: Iterable[str]) -> NDArray[np.bool_]:
    """Which values are one of the names; NumPy's isin takes minutes for a million strings."""
    known = set(names)
    return np.array([value in known for value in values], bool)


def held_out_sites(sites: Sites, test: Pairs, claims: Sequence[str]) -> NDArray[np.bool_]:
    """(M,) windows that the encoders may see: the protocol's claim on pairs holds for windows too.

    Where "family" is claimed no window of a test family; where "gene" is, none of a test gene; where "gene" or
    "near_identical" is, none that stands letter by letter in a test UTR.
    """
    allowed = np.ones(len(sites), bool)
    if "family" in claims:
        allowed &= ~_among(sites.family, test.family)
    if "gene" in claims:
        genes = set().union(*map(gene_names, test.gene))
        allowed &= np.array([genes.isdisjoint(gene_names(names)) for names in sites.gene])
    if {"gene", "near_identical"} & set(claims):
        windows = {utr[i : i + WINDOW] for utr in set(test.utr) for i in range(len(utr) - WINDOW + 1)}
        allowed &= ~_among(sites.window, windows)
    return allowed


def held_out_pairs(pairs: Pairs, test: Pairs, claims: Sequence[str]) -> NDArray[np.bool_]:
    """(B,) pairs beside the protocol's own that may be trained on, by its claims.

    No test pair itself; where they are claimed, none of a test family, of a test gene, nor with a UTR that is nearly
    identical with one of the test. A row of several genes, such as a window of CLASH, names all with commas.
    """
    asked = {(m, g) for m, names in zip(test.mirna, test.gene, strict=True) for g in gene_names(names)}
    genes = [gene_names(names) for names in pairs.gene]
    allowed = np.array([asked.isdisjoint((m, g) for g in own) for m, own in zip(pairs.mirna, genes, strict=True)], bool)
    if "family" in claims:
        allowed &= ~_among(pairs.family, test.family)
    if "gene" in claims:
        tested = {gene for _, gene in asked}
        allowed &= np.array([tested.isdisjoint(own) for own in genes], bool)
    if "near_identical" in claims:
        utrs, others = np.unique(pairs.utr), np.unique(test.utr)
        twin, test_twin = np.split(near_identical_groups(np.concatenate([utrs, others])), [len(utrs)])
        allowed &= ~_among(pairs.utr, utrs[np.isin(twin, test_twin)])
    return allowed


def _unique_pairs(folder: Path) -> Pairs:
    """miRAW by (miRNA sequence, gene): the first row of each."""
    pairs = load_pairs(folder / PAIRS, folder)
    keys = np.array([f"{m} {g}" for m, g in zip(pairs.mirna, pairs.gene, strict=True)])
    return pairs.take(np.sort(np.unique(keys, return_index=True)[1]))


def _files(folder: Path, table: str = PAIRS) -> tuple[Pairs, NDArray[np.bool_]]:
    """The pairs of a table and which of its ten published files (columns) each stands in."""
    member = np.array(
        [np.isin(range(10), np.array(sets.split(","), int)) for sets in columns(folder / table, "sets")[0]]
    )
    return load_pairs(folder / table, folder), member


def _split(name: str, train: Pairs, test: Pairs, claims: Sequence[str] = ()) -> Fold:
    """A fold with one part in ``VALIDATION`` of the training rows set aside: by family or gene where claimed."""
    groups = train.family if "family" in claims else train.gene if "gene" in claims else np.arange(len(train))
    return Fold(name, *set_aside(train, groups, VALIDATION), test)


def set_aside(pairs: Pairs, groups: Strings | NDArray, parts: int) -> tuple[Pairs, Pairs]:
    """The pairs without, and those of, one of ``parts`` parts of whole groups; both have both labels.

    Raises:
        ValueError: there is no such part.
    """
    part = group_folds(groups, pairs.label < 0.5, parts)
    # From the last part: the first would be the one miRNA that holds a fifth of miRAW's negatives.
    for aside in range(parts - 1, -1, -1):
        split = pairs.take(part != aside), pairs.take(part == aside)
        if all(len(np.unique(rows.label)) == 2 for rows in split):
            return split
    raise ValueError(
        f"validation must have both labels and leave both, got no such part of {parts} among "
        f"{len(np.unique(np.asarray(groups)))} groups; set none aside"
    )


def _half_split(folder: Path, files: Sequence[int] = range(1, 6), table: str = PAIRS) -> list[Fold]:
    pairs, member = _files(folder, table)
    rows = np.arange(len(pairs))
    others = [f for f in range(10) if f not in files]
    development, test = (np.concatenate([rows[member[:, f]] for f in part]) for part in (files, others))
    development = np.random.default_rng(FOLD_SEED).permutation(development)
    cut = len(development) // VALIDATION
    return [Fold("half-split", *(pairs.take(r) for r in (development[cut:], development[:cut], test)))]


def _deduplicated(folder: Path) -> list[Fold]:
    pairs, member = _files(folder)
    folds = []
    for f in range(10):
        rng = np.random.default_rng(FOLD_SEED + f)
        classes = [rng.permutation(np.flatnonzero(member[:, f] & (pairs.label == label))) for label in (1, 0)]
        test = np.concatenate([rows[: len(rows) // 5] for rows in classes])
        train = rng.permutation(np.concatenate([rows[len(rows) // 5 :] for rows in classes]))
        cut = len(train) // VALIDATION
        folds.append(Fold(f"file {f}", *(pairs.take(rows) for rows in (train[cut:], train[:cut], test))))
    return folds


def _gene_disjoint(folder: Path) -> list[Fold]:
    pairs, fold = load_pairs(folder / PAIRS, folder), columns(folder / PAIRS, "gene_fold")[0].astype(int)
    return [_split(f"genes {f}", pairs.take(fold != f), pairs.take(fold == f), ("gene",)) for f in np.unique(fold)]


def _family_disjoint(folder: Path) -> list[Fold]:
    pairs = load_pairs(folder / PAIRS, folder)
    fold = group_folds(pairs.family, pairs.label < 0.5, 5)
    return [_split(f"families {f}", pairs.take(fold != f), pairs.take(fold == f), ("family",)) for f in range(5)]


def _blocks(pairs: Pairs, n_folds: int) -> list[Fold]:
    """Every gene fold with every family fold: tests on their meeting, trains on rows in neither.

    Rows whose UTR is nearly identical with one of the test are not trained on either.
    """
    gene = group_folds(pairs.gene, pairs.label < 0.5, n_folds)
    family = group_folds(pairs.family, pairs.label < 0.5, n_folds)
    twin = near_identical_groups(pairs.utr)
    blocks = []
    for g, f in np.ndindex(n_folds, n_folds):
        test = (gene == g) & (family == f)
        train = (gene != g) & (family != f) & ~np.isin(twin, twin[test])
        blocks.append(_split(f"genes {g}, families {f}", pairs.take(train), pairs.take(test), ("family",)))
    return blocks


def _rewired(folder: Path) -> list[Fold]:
    pairs = _unique_pairs(folder)
    positives = pairs.take(pairs.label > 0.5)
    return _blocks(positives.join(rewire(positives, pairs)), 3)


def _elsewhere(effect: NDArray, family: Strings) -> NDArray[np.float64]:
    """(E, G): each gene's mean effect over the experiments of other families."""
    family = np.asarray(family)
    return np.array([effect[family != own].mean(0) for own in family])


def _fold_change(folder: Path) -> list[Fold]:
    names, mirna, geo = columns(folder / FUNMIRBENCH / "experiments.tsv", "experiment", "mirna_seq", "geo")
    names, mirna = names[geo == "GSE124530"], mirna[geo == "GSE124530"]
    utrs, trained = load_utrs(folder), set(columns(folder / PAIRS, "utr_id")[0])
    symbol = dict(zip(*columns(folder / FUNMIRBENCH / "gene_utr.tsv", "gene_id", "gene_symbol"), strict=True))
    experiment, gene, lfc = columns(folder / FUNMIRBENCH / "lfc.tsv.gz", "experiment", "gene_id", "log2fc")
    known = {name for name in symbol if name in trained and len(utrs[name]) >= 100}
    keep = _among(experiment, names) & _among(gene, known)
    return _experiments(
        folder, mirna, names, experiment[keep], gene[keep], lfc[keep], utrs, symbol, (8, 2), centred=True
    )


def _hct116(folder: Path) -> list[Fold]:
    mirna, gene, symbol, lfc = columns(folder / HCT116, "mirna_seq", "utr_id", "gene_symbol", "log2fc")
    utrs = load_utrs(folder)
    keep = (lfc != "") & _among(gene, (name for name in utrs if len(utrs[name]) >= 100))
    names = np.unique(mirna)
    symbols = dict(zip(gene, symbol, strict=True))
    return _experiments(folder, names, names, mirna[keep], gene[keep], lfc[keep], utrs, symbols, (1, 1), centred=False)


def _experiments(folder, mirna, names, experiment, gene, lfc, utrs, symbol, n_folds, centred) -> list[Fold]:
    """Family folds x gene folds of a complete (experiment, gene) table; trains on miRAW without either."""
    genes, g = np.unique(gene, return_inverse=True)
    number = {name: i for i, name in enumerate(names)}
    e = np.array([number[name] for name in experiment])
    total, count = np.zeros((len(names), len(genes))), np.zeros((len(names), len(genes)))
    np.add.at(total, (e, g), -lfc.astype(float))  # transcripts of one UTR are averaged
    np.add.at(count, (e, g), 1)
    whole = (count > 0).all(0)
    genes, raw = genes[whole], total[:, whole] / count[:, whole]
    family = np.array([sequence[1:8] for sequence in mirna], object)
    symbols = np.array([symbol[name] or name for name in genes], object)
    shape = raw.shape
    rows = np.indices(shape).reshape(2, -1)
    elsewhere = _elsewhere(raw, family)
    label = np.clip(raw - elsewhere, -MOST_EFFECT, MOST_EFFECT) if centred else raw
    values = [part.ravel().astype(np.float32) for part in (label, raw, elsewhere)]
    utr = np.array([utrs[name] for name in genes], object)
    effects = Effects(values[0], mirna[rows[0]], symbols[rows[1]], utr[rows[1]], genes[rows[1]], *values[1:])
    family_fold = group_folds(family, np.ones(len(family)), n_folds[0])[rows[0]]
    gene_fold = group_folds(symbols, np.ones(len(symbols)), n_folds[1])[rows[1]]
    pairs = load_pairs(folder / PAIRS, folder)
    twin, test_twin = np.split(near_identical_groups(np.concatenate([pairs.utr, effects.utr])), [len(pairs)])
    folds = []
    for f, k in np.ndindex(*n_folds):
        rows = (family_fold == f) & (gene_fold == k)
        test = effects.take(rows)
        seen = _among(pairs.family, test.family) | _among(pairs.gene, test.gene) | np.isin(twin, test_twin[rows])
        fold = _split(f"families {f}, genes {k}", pairs.take(~seen), test, ("family",))
        folds.append(replace(fold, mirnas=tuple(mirna) if centred else ()))
    return folds


def _deeptargetpro(folder: Path, new: bool) -> list[Fold]:
    train, test = load_pairs(folder / PAIRS, folder), load_pairs(folder / DEEPTARGETPRO, folder)
    if new:  # by name, by sequence, and by UTRs that are alike under other names
        group = near_identical_groups(np.concatenate([train.utr, test.utr]))
        known = set(zip(train.mirna, group[: len(train)], strict=True))
        alike = [pair in known for pair in zip(test.mirna, group[len(train) :], strict=True)]
        test = test.take(~(overlap(train, test).pair | np.array(alike)))
    return [_split("deeptargetpro", train, test)]


def _sites(folder: Path) -> list[Fold]:
    return [_split("sites", load_clash(folder), load_clash(folder, "test"))]


_LEAKY = "Rows of the test, or what gives them away, stand in training: no figure here is accuracy."
PROTOCOLS = {
    "half-split": Protocol(
        "The paper's split of miRAW: files 1-5 develop, files 0 and 6-9 test, rows repeated as published. Every test "
        "negative is a training negative.", (), _half_split, _LEAKY, 30),
    "half-split-b": Protocol(
        "half-split with files 0-4 to develop, 5-9 to test.", (), lambda f: _half_split(f, range(5)), _LEAKY, 30),
    "half-split-c": Protocol(
        "half-split with even files to develop, odd ones to test.", (),
        lambda f: _half_split(f, range(0, 10, 2)), _LEAKY, 30),
    "half-split-deeptargetpro": Protocol(
        "half-split of deepTargetPro's ten files, which share their 418 negatives too.", (),
        lambda f: _half_split(f, table=DEEPTARGETPRO), _LEAKY, 30),
    "deduplicated": Protocol(
        "Each published miRAW file by itself, 80 : 20 by class, seed 2020 + file. The files share their negatives, so "
        "the ten tests are not independent; encoders saw every labelled window.", ("pair",), _deduplicated,
        "miRNA and gene identity carry over from training to test: read every figure beside the identity scores.", 30),
    "gene-disjoint": Protocol(
        "miRAW in the five folds of column gene_fold: no gene of the test is in training; miRNAs are.",
        ("gene",), _gene_disjoint,
        "miRNA identity carries over from training to test: read every figure beside the identity scores."),
    "family-disjoint": Protocol(
        "miRAW in five folds of miRNA families (letters 2-8): no family of the test is in training, nor among the "
        "windows of the encoders; genes are.", ("family",), _family_disjoint),
    "both-disjoint": Protocol(
        "miRAW in 5 x 5 blocks of genes and miRNA families: tests on a block, trains on rows with neither; encoders "
        "are held out too.", ("gene", "family", "near_identical"),
        lambda folder: _blocks(load_pairs(folder / PAIRS, folder), 5)),
    "rewired": Protocol(
        "miRAW positives against the same miRNAs and genes in another pairing, 3 x 3 blocks of genes and families: "
        "miRNA and gene identity are worth nothing by construction. Decoys are unlabelled, so 1 is out of reach.",
        ("gene", "family", "near_identical"), _rewired),
    "fold-change": Protocol(
        "25 HeLa transfections (GSE124530): repression of each gene, centred by its mean in experiments of other "
        "families, ranked within each experiment; scores as they are and, where it says so, centred alike, by what "
        "they are for the other miRNAs. Trained on miRAW pairs with neither family nor gene, 8 x 2 blocks. "
        "Pooled scores read candidates with an ESA score of 8 or more.",
        ("gene", "family", "near_identical"), _fold_change),
    "hct116": Protocol(
        "Seven transfections in HCT116: repression of each gene as measured (what a gene does in the others says "
        "nothing of it here), ranked within each experiment. Trained on miRAW "
        "pairs with neither family nor gene. Pooled scores read candidates with an ESA score of 8 or more.",
        ("gene", "family", "near_identical"), _hct116),
    "deeptargetpro": Protocol(
        "deepTargetPro's unique pairs, trained on miRAW.", (),
        lambda folder: _deeptargetpro(folder, new=False), _LEAKY),
    "deeptargetpro-new": Protocol(
        "The deepTargetPro pairs whose miRNA with that gene, or a UTR near identical to theirs, is no miRAW pair, "
        "trained on miRAW.", ("pair",),
        lambda folder: _deeptargetpro(folder, new=True),
        "miRNA identity carries over from training to test: read every figure beside the identity scores."),
    "sites": Protocol(
        "CLASH windows of 50 nt with miRNA frequencies matched (miRBench, Hejret 2023): bags of at most 11 candidates, "
        "trained on its own training part; encoders saw every labelled window of miRAW, and of that part if told to.",
        (), _sites, "", 30),
}  # fmt: skip
