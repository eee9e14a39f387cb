"""Sequences -> probabilities and the sites behind them."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from pairformer.bags import Candidates
from pairformer.config import ModelConfig, as_bool, as_int, usable_threads
from pairformer.data import DataError, as_rna
from pairformer.engines import Scored, ScoredPairs, load_engine, pool_of
from pairformer.metrics import at_prior, sigmoid
from pairformer.scan import Strings, Texts, broadcast_pairs, pair_fault, scan
from pairformer.selector import STSelector
from pairformer.sites import draw, site_table

if TYPE_CHECKING:
    from pathlib import Path

Pair = TypeVar("Pair")
BATCH_WINDOWS = 1 << 19  # windows scored together: bounds memory whatever the number of pairs
BATCH_PAIRS = 2048


@dataclass(frozen=True, eq=False)
class Prediction:
    """One pair. ``repr`` shows the result, ``sites`` what it rests on."""

    probability: float
    """That the transcript is repressed, at the prior asked for, even odds unless told; NaN for an invalid pair."""
    logit: float
    """Of additive heads and aggregators; the model's constant (0) where there is no candidate."""
    n_candidates: int
    """Windows with enough ESA score."""
    utr_length: int
    """nt."""
    n_dropped: int
    """Windows passed over, with a letter outside ACGU."""
    status: str
    """"ok", "no_window" (UTR < 40 nt), "no_candidate" or "invalid"."""
    message: str | None
    """Why the pair is invalid."""
    engine: str
    """What computed it."""
    log2_fold_change: float | None
    """Expected of the transcript, beyond what its gene does in other experiments: the baseline plus the sites'
    contributions; 0 without a candidate, NaN for an invalid pair. None: the model has no additive head."""
    baseline: float | None
    """Its part that is of the pair and no site; None likewise."""
    interval: tuple[float, float] | None
    """Holds 90 % of the fold changes of the experiments it was fitted to, of held-out genes; None where the model knows
    none. For the default these are of HeLa cells and centred per gene: noisier experiments lie outside more often."""
    percentile: float | None
    """Of 100 pairs of this miRNA in the batch with status ok, how many are predicted less repressed, ties as half; NaN
    for another status, None likewise."""
    _reader: _Reader = field(repr=False)

    @property
    def sites(self) -> NDArray[np.void]:
        """Selected candidates, ascending start; fields as in :func:`pairformer.sites.site_table`.

        Read when they are first asked for, to be drawn or pickled too.

        Raises:
            ValueError: the model's encoders say what is no number.
        """
        return self._reader.found.table

    def draw(self, i: int) -> str:
        """Duplex of ``sites[i]`` as three lines of text."""
        found = self._reader.found
        return draw(found.candidates, range(len(found.table))[i])


@dataclass(frozen=True, eq=False)
class Predictions:
    """B pairs, in the order asked; index for one :class:`Prediction`, slice for a list of them, iterate for all.

    Pickled with all sites, which are read for it.
    """

    probability: NDArray[np.float32]
    """(B,) at the prior asked for, even odds unless told; NaN where invalid."""
    logit: NDArray[np.float32]
    """(B,)"""
    n_candidates: NDArray[np.int64]
    """(B,)"""
    utr_length: NDArray[np.int64]
    """(B,) nt."""
    n_dropped: NDArray[np.int64]
    """(B,) windows passed over, with a letter outside ACGU."""
    status: NDArray[np.str_]
    """(B,)"""
    message: list[str | None]
    """(B,) why a pair is invalid."""
    engine: str
    """What computed them."""
    log2_fold_change: NDArray[np.float32] | None
    """(B,) as in :class:`Prediction`; None for a model without additive head."""
    baseline: NDArray[np.float64] | None
    """(B,) the fold change less what the sites contribute; None likewise."""
    interval: NDArray[np.float32] | None
    """(B, 2); None for a model that knows none."""
    percentile: NDArray[np.float32] | None
    """(B,) among the pairs of the same miRNA here; None likewise."""
    _readers: list[_Reader] = field(repr=False)
    _firsts: NDArray[np.int64] = field(repr=False)
    """Number of the first pair of each reader, and of pairs."""

    def __len__(self) -> int:
        return len(self.logit)

    def __iter__(self) -> Iterator[Prediction]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, i: int) -> Prediction: ...

    @overload
    def __getitem__(self, i: slice) -> list[Prediction]: ...

    def __getitem__(self, i: int | slice) -> Prediction | list[Prediction]:
        if isinstance(i, slice):
            return [self[place] for place in range(len(self))[i]]
        i = as_int("index", i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"index must be in {-len(self)}..{len(self) - 1}, got {i}")
        i = range(len(self))[i]
        number = int(np.searchsorted(self._firsts, i, side="right")) - 1
        change, baseline, percentile = (
            None if column is None else float(column[i])
            for column in (self.log2_fold_change, self.baseline, self.percentile)
        )
        interval = None if self.interval is None else (float(self.interval[i, 0]), float(self.interval[i, 1]))
        return Prediction(
            float(self.probability[i]), float(self.logit[i]), int(self.n_candidates[i]), int(self.utr_length[i]),
            int(self.n_dropped[i]), str(self.status[i]), self.message[i], self.engine, change, baseline, interval,
            percentile, self._readers[number].alone(i - int(self._firsts[number])),
        )  # fmt: skip

    def site_table(self, matches: bool = False) -> tuple[NDArray[np.int64], NDArray[np.void], NDArray[np.str_]]:
        """Sites of all pairs at once.

        Args:
            matches: one row of each seed match alone, the window that sees most of it (of equal ones the first), which
                is the one that contributes.

        Returns:
            pair (M,) number of the pair a site belongs to; sites (M,) as in :func:`pairformer.sites.site_table`;
            aligned (M, 2) gapped strings, miRNA 5'->3' and window 3'->5'.
        """
        read = [reader.found for reader in self._readers]
        rows = [found.rows(matches) for found in read]
        pair = [first + found.candidates.bag_of(some)
                for first, found, some in zip(self._firsts, read, rows, strict=False)]  # fmt: skip
        return (
            np.concatenate(pair),
            np.concatenate([found.table[some] for found, some in zip(read, rows, strict=True)]),
            np.concatenate([found.candidates.aligned_rows(some) for found, some in zip(read, rows, strict=True)]),
        )

    def drawings(self, matches: bool = False) -> list[str]:
        """Duplexes of the rows of :meth:`site_table`, as three lines of text each."""
        read = [reader.found for reader in self._readers]
        return [draw(found.candidates, row) for found in read for row in found.rows(matches).tolist()]

    def pair_table(self) -> NDArray[np.void]:
        """Structured array (B,) of the fields above that are of pairs and the model gives, ``interval`` as
        ``interval_low`` and ``interval_high``, ``message`` "" where there is none; without sites, so small in a pickle.
        """
        low, high = (None, None) if self.interval is None else self.interval.T
        columns = {
            "probability": self.probability, "logit": self.logit, "n_candidates": self.n_candidates,
            "utr_length": self.utr_length, "n_dropped": self.n_dropped, "status": self.status,
            "log2_fold_change": self.log2_fold_change, "baseline": self.baseline, "interval_low": low,
            "interval_high": high, "percentile": self.percentile,
            "message": np.array([message or "" for message in self.message], object),
        }  # fmt: skip
        known = {name: values for name, values in columns.items() if values is not None}
        table = np.empty(len(self), [(name, values.dtype) for name, values in known.items()])
        for name, values in known.items():
            table[name] = values
        return table


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some pairs scored together, column by column as in :class:`Predictions`."""

    logit: NDArray[np.float32]
    n_candidates: NDArray[np.int64]
    utr_length: NDArray[np.int64]
    n_dropped: NDArray[np.int64]
    status: NDArray[np.str_]
    message: list[str | None]
    log2_fold_change: NDArray[np.float32] | None
    baseline: NDArray[np.float64] | None
    reader: _Reader


class _Reader:
    """The sites of some pairs, read when they are first asked for; pickled with what was found.

    Without a lock, which a forked process would find held: of two threads that ask at once both read the same.
    """

    def __init__(self, read: Callable[[], _Sites], read_one: Callable[[int], _Sites] | None = None) -> None:
        self._read: Callable[[], _Sites] | None = read
        self._read_one = read_one
        self._found: _Sites | None = None
        self._alone: dict[int, _Reader] = {}

    @property
    def found(self) -> _Sites:
        read = self._read  # before the look at what was found
        if self._found is None:
            assert read is not None
            self._found, self._read = read(), None  # lets go of what it read from
        return self._found

    def alone(self, bag: int) -> _Reader:
        """Of one pair, for which the others' are not read, or nothing is read again."""

        def read() -> _Sites:
            known = self._read_one is None or self._found is not None
            return self.found.alone(bag) if known else self._read_one(bag)  # type: ignore[misc]

        return self._alone.setdefault(bag, _Reader(read))

    def __getstate__(self) -> dict:
        return {"_found": self.found, "_read": None, "_read_one": None, "_alone": {}}


@dataclass(frozen=True, eq=False)
class _Sites:
    """Selected candidates of some pairs."""

    candidates: Candidates
    """Selected rows only."""
    table: NDArray[np.void]
    """(M,) :func:`pairformer.sites.site_table` of them."""

    def rows(self, matches: bool) -> NDArray[np.int64]:
        """All of them, or those that stand for a seed match."""
        every = np.arange(len(self.table))
        if not as_bool("matches", matches):
            return every
        return np.flatnonzero(self.candidates.site_context(every, self.candidates.offsets)[:, 0])

    def alone(self, bag: int) -> _Sites:
        """Of one pair, nothing of the others'."""
        return _Sites(self.candidates.alone(bag), self.table[slice(*self.candidates.offsets[bag : bag + 2])])


def predict(
    mirna: Texts,
    utr: Texts,
    *,
    model: str | Path = "default",
    k_max: int | None = None,
    engine: str = "auto",
    device: str = "auto",
    threads: int = 0,
    explain: bool = False,
    prior: float = 0.5,
    strict: bool = False,
    accessibility: bool = False,
) -> Prediction | Predictions:
    """Is the transcript repressed by the miRNA, and by which sites?

    Args:
        mirna: 1-35 letters ACGU, 5'->3', any case, T read as U; or a sequence or a table's column of them.
        utr: 3'UTR, 5'->3', any length; windows with other letters are passed over. Under 40 nt it has letters of the
            IUPAC code alone, and is not "NA" or "NaN". Two sequences must be equally long; a single string is
            broadcast.
        model: "default", "paper" (the paper's form and labels) or a directory written by ``PairFormer.save``.
        k_max: candidates the expensive encoder may read per pair, at least 1; None for the model's own.
        engine: "native" (C++ on the CPU), "torch", "triton", "triton-bf16" (bfloat16 after selection), or "auto":
            native unless ``device`` names another than the CPU. One asked for by name never falls back to another.
        device: "auto", "cpu"; for torch also "cuda", ..., and "auto" is then a CUDA device if there is one.
        threads: 0 for all this process may use.
        explain: fill ``sites["weight"]``: the logit's change when that one token is left out.
        prior: share of repressed pairs among those asked about, in (0, 1): log(prior / (1 - prior)) is added to
            the scaled logit before the sigmoid. The order of pairs and the logits do not change.
        strict: raise for an invalid pair also in a list.
        accessibility: fill ``sites["unpaired"]``: how open each seed match is (:func:`pairformer.sites.accessibility`);
            no other result depends on it.

    Returns:
        Prediction for two strings, else Predictions. A pair without a candidate has the model's constant
        logit, 0: the prior. In a list an invalid pair keeps its place with NaN and a message.

    Raises:
        ValueError: an invalid pair (two strings, or ``strict``), lists of different length, a setting out
            of range, a damaged model, or a device that is not there.
        TypeError: ``mirna`` or ``utr`` is neither a string nor a sequence, or a setting is of another kind.
        FileNotFoundError: no such model.
        ImportError: the engine's library is missing.

    Source: PAIR-Former Algorithm 2.
    """
    mirnas, utrs = broadcast_pairs(mirna, utr)
    single = isinstance(mirna, str) and isinstance(utr, str)
    if as_bool("strict", strict) or single:
        for m, u in zip(mirnas, utrs, strict=True):
            fault = pair_fault(m, u)
            if fault is not None:
                raise ValueError(fault)
    scorer = Scorer(model, k_max, engine, device, threads, explain, prior, accessibility)
    predictions = scorer.score(mirnas, utrs)
    return predictions[0] if single else predictions


class Scorer:
    """A loaded model and its settings, for scoring many batches.

    Arguments are those of :func:`predict`, and ``sites``: whether sites are sure to be asked for, so that they are best
    read with their pairs.
    """

    def __init__(
        self,
        model: str | Path = "default",
        k_max: int | None = None,
        engine: str = "auto",
        device: str = "auto",
        threads: int = 0,
        explain: bool = False,
        prior: float = 0.5,
        accessibility: bool = False,
        sites: bool = False,
    ) -> None:
        if k_max is not None:
            k_max = operator.index(STSelector(k_max=k_max).config.k_max)
        self.prior, self._prior_logit = prior, float(at_prior(0.0, prior))
        self.k_max, self.threads, self.explain = k_max, usable_threads(threads), as_bool("explain", explain)
        self.folding_threads = self.threads if as_bool("accessibility", accessibility) else None
        self.sites = as_bool("sites", sites) or self.explain or self.folding_threads is not None
        self.engine = load_engine(engine, model, device)
        self._warm = False

    @property
    def settings(self) -> dict[str, object]:
        """What a result depends on, for file headers."""
        config = self.engine.config
        return {
            "model_sha256": self.engine.metadata["model_sha256"][:16],
            "engine": self.engine.name,
            "k_max": self.k_max or config.selector.k_max,
            "esa_min": config.esa_min,
            "prior": self.prior,
        }

    def score(self, mirnas: Strings, utrs: Strings) -> Predictions:
        """Score equally many miRNAs and UTRs; invalid pairs keep their place."""
        pairs = zip(mirnas, utrs, strict=True)
        times = 1 if self.engine.in_flight == 1 else 4  # a batch is some 300 launches, however few its pairs
        groups = list(in_batches(pairs, lambda pair: pair[1], times=times)) or [[]]  # no pair: one empty batch
        first = 0 if self._warm else 1  # alone: what is tuned on first use is tuned once
        batches = [self._score(group) for group in groups[:first]]
        self._warm = True
        batches += self._scored(groups[first:])
        columns: dict[str, Any] = {f.name: [getattr(batch, f.name) for batch in batches] for f in fields(_Batch)}
        columns |= {name: None if parts[0] is None else np.concatenate(parts)
                    for name, parts in columns.items() if name not in ("message", "reader")}  # fmt: skip
        logit, change, n_candidates = (columns[name] for name in ("logit", "log2_fold_change", "n_candidates"))
        probability = sigmoid(self.engine.config.logit_scale * logit.astype(np.float64) + self._prior_logit)
        return Predictions(
            probability.astype(np.float32), logit, n_candidates, columns["utr_length"], columns["n_dropped"],
            columns["status"], [*itertools.chain(*columns["message"])], self.engine.name, change, columns["baseline"],
            None if change is None else _interval(change, self.engine.config),
            None if change is None else percentiles(mirnas, change, n_candidates), columns["reader"],
            np.cumsum([0] + [len(batch.logit) for batch in batches]),
        )  # fmt: skip

    def _scored(self, groups: list[list[tuple[str, str]]]) -> list[_Batch]:
        """As many at once as the engine can take; after an error none goes on."""
        if self.engine.in_flight == 1 or len(groups) < 2:
            return [self._score(group) for group in groups]
        futures = [pool_of(self.engine.in_flight, os.getpid()).submit(self._score, group) for group in groups]
        try:
            return [future.result() for future in futures]
        finally:
            for future in [future for future in futures if not future.cancel()]:
                future.exception()  # waits for those that run

    def _score(self, pairs: list[tuple[str, str]]) -> _Batch:
        mirna, utr = [m for m, _ in pairs], [u for _, u in pairs]
        candidates = scan(mirna, utr, self.engine.config.esa_min, threads=self.threads)
        if self.sites:
            scored = self.engine.score(candidates, self.k_max, self.threads, self.explain).pairs()
        else:
            scored = self.engine.score_pairs(candidates, self.k_max, self.threads)
        if scored.whole is not None:
            return self._batch(candidates, scored, _Reader(self._sites(candidates, scored.whole)))
        bags = candidates.take(np.empty(0, np.int64), np.zeros_like(candidates.offsets))  # take less memory

        def read(bags: Candidates = bags) -> _Sites:
            again = Candidates.of(bags.batch, bags.utr_length, bags.messages, self.engine.config.esa_min, self.threads)
            return self._sites(again, self.engine.score(again, self.k_max, self.threads, False))()

        return self._batch(candidates, scored, _Reader(read, lambda bag: read(bags.alone(bag))))

    @property
    def _scale(self) -> np.float32:
        """From repression to log2 fold change."""
        return np.float32(-self.engine.config.effect_scale)

    def _batch(self, candidates: Candidates, scored: ScoredPairs, reader: _Reader) -> _Batch:
        logit, change, baseline = scored.pair_logit, None, None
        logit[list(candidates.messages)] = np.nan
        if scored.repression is not None and scored.contribution is not None:
            change = self._scale * scored.repression + 0.0  # no -0
            change[list(candidates.messages)] = np.nan
            baseline = change - self._scale * scored.contribution
        message = [candidates.messages.get(bag) for bag in range(len(candidates))]
        return _Batch(
            logit, candidates.n_candidates, candidates.utr_length, candidates.n_dropped, candidates.status, message,
            change, baseline, reader,
        )  # fmt: skip

    def _sites(self, candidates: Candidates, scored: Scored) -> Callable[[], _Sites]:
        """What makes the table of sites, without holding the rows that were not selected."""
        chosen, logit, threads = scored.selection, scored.logit, self.folding_threads
        kept, cheap_logit = candidates.take(chosen.rows, chosen.offsets), scored.cheap_logit[chosen.rows]
        more = {"contribution": scored.contribution, "weight": scored.weight}
        if more["contribution"] is not None:
            more["contribution"] = self._scale * more["contribution"] + 0.0
        rows, reason = np.arange(len(logit)), chosen.reason
        return lambda: _Sites(kept, site_table(kept, rows, cheap_logit, logit, reason, more, threads))


def _interval(change: NDArray[np.float32], config: ModelConfig) -> NDArray[np.float32] | None:
    """(B, 2) ends of the interval around predicted log2 fold changes, wider for strong repression."""
    if not config.effect_interval:
        return None
    outwards = np.array(config.effect_widening) * [-1, 1] * np.maximum(-change, 0)[:, None]
    return (change[:, None] + config.effect_interval + outwards).astype(np.float32)


def percentiles(mirnas: Strings, change: NDArray[np.float32], n_candidates: NDArray) -> NDArray[np.float32]:
    """(B,) of 100 pairs of the same miRNA, how many have a higher ``change``, ties as half.

    NaN, not counted, for pairs without a candidate and where ``change`` is NaN.
    """
    score = np.where(n_candidates > 0, -change, np.nan)
    found = np.full(len(score), np.nan, np.float32)
    real = np.flatnonzero(~np.isnan(score))
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(as_rna(mirnas[i]), len(numbers)) for i in real.tolist()], np.int64)
    order = np.lexsort((score[real], group))
    group, value = group[order], score[real][order]
    other = np.diff(group, prepend=-1) != 0
    (begin, end), (below, above) = _runs(other), _runs(other | (np.diff(value, prepend=0) != 0))
    found[real[order]] = 50 * (below + above - 2 * begin) / (end - begin)
    return found


def _runs(first: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Begin and end of the run that each row is in, from where runs begin."""
    begin, run = np.flatnonzero(first), np.cumsum(first) - 1
    return begin[run], np.append(begin[1:], len(first))[run]


def in_batches(
    pairs: Iterable[Pair], utr: Callable[[Pair], object], most: int = BATCH_WINDOWS, times: int = 1
) -> Iterator[list[Pair]]:
    """Group consecutive pairs before their letters (``most``) or number grow too large to work on together.

    ``times`` as many for what works on several batches at once. What was read before a DataError comes before it.
    """
    group: list[Pair] = []
    windows = 0
    damage = None
    try:
        for pair in pairs:
            text = utr(pair)
            length = len(text) if isinstance(text, str) else 0
            if group and (windows + length > times * most or len(group) >= times * BATCH_PAIRS):
                yield group
                group, windows = [], 0
            group.append(pair)
            windows += length
    except DataError as error:
        damage = error
    if group:
        yield group
    if damage is not None:
        raise damage
