"""Folders of features, one bag per name, as CLAM and torchmil keep them: prune every bag to at most K instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairformer.mil.selectors import Selector, STSelector
from pairformer.saved import whole_file

SUFFIXES = (".pt", ".npy", ".h5")
TABLE = "selection.tsv"


@dataclass(frozen=True)
class Pruned:
    """What became of one bag."""

    name: str
    """The files' name without suffix."""
    n: int
    """Instances before."""
    rows: NDArray[np.int64]
    """(K,) those kept, ascending."""


def select_folder(
    features: str | Path, out: str | Path, selector: Selector | int = 256, *, scores: str | Path | None = None,
    scorer: Callable[[NDArray[np.float32]], NDArray] | None = None, coords: str | Path | None = None,
) -> Iterator[Pruned]:  # fmt: skip
    """Prune a folder of bags, bag by bag as the result is read; ``OUT/selection.tsv`` lists bag, row and reason.

    Files are ``NAME.pt`` (a tensor), ``NAME.npy`` or ``NAME.h5`` (datasets ``features`` and ``coords``, needs h5py), in
    the folder or below it, as in CLAM's ``pt_files`` and ``h5_files``. Files of one name are one bag: the first in this
    order gives the features (n, D), all are written with the same rows, in every dataset of n rows, to the same place
    below ``out``. An ``.h5`` file or ``COORDS/NAME.npy`` gives the positions; without either features are covered.

    Args:
        features: the folder.
        out: another folder, made if need be.
        selector: any of ``pairformer.mil``, or a budget K for ``STSelector``.
        scores: folder of ``NAME.npy`` (n,), or ``NAME.txt`` or ``NAME.csv`` of one number a line: such as the
            attention of a model trained before.
        scorer: features (n, D) float32 -> scores (n,), where there are no files.
        coords: folder of ``NAME.npy``, (n, 2) or (n,).

    With neither scores nor scorer the score is the features' Euclidean norm. That is a stand-in: it says which
    instances excite the feature extractor, not which matter.

    Yields:
        Pruned, in the order of names.

    Raises:
        FileNotFoundError: no bag is found, or a bag lacks its scores or coordinates.
        ValueError: a file holds something else, with its path; or out is the folder itself.
    """
    features, out = Path(features), Path(out)
    rule = STSelector(selector) if isinstance(selector, int) else selector
    if scores is not None and scorer is not None:
        raise ValueError("scores and scorer must not both be given, got both")
    if out.resolve().is_relative_to(features.resolve()):
        raise ValueError(f"out must lie outside {features}, got {out}")
    bags: dict[str, list[Path]] = {}
    for path in sorted(features.rglob("*"), key=lambda path: (*SUFFIXES, path.suffix).index(path.suffix)):
        if path.suffix in SUFFIXES and path.is_file():
            bags.setdefault(path.stem, []).append(path)
    if not bags:
        raise FileNotFoundError(f"features must hold {', '.join(SUFFIXES)} files, got {features}")
    scorer = scorer or (lambda values: np.linalg.norm(values, axis=1))
    return _pruned(features, out, rule, dict(sorted(bags.items())), scores, scorer, coords)


def _pruned(features, out, selector, bags, scores, scorer, coords) -> Iterator[Pruned]:
    with whole_file(out / TABLE) as table:
        table.write(b"bag\trow\treason\n")
        for name, paths in bags.items():
            stored = {path: _read(path) for path in paths}
            values = stored[paths[0]]["features"]
            if values.ndim != 2 or values.dtype.kind != "f":
                raise ValueError(f"{paths[0]}: features must be (n, D) floats, got {values.dtype} {values.shape}")
            values = values.astype(np.float32)
            inside = (parts["coords"] for parts in stored.values() if "coords" in parts)
            places = next(inside, None) if coords is None else np.load(Path(coords) / f"{name}.npy")
            score = np.asarray(scorer(values)) if scores is None else _column(Path(scores), name)
            try:
                kept = selector.select(score, values, places)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{paths[0]}: {error}") from error
            for path, parts in stored.items():
                if len(parts["features"]) != len(values):
                    raise ValueError(f"{path}: features must have {len(values)} rows as {paths[0]}, got "
                                     f"{len(parts['features'])}")  # fmt: skip
                pruned = {key: part[kept.rows] if part.shape[:1] == values.shape[:1] else part
                          for key, part in parts.items()}  # fmt: skip
                _write(out / path.relative_to(features), path, pruned)
            lines = (f"{name}\t{row}\t{why}\n" for row, why in zip(kept.rows, kept.reason, strict=True))
            table.write("".join(lines).encode())
            yield Pruned(name, len(values), kept.rows)


def _read(path: Path) -> dict[str, Any]:
    """Arrays of a file by name; "features" is always there."""
    try:
        if path.suffix == ".npy":
            return {"features": np.load(path)}
        if path.suffix == ".pt":
            import torch

            return {"features": torch.load(path, map_location="cpu", weights_only=True).numpy()}
        import h5py

        with h5py.File(path) as file:
            return {"features": file["features"][:], **{name: part[()] for name, part in file.items()}}
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each library has exceptions of its own for files that hold something else
        raise ValueError(f"{path}: features must be readable as {path.suffix}, got {error}") from error


def _write(path: Path, source: Path, parts: dict[str, Any]) -> None:
    with whole_file(path) as file:
        if path.suffix == ".npy":
            np.save(file, parts["features"])
        elif path.suffix == ".pt":
            import torch

            torch.save(torch.from_numpy(parts["features"]), file)
        else:
            import h5py

            with h5py.File(source) as old, h5py.File(file, "w") as new:
                for name, part in parts.items():
                    new.create_dataset(name, data=part).attrs.update(old[name].attrs)
                new.attrs.update(old.attrs)


def _column(folder: Path, name: str) -> NDArray[np.float64]:
    """Scores of a bag."""
    for suffix in (".npy", ".txt", ".csv"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            try:
                return np.asarray(np.load(path) if suffix == ".npy" else path.read_text().split(), np.float64)
            except ValueError as error:
                raise ValueError(f"{path}: scores must be one number a line, got {error}") from error
    raise FileNotFoundError(f"scores must have a file of {name}, got none in {folder}")
