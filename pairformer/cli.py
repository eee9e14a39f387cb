"""The commands. Parsing and printing only; the work lives in the modules above."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import click
import numpy as np
from numpy.typing import NDArray

import pairformer
from pairformer.cli_training import evaluate, train, train_fold
from pairformer.data import (
    DATA_VARIABLE,
    DataError,
    PairRecord,
    PairTable,
    Record,
    data_folder,
    load_pairs,
    read_fasta,
)
from pairformer.engines import ENGINES
from pairformer.fold import GROUP, Folder
from pairformer.folding import METHODS
from pairformer.outputs import (
    COORDINATES,
    EFFECT_HEADER,
    FILE,
    FOLDER,
    PAIR_HEADER,
    PERCENTILE,
    SITE_HEADER,
    OutputError,
    OutputFolder,
    Progress,
    add_column,
    check_outputs,
    is_stream,
    open_output,
    open_table,
    renamed,
    tell_equal_names,
    write_candidates,
    write_dot_bracket,
    write_drawings,
    write_fold_json,
    write_pairs,
    write_row,
    write_sites,
)
from pairformer.predict import Scorer, in_batches, percentiles
from pairformer.scan import ESA_MIN, scan

EXIT_USAGE, EXIT_DATA, EXIT_NO_INPUT, EXIT_IO, EXIT_INTERRUPTED = 2, 65, 66, OutputError.exit_code, 130
ROWS = 1 << 16  # candidates made into text at once: bounds memory whatever the length of a UTR
NOT_WRITTEN = (".ct", ".bpseq", ".svg", ".fa", ".fasta", ".csv", ".tsv", ".json")  # formats that fold has not
# What brings which module.
EXTRAS = {"torch": "torch", "sklearn": "torch", "h5py": "mil", "triton": "gpu", "pyarrow": "fold", "RNA": "fold"}


def main() -> None:
    """Entry point; turns exceptions into exit codes, and SIGTERM into an interrupt."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # not where the caller has it ignored
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller, as by 2>&-
            setattr(sys, name, open(os.devnull, mode))
    try:
        cli.main(standalone_mode=False, prog_name="pairformer")
        sys.stdout.flush()  # what fails here is reported; at interpreter exit it would be a traceback
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(1)  # as click does where a write, not the last flush, meets the closed pipe
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        _fail(error, EXIT_NO_INPUT)
    except OSError as error:
        _discard_stdout()
        _fail(error, EXIT_IO)
    except DataError as error:
        _fail(error, EXIT_DATA)
    except ModuleNotFoundError as error:
        brings = EXTRAS.get(error.name or "")
        extra = f" (the extra {brings} brings it: pip install '.[{brings}]')" if brings else ""
        _fail(ImportError(f"{error}{extra}"), EXIT_USAGE)
    except (ValueError, ImportError) as error:
        _fail(error, EXIT_USAGE)


def _fail(error: Exception, code: int) -> NoReturn:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    click.echo(f"pairformer: {text}", err=True)
    sys.exit(code)


def _discard_stdout() -> None:
    """Let the flush at interpreter exit go nowhere: what it would say has been said."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Commands(click.Group):
    """Commands, of which ``train fold`` has options of its own."""

    def resolve_command(self, ctx, args):
        words = 2 if args[:2] == ["train", "fold"] else 1
        return super().resolve_command(ctx, [" ".join(args[:words]), *args[words:]])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pairformer.__version__, prog_name="pairformer")
def cli() -> None:
    """Predict which 3'UTRs a microRNA represses, and by which sites.

    \b
    pairformer predict UGAGGUAGUAGGUUGUAUAGUU utrs.fa
    pairformer predict mirnas.fa utrs.fa.gz -o pairs.tsv --sites sites.tsv
    zcat pairs.tsv.gz | pairformer predict --pairs - -o scored.tsv
    pairformer fold rnas.fa -o rnas.dbn

    An output takes its place when it is whole; what an error leaves of it is in OUTPUT.part.

    Exit code: 0 done, 1 nobody reads standard output any more, 2 wrong usage, 65 data that cannot be read, 66 no such
    input, 74 an output could not be written, 130 interrupted.
    """


for command in (train, train_fold, evaluate):
    cli.add_command(command)


@cli.command(short_help="Probability and sites of each pair.")
@click.argument("mirna", required=False)
@click.argument("utr", required=False)
@click.option("--pairs", metavar="FILE", help="TSV with mirna_id mirna_seq utr_id utr_seq; other columns are kept.")
@click.option("-o", "--output", metavar="FILE", default="-", show_default=True, help="Pair table; '-': stdout.")
@click.option("--sites", metavar="FILE", help="Also write the table of selected sites here.")
@click.option("--draw", metavar="FILE", help="Also draw the duplex of each seed match among these sites here.")
@click.option("--sites-below", type=float, metavar="CHANGE",
              help="Sites of pairs with a log2_fold_change below this alone.")  # fmt: skip
@click.option("--seed-matches", is_flag=True, help="In the site table one row of each seed match, no other window.")
@click.option("--rejects", metavar="FILE", help="Also write pairs that cannot be scored here, with the reason.")
@click.option("--model", default="default", show_default=True, help="Name, or directory of a saved model.")
@click.option("--k-max", type=click.IntRange(1), help="Most sites read per pair; else the model's own number.")
@click.option("--engine", type=click.Choice(["auto", *ENGINES]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all available.")
@click.option("--explain", is_flag=True, help="Add to each site the logit's change when it is left out.")
@click.option("--accessibility", is_flag=True, help="Add to each site how likely its seed match is unpaired.")
@click.option("--percentile", is_flag=True, help="Rank each pair among those of its miRNA, in the file of --output.")
@click.option("--prior", type=float, default=0.5, show_default=True, help="Share of repressed pairs you expect.")
@click.option("--strict", is_flag=True, help="Exit code 65 at the first pair that cannot be scored, after its batch.")
def predict(
    mirna, utr, pairs, output, sites, draw, sites_below, seed_matches, rejects, model, k_max, engine, device, threads,
    explain, accessibility, percentile, prior, strict,
):  # fmt: skip
    """Score MIRNA against UTR: sequences, or FASTA files ('-': standard input, gzip is detected).

    Two FASTA files are scored all against all, UTR by UTR. A pair that cannot be scored keeps its row, with
    status "invalid" and NA.

    Columns: n_candidates, windows that were candidates; probability, of a validated target at the odds of --prior;
    logit, the same on its scale; status: ok, no_window (UTR under 40 nt), no_candidate or invalid; log2_fold_change,
    expected when the miRNA is added, _low and _high around 90 % of measured ones; baseline, what of it is of no site.
    docs/predict.md has those of sites. Lines before the header begin with #.
    """
    check_outputs((output, sites, rejects, draw), (mirna, utr, pairs))
    column = "adds a column to"
    for option, does, asked in (("--explain", column, explain), ("--accessibility", column, accessibility),
                                ("--seed-matches", "shortens", seed_matches)):  # fmt: skip
        if asked and not sites:
            raise click.UsageError(f"{option} {does} the site table; name one with --sites FILE")
    some = sites_below is not None
    if some and not (sites or draw):
        raise click.UsageError(
            "--sites-below says of which pairs sites are written; name a file with --sites or --draw"
        )
    if some and math.isnan(sites_below):
        raise click.UsageError(f"--sites-below must be a number, got {sites_below}")
    records, extra_columns = _pair_records(mirna, utr, pairs)
    settings = (model, k_max, engine, device, threads)
    reader = Scorer(*settings, explain, prior, accessibility, bool(sites or draw))
    scorer = Scorer(*settings, prior=prior) if some else reader
    about = " ".join(f"{k}={v}" for k, v in {"model": model, **scorer.settings}.items())
    additive = scorer.engine.config.aggregator.additive > 0
    if some and not additive:
        raise click.UsageError("--sites-below needs a model with additive heads, which predict a log2_fold_change")
    into_file = output != "-" and not is_stream(output)
    if percentile and not (additive and into_file):
        raise click.UsageError("--percentile needs a model with additive heads, and --output FILE to add its column to")
    ranked: tuple[list[str], list[NDArray], list[NDArray]] = [], [], []
    pair_header = (*PAIR_HEADER, *EFFECT_HEADER) if additive else PAIR_HEADER
    added = {"contribution": additive, "weight": explain, "unpaired": accessibility}
    site_header = (*SITE_HEADER, *(name for name, there in added.items() if there))
    with Progress() as progress, contextlib.ExitStack() as files:
        pair_out = open_table(files, output, about, [*pair_header, *renamed(extra_columns)])
        listed = f"{about} sites_below={sites_below:g}" if some else about
        rows = f"{listed} seed_matches=1" if seed_matches else listed
        site_out = open_table(files, sites, rows, site_header, COORDINATES) if sites is not None else None
        drawn = open_table(files, draw, listed, (), COORDINATES) if draw is not None else None
        rejected = ("where", "mirna_id", "utr_id", "message")
        reject_out = open_table(files, rejects, about, rejected) if rejects is not None else None
        told = False
        at_once = scorer.engine.in_flight
        for group in in_batches(records, lambda record: record.utr, times=1 if at_once == 1 else 4 * at_once):
            predictions = scorer.score(["" if r.fault else r.mirna for r in group], [r.utr for r in group])
            messages = [r.fault or m for r, m in zip(group, predictions.message, strict=True)]
            write_pairs(pair_out, group, predictions)
            shown, of = group, predictions
            if some and predictions.log2_fold_change is not None:
                shown = [group[i] for i in np.flatnonzero(predictions.log2_fold_change < sites_below)]
                of = reader.score([r.mirna for r in shown], [r.utr for r in shown])
            if site_out:
                write_sites(site_out, shown, of, seed_matches)
            if drawn:
                write_drawings(drawn, shown, of)
            for record, message in zip(group, messages, strict=True):
                if message is None:
                    continue
                if strict:
                    raise DataError(": ".join((*record.subject(message), message)))
                if not told and not reject_out:
                    told = True
                    click.echo(
                        ": ".join((*record.subject(message), f"{message}; all reasons: --rejects FILE")), err=True
                    )
                if reject_out:
                    write_row(reject_out, (record.subject(message)[0], record.mirna_id, record.utr_id, message))
            if percentile and predictions.log2_fold_change is not None:
                ranked[0].extend(record.mirna for record in group)
                ranked[1].append(predictions.log2_fold_change)
                ranked[2].append(predictions.n_candidates)
            invalid = sum(message is not None for message in messages)
            progress.add(len(group), invalid, int(np.sum(predictions.status != "ok")) - invalid)
            progress.passed_over(group, predictions.n_dropped)
    if percentile:
        change, n_candidates = (np.concatenate([*part, np.empty(0, np.float32)]) for part in ranked[1:])
        add_column(Path(output), PERCENTILE, percentiles(ranked[0], change, n_candidates))


@cli.command("scan", short_help="Every candidate target site, before any model.")
@click.argument("mirna")
@click.argument("utr")
@click.option("-o", "--output", metavar="FILE", default="-", show_default=True, help="Table; '-': stdout.")
@click.option("--esa-min", type=click.IntRange(0, 10), default=ESA_MIN, show_default=True, help="Least score kept.")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all available.")
def scan_command(mirna, utr, output, esa_min, threads):
    """List every candidate target site of MIRNA in UTR, before any model (arguments as for predict)."""
    check_outputs((output,), (mirna, utr))
    records, _ = _pair_records(mirna, utr, None)
    header = ["mirna_id", "utr_id", "start", "end", "esa_score", "position", "mirna_aligned", "utr_aligned"]
    told: set[str] = set()
    with Progress() as progress, contextlib.ExitStack() as files:
        out = open_table(files, output, f"esa_min={esa_min}", header, COORDINATES)
        for group in in_batches(records, lambda record: record.utr):
            found = scan([r.mirna for r in group], [r.utr for r in group], esa_min, threads=threads)
            for bag, message in found.messages.items():
                if (reason := ": ".join((*group[bag].subject(message), message))) not in told:
                    told.add(reason)
                    click.echo(reason, err=True)
            for first in range(0, len(found.start), ROWS):
                rows = np.arange(first, min(first + ROWS, len(found.start)))
                write_candidates(out, group, found, rows)
            progress.add(len(group), len(found.messages), int(np.sum(found.status != "ok")) - len(found.messages))
            progress.passed_over(group, found.n_dropped)


@cli.command(short_help="Secondary structure of RNAs.")
@click.argument("sequence")
@click.option("-o", "--output", metavar="FILE", default="-", show_default=True,
              help="Name, sequence and dot-bracket; for .jsonl pairs and probabilities too.")  # fmt: skip
@click.option("--svg", metavar="FILE", help="Also draw the first structure here, as arcs.")
@click.option("--model", default="fold", show_default=True,
              help="Name, directory of a saved model, or energies: no network, far faster.")  # fmt: skip
@click.option("--passes", type=click.IntRange(1), help="Over the stack; else the model's own number.")
@click.option("--threshold", type=click.FloatRange(0.001, 1), help="Of a pair's probability; else the model's own.")
@click.option("--method", type=click.Choice(METHODS), default="nested", show_default=True,
              help="raw: a base can have several pairs; the dot-bracket shows one.")  # fmt: skip
@click.option("--min-loop", type=click.IntRange(0), default=3, show_default=True, help="Fewest bases inside a pair.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--threads", type=click.IntRange(0), default=0, show_default=True, help="0: all available.")
@click.option("--strict", is_flag=True, help="Exit code 65 at the first sequence that cannot be folded.")
def fold(sequence, output, svg, model, passes, threshold, method, min_loop, device, threads, strict):
    """Fold SEQUENCE: letters ACGUTN, or a FASTA file ('-': standard input, gzip is detected), in which other IUPAC
    letters are read as N.

    A sequence longer than the model's window (500 for "fold" and "energies") is folded in windows of that length, and
    no pair that is farther apart is found. A sequence that cannot be folded is told on stderr and left out; in .jsonl
    its line has the message. Pairs in .jsonl are [i, j, probability], counted from 1.
    """
    check_outputs((output, svg), (sequence,))
    written_as = output.lower().removesuffix(".gz")
    if written_as.endswith(NOT_WRITTEN):
        raise click.UsageError(
            "--output must end in .dbn for names, sequences and dot-brackets, or in .jsonl for pairs and probabilities "
            f"too, a line each, got {output}; --svg FILE draws"
        )
    records = _records(sequence, "sequence")
    folder = Folder(model, passes, threshold, method, min_loop, device, threads)
    with Progress("sequences") as progress, contextlib.ExitStack() as files:
        out = open_output(files, output)
        picture, told = open_output(files, svg) if svg is not None else None, False
        write = write_fold_json if written_as.endswith(".jsonl") else write_dot_bracket
        for group in in_batches(records, lambda record: record.sequence, GROUP):
            for record, found in zip(group, folder.fold([record.sequence for record in group]), strict=True):
                if found.message is not None:
                    if strict:
                        raise DataError(f"{record.where}: {record.name}: {found.message}")
                    click.echo(f"{record.where}: {record.name}: {found.message}", err=True)
                elif len(found.sequence) > folder.window and not told:
                    told = True
                    click.echo(f"{record.name} is longer than {folder.window}: such are folded in windows of that "
                               "length, and no pair that is farther apart is found", err=True)  # fmt: skip
                write(out, record, found)
                if picture and found.message is None:
                    picture.write(found.svg(record.name))
                    picture = None
                progress.add(1, int(found.message is not None))
        if picture:
            click.echo(f"{svg} is empty: there was no sequence to draw", err=True)


@cli.command(short_help="What two labelled tables share.")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--data", help="Folder with utr3_human, for tables with utr_id only; else the variable PAIRFORMER_DATA.")
@click.option("--disjoint", metavar="RELATIONS", help="Exit 65 where B shares one of these, between commas, with A.")
def audit(a, b, data, disjoint):
    """Count rows of table B with a counterpart in table A.

    By pair, mirna (sequence), family (letters 2-8), gene (name, in any case), window (40 nt in common) and
    near_identical UTR (half of the windows in common; where more than 65 UTRs share one some may be missed). Tables
    are TSVs with mirna_seq and utr_seq, mrna_seq or utr_id; gene_symbol and label are used where they stand.
    """
    from pairformer.evaluation.audit import RELATIONS, overlap

    claims = disjoint.replace(" ", "").split(",") if disjoint else []
    if not set(claims) <= set(RELATIONS):
        raise click.UsageError(f"--disjoint must name some of {', '.join(RELATIONS)}, got {disjoint}")
    folder = data_folder(data) if data or os.environ.get(DATA_VARIABLE) else None
    found = overlap(*(load_pairs(path, folder, labelled=False) for path in (a, b)))
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    click.echo("\n".join(found.lines(*names)))
    if alias := int((found.near_identical & ~found.gene).sum()):
        click.echo(f"gene: {alias} rows of {names[1]} have a near-identical UTR in {names[0]} under no gene name of "
                   "theirs; name genes alike in both (gene_symbol), or claim near_identical too", err=True)  # fmt: skip
    if broken := found.violations(claims):
        raise DataError(f"{b}: table must share nothing by {disjoint} with {a}, got {'; '.join(broken)}")


@cli.command("select", short_help="Prune bags of features, one file each, to K instances.")
@click.option("--features", type=FOLDER, required=True, help="Folder of .pt, .npy or .h5 files, as CLAM's.")
@click.option("--out", type=OutputFolder(), required=True,
              help="Folder for the pruned files and selection.tsv; it must hold no other bags.")  # fmt: skip
@click.option("--k", "k_max", type=click.IntRange(1), default=256, show_default=True, help="Most instances a bag.")
@click.option("--scores", type=FOLDER, help="Folder of NAME.npy, .txt or .csv; else the norm of the features.")
@click.option("--coords", type=FOLDER, help="Folder of NAME.npy, for features without coords of their own.")
def select_command(features, out, k_max, scores, coords):
    """Keep at most K instances of each bag: the best scores, and others spread over the bag."""
    from pairformer.mil import select_folder

    done = failed = before = after = 0
    for bag in select_folder(features, out, k_max, scores=scores, coords=coords):
        done, before, after = done + 1, before + bag.n, after + len(bag.rows)
        if bag.message is not None:
            failed += 1
            click.echo(bag.message, err=True)
    click.echo(f"{done - failed} bags: kept {after:,} of {before:,} instances", err=True)
    if failed:
        raise DataError(f"{features}: bags must be readable, got {failed} of {done} that are not; the others are done")


def _pair_records(mirna, utr, pairs) -> tuple[Iterable[PairRecord], tuple[str, ...]]:
    if pairs is not None:
        if mirna is not None:
            raise click.UsageError("give MIRNA and UTR, or --pairs, not both")
        table = PairTable(pairs)
        return table, table.extra_columns
    if utr is None:
        raise click.UsageError("give MIRNA and UTR, or --pairs")
    if mirna == utr == "-":
        raise click.UsageError("only one of MIRNA and UTR can be '-'")
    mirnas = list(_records(mirna, "mirna"))
    utrs = _records(utr, "utr")
    return (
        PairRecord(m.name, m.sequence, u.name, u.sequence, where=m.where, utr_where=u.where)
        for u in utrs for m in mirnas
    ), ()  # fmt: skip


def _records(argument: str, name: str) -> Iterator[Record]:
    """A FASTA file's records, or the sequence itself."""
    # os.path, since pathlib raises for a sequence longer than a file name may be
    if os.path.isdir(argument):
        raise IsADirectoryError(f"{name} must be letters ACGUTN or a FASTA file, got the directory {argument}")
    if argument == "-" or os.path.exists(argument):
        return tell_equal_names(read_fasta(argument), argument)
    if argument and set(argument) <= set("ACGUTNacgutn"):
        return iter([Record(name, argument, f"argument {name.upper()}")])
    rule = f"{name} must be letters ACGUTN or a FASTA file"
    raise FileNotFoundError(f"{rule}, got {argument[:80]!r}; no such file, and names are not looked up")
