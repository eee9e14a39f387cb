"""Stage 3: ``pairformer train stage3``. Fits the aggregators on pairs and fold changes, then the encoder with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pairformer.config import LEAST_SEED, TrainConfig
from pairformer.data import Pairs, rewire
from pairformer.engines import NativeEngine
from pairformer.metrics import ranking
from pairformer.models import PairFormer
from pairformer.models.pair_former import Tokens, chunks, site_facts
from pairformer.scan import scan
from pairformer.sites import seed_windows
from pairformer.sources import FoldChanges, MoreSources
from pairformer.training.loop import fit
from pairformer.training.losses import binary_loss, class_weights, effect_loss, mirna_weights

SCORED = 64  # bags scored at once
READ = 1024  # pairs of an experiment scanned at once
NOTHING_MORE = MoreSources()
ALONE = 0.5  # weight of an experiment that is the only one of its laboratory here


def train_aggregator(
    model: PairFormer,
    bags: Bags,
    validation: Bags | None,
    config: TrainConfig,
    run_dir: Path,
    more: MoreSources = NOTHING_MORE,
) -> None:
    """Train the additive heads, then the aggregators beside them, at the end with ``model.expensive``.

    Pairs without a candidate have a constant logit and nothing to teach the aggregators: they are left out of their
    training, not of validation; the heads see positives of the kind, and their decoys, by what the pair is made of.
    With ``config.budgets`` each batch of the aggregators draws one of them. Every member has a loss of its own. The
    heads see no labels but decoys: labels would teach them the miRNA. Labelled windows inside labelled pairs teach the
    encoder in joint epochs, where they are selected (eq. 8).

    Args:
        model: the encoders are trained.
        bags: training pairs, with ``config.budgets``.
        validation: pairs to pick the aggregators' epoch by, by class-balanced PR-AUC; None for the last epoch.
        config: the training; a source whose rows are not given is left out.
        run_dir: checkpoints and log.
        more: further sources.
    """
    if model.additives:
        experiments = read_experiments(more.effects, model.config.esa_min, config.sources.components)
        train_heads(model, bags.pairs, config, run_dir, experiments)
    if not model.aggregators:
        return
    clash = Bags(model, more.clash, config.budgets) if more.clash is not None and config.sources.clash else None
    sources = _Sources(model, bags, clash, config)
    trained = nn.ModuleDict({"aggregators": model.aggregators, "gates": model.gates, "expensive": model.expensive})
    instances = Instances(bags, more.instances if config.sources.instances else None)
    first_joint = config.stage3.epochs - config.stage3.joint_epochs
    frozen = not config.stage3.joint_epochs  # throughout: then the validation tokens stay too

    def step(rows, epoch):
        # torch's generator, which the loop seeds by epoch: a resumed run draws the same budgets
        k_max = config.budgets[int(torch.randint(len(config.budgets), ()))] if config.budgets else None
        loss = torch.zeros((), device=model.device)
        for part, mine in sources.parts(rows, epoch):
            tokens = part.bags.tokens(part.rows[mine], frozen=epoch < first_joint, k_max=k_max)
            label, weight = (column[mine].to(model.device) for column in (part.label, part.weight))
            found = binary_loss(model.members(tokens)[0], label, weight, config.loss)
            loss = loss + found * (len(mine) / len(rows))
            known = instances.of(part.rows[mine], k_max) if part is sources.labels and epoch >= first_joint else ()
            if len(known):
                _, logit = model.encode_selected(bags.candidates, instances.row[known])
                label = instances.label[known].to(model.device)
                found = binary_loss(logit, label, torch.ones_like(label), config.loss)
                loss = loss + found * (config.sources.instances * len(known) / len(rows))
        return loss

    model.additives.requires_grad_(False)
    fit("stage3", trained, len(sources), step, config.stage3, run_dir, config.rng_seed,
        (lambda: ranking(validation.pairs.label, validation.logits(frozen))) if validation else None,
        joint=model.expensive)  # fmt: skip
    model.additives.requires_grad_(True)


def train_heads(
    model: PairFormer, pairs: Pairs, config: TrainConfig, run_dir: Path, experiments: Iterable[Experiment]
) -> None:
    """Fit the additive heads to fold changes, one experiment a step, and to positive pairs against decoys."""
    sources, esa_min = config.sources, model.config.esa_min
    experiments = list(experiments) if sources.effects else []
    positives = pairs.take(pairs.label > 0.5)
    real, decoys = read_seed_sites(positives, esa_min), dict[int, SeedSites]()

    def step(rows, epoch):
        loss = torch.zeros((), device=model.device)
        if sources.decoys:
            if epoch not in decoys:
                decoys.clear()
                drawn = rewire(positives, pairs, [config.rng_seed, epoch])
                decoys[epoch] = read_seed_sites(drawn, esa_min)
            both = [[column.to(model.device) for column in part.take(rows)] for part in (real, decoys[epoch])]
            logit = torch.cat([
                torch.stack([head.gain * head(*part)[0] for head in model.additives]) for part in both
            ], 1)  # fmt: skip
            label = (torch.arange(2 * len(rows), device=model.device) < len(rows)).float()
            loss = loss + sources.decoys * binary_loss(logit, label, torch.ones_like(label), config.loss)
        if experiments:
            experiment = experiments[int(torch.randint(len(experiments), ()))]
            *sites, effect = (column.to(model.device) for column in (*experiment.sites.all(), experiment.effect))
            score = torch.stack([head(*sites)[0] for head in model.additives])
            loss = loss + sources.effects * experiment.weight * effect_loss(score, effect)
        return loss

    rows = len(positives) if sources.decoys else len(experiments) * config.additive.batch_size
    fit("additive", model.additives, rows, step, config.additive, run_dir, config.rng_seed)
    for head in model.additives:
        head.shrink(sources.baseline, real.bag.to(model.device))  # type: ignore[operator]


@dataclass(frozen=True)
class _Part:
    """Rows of one source of labels."""

    bags: Bags
    rows: NDArray[np.int64]
    """Numbers of the bags."""
    label: Tensor
    weight: Tensor


class _Sources:
    """Rows of all sources of labels, numbered through; decoys are drawn when an epoch is first asked for."""

    def __init__(self, model: PairFormer, bags: Bags, clash: Bags | None, config: TrainConfig) -> None:
        shares = config.sources
        self._model, self._config, self._epoch = model, config, -1
        self._parts: list[_Part] = []
        self.labels: _Part | None = None
        """Labelled pairs, where they have a share."""
        for source, share in ((bags, shares.labels), (clash, shares.clash)):
            if source is not None and share:
                rows = np.flatnonzero(source.candidates.n_candidates)
                label = torch.from_numpy(source.pairs.label[rows])
                per_mirna = shares.per_mirna or source is clash
                weight = mirna_weights(label, source.pairs.mirna[rows]) if per_mirna else class_weights(label)
                kept = np.flatnonzero(weight)  # the others teach nothing
                self._parts.append(_Part(source, rows[kept], label[kept], share * weight[kept]))
                if source is bags:
                    self.labels = self._parts[-1]
        positive = np.flatnonzero((bags.pairs.label > 0.5) & (bags.candidates.n_candidates > 0))
        weight = torch.full((len(positive) if shares.decoys else 0,), shares.decoys)
        self._positives = _Part(bags, positive[: len(weight)], torch.ones(len(weight)), weight)

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self._parts) + 2 * len(self._positives.rows)

    def parts(self, rows: NDArray[np.int64], epoch: int) -> Iterator[tuple[_Part, NDArray[np.int64]]]:
        """The sources that the given of all rows belong to, and the numbers they have there."""
        decoys = (self._positives, self._decoys(epoch)) if len(self._positives.rows) else ()
        begin = 0
        for part in (*self._parts, *decoys):
            mine = rows[(rows >= begin) & (rows < begin + len(part.rows))] - begin
            if len(mine):
                yield part, mine
            begin += len(part.rows)

    def _decoys(self, epoch: int) -> _Part:
        if epoch != self._epoch:
            pairs, rows = self._positives.bags.pairs, self._positives.rows
            drawn = rewire(pairs.take(rows), pairs, [self._config.rng_seed, epoch])
            bags, zeros = Bags(self._model, drawn, self._config.budgets), torch.zeros(len(rows))
            self._epoch, self._drawn = epoch, _Part(bags, np.arange(len(rows)), zeros, self._positives.weight)
        return self._drawn


class Bags:
    """Selected candidates of many pairs; what the encoder says of them, kept for as long as it is frozen.

    The cheap encoder does not change in stage 3, so each pair is scanned, scored and selected once per budget.
    """

    def __init__(self, model: PairFormer, pairs: Pairs, budgets: Sequence[int] = ()) -> None:
        self.model, self.pairs = model, pairs
        self.candidates = scan(pairs.mirna, pairs.utr, model.config.esa_min, strict=True)
        self._native = NativeEngine.of(model).model
        threads = torch.get_num_threads()
        cheap_logit, keys = self._native.cheap_scan(self.candidates, threads=threads)
        self._selected = {k: model.select(self.candidates, cheap_logit, keys, k) for k in (None, *budgets)}
        token = model.config.token
        self._facts = {k: torch.from_numpy(site_facts(self.candidates, chosen.rows, chosen.offsets, token, threads))
                       for k, chosen in self._selected.items()}  # fmt: skip
        self._bag = torch.from_numpy(self.candidates.bag_features())
        self._read = np.unique(np.concatenate([selection.rows for selection in self._selected.values()]))
        self._encoded: tuple[Tensor, Tensor] | None = None

    def tokens(self, bags: NDArray[np.int64], frozen: bool, k_max: int | None = None) -> Tokens:
        """Tokens of some bags; ``frozen`` reads what is kept, else gradients reach the encoder."""
        selection = self._selected[k_max]
        numbers, counts = _spans(selection.offsets, bags)
        offsets = np.cumsum([0, *counts])
        rows = selection.rows[numbers]
        if frozen:
            at = torch.from_numpy(np.searchsorted(self._read, rows))
            embedding, logit = (part[at].to(self.model.device) for part in self._frozen())
        else:
            embedding, logit = self.model.encode_selected(self.candidates, rows)
        facts, bag = self._facts[k_max][torch.from_numpy(numbers)], self._bag[torch.from_numpy(bags)]
        return self.model.pack(facts.to(self.model.device), bag.to(self.model.device), offsets, embedding, logit)

    @torch.no_grad()
    def logits(self, frozen: bool = False, k_max: int | None = None) -> NDArray[np.float32]:
        """(B,) pair logits, with the encoder as it is now or as it was when it was first read."""
        parts = [np.arange(part.start, part.stop) for part in chunks(len(self.pairs), SCORED)]
        logits = [self.model.aggregate(self.tokens(part, frozen, k_max)).logit for part in parts]
        return torch.cat(logits).cpu().numpy()

    def selects(self, rows: NDArray[np.int64], k_max: int | None) -> NDArray[np.bool_]:
        """Which candidates (rows) are selected at a budget."""
        return np.isin(rows, self._selected[k_max].rows)

    def _frozen(self) -> tuple[Tensor, Tensor]:
        if self._encoded is None:
            found = self._native.encode(self.candidates, self._read, threads=torch.get_num_threads())
            self._encoded = torch.from_numpy(found[0]), torch.from_numpy(found[1])
        return self._encoded


def _spans(offsets: NDArray[np.int64], bags: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of some bags of a ragged batch, and how many each has."""
    rows = np.concatenate([np.arange(*offsets[bag : bag + 2]) for bag in bags])
    return rows, np.diff(offsets)[bags]


class Instances:
    """Candidates with a label of their own, of bags that hold a labelled window of their miRNA."""

    def __init__(self, bags: Bags, windows: Pairs | None) -> None:
        known: dict[str, list[tuple[str, float]]] = {}
        if windows is not None:
            for mirna, window, label in zip(windows.mirna, windows.utr, windows.label, strict=True):
                known.setdefault(mirna, []).append((window, label))
        candidates, found = bags.candidates, []
        for bag, (mirna, utr) in enumerate(zip(bags.pairs.mirna, bags.pairs.utr, strict=True)):
            first, last = candidates.offsets[bag : bag + 2]
            starts = candidates.start[first:last]
            for window, label in known.get(mirna, ()):
                found += [(bag, first + at, label) for at in np.flatnonzero(starts == utr.find(window))]
        bag_of, rows, labels = zip(*found, strict=True) if found else ((), (), ())
        self._bags, self._bag_of = bags, np.array(bag_of, np.int64)
        self.row, self.label = np.array(rows, np.int64), torch.tensor(labels, dtype=torch.float32)

    def of(self, bags: NDArray[np.int64], k_max: int | None) -> NDArray[np.int64]:
        """Numbers of those in some bags that are selected at a budget."""
        mine = np.flatnonzero(np.isin(self._bag_of, bags))
        return mine[self._bags.selects(self.row[mine], k_max)]


@dataclass(frozen=True)
class SeedSites:
    """What an additive head reads of B pairs: all seed sites, which a model with ``keep_seed`` selects if they fit."""

    site: Tensor
    """(M, 13) windows that stand for a site, pair by pair: features, then context."""
    offsets: NDArray[np.int64]
    """(B + 1,)."""
    bag: Tensor
    """(B, 12)."""

    def all(self) -> tuple[Tensor, Tensor, Tensor]:
        """Arguments of an additive head, for all pairs."""
        return self.site, torch.from_numpy(np.diff(self.offsets)), self.bag

    def take(self, pairs: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """The same for some pairs."""
        rows, counts = _spans(self.offsets, pairs)
        return self.site[torch.from_numpy(rows)], torch.from_numpy(counts), self.bag[torch.from_numpy(pairs)]


def read_seed_sites(pairs: Pairs, esa_min: int) -> SeedSites:
    """Seed sites of pairs, of ``LEAST_SEED`` or better."""
    sites, bags, counts = [], [], []
    for part in chunks(len(pairs), READ):
        candidates = scan(pairs.mirna[part], pairs.utr[part], esa_min, strict=True)
        none = np.zeros(len(candidates.start), np.float32)
        rows = np.flatnonzero(seed_windows(candidates, none, LEAST_SEED))  # type: ignore[arg-type]
        offsets = np.searchsorted(rows, candidates.offsets)
        sites.append(site_facts(candidates, rows, offsets, threads=torch.get_num_threads())[:, 3:])
        bags.append(candidates.bag_features())
        counts.append(np.diff(offsets))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return SeedSites(torch.from_numpy(np.concatenate(sites)), offsets, torch.from_numpy(np.concatenate(bags)))


@dataclass(frozen=True)
class Experiment:
    """The G genes of one experiment."""

    sites: SeedSites
    effect: Tensor
    """(G,) repression, centred, less its shared components."""
    weight: float
    """In the loss."""


def read_experiments(effects: FoldChanges | None, esa_min: int, components: int = 0) -> Iterator[Experiment]:
    """Every experiment with the seed sites of its genes, read when it is asked for."""
    if effects is None:
        return
    centred = effects.centred().specific(components)
    shared = {series for series in set(effects.series) if len(set(effects.experiment[effects.series == series])) > 1}
    for name in np.unique(centred.experiment):
        genes = centred.take(centred.experiment == name)
        weight = 1.0 if genes.series[0] in shared else ALONE
        yield Experiment(read_seed_sites(genes, esa_min), torch.from_numpy(genes.label), weight)
