"""Protocol -> audit -> trained or given model, and what simple scores reach on the same rows -> report."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

import pairformer
from pairformer.config import AggregatorConfig, ModelConfig, SourceConfig, TrainConfig, check
from pairformer.data import SITES, Pairs, Sites, load_sites
from pairformer.engines import NativeEngine, ScoredPairs
from pairformer.evaluation import targetnet
from pairformer.evaluation.audit import name_genes, overlap
from pairformer.evaluation.baselines import Scores, identity_scores, pooled_scores, site_logits, untrained_scores
from pairformer.evaluation.fold_change import (
    bins_table,
    effect_bins,
    effect_calibration,
    effects_table,
    summarise_effects,
)  # fmt: skip
from pairformer.evaluation.protocols import PROTOCOLS, Effects, Fold, Protocol, held_out_pairs, held_out_sites
from pairformer.evaluation.report import FoldResult, Score, summarise, write
from pairformer.metrics import balanced_scale
from pairformer.models import PairFormer
from pairformer.models.pair_former import chunks
from pairformer.saved import whole_file
from pairformer.scan import ESA_MIN, scan
from pairformer.sources import MoreSources, load_sources
from pairformer.training import (
    Bags,
    check_sources,
    claim,
    content_hash,
    train_aggregator,
    train_encoders,
)  # fmt: skip

REFERENCE, REPRESSION = "pair-former", "pair-former repression"
CENTRED = "{} centred".format  # a score less its gene's mean in the experiments of other families
MIL_KINDS = ("deep_sets", "gated_attention")
POOLED_AT_ONCE = 256  # pairs whose candidates exist at once
EFFECTS_ESA_MIN = 8  # pooled scores of fold changes read one candidate in eight: 25 experiments have 1e8
# In the published code a bag without candidates has probability 0.
TARGETNET_EMPTY = -20.0
IDENTITY_LOGITS = ("mirna_and_gene_prior", "with_site_prior", "length_and_n")


def evaluate(
    name: str,
    folder: Path,
    out: Path,
    model: str | Path | None,
    model_config: ModelConfig,
    config: TrainConfig,
    rng_seeds: Sequence[int] = (2020,),
    cache: Path | None = None,
    allow_overlap: bool = False,
    n_resamples: int = 1000,
    k_max: Sequence[int] = (),
    baselines: bool = True,
    device: str = "cpu",
) -> dict:
    """Run a protocol; write ``report.json``, ``report.md``, plots, the folds and each fold's model and scores.

    A fold that was scored is not scored again, so a run that was stopped is taken up where it stood.

    Args:
        name: one of ``PROTOCOLS``.
        folder: the data folder.
        out: directory of the run.
        model: name or directory of a saved model to score; None: one is trained on each fold.
        model_config: of the trained model.
        config: of the training.
        rng_seeds: one training each.
        cache: directory of encoders and pooled site scores, keyed by content; None: in ``out``. Share it freely.
        allow_overlap: go on where a protocol's claim does not hold; the report then says so first.
        n_resamples: of the bootstrap.
        k_max: budgets to score the model at beside its own.
        baselines: whether site scores are pooled and the other aggregators trained too, most of the time.
        device: where models learn, as in :func:`pairformer.training.train`; they are scored on the CPU.

    Returns:
        What ``report.json`` holds.

    Raises:
        ValueError: the protocol claims that test and training share nothing and they do, or that is not known of a
            given model; ``out`` is of another run; a source has a share that nothing learns from.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    protocol, cache = PROTOCOLS[name], cache or out / "cache"
    given = PairFormer.load(model) if model is not None else None
    unknown = "a model not trained on its folds; use --train, or --allow-overlap to see it all the same"
    if given is None:
        check_sources(model_config, config.sources)
    else:
        rng_seeds = rng_seeds[:1]
        if protocol.claims and not allow_overlap:
            raise _broken(name, protocol, unknown)
    sites, _ = load_sites(folder / SITES, folder, model_config.esa_min)
    folds = protocol.folds(folder)
    if given is None and not _picks(config):
        folds = [fold.whole() for fold in folds]
    extra = MoreSources() if given else with_genes(load_sources(folder, config.sources), folder)
    for k in k_max:
        check(k >= 1, "k_max", "be 1 or more", k)
    weights = folder / targetnet.WEIGHTS
    run = {
        "pairformer": pairformer.__version__,
        "protocol": name,
        "rows_sha256": [[content_hash(part) for part in (f.train, f.validation, f.test)] for f in folds],
        "targetnet_sha256": hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None,
        "sites_sha256": content_hash(sites),
        "sources_sha256": {name: content_hash(rows) for name, rows in extra.items()},
        "baselines": baselines,
        "model": given.metadata["model_sha256"] if given else model_config.to_dict(),
        "train": None if given else asdict(config),
        "k_max": list(k_max),
    }
    if (out / "run.json").exists():
        claim(out, run)  # what takes minutes is not done for nothing
    findings, faults = _audit(protocol, folds, sites, extra)
    warning = [protocol.warning] if protocol.warning else []
    if given is not None:
        findings.append("what the given model was trained on is not known here: training means that of the baselines")
        warning.insert(0, "The model was given: whether it saw these rows is for its giver to say.")
        if protocol.claims:
            faults.insert(0, unknown)
    if run["targetnet_sha256"] and protocol.claims:
        warning.append("TargetNet's published weights saw windows of miRAW: its rows are not held out.")
    if run["targetnet_sha256"] is None:
        findings.append(f"no TargetNet: {targetnet.WEIGHTS} is not in the data folder")
    for line in findings:
        click.echo(line, err=True)
    if faults and not allow_overlap:
        raise _broken(name, protocol, faults[0])
    claim(out, run)
    digests = _write_folds(folds, out / "folds")
    if faults:
        warning.insert(0, f"Not what the protocol claims: {faults[0]}.")
    results: list[FoldResult] = []
    for seed in rng_seeds:
        for number, fold in enumerate(folds):
            place = out / f"seed{seed}" / f"{number:02d}"
            label = fold.name if len(rng_seeds) == 1 else f"{fold.name}, seed {seed}"
            if not (place / "scores.npz").exists():
                click.echo(f"{name}: {label}: {len(fold.train)} pairs train, {len(fold.test)} test", err=True)
                began = time.perf_counter()
                fitted = replace(config, rng_seed=seed)
                allowed = sites.take(held_out_sites(sites, fold.test, protocol.claims))
                more = extra.where(functools.partial(_may_train, fold, protocol.claims))
                scores, covered = _fold_scores(
                    fold, allowed, more, given, model_config, fitted, place, cache, weights, k_max, baselines, device,
                )  # fmt: skip
                _save(place / "scores.npz", scores, covered, time.perf_counter() - began)
            results.append(_load(place / "scores.npz", label, fold))
    report: dict = {
        "protocol": name,
        "statement": protocol.statement,
        "held_out": given is None and not faults and {"gene", "family"} <= set(protocol.claims),
        "run": {
            "command": shlex.join(["pairformer", *sys.argv[1:]]),
            "model": f"{model} (sha256 {given.metadata['model_sha256'][:12]})" if given else "trained on each fold",
            "rng_seeds": list(rng_seeds),
            "versions": f"pairformer {pairformer.__version__}, torch {torch.__version__}",
            "machine": f"{platform.machine()}, {device}, {torch.get_num_threads()} threads",
            "seconds": round(sum(map(_seconds, out.glob("seed*/*/scores.npz")))),
            "folds_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        },
        "audit": [*findings, *(f"CLAIM BROKEN: {fault}" for fault in faults)],
    }
    if warning:
        report["warning"] = " ".join(warning)
    if isinstance(folds[0].test, Effects):
        return _effects_report(report, results, [fold.test for fold in folds] * len(rng_seeds), out, n_resamples)
    report["summary"] = summarise(results, REFERENCE, n_resamples)
    if given is None:
        pairs = [(result.label, result.scores[REFERENCE].test) for result in results]
        report["logit_scale"] = round(balanced_scale(*map(np.concatenate, zip(*pairs, strict=True))), 4)
    write(report, results, out)
    return report


def _broken(name: str, protocol: Protocol, fault: str) -> ValueError:
    return ValueError(f"protocol {name} must share nothing by {', '.join(protocol.claims)}, got {fault}")


def _picks(config: TrainConfig) -> bool:
    """Whether an epoch can be picked by labelled pairs: where nothing else is learnt from."""
    shares = config.sources
    return not (shares.per_mirna or shares.decoys or shares.clash or shares.effects)


def with_genes(more: MoreSources, folder: Path) -> MoreSources:
    """Windows with the genes they may lie in."""
    windows = (more.clash, more.clash_original, more.instances)
    named = [rows if rows is None else name_genes(rows, folder) for rows in windows]
    return replace(more, clash=named[0], clash_original=named[1], instances=named[2])


def _may_train(fold: Fold, claims: Sequence[str], pairs: Pairs) -> NDArray[np.bool_]:
    """(B,) pairs of a further source that a fold may train on."""
    return held_out_pairs(pairs, fold.test, claims) & held_out_pairs(pairs, fold.validation, ())


def _audit(protocol: Protocol, folds: list[Fold], sites: Sites, extra: MoreSources) -> tuple[list[str], list[str]]:
    """What test rows share with training pairs and with the encoders' windows, and which claims do not hold.

    A claim on "pair" is of pairs only; the others are of windows too.
    """
    findings: list[str] = []
    faults: list[str] = []
    shares: dict[str, list[float]] = {}
    for fold in folds:
        allowed = sites.take(held_out_sites(sites, fold.test, protocol.claims))
        windows = Pairs(allowed.label, allowed.mirna, allowed.gene, allowed.window, allowed.gene)
        strict = [relation for relation in protocol.claims if relation != "pair"]
        for what, rows, claims in (
            ("training pairs", fold.train.join(fold.validation), protocol.claims),
            ("the encoders' windows", windows, strict),
            *((f"training {name}", part.take(_may_train(fold, protocol.claims, part)), strict)
              for name, part in extra.items()),
        ):  # fmt: skip
            found = overlap(rows, fold.test)
            faults += [f"{fold.name}: {what}: {text}" for text in found.violations(claims)]
            if len(folds) == 1:
                findings += found.lines(what, "test")
            for relation, share in found.shares.items():
                shares.setdefault(f"{relation}: {{}} of a fold's test rows have a counterpart in {what}", []).append(
                    share
                )
    if len(folds) > 1:
        findings = [text.format(f"{min(part):.1%} to {max(part):.1%}") for text, part in shares.items()]
    return findings, faults


def _fold_scores(
    fold: Fold,
    sites: Sites,
    extra: MoreSources,
    given: PairFormer | None,
    model_config: ModelConfig,
    config: TrainConfig,
    place: Path,
    cache: Path,
    weights: Path,
    k_max: Sequence[int],
    baselines: bool,
    device: str,
) -> tuple[dict[str, Score], NDArray[np.bool_]]:
    """Every score of a fold's test and validation rows, and which test rows have a candidate."""
    parts = (fold.test, fold.validation)
    effects = isinstance(fold.test, Effects)
    scores: dict[str, Score] = {}

    def add(group: str, tables: Sequence[Scores], prefix: str = "", logits: Container[str] | None = None) -> None:
        """Take up scores of the test and of the validation rows; ``logits`` names those that are, None: all."""
        for name in tables[0]:
            is_logit = logits is None or name in logits
            scores[prefix + name] = Score(tables[0][name], tables[1][name], is_logit, group)

    def pooled(score: Callable, key: str, esa_min: int, empty: float = 0.0) -> list[Scores]:
        least = max(esa_min, EFFECTS_ESA_MIN) if effects else esa_min
        return [_pooled(score, key, part, cache, least, empty) for part in parts]

    if not effects:
        # One call for both parts: they are asked of the same priors and regressions.
        both, cut = identity_scores(fold.train, fold.test.join(fold.validation), sites), len(fold.test)
        halves = [{name: score[part] for name, score in both.items()} for part in (slice(cut), slice(cut, None))]
        add("identity", halves, logits=IDENTITY_LOGITS)
    add("untrained", [untrained_scores(part) for part in parts], logits=())
    everywhere = fold.everywhere() if fold.mirnas else None
    if everywhere is not None:
        path = cache / "untrained" / f"{content_hash(everywhere)}.npz"  # folds of the same genes share it
        plain = _kept(path, lambda: untrained_scores(everywhere))
        add("untrained", [{CENTRED(name): fold.centred(plain[name]) for name in plain},
                          {CENTRED(name): scores[name].validation for name in plain}], logits=())  # fmt: skip
    if weights.is_file() and baselines:
        network, digest = targetnet.TargetNet.load(weights), hashlib.sha256(weights.read_bytes()).hexdigest()
        add("pooled", pooled(network, digest, ESA_MIN, TARGETNET_EMPTY), "targetnet_")
    torch.manual_seed(config.rng_seed)
    model = given or PairFormer(model_config).to(device)
    key = given.metadata["model_sha256"] if given else train_encoders(model, sites, config, cache / "encoders", extra)
    model.eval()
    if baselines:
        add(
            "pooled",
            pooled(lambda windows: model.expensive(windows.to(model.device))[1].cpu(), key, model.config.esa_min),
            "encoder_",
        )
    candidates = [scan(part.mirna, part.utr, model.config.esa_min, strict=True) for part in parts]

    def scored(k: int | None = None) -> list[ScoredPairs]:
        return [NativeEngine.of(model).score_pairs(part, k, torch.get_num_threads()) for part in candidates]

    if given is None:
        bags = Bags(model, fold.train, config.budgets)
        validation = Bags(model, fold.validation) if len(fold.validation) else None  # see Fold.whole
        for kind in MIL_KINDS if baselines else ():
            torch.manual_seed(config.rng_seed)
            model.config = replace(model_config, aggregator=AggregatorConfig(kind))
            model.new_aggregators()
            frozen = replace(config, stage3=replace(config.stage3, joint_epochs=0), sources=SourceConfig())
            train_aggregator(model, bags, validation, frozen, place / kind)
            add("MIL", [{kind: part.pair_logit} for part in scored()])
        torch.manual_seed(config.rng_seed)
        model.config = model_config
        model.new_aggregators()
        train_aggregator(model, bags, validation, config, place, extra)
        model.save(place / "model", {"trained_on": {"pairs": len(fold.train)}, "train": asdict(config)})
    if everywhere is not None and model.additives:
        engine, said = NativeEngine.of(model), []
        for part in chunks(len(everywhere), POOLED_AT_ONCE):
            some = scan(everywhere.mirna[part], everywhere.utr[part], model.config.esa_min)
            said.append(np.asarray(engine.score_pairs(some, None, torch.get_num_threads()).repression))
        add("model", [{CENTRED(REPRESSION): fold.centred(np.concatenate(said))},
                      {CENTRED(REPRESSION): np.zeros(len(fold.validation))}], logits=())  # fmt: skip
    for k in (None, *k_max):
        name = REFERENCE if k is None else f"{REFERENCE} at K = {k}"
        scale = model.config.logit_scale  # of a given model: its probabilities are those it serves
        found = scored(k)
        add("model", [{name: scale * part.pair_logit} for part in found])
        repressions = [{REPRESSION: part.repression} for part in found if part.repression is not None]
        if k is None and repressions:
            add("model", repressions, logits=())
    return scores, candidates[0].n_candidates > 0


def _pooled(score: Callable, key: str, pairs: Pairs, cache: Path, esa_min: int, empty: float) -> Scores:
    """Site scores of all candidates, pooled in every way; kept in ``cache`` under a name made of scorer and rows."""
    names = np.array([f"{mirna} {utr}" for mirna, utr in zip(pairs.mirna, pairs.utr, strict=True)], object)
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    rows = pairs.take(first)
    text = f"{key} {esa_min} {empty} " + "\n".join(names[first])
    path = cache / "pooled" / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"

    def score_all() -> Scores:
        parts: list[Scores] = []
        label = f"sites of {len(rows)} pairs"
        with click.progressbar(chunks(len(rows), POOLED_AT_ONCE) or [slice(0)], label=label, file=sys.stderr) as bar:
            for part in bar:
                candidates = scan(rows.mirna[part], rows.utr[part], esa_min)
                parts.append(pooled_scores(site_logits(score, candidates), candidates.offsets, empty))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return {name: values[inverse] for name, values in _kept(path, score_all).items()}


def _kept(path: Path, score: Callable[[], Scores]) -> Scores:
    """Scores in a file, made where there is none."""
    if not path.exists():
        _write_arrays(path, score())
    with np.load(path) as arrays:
        return dict(arrays)


def _save(path: Path, scores: dict[str, Score], covered: NDArray[np.bool_], seconds: float) -> None:
    arrays: dict = {f"test {name}": score.test for name, score in scores.items()}
    arrays |= {f"validation {name}": score.validation for name, score in scores.items()}
    kinds = {name: (score.group, score.is_logit) for name, score in scores.items()}
    _write_arrays(path, {**arrays, "covered": covered, "seconds": seconds, "kinds": json.dumps(kinds)})


def _write_arrays(path: Path, arrays: dict) -> None:
    with whole_file(path) as out:
        np.savez_compressed(out, **arrays)


def _load(path: Path, name: str, fold: Fold) -> FoldResult:
    with np.load(path) as arrays:
        scores = {
            score: Score(arrays[f"test {score}"], arrays[f"validation {score}"], is_logit, group)
            for score, (group, is_logit) in json.loads(str(arrays["kinds"])).items()
        }
        return FoldResult(name, fold.test.label, fold.test.mirna, arrays["covered"], scores, fold.validation.label)


def _seconds(path: Path) -> float:
    with np.load(path) as arrays:
        return float(arrays["seconds"])


def _write_folds(folds: list[Fold], place: Path) -> list[str]:
    """The rows of each fold, and index.json with the sha256 of each file's text, which are returned."""
    place.mkdir(parents=True, exist_ok=True)
    index: dict[str, dict] = {}
    for number, fold in enumerate(folds):
        path = place / f"{number:02d}.tsv.gz"
        text = "".join(fold.lines()).encode()
        path.write_bytes(gzip.compress(text, mtime=0))
        counts = {role: len(getattr(fold, role)) for role in ("train", "validation", "test")}
        index[path.name] = {"name": fold.name, "text_sha256": hashlib.sha256(text).hexdigest(), **counts}
    (place / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [entry["text_sha256"] for entry in index.values()]


def _effects_report(report: dict, results: list[FoldResult], tests: list, out: Path, n_resamples: int) -> dict:
    """As for labels, with fold changes: by experiment, named by its miRNA."""
    scores = [
        {"gene_elsewhere": test.elsewhere, **{name: score.test for name, score in result.scores.items()}}
        for test, result in zip(tests, results, strict=True)
    ]
    plain = REPRESSION if REPRESSION in scores[0] else REFERENCE
    reference = CENTRED(plain) if CENTRED(plain) in scores[0] else plain
    rows = [[getattr(test, name) for test in tests] for name in ("mirna", "label", "raw")]
    centred = set(map(CENTRED, scores[0])) & set(scores[0]) if reference != plain else set()
    as_is = [{name: score[name] for name in score if name not in centred} for score in scores]
    summary = summarise_effects(rows[0], rows[1], rows[2], as_is, plain, n_resamples)
    if centred:  # a lead is over what is alike
        alike = [{name: score[name] for name in score if name in centred} for score in scores]
        summary["scores"] |= summarise_effects(rows[0], rows[1], rows[2], alike, reference, n_resamples)["scores"]
    report["summary"] = summary
    groups = {"gene_elsewhere": "identity", **{name: score.group for name, score in results[0].scores.items()}}
    tables = [effects_table(summary, groups)]
    if REPRESSION in scores[0] and report["held_out"]:
        said, told = (np.concatenate([score[name] for score in scores]) for name in (REPRESSION, reference))
        label, raw = np.concatenate(rows[1]), np.concatenate(rows[2])
        calibration = effect_calibration(said, raw, (told, label))
        if calibration:
            report |= calibration | {"effect_bins": effect_bins(said, raw, label, calibration)}
            tables.append(bins_table(report["effect_bins"]))
    write(report, results, out, tables=tables)
    return report
