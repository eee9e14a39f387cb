"""RNAs of known secondary structure: sequences, base pairs, families; and those a thermodynamic model folds."""

from __future__ import annotations

import functools
import hashlib
import itertools
import multiprocessing
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BPRNA, RFAM, TEST = "rna/bprna1m90.parquet", "rna/rfam142_seed.parquet", "rna/rnaformer_test_sets.parquet"
FAINT = 0.01  # a teacher's pair of less probability is left out


@dataclass(frozen=True, eq=False)
class Structures:
    """RNAs and their base pairs, row by row."""

    name: NDArray[np.object_]
    family: NDArray[np.object_]
    """Rfam clan, or accession where there is none; "" where neither is known."""
    sequence: NDArray[np.object_]
    """Letters ACGUN."""
    pairs: NDArray[np.object_]
    """(N, 2) int64 each, i < j, from 0."""
    probability: NDArray[np.object_]
    """(N,) float32 each; 1 where the structure is known."""

    def __len__(self) -> int:
        return len(self.name)

    def take(self, rows: NDArray) -> Structures:
        """Rows by number or mask."""
        return Structures(*(getattr(self, f.name)[rows] for f in fields(self)))

    def sha256(self) -> str:
        """Of sequences, families, pairs and probabilities, row by row."""
        digest = hashlib.sha256()
        for sequence, family, pairs, value in zip(
            self.sequence, self.family, self.pairs, self.probability, strict=True
        ):
            digest.update(f"{sequence}\n{family}\n{len(pairs)}\n".encode() + pairs.tobytes() + value.tobytes())
        return digest.hexdigest()

    @property
    def length(self) -> NDArray[np.int64]:
        """(B,) bases of each."""
        return np.array([len(sequence) for sequence in self.sequence], np.int64)

    def unpaired(self) -> NDArray[np.float64]:
        """(bases of all RNAs,) probability that one has no partner; 0 or 1 where the structure is known."""
        length = self.length
        begin = np.cumsum(length) - length
        bases = ((pairs + at).ravel() for pairs, at in zip(self.pairs, begin, strict=True))
        base = np.concatenate([np.empty(0, np.int64), *bases])
        value = np.repeat(np.concatenate([np.empty(0), *self.probability]), 2)
        return np.clip(1 - np.bincount(base, value, length.sum()), 0, 1)


def known(rows: Iterable[dict[str, Any]], name: str, family: str = "", pairs: str = "pairs") -> Structures:
    """Structures of table rows with pairs written "i-j i-j ..."; of equal sequences the first."""
    first: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        first.setdefault(row["sequence"], (row[name], (family and row[family]) or "", row[pairs] or ""))
    found = [_pairs(text) for _, _, text in first.values()]
    return Structures(
        _objects(name for name, _, _ in first.values()),
        _objects(family for _, family, _ in first.values()),
        _objects(first),
        _objects(found),
        _objects(np.ones(len(part), np.float32) for part in found),
    )


def load_known(folder: Path, max_length: int = 500) -> Structures:
    """Structures to train on, none of TS0's or near them.

    They are bpRNA-1m(90) without its splits VL0 and TS0, and the Rfam 14.2 seeds of families older than bpRNA-new, both
    without what is near TS0 or a PDB structure. Of equal sequences that of bpRNA stays if its label has all pairs, else
    Rfam's. Four in five of VL0's sequences are seeds too, so it is no validation set for these.

    Args:
        folder: with ``rna/bprna1m90.parquet`` and ``rna/rfam142_seed.parquet``.
        max_length: Longer ones are left out, as are those without a pair.
    """

    def usable(row: dict[str, Any]) -> bool:
        return row["length"] <= max_length and bool(row["pairs"]) and not (row["near_ts0"] or row["near_pdb"])

    seeds = read_parquet(folder / RFAM)
    clan = {row["rfam_acc"]: row["clan"] or row["rfam_acc"] for row in seeds}
    pool = [row for row in read_parquet(folder / BPRNA) if usable(row) and row["split"] not in ("TS0", "VL0")]
    pool += [{**row, "bprna_id": row["seq_name"], "label_kind": ""}
             for row in seeds if usable(row) and not row["new_family"]]  # fmt: skip
    pool.sort(key=lambda row: {"full": 0, "": 1}.get(row["label_kind"], 2))
    return known(
        ({**row, "family": clan.get(row["rfam_acc"], row["rfam_acc"])} for row in pool), "bprna_id", "family"
    )  # fmt: skip


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Rows of a table; the extra ``fold`` brings the reader."""
    from pyarrow.parquet import read_table

    with path.open("rb") as file:
        return read_table(file).to_pylist()


def teacher_sequences(
    pool: Structures, utrs: list[str], count: int, max_length: int, rng: np.random.Generator
) -> list[str]:
    """Sequences to fold: windows of 3'UTRs, and as many RNAs of the pool read backwards.

    An RNA read backwards has the same letters and stems but belongs to no family, so that what the teacher says of it
    contradicts no known structure.
    """
    long_enough = [utr for utr in utrs if len(utr) >= max_length]
    weight = np.array([len(utr) for utr in long_enough], float)
    reversed_rows = rng.choice(len(pool), count - count // 2 if long_enough else count)
    sequences = [str(pool.sequence[row])[::-1][:max_length] for row in reversed_rows]
    for at in rng.choice(len(long_enough), count // 2, p=weight / weight.sum()) if long_enough else ():
        length = int(rng.integers(max_length // 2, max_length + 1))
        begin = int(rng.integers(len(long_enough[at]) - length + 1))
        sequences.append(long_enough[at][begin : begin + length])
    return sequences


def rnafold(sequences: list[str], processes: int = 1, least: float | None = FAINT) -> Structures:
    """What ViennaRNA's RNAfold makes of sequences: pairs of probability ``least`` and more; None: its MFE structure.

    Raises:
        ModuleNotFoundError: ViennaRNA is not installed; the extra ``fold`` brings it.
    """
    import RNA  # noqa: F401  # told here, not in a process of its own

    names, no_family = (_objects(text) for text in (map(str, range(len(sequences))), [""] * len(sequences)))
    one = _mfe if least is None else functools.partial(_probabilities, least=least)
    if processes > 1:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            folded = pool.map(one, sequences, chunksize=64)
    else:
        folded = [one(sequence) for sequence in sequences]
    return Structures(
        names, no_family, _objects(sequences), _objects(p for p, _ in folded), _objects(v for _, v in folded)
    )


def save_structures(structures: Structures, out: Any) -> None:
    """Write structures to an open file; :func:`read_structures` reads them."""
    ends = np.cumsum([0, *(len(part) for part in structures.pairs)])
    pairs = np.concatenate([np.empty((0, 2), np.int64), *structures.pairs]).astype(np.uint16)
    probability = np.concatenate([np.empty(0, np.float32), *structures.probability]).astype(np.float16)
    text: dict[str, Any] = {name: getattr(structures, name).astype(str) for name in ("name", "family", "sequence")}
    np.savez_compressed(out, ends=ends, pairs=pairs, probability=probability, **text)


def read_structures(path: Path) -> Structures:
    """Inverse of :func:`save_structures`, probabilities rounded to half precision.

    Raises:
        ValueError: the file is damaged or another.
    """
    try:
        with np.load(path) as file:
            ends = file["ends"]
            name, family, sequence = (file[column].astype(object) for column in ("name", "family", "sequence"))
            pairs, probability = file["pairs"].astype(np.int64), file["probability"].astype(np.float32)
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        raise ValueError(f"{path.name} must be as it was prepared, got {path}; delete it ({error})") from error
    spans = [slice(*span) for span in itertools.pairwise(ends)]
    parts = (_objects(column[span] for span in spans) for column in (pairs, probability))
    return Structures(name, family, sequence, *parts)


def _probabilities(sequence: str, least: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    import RNA

    if not sequence:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    fold = RNA.fold_compound(sequence)
    fold.exp_params_rescale(fold.mfe()[1])
    fold.pf()
    matrix = np.array(fold.bpp(), np.float32)[1:, 1:]  # upper triangle, counted from 1
    pairs = np.argwhere(matrix >= least)
    return pairs, matrix[tuple(pairs.T)]


def _mfe(sequence: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    import RNA

    from pairformer.folding import pairs_of

    pairs = pairs_of(RNA.fold_compound(sequence).mfe()[0] if sequence else "")
    return pairs, np.ones(len(pairs), np.float32)


def _pairs(text: str) -> NDArray[np.int64]:
    return np.array([pair.split("-") for pair in text.split()], np.int64).reshape(-1, 2)


def _objects(values: Iterable[Any]) -> NDArray[np.object_]:
    """One cell for each value, whatever it is."""
    listed = list(values)
    column = np.empty(len(listed), object)
    for row, value in enumerate(listed):  # at once, arrays of one shape would be taken apart
        column[row] = value
    return column
