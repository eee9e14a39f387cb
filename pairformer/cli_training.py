"""The commands that train models and score them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import replace

import click
from click.core import ParameterSource

from pairformer.config import RECIPES, recipe, usable_threads
from pairformer.data import PAIRS, SITES, data_folder, load_pairs, load_sites
from pairformer.fold_config import FOLD_RECIPES, FoldConfig, fold_recipe
from pairformer.options import ConfigCommand, Items, config_options, overridden
from pairformer.outputs import FILE, FOLDER, OutputFolder
from pairformer.saved import read_model
from pairformer.sources import load_sources

DEFAULTS = recipe("default")[::-1]
FOLD_DEFAULTS = fold_recipe("cpu")[::-1]
FOLD_LICENCE = "MIT; Rfam is CC0, the copies of bpRNA trained on state no licence of their own"
ENCODER_OPTIONS = ("stage1", "stage2", "distill", "sources__windows", "sources__clash_")
SIZE = click.Choice(["default", "paper"])
CALIBRATED = ("logit_scale", "effect_scale", "effect_interval", "effect_widening")  # what held-out folds give a model


def _model_options(function: Callable) -> Callable:
    """Decorator: which model to train, and how fast."""
    options = (
        click.option("--recipe", "name", type=click.Choice(RECIPES), default="default", show_default=True,
                     help="What the options below change; the values they show are those of the default."),
        click.option("--size", type=SIZE, default="default", show_default=True, help="Of the aggregator."),
        click.option("--device", default="cpu", show_default=True, help="To train on: auto, cpu, cuda, cuda:1, ..."),
        click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all available."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command(cls=ConfigCommand, short_help="Train a model on labelled windows and pairs.")
@click.argument("stage", type=click.Choice(["stage1", "stage2", "stage3", "all"]))
@click.option("--data", help="Folder of training data; else the variable PAIRFORMER_DATA.")
@click.option("--pairs", type=FILE,
              help="Your pairs: TSV with mirna_seq utr_seq label; gene_symbol utr_id where known.")  # fmt: skip
@click.option("--sites", type=FILE, help="Your windows of 40 nt: TSV with mirna_seq mrna_seq mrna_id label.")
@click.option("--fold-changes", type=FILE,
              help="Your fold changes: TSV with experiment mirna_seq utr_seq log2_fold_change; type (OE, KO) series "
                   "gene_symbol utr_id where known.")  # fmt: skip
@click.option("--encoders", metavar="MODEL", help="Take both encoders of a saved model in place of stages 1 and 2.")
@click.option("--validation", type=click.FloatRange(0, 0.5), default=0.0, show_default=True,
              help="Share (1/2, 1/3, 1/4, ...) of the pairs set aside, from all sources, by family where there are 20, "
                   "else by gene; picks stage 3's epoch.")  # fmt: skip
@click.option("--calibrate", type=FILE, multiple=True,
              help="report.json of held-out folds: of labelled pairs, or of fold changes.")  # fmt: skip
@click.option("--out", type=OutputFolder(), required=True, help="Run directory; taken up where it stood.")
@_model_options
@config_options(*DEFAULTS, without=CALIBRATED[1:])
def train(
    stage, data, pairs, sites, fold_changes, encoders, validation, calibrate, out, name, size, device, threads,
    **options,
):  # fmt: skip
    """Train a model on labelled windows and pairs: one stage, or all three."""
    from pairformer import training
    from pairformer.evaluation import with_genes
    from pairformer.evaluation.protocols import held_out_pairs, held_out_sites, set_aside
    from pairformer.evaluation.report import read_calibration

    theirs = [key for key in options if key.startswith(ENCODER_OPTIONS) and options[key] is not None]
    if encoders and (sites or theirs or stage in ("stage1", "stage2")):
        raise click.UsageError("--encoders takes the place of stages 1 and 2, of their options and of --sites")
    if calibrate and options["logit_scale"] is not None:
        raise click.UsageError("--calibrate and --logit-scale set the same; give one")
    device = _prepared(device, threads)
    model_config, config = (overridden(part, options) for part in recipe(name, size))
    if encoders:  # stages 1 and 2 read nothing
        config = replace(config, sources=replace(config.sources, windows=0.0, clash_windows=0.0, clash_original=0.0))
    if fold_changes and not config.sources.effects:
        raise click.UsageError("--fold-changes must have a share to be learnt from; give --sources.effects")
    training.check_sources(model_config, config.sources)
    others = replace(config.sources, effects=0.0) if fold_changes else config.sources
    needed = data or others.of_data_folder or not pairs or not (sites or encoders)
    folder = data_folder(data) if needed else None
    windows, counts = None, dict[str, int]()
    if not encoders:
        windows, counts = load_sites(sites or data_folder(data) / SITES, folder, model_config.esa_min)
        click.echo("windows: {used} of {rows}; {in_a_pair} in pairs, {no_candidate} no site".format(**counts), err=True)
    labelled, aside = load_pairs(pairs or data_folder(data) / PAIRS, folder), None
    if validation:
        claim = "family" if len(set(labelled.family)) >= 20 else "gene"
        labelled, aside = set_aside(labelled, [n.upper() for n in getattr(labelled, claim)], round(1 / validation))
        if windows is not None:
            windows = windows.take(held_out_sites(windows, aside, (claim,)))
    metadata: dict = {"command": shlex.join(["pairformer", *sys.argv[1:]]), "sites_left_out": counts}
    if not (pairs or sites or fold_changes):
        metadata["weights_licence"] = "MIT; the miRAW training data state no licence of their own"
    more = load_sources(folder, config.sources, sites, fold_changes)
    if aside is not None:
        more = (with_genes(more, folder) if folder else more).where(lambda rows: held_out_pairs(rows, aside, (claim,)))
    calibration: dict = {}
    for protocol, found, means in (read_calibration(path, CALIBRATED) for path in calibrate):
        calibration |= found
        metadata.setdefault("held_out", {})[protocol] = found | {"means": means}
    model = training.train(
        stage, windows, labelled, aside, out, model_config, config, encoders, calibration=calibration,
        metadata=metadata, more=more, device=device,
    )  # fmt: skip
    if stage in ("stage3", "all"):
        counts = model.metadata["trained_on"]
        click.echo("pairs: {pairs}, {pairs_without_candidate} without a candidate".format(**counts), err=True)
        click.echo(f"model written to {out / 'model'}", err=True)
        if model_config.aggregator.additive and "effect_scale" not in calibration:
            click.echo("its log2_fold_change ranks but has no scale and no interval; --calibrate the report.json of "
                       "evaluate --protocol fold-change gives both", err=True)  # fmt: skip


@click.command("train fold", cls=ConfigCommand, short_help="Train a structure model.")
@click.option("--data", help="Folder of training data; else the variable PAIRFORMER_DATA.")
@click.option("--out", type=OutputFolder(), required=True, help="Run directory; taken up where it stood.")
@click.option("--prepare", is_flag=True, help="Make what is learnt from, and stop.")
@click.option("--seconds", type=float, default=float("inf"), help="Stop after the epoch in which they run out.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--recipe", "name", type=click.Choice(FOLD_RECIPES), default="cpu", show_default=True,
              help="What the options below change; the values they show are those of cpu.")  # fmt: skip
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all available.")
@click.option("--start", help="Name or directory of a model to go on from, without the first stage; the model's "
              "options are then its own, of which --max-length, --window, --passes, --dropout and, from false to true, "
              "--energies can be changed.")  # fmt: skip
@config_options(*FOLD_DEFAULTS, without=("threshold",))
def train_fold(data, out, prepare, seconds, device, name, threads, start, **options):
    """Train an RNAformer on a thermodynamic teacher's pair probabilities, then on known structures.

    The teacher is ViennaRNA's RNAfold, on 3'UTR windows and on RNAs read backwards. What is learnt from is made once
    and kept in OUT/rows; that needs the extra `fold` and the data, training does not.
    """
    from pairformer import _core
    from pairformer.engines import usable_device
    from pairformer.training import fold as training

    if not seconds >= 0:
        raise click.UsageError(f"--seconds must be 0 or more, got {seconds}")
    device = usable_device(device)
    model_config, config = fold_recipe(name)
    if start is not None:
        model_config = read_model(start, FoldConfig)[0]
    model_config, config = overridden(model_config, options), overridden(config, options)
    if start is not None:
        training.read_start(start, model_config, config.validation)  # said before anything is folded
    threads = usable_threads(threads) or _core.available_threads()
    known, teacher = training.prepare(lambda: data_folder(data), out, model_config.max_length, config, threads)
    if prepare:
        click.echo(f"{len(known)} structures and {len(teacher or ())} folds of the teacher in {out}", err=True)
        return
    if config.half and training.halves_are_slow(device):
        click.echo("half is slow here, a step takes about six times as long: this processor has no bfloat16 "
                   "instructions; give --half false", err=True)  # fmt: skip
    metadata = {"command": shlex.join(["pairformer", *sys.argv[1:]]), "weights_licence": FOLD_LICENCE}
    model = training.train_fold(known, teacher, out, model_config, config, device, threads, seconds, metadata, start)
    click.echo(f"model written to {out / 'model'}" if model else "not finished; the same command goes on", err=True)


@click.command(cls=ConfigCommand, short_help="Score a model by a protocol, beside what identity alone reaches.")
@click.option("--protocol", required=True, metavar="NAME", help="One of those above.")
@click.option("--model", help="Name, or directory of a saved model.")
@click.option("--train", "trained", is_flag=True, help="Train a model on each fold.")
@click.option("--data", help="Folder of data; else the variable PAIRFORMER_DATA.")
@click.option("--out", type=OutputFolder(), required=True, help="Run directory; taken up where it stood.")
@click.option("--seeds", type=Items(int), default="2020", show_default=True, help="Of training; one training each.")
@click.option("--cache", type=FOLDER, help="Trained encoders and pooled scores, named by content; else in --out.")
@click.option("--allow-overlap", is_flag=True, help="Go on where a claim of the protocol does not hold, and say so.")
@click.option("--k-max", type=Items(int), default=(), help="Budgets to score the model at beside its own.")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Pool site scores and train other aggregators too; without them it is several times faster.",
)
@click.option("--resamples", type=click.IntRange(1), default=1000, show_default=True, help="Of the bootstrap.")
@_model_options
@config_options(*DEFAULTS, without=("rng_seed", *CALIBRATED))
def evaluate(
    protocol, model, trained, data, out, seeds, cache, allow_overlap, k_max, baselines, resamples, name, size, device,
    threads, **options,
):  # fmt: skip
    """Score a model by a protocol, beside what identity alone and simple scores reach on the same rows.

    What test and training share is printed first; a protocol that claims they share nothing is refused where they do.
    With --recipe paper stage 3 runs 30 epochs for half-split, deduplicated and sites unless told otherwise, and the
    best by rows set aside is kept; the default recipe keeps the last and learns from all.

    \b
    half-split         the paper's split; leaks (-b, -c, -deeptargetpro: its others)
    deduplicated       each file by itself           fold-change      25 HeLa transfections
    gene-disjoint      no gene in common             hct116           7 HCT116 transfections
    family-disjoint    no miRNA family in common     deeptargetpro    its pairs; 92 % are miRAW's (-new: the rest)
    both-disjoint      neither in common             sites            CLASH windows of 50 nt
    rewired            same miRNAs and genes, other pairing

    \b
    Of structure models (--model fold --device auto), beside energies and, where ViennaRNA is installed, RNAfold:
    ts0, ts0-rfam      bpRNA's test set, labels as released and as in Rfam
    synthetic          RNAfold's own structures      bprna-new        families of no training set
    """
    from pairformer.evaluation import PROTOCOLS, structure
    from pairformer.evaluation import evaluate as run

    if protocol in structure.PROTOCOLS:
        context = click.get_current_context()
        given = {key for key in context.params if context.get_parameter_source(key) is ParameterSource.COMMANDLINE}
        used = ("model", "data", "out", "resamples", "device", "threads")
        if given - {"protocol", *used}:
            raise click.UsageError(f"--protocol {protocol} takes --{', --'.join(used)} alone")
        device = device if "device" in given else "auto"
        structure.evaluate_structure(protocol, data_folder(data), out, model or "fold", threads, resamples, device)
        click.echo((out / "report.md").read_text(encoding="utf-8"))
        return
    if protocol not in PROTOCOLS:
        known = ", ".join((*PROTOCOLS, *structure.PROTOCOLS))
        raise click.UsageError(f"--protocol must be one of {known}, got {protocol}")
    if trained == (model is not None):
        raise click.UsageError("give --train, or --model NAME")
    own = (
        len(seeds) > 1
        or (name, size, device) != ("default", "default", "cpu")
        or any(value is not None for value in options.values())
    )
    if model is not None and own:
        raise click.UsageError("options of model and training, and several --seeds, need --train; --model has its own")
    device = _prepared(device, threads)
    model_config, config = recipe(name, size)
    if name == "paper":
        config = replace(config, stage3=replace(config.stage3, epochs=PROTOCOLS[protocol].epochs))
    config = overridden(config, options)
    model_config = overridden(model_config, options)
    run(
        protocol, data_folder(data), out, model, model_config, config, seeds, cache, allow_overlap, resamples, k_max,
        baselines, device,
    )  # fmt: skip
    click.echo((out / "report.md").read_text(encoding="utf-8"))


def _prepared(device: str, threads: int) -> str:
    """The device to train on, with PyTorch's threads set."""
    import torch

    from pairformer.engines import usable_device

    if threads:
        torch.set_num_threads(threads)
    return usable_device(device)
