"""What the commands write: tables, structures and progress."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO

import click
import numpy as np
from numpy.typing import NDArray

import pairformer
from pairformer.bags import WINDOW, Candidates
from pairformer.data import PairRecord, Record
from pairformer.fold import Fold
from pairformer.predict import Predictions
from pairformer.saved import whole_file
from pairformer.sites import SITE

FILE = click.Path(path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
COORDINATES = "coordinates are 1-based and inclusive"
PAIR_HEADER = ("mirna_id", "utr_id", "utr_length", "n_candidates", "probability", "logit", "status")
EFFECT_HEADER = ("log2_fold_change", "log2_fold_change_low", "log2_fold_change_high", "baseline")
PERCENTILE = "percentile"
SITE_HEADER = (
    "mirna_id", "utr_id", "start", "end", "seed_start", "seed_end", "site_id", "seed_type", "esa_score",
    "cheap_logit", "logit", "position", "reason", "mirna_aligned", "utr_aligned",
)  # fmt: skip


class OutputError(click.ClickException):
    """An output that cannot be written."""

    exit_code = 74


class OutputFolder(click.Path):
    """A folder to write to, which is there or can be made."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value, param, ctx) -> Any:
        out: Any = super().convert(value, param, ctx)
        there = next(place for place in (out, *out.absolute().parents) if os.path.exists(place))
        if not (os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)):
            raise OutputError(f"out must be a writable folder, got {out}; {there} is not one")
        return out


def check_outputs(outputs: Iterable[str | None], inputs: Iterable[str | None]) -> None:
    """Refuse outputs that would overwrite each other or an input, when they are whole or before."""
    taken = {_identity(0 if path == "-" else path) for path in inputs if path == "-" or (path and os.path.isfile(path))}
    for path in outputs:
        if path is None or is_stream(path):
            continue
        places = {path} if path == "-" else {_identity(path), _identity(str(_part_of(path)))}
        if places & taken:
            raise click.UsageError(
                f"each output must have a place of its own (and PATH.part after an error), got {path!r} twice or "
                "as an input; '-' is standard output, where --output goes unless it names a file"
            )
        taken |= places


def is_stream(path: str) -> bool:
    """Whether it is written at once: a device, such as /dev/null, or a pipe; or is no file at all."""
    path = path or os.curdir
    return os.path.exists(path) and not os.path.isfile(path)


def _part_of(path: str) -> Path:
    """Where what there is of an output goes after an error."""
    place = Path(os.path.realpath(path))
    return place.with_name(f"{place.name}.part")


def _identity(file: str | int) -> object:
    """The same for two names of one file; of a path, or the number of an open file."""
    try:
        found = os.stat(file)
        return found.st_dev, found.st_ino
    except OSError:
        return os.path.realpath(file) if isinstance(file, str) else None


def write_candidates(out: TextIO, group: list[PairRecord], found: Candidates, rows: NDArray[np.int64]) -> None:
    """Rows of some candidates of a group of pairs."""
    start = found.start[rows]
    columns = (found.bag_of(rows), start + 1, start + WINDOW, found.esa_score[rows], found.position[rows])
    lists = (column.tolist() for column in (*columns, found.aligned_rows(rows)))
    for bag, first, last, score, position, (top, bottom) in zip(*lists, strict=True):
        r = group[bag]
        write_row(out, (r.mirna_id, r.utr_id, first, last, score, as_text(position), top, bottom))


def write_pairs(out: TextIO, group: list[PairRecord], predictions: Predictions) -> None:
    """A row of each pair of a group."""
    effects: Iterable[list[float]] = ([] for _ in group)
    if predictions.log2_fold_change is not None and predictions.baseline is not None:
        interval = predictions.interval
        ends = np.full((len(group), 2), np.nan) if interval is None else interval
        effects = np.column_stack([predictions.log2_fold_change, ends, predictions.baseline]).tolist()
    columns = zip(
        group, predictions.utr_length, predictions.n_candidates, predictions.probability, predictions.logit,
        predictions.status, effects, strict=True,
    )  # fmt: skip
    for r, length, n, probability, logit, status, effect in columns:
        numbers = (as_text(probability), as_text(logit), status, *map(as_text, effect))
        write_row(out, (r.mirna_id, r.utr_id, length, n, *numbers, *r.extra))


def write_sites(out: TextIO, group: list[PairRecord], predictions: Predictions, matches: bool) -> None:
    """A row of each selected site of a group of pairs, or of each of their seed matches."""
    (pair, *tables), known = predictions.site_table(matches), len(SITE.descr)
    # As lists: rows of arrays are slow, and NumPy loses an interrupt that arrives while it makes a string.
    for number, site, duplex in zip(pair.tolist(), *(table.tolist() for table in tables), strict=True):
        start, end, seed_start, seed_end, site_id, seed_type, score, *numbers, reason = site[:known]
        seed = (seed_start + 1, seed_end, site_id + 1) if site_id >= 0 else ("NA",) * 3
        r, more = group[number], map(as_text, site[known:])
        where = (r.mirna_id, r.utr_id, start + 1, end, *seed, seed_type, score)
        write_row(out, (*where, *map(as_text, numbers), reason, *duplex, *more))


def write_drawings(out: TextIO, group: list[PairRecord], predictions: Predictions) -> None:
    """The duplex of each seed match among the selected sites of a group of pairs."""
    pair, table, _ = predictions.site_table(matches=True)
    added = ("contribution",) if "contribution" in (table.dtype.names or ()) else ()
    columns = (table[name].tolist() for name in ("seed_type", "seed_start", "seed_end", *added))
    for number, drawing, kind, start, end, *more in zip(
        pair.tolist(), predictions.drawings(matches=True), *columns, strict=True
    ):
        r, part = group[number], "".join(f", contribution {as_text(value)}" for value in more)
        out.write(f"{r.mirna_id} on {r.utr_id}: {kind} at {start + 1}-{end}{part}\n{drawing}\n\n")


def write_dot_bracket(out: TextIO, record: Record, found: Fold) -> None:
    """Name, sequence and structure, nothing of a sequence that cannot be folded."""
    if found.message is None:
        out.write(f">{record.name}\n{found.sequence}\n{found.structure}\n")


def write_fold_json(out: TextIO, record: Record, found: Fold) -> None:
    """One line; pairs are [i, j, probability], counted from 1."""
    row: dict = {"name": record.name, "sequence": None, "structure": None, "pairs": [], "possible": [], "unpaired": []}
    row |= {"threshold": None, "expected_f1": None, "message": found.message}
    if found.message is None:
        drawn = set(map(tuple, found.pairs.tolist()))
        pairs = [(i + 1, j + 1, round(p, 4), (i, j) in drawn)
                 for (i, j), p in zip(found.possible.tolist(), found.probability.tolist(), strict=True)]  # fmt: skip
        row |= {"sequence": found.sequence, "structure": found.structure,
                "pairs": [pair[:3] for pair in pairs if pair[3]], "possible": [pair[:3] for pair in pairs],
                "unpaired": [round(value, 4) for value in found.unpaired.tolist()],
                "threshold": found.threshold, "expected_f1": round(found.expected_f1, 4)}  # fmt: skip
    out.write(json.dumps(row) + "\n")


def open_output(files: contextlib.ExitStack, path: str) -> TextIO:
    """A file to write text to, gzip for a name in .gz, or for "-" standard output.

    It takes its place when all went well, and that of PATH.part after an error, unless nothing was written; runs side
    by side do not meet.
    """
    if path == "-":
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        return sys.stdout
    return files.enter_context(_taking_its_place(path))


@contextlib.contextmanager
def _taking_its_place(path: str) -> Iterator[TextIO]:
    at_once = is_stream(path)
    # Not resolved: what a pipe's link in /dev/fd leads to has no name.
    place = Path(path) if at_once else Path(os.path.realpath(path))
    own = place if at_once else place.with_name(f"{place.name}.{secrets.token_hex(4)}.part")
    try:
        raw = own.open("wb")
    except OSError as error:
        raise OutputError(f"output must be a writable file, got {path}; {error.strerror}") from error
    try:
        with (
            raw,
            _packed(raw, place, "wb") as packed,
            io.TextIOWrapper(packed, encoding="utf-8", errors="surrogateescape") as out,
        ):
            yield out
    except BaseException:
        if not at_once and _holds_text(own, place):
            click.echo(f"what was written is in {own.replace(_part_of(path))}", err=True)
        elif not at_once:
            own.unlink()
        raise
    if not at_once:
        if place.exists():
            own.chmod(place.stat().st_mode)
        own.replace(place)


def _holds_text(own: Path, place: Path) -> bool:
    """Whether anything was written to a file that was to be at ``place``."""
    with own.open("rb") as raw, _packed(raw, place, "rb") as text:
        try:
            return text.read(1) != b""
        except EOFError:  # compressed, and cut
            return True


@contextlib.contextmanager
def _packed(raw: IO[bytes], path: Path, mode: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, compressed in one whose name ends in .gz, where equal bytes give equal files."""
    if path.suffix.lower() == ".gz":
        with gzip.GzipFile("", mode, fileobj=raw, mtime=0) as packed:
            yield packed  # type: ignore[misc]
    else:
        yield raw


def open_table(files: contextlib.ExitStack, path: str, about: str, header: Iterable[str], note: str = "") -> TextIO:
    """An output that begins with what made it and a header."""
    out = open_output(files, path)
    out.write(f"# pairformer {pairformer.__version__} {about}\n" + (f"# {note}\n" if note else ""))
    write_row(out, header)
    return out


def renamed(columns: Iterable[str]) -> list[str]:
    """Extra input columns; one that is named as another is, such as of a table scored before, gets "input_"."""
    columns, names = list(columns), []
    for column in columns:
        name = column
        while name in (*PAIR_HEADER, *EFFECT_HEADER, PERCENTILE) or (name != column and name in columns):
            name = f"input_{name}"
        names.append(name)
    return names


def add_column(path: Path, name: str, values: Iterable[float]) -> None:
    """Write a table again with one more column; a reader sees the old or the new one whole."""
    path, cells = path.resolve(), itertools.chain([name], map(as_text, values))
    with path.open("rb") as old, whole_file(path, path.stat().st_mode) as new, _packed(old, path, "rb") as table, \
            _packed(new, path, "wb") as out:  # fmt: skip
        out.write(next(table))  # what made it
        out.writelines(b"%b\t%b\n" % (line[:-1], cell.encode()) for line, cell in zip(table, cells, strict=True))


def write_row(out: TextIO, cells: Iterable[object]) -> None:
    out.write("\t".join(map(str, cells)) + "\n")


def as_text(value: float) -> str:
    return "NA" if math.isnan(value) else f"{value:.6g}"


def tell_equal_names(records: Iterator[Record], source: str) -> Iterator[Record]:
    """The records; the first whose name another had is told, since rows of both look alike in what is written, and
    where there is none."""
    seen: set[int] = set()
    for record in records:
        if again := hash(record.name) in seen:
            click.echo(f"{record.where}: {record.name}: another record has that name, which ends at the first blank; "
                       "rows of both look alike", err=True)  # fmt: skip
        seen.add(hash(record.name))
        yield record
        if again:
            break
    if not seen:
        click.echo(f"{'standard input' if source == '-' else source} holds no record", err=True)
    yield from records


class Progress:
    """Records done, on stderr: rewritten in place on a terminal, one line at the end otherwise."""

    def __init__(self, what: str = "pairs") -> None:
        self.what = what

    def __enter__(self) -> Progress:
        self.pairs, self.invalid, self.empty, self.began, self.shown = 0, 0, 0, time.monotonic(), 0.0
        self.holed: tuple[PairRecord, int] | None = None
        self.dropped = 0
        return self

    def add(self, pairs: int, invalid: int, empty: int = 0) -> None:
        """Take note of records, of which some cannot be read and some are pairs without a candidate."""
        self.pairs, self.invalid, self.empty = self.pairs + pairs, self.invalid + invalid, self.empty + empty
        if sys.stderr.isatty() and time.monotonic() - self.shown > 0.5:
            self.shown = time.monotonic()
            click.echo(f"\r{self._text()}", err=True, nl=False)

    def passed_over(self, group: list[PairRecord], n_dropped: NDArray[np.int64]) -> None:
        """Take note of windows (B,) with unknown letters, of pairs; the first of these is told at the end."""
        for number in np.flatnonzero(n_dropped):
            self.holed = self.holed or (group[number], int(n_dropped[number]))
            self.dropped += 1

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            click.echo("\n" if self.shown else "", err=True, nl=False)  # keep the message off the progress line
        else:
            if self.holed is not None:
                record, windows = self.holed
                click.echo(f"{record.utr_where}: UTR {record.utr_id}: {windows} windows hold letters outside ACGU and "
                           f"were passed over{'; remove gaps' if '-' in record.utr else ''}; pairs like this: "
                           f"{self.dropped}", err=True)  # fmt: skip
            click.echo(("\r" if sys.stderr.isatty() else "") + self._text(), err=True)

    def _text(self) -> str:
        seconds = time.monotonic() - self.began
        empty = f"{self.empty} without a candidate, " if self.empty else ""
        return f"{self.pairs} {self.what}, {empty}{self.invalid} invalid, {seconds:.1f} s"
