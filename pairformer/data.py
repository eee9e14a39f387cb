"""Read sequences and tables: FASTA, pair TSV, and the labelled windows and pairs models are trained on."""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from pairformer.bags import WINDOW
from pairformer.scan import pair_fault, scan

DATA_VARIABLE = "PAIRFORMER_DATA"
SITES, PAIRS, UTRS = "miraw_cts/cts.tsv.gz", "miraw_pairs/pairs.tsv", "utr3_human/utr3_human.tsv.gz"
FREE = 100  # rounds of :func:`rewire` in which any swap stands
_MIRNA = re.compile("[ACGUTacgut]{1,35}")
PAIR_COLUMNS = ("mirna_id", "mirna_seq", "utr_id", "utr_seq")


class DataError(ValueError):
    """Data that cannot be read; the message starts with ``file:line:``."""


@dataclass(frozen=True)
class Record:
    """One FASTA record."""

    name: str
    """First word after '>'."""
    sequence: str
    """Lines joined, blanks removed, letters as they stand."""
    where: str = ""
    """file:line of its '>'."""


@dataclass(frozen=True)
class PairRecord:
    """One pair asked for."""

    mirna_id: str
    mirna: str
    utr_id: str
    utr: str
    extra: tuple[str, ...] = ()
    """Cells of the columns beyond the four."""
    where: str = ""
    """file:line of a table row or of the miRNA's record."""
    utr_where: str = ""
    """file:line of a table row or of the UTR's record."""
    fault: str | None = None
    """Why the row could not be read, or None."""

    def subject(self, message: str) -> tuple[str, str]:
        """file:line and name of what a message is about."""
        return (self.utr_where, self.utr_id) if message.startswith("utr ") else (self.where, self.mirna_id)


def open_text(path: str | Path) -> TextIO:
    """Open a text file, gzip detected by content, "-" for standard input; a byte order mark is skipped,
    bytes that are not UTF-8 survive a round trip."""
    raw: Any = sys.stdin.buffer if str(path) == "-" else Path(path).open("rb")
    stream = raw
    if raw.peek(2)[:2] == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=raw)
        stream.myfileobj = raw  # closed with the stream
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=None)


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file, counted from 1; the file is closed with the iterator.

    Raises:
        DataError: damaged gzip, as ``file:line: ...``.
    """
    number = 0
    with open_text(path) as lines:
        try:
            for number, line in enumerate(lines, 1):
                yield number, line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}:{number + 1}: gzip data must be whole, got {error}") from error


def read_fasta(path: str | Path) -> Iterator[Record]:
    """Records of a FASTA file, one at a time.

    Raises:
        DataError: text before the first '>' or damaged gzip, as ``file:line: ...``.
    """
    name: str | None = None
    where = ""
    parts: list[str] = []
    for number, line in numbered_lines(path):
        line = line.removeprefix("\ufeff")  # of a file that was put behind another
        if line.startswith(">"):
            if name is not None:
                yield Record(name, "".join(parts), where)
            words = line[1:].split()
            name, where, parts = words[0] if words else f"record_{number}", f"{path}:{number}", []
        elif name is None and line.strip():
            raise DataError(f"{path}:{number}: FASTA must start with '>', got {line.rstrip()[:20]!r}")
        elif ">" in line:
            raise DataError(f"{path}:{number}: FASTA must have '>' only where a line begins, got "
                            f"{line.strip()[:20]!r}; the line before may lack its end")  # fmt: skip
        else:
            parts.append("".join(line.split()))
    if name is not None:
        yield Record(name, "".join(parts), where)


class PairTable:
    """Rows of a pair TSV with the columns mirna_id, mirna_seq, utr_id, utr_seq; others are kept.

    Empty lines, and before the header those that start with '#', are passed over. Iterating yields one PairRecord per
    other line; one with another number of cells than the header has a ``fault``. Blanks in sequences are removed.

    Raises:
        DataError: a column is missing or named twice, or damaged gzip, as ``file:line: ...``.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._lines = ((number, line) for number, line in numbered_lines(path) if line != "\n")
        number, line = next((entry for entry in self._lines if not entry[1].startswith("#")), (1, ""))
        self._header = line.rstrip("\n").split("\t")
        for column in PAIR_COLUMNS:
            if self._header.count(column) != 1:
                raise DataError(
                    f"{path}:{number}: header must name {column} once, got {self._header.count(column)} times; "
                    f"columns, between tabs, are {' '.join(self._header)[:200] or 'none'}"
                )
        self._at = [self._header.index(column) for column in PAIR_COLUMNS]
        self.extra_columns = tuple(column for column in self._header if column not in PAIR_COLUMNS)

    def __iter__(self) -> Iterator[PairRecord]:
        for number, line in self._lines:
            cells = line.rstrip("\n").split("\t")
            where, fault = f"{self._path}:{number}", None
            if len(cells) != len(self._header):
                fault = f"row must have {len(self._header)} cells, got {len(cells)}"
                cells = (cells + [""] * len(self._header))[: len(self._header)]
            mirna_id, mirna, utr_id, utr = (cells[i] for i in self._at)
            mirna, utr = ("".join(cell.split()) for cell in (mirna, utr))
            extra = tuple(cell for i, cell in enumerate(cells) if i not in self._at)
            yield PairRecord(mirna_id, mirna, utr_id, utr, extra, where, where, fault)


def data_folder(path: str | Path | None = None) -> Path:
    """The folder of training data: ``path``, else the one named by PAIRFORMER_DATA."""
    path = path or os.environ.get(DATA_VARIABLE)
    if not path:
        raise FileNotFoundError(f"no data folder; name one with --data or the variable {DATA_VARIABLE}")
    if not Path(path).is_dir():
        raise FileNotFoundError(f"data folder must exist, got {path}")
    return Path(path)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Equally long columns that are cut together."""

    label: NDArray[np.float32]
    """0 or 1."""
    mirna: NDArray[np.object_]
    """miRNA sequence."""
    gene: NDArray[np.object_]
    """Symbol of the transcript, else its id."""

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: NDArray):
        """The given rows (numbers or a mask) of every column."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def join(self, other):
        """These rows, then the other's."""
        parts = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return type(self)(**{name: np.concatenate(columns) for name, columns in parts.items()})

    @property
    def family(self) -> NDArray[np.object_]:
        """miRNA family of each row: letters 2-8."""
        return np.array([sequence[1:8] for sequence in self.mirna], object)


@dataclass(frozen=True, eq=False)
class Sites(Labelled):
    """Labelled windows: M candidates, one per row. A window of several genes names all, with commas."""

    window: NDArray[np.object_]
    """40 letters."""
    one_hot: NDArray[np.uint8]
    """(M, 10, 50)."""
    esa_score: NDArray[np.uint8]
    """(M,) 6-10."""
    position: NDArray[np.float32]
    """(M,) 0.5: a window by itself is its own middle."""
    weight: NDArray[np.float32]
    """(M,) In the losses of stages 1 and 2; 1 until the sources are put together."""


@dataclass(frozen=True, eq=False)
class Pairs(Labelled):
    """Labelled pairs: B rows."""

    utr: NDArray[np.object_]
    """3'UTR sequence."""
    utr_id: NDArray[np.object_]
    """Name of the 3'UTR."""


def best_windows(pairs: Pairs, esa_min: int) -> Sites:
    """The candidate of each pair with the highest ESA score, the first of equal ones, with the pair's label; pairs
    without a candidate are left out."""
    candidates = scan(pairs.mirna, pairs.utr, esa_min, strict=True)
    order = np.lexsort((candidates.start, -candidates.esa_score.astype(int), candidates.bag_of()))
    has = candidates.n_candidates > 0
    rows = order[candidates.offsets[:-1][has]]
    window = np.array(
        [utr[s : s + WINDOW] for utr, s in zip(pairs.utr[has], candidates.start[rows], strict=True)], object
    )
    middle, weight = np.full(len(rows), 0.5, np.float32), np.ones(len(rows), np.float32)
    return Sites(
        pairs.label[has], pairs.mirna[has], pairs.gene[has], window, candidates.encode(rows),
        candidates.esa_score[rows], middle, weight,
    )  # fmt: skip


def load_sites(table: Path, folder: Path | None = None, esa_min: int = 6) -> tuple[Sites, dict[str, int]]:
    """Labelled windows of a TSV with mirna_seq, mrna_seq, mrna_id and label, and how many rows were left out why.

    Rows are left out that hold no candidate (ESA score below ``esa_min``, or other than 40 letters), as at inference,
    and those with a mark, be it 0, in a column in_miraw_pair: they lie in a labelled pair of the same miRNA, and stage
    3 shall see no window twice. Where the data folder is given, mrna_id becomes the gene's symbol.

    Raises:
        DataError: a column is missing or named twice, a row is ragged, a label is not 0 or 1 or a miRNA not 1-35
            letters ACGUT, as ``file:line: ...``.
    """
    symbols = {r["ensembl_gene"]: r["gene_symbol"] for r in table_rows(folder / UTRS, "ensembl_gene")} if folder else {}
    rows = list(table_rows(table, "mirna_seq", "mrna_id", "mrna_seq", "label"))
    check_mirnas(rows)
    kept = [row for row in rows if not row.get("in_miraw_pair")]
    counts = {"rows": len(rows), "in_a_pair": len(rows) - len(kept)}
    mirna, window = _rna(kept, "mirna_seq"), _rna(kept, "mrna_seq")
    window[[len(one) != WINDOW for one in window]] = ""
    candidates = scan(mirna, window, esa_min, strict=True)
    is_site = (candidates.n_candidates > 0) & (candidates.utr_length == WINDOW)
    counts["no_candidate"] = int((~is_site).sum())
    kept = [row for row, site in zip(kept, is_site, strict=True) if site]
    counts["used"] = len(kept)
    if len({row["label"] for row in kept}) < 2:
        other = int((candidates.utr_length != WINDOW).sum())
        raise DataError(f"{table}:1: windows of {WINDOW} nt with a candidate must have both labels, got {len(kept)} "
                        f"such rows of {len(rows)}, {other} of which have another length")  # fmt: skip
    gene = [",".join(symbols.get(name) or name for name in row["mrna_id"].split(",")) for row in kept]
    found = candidates.offsets[:-1][is_site]  # a window of 40 nt is one candidate
    sites = Sites(
        _labels(kept), mirna[is_site], np.array(gene, object), window[is_site],
        candidates.encode(found), candidates.esa_score[found], candidates.position[found],
        np.ones(len(kept), np.float32),
    )  # fmt: skip
    return sites, counts


def load_pairs(table: Path, folder: Path | None = None, labelled: bool = True) -> Pairs:
    """Pairs of a TSV: mirna_seq, label, and utr_seq, or mrna_seq, or a utr_id of the data folder's ``utr3_human``.

    The gene is gene_symbol, where it is empty or no column mrna_id, then utr_id, then the sequence itself.

    Args:
        table: the file, gzip or not.
        folder: the data folder, read where the table has no sequences.
        labelled: whether a label is needed; without it labels that are absent are NaN.

    Raises:
        DataError: a column is missing or named twice, a row is ragged, a label is not 0 or 1, a miRNA is not 1-35
            letters ACGUT, a UTR cannot be scanned, or a utr_id is unknown, as ``file:line: ...``.
    """
    rows = list(table_rows(table, "mirna_seq", *(["label"] if labelled else [])))
    if not rows:
        raise DataError(f"{table}:1: table must have rows below its header, got none")
    source = next((name for name in ("utr_seq", "mrna_seq") if name in rows[0]), "utr_id")
    if source == "utr_id" and (folder is None or "utr_id" not in rows[0]):
        raise DataError(f"{table}:1: header must name utr_seq or mrna_seq, or utr_id with a data folder; "
                        f"columns are {' '.join(list(rows[0])[:-1])[:200]}")  # fmt: skip
    sequences = load_utrs(folder) if source == "utr_id" and folder else {}
    check_mirnas(rows)
    for row in rows:
        if source == "utr_id" and row["utr_id"] not in sequences:
            raise DataError(f"{row['where']}: utr_id must be in {UTRS}, got {row['utr_id']}")
    utr = np.array([sequences[row["utr_id"]] for row in rows], object) if sequences else _rna(rows, source)
    mirna = _rna(rows, "mirna_seq")
    for row, *pair in zip(rows, mirna, utr, strict=True):
        if fault := pair_fault(*pair):
            raise DataError(f"{row['where']}: {fault}")
    names = [[row.get(key, "") for key in ("gene_symbol", "mrna_id", "utr_id")] for row in rows]
    gene = [next(filter(None, name), sequence) for name, sequence in zip(names, utr, strict=True)]
    utr_id = [row.get("utr_id") or name for row, name in zip(rows, gene, strict=True)]
    label = _labels(rows) if "label" in rows[0] else np.full(len(rows), np.nan, np.float32)
    return Pairs(label, mirna, np.array(gene, object), utr, np.array(utr_id, object))


def rewire(positives: Pairs, known: Pairs, rng_seed: int | Sequence[int] = 2020) -> Pairs:
    """Decoys: the same miRNAs with the same genes in another pairing.

    The genes of ``positives`` are permuted; a decoy that is a known pair of any label, by the gene's name in any case
    or by the UTR, or whose family has the gene as a positive, or that stands twice, is swapped with another row until
    none is left; after ``FREE`` rounds a swap that leaves more of these is taken back. Each miRNA and each gene stands
    as often among the decoys as among the positives, so neither tells the classes apart.

    Args:
        positives: pairs to rewire.
        known: pairs that are no decoys, whatever their label.
        rng_seed: of the permutation.

    Returns:
        Pairs with label 0, row i with the miRNA of positive i.

    Raises:
        ValueError: no such pairing was found in 1,000 rounds.
    """
    rng = np.random.default_rng(rng_seed)
    taken = {(mirna, gene.upper()) for mirna, gene in zip(known.mirna, known.gene, strict=True)}
    taken |= set(zip(known.mirna, known.utr, strict=True))
    mirna, family, utr = positives.mirna, positives.family, positives.utr
    gene = np.array([name.upper() for name in positives.gene], object)
    targets = set(zip(family, gene, strict=True))
    order = rng.permutation(len(positives))

    def pair(row: int) -> tuple[str, str]:
        return mirna[row], gene[order[row]]

    def is_known(row: int) -> bool:
        by_utr = mirna[row], utr[order[row]]
        return pair(row) in taken or by_utr in taken or (family[row], gene[order[row]]) in targets

    def faults(row: int, other: int) -> int:
        return sum(is_known(at) + (stands[pair(at)] > 1) for at in (row, other))

    def swap(row: int, other: int) -> None:
        stands.subtract(map(pair, {row, other}))
        order[[row, other]] = order[[other, row]]
        stands.update(map(pair, {row, other}))

    for rounds in range(1000):
        stands, rows = Counter[tuple[str, str]](), []
        for row in range(len(order)):
            if stands[pair(row)] or is_known(row):
                rows.append(row)
            stands[pair(row)] += 1
        if not rows:
            break
        for row in rows:
            other = int(rng.integers(len(order)))
            before = faults(row, other)
            swap(row, other)
            if rounds >= FREE and faults(row, other) > before:
                swap(row, other)
    else:
        raise ValueError(f"positives must have a pairing without known pairs, got {len(rows)} rows left over; where "
                         "miRNAs and genes are so few give decoys no share (--sources.decoys 0)")  # fmt: skip
    label = np.zeros(len(positives), np.float32)
    return Pairs(label, positives.mirna, positives.gene[order], positives.utr[order], positives.utr_id[order])


def gene_names(text: str) -> set[str]:
    """Names of genes between commas, in capitals: some tables spell them otherwise."""
    return {name.strip().upper() for name in text.split(",")} - {""}


def as_rna(sequence: str) -> str:
    """Capitals with U for T, so that equal sequences are equal strings."""
    return sequence.upper().replace("T", "U")


def load_utrs(folder: Path) -> dict[str, str]:
    """utr_id -> sequence of every 3'UTR of ``utr3_human``."""
    return {row["utr_id"]: row["utr_seq"] for row in table_rows(folder / UTRS, "utr_id", "utr_seq")}


def columns(table: Path, *names: str) -> tuple[NDArray[np.object_], ...]:
    """Columns of a TSV as text.

    Raises:
        DataError: a column is missing or named twice or a row is ragged, as ``file:line: ...``.
    """
    rows = list(table_rows(table, *names))
    return tuple(_column(rows, name) for name in names)


def table_rows(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Rows of a TSV with a header that names ``columns``; ``where`` is their file:line."""
    lines = ((number, line) for number, line in numbered_lines(path) if line != "\n")
    first, line = next((entry for entry in lines if not entry[1].startswith("#")), (1, ""))
    header = line.rstrip("\n").split("\t")
    if any(column not in header for column in columns):
        raise DataError(f"{path}:{first}: header must name {' '.join(columns)}, got {' '.join(header)[:200]}")
    repeated = {column for column in header if header.count(column) > 1}
    if repeated:
        raise DataError(f"{path}:{first}: header must name each column once, got {sorted(repeated)[0]} twice")
    for number, line in lines:
        cells = line.rstrip("\n").split("\t")
        if len(cells) != len(header):
            raise DataError(f"{path}:{number}: row must have {len(header)} cells, got {len(cells)}")
        yield {**dict(zip(header, cells, strict=True)), "where": f"{path}:{number}"}


def check_mirnas(rows: list[dict[str, str]]) -> None:
    for row in rows:
        if not _MIRNA.fullmatch(row["mirna_seq"]):
            raise DataError(f"{row['where']}: mirna_seq must be 1 to 35 letters ACGUT, got {row['mirna_seq'][:40]!r}")


def _column(rows: list[dict[str, str]], name: str) -> NDArray[np.object_]:
    return np.array([row[name] for row in rows], object)


def _rna(rows: list[dict[str, str]], name: str) -> NDArray[np.object_]:
    return np.array([as_rna("".join(row[name].split())) for row in rows], object)


def _labels(rows: list[dict[str, str]]) -> NDArray[np.float32]:
    for row in rows:
        if row["label"] not in ("0", "1"):
            raise DataError(f"{row['where']}: label must be 0 or 1, got {row['label']}")
    return np.array([row["label"] == "1" for row in rows], np.float32)
