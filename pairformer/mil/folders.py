"""Folders of features, one bag per name, as CLAM and torchmil keep them: prune every bag to at most K instances."""

from __future__ import annotations

import codecs
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pairformer.mil.selectors import Selection, Selector, STSelector
from pairformer.saved import whole_file

SUFFIXES = (".pt", ".npy", ".h5")
TABLE = "selection.tsv"
NEWER = ("v108", "v110")  # formats of HDF5 in which attributes have no limit and that libraries since 2016 read
PACKING = ("compression", "compression_opts", "shuffle")
REFERENCES = ("DIMENSION_LIST", "REFERENCE_LIST")  # of an .h5 file's scales, which hold in that file alone


@dataclass(frozen=True)
class Pruned:
    """What became of one bag."""

    name: str
    """The files' name without suffix."""
    n: int
    """Instances before."""
    rows: NDArray[np.int64]
    """(K,) those kept, ascending."""
    message: str | None = None
    """Why nothing was written of it; None of a bag that was pruned."""


def select_folder(
    features: str | Path, out: str | Path, selector: Selector | int = 256, *, scores: str | Path | None = None,
    scorer: Callable[[NDArray[np.float32]], NDArray] | None = None, coords: str | Path | None = None,
) -> Iterator[Pruned]:  # fmt: skip
    """Prune a folder of bags, bag by bag as the result is read; ``OUT/selection.tsv`` lists bag, row and reason.

    Files are ``NAME.pt`` (a tensor), ``NAME.npy`` or ``NAME.h5`` (datasets ``features`` and ``coords``, needs h5py), in
    the folder or below it, as in CLAM's ``pt_files`` and ``h5_files``. Files of one name, one of each kind, are one
    bag: the first in this order gives the features (n, D), all are written with the same rows, in every dataset of n
    rows, to the same place below ``out``; groups of an ``.h5`` file are copied. An ``.h5`` file or ``COORDS/NAME.npy``
    gives the positions; without either features are covered.

    Args:
        features: the folder.
        out: another folder, made if need be.
        selector: any of ``pairformer.mil``, or a budget K for ``STSelector``.
        scores: folder of ``NAME.npy`` (n,) or (n, 1), or ``NAME.txt`` or ``NAME.csv`` of one number a line: such as the
            attention of a model trained before.
        scorer: features (n, D) float32 -> scores (n,) or (n, 1), where there are no files.
        coords: folder of ``NAME.npy``, (n, 2) or (n,).

    With neither scores nor scorer the score is the features' Euclidean norm. That is a stand-in: it says which
    instances excite the feature extractor, not which matter.

    Yields:
        Pruned, in the order of names. A bag of which a file is missing or holds something else, or that has two files
        of one kind, has a message, with the path, and the others go on.

    Raises:
        FileNotFoundError: no bag is found.
        ValueError: a file would be written among those that are read, or ``out`` holds other bags, whose rows would
            be missing in its table.
    """
    features, out = Path(features), Path(out)
    rule = selector if isinstance(selector, Selector) else STSelector(selector)
    if scores is not None and scorer is not None:
        raise ValueError("scores and scorer must not both be given, got both")
    bags: dict[str, list[Path]] = {}
    given = [Path(folder).resolve() for folder in (scores, coords) if folder is not None]
    apart = [folder for folder in given if features.resolve() in folder.parents]
    for path in sorted(features.rglob("*"), key=lambda path: (*SUFFIXES, path.suffix).index(path.suffix)):
        beside = any(path.resolve().is_relative_to(folder) for folder in apart)
        dangling = path.is_symlink() and not path.exists()
        if path.suffix in SUFFIXES and (path.is_file() or dangling) and not beside:
            bags.setdefault(path.stem, []).append(path)
            place = (out / path.relative_to(features)).resolve().parent
            if place in given or place.is_relative_to(features.resolve()):
                raise ValueError(f"out must lie outside the folders that are read, got {out}, where {path} would be "
                                 f"written to {place}")  # fmt: skip
    if not bags:
        found = "with none" if features.is_dir() else "which is no folder"
        raise FileNotFoundError(f"features must be a folder with {', '.join(SUFFIXES)} files, got {features}, {found}")
    targets = {(out / path.relative_to(features)).resolve() for paths in bags.values() for path in paths}
    for path in sorted(out.rglob("*")):
        read = any(path.resolve().is_relative_to(folder) for folder in (features.resolve(), *given))
        if path.suffix in SUFFIXES and path.is_file() and not read and path.resolve() not in targets:
            raise ValueError(f"out must hold no files of bags but those of features, got {path}; give an empty folder")
    scorer = scorer or (lambda values: np.linalg.norm(values, axis=1))
    return _pruned(features, out, rule, dict(sorted(bags.items())), scores, scorer, coords)


def _pruned(features, out, selector, bags, scores, scorer, coords) -> Iterator[Pruned]:
    with whole_file(out / TABLE) as table:
        table.write(b"bag\trow\treason\n")
        for name, paths in bags.items():
            targets = {path: out / path.relative_to(features) for path in paths}
            try:
                _check_names(name, paths)
                stored = {path: _read(path) for path in paths}
                n, kept = _selected(name, stored, selector, scores, scorer, coords)
                for path, parts in stored.items():
                    pruned = {key: part[kept.rows] if part.shape[:1] == (n,) else part for key, part in parts.items()}
                    _write(targets[path], path, pruned)
            except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
                for target in targets.values():  # what another run wrote too: the table has no rows of it
                    if target.is_file():
                        target.unlink()
                yield Pruned(name, 0, np.empty(0, np.int64), str(error))
                continue
            lines = (f"{name}\t{row}\t{why}\n" for row, why in zip(kept.rows, kept.reason, strict=True))
            table.write("".join(lines).encode(errors="surrogateescape"))
            yield Pruned(name, n, kept.rows)


def _check_names(name: str, paths: list[Path]) -> None:
    """A name must fit a table, and two bags of one, in folders of their own, must not be taken for one."""
    if set("\t\r\n") & set(name):
        raise ValueError(f"{paths[0]}: names must have no tab and no line break, got {name!r}; rename it")
    for one, other in pairwise(paths):  # sorted by kind
        if one.suffix == other.suffix:
            raise ValueError(f"{other}: names must tell bags apart, got {one} too; rename one of them")


def _selected(name, stored, selector, scores, scorer, coords) -> tuple[int, Selection]:
    """Instances of a bag and what is kept of it; ValueError or FileNotFoundError, with a path, if it cannot be read."""
    first, values = next((path, parts["features"]) for path, parts in stored.items())
    values = _as_numpy(first, values) if first.suffix == ".pt" else values
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(f"{first}: features must be (n, D) floats, got {values.dtype} {values.shape}")
    for path, parts in stored.items():
        if tuple(parts["features"].shape[:1]) != (len(values),):
            shape = tuple(parts["features"].shape)
            raise ValueError(f"{path}: features must have {len(values)} rows as {first}, got {shape}")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        at = tuple(np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"{first}: features must be finite in float32, got {values[at]} at row {at[0]}")
    inside = (parts["coords"] for parts in stored.values() if "coords" in parts)
    places = next(inside, None) if coords is None else _numbers(Path(coords) / f"{name}.npy", "coords")
    score = np.asarray(scorer(values)) if scores is None else _column(Path(scores), name)
    score = score[:, 0] if score.shape == (len(values), 1) else score
    if score.shape != (len(values),):
        source = "scorer" if scores is None else f"{Path(scores) / name}.*"
        raise ValueError(f"{source}: scores must be {len(values)} as the rows of {first}, got shape {score.shape}")
    try:
        return len(values), selector.select(score, values, places)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{first}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    """Arrays of a file by name; "features" is always there."""
    try:
        if path.suffix == ".npy":
            return {"features": _array(path)}
        if path.suffix == ".pt":
            import torch

            loaded = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(loaded, torch.Tensor):
                raise ValueError(f"a {type(loaded).__name__}, no tensor")
            return {"features": loaded.detach()}
        import h5py

        with h5py.File(path) as file:
            sets = {name: part[()] for name, part in file.items() if isinstance(part, h5py.Dataset) and part.shape
                    and h5py.check_ref_dtype(part.dtype) is None}  # fmt: skip
            return {"features": file["features"][:], **sets}
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each library has exceptions of its own for files that hold something else
        reason = str(error).partition("\n")[0] if isinstance(error, ValueError) else repr(error).partition("\\n")[0]
        raise ValueError(f"{path}: features must be readable as {path.suffix}, got {reason}") from error


def _as_numpy(path: Path, tensor: Any) -> NDArray:
    """A tensor's numbers; NumPy has no bfloat16. ValueError, with the path, for what is no plain tensor."""
    try:
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: features must be readable as .pt, got {error}") from error


def _array(path: Path) -> NDArray:
    try:
        with path.open("rb") as file:
            array = np.load(file)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays")
    return array


def _write(path: Path, source: Path, parts: dict[str, Any]) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: out must have no folder where a file belongs, got one")
    with whole_file(path) as file:
        if path.suffix == ".npy":
            np.save(file, parts["features"])
        elif path.suffix == ".pt":
            import torch

            torch.save(parts["features"], file)
        else:
            import h5py

            with h5py.File(source) as old, h5py.File(file, "w", libver=NEWER) as new:
                for name in old:
                    if name in parts:
                        packed = {key: getattr(old[name], key) for key in PACKING}
                        new.create_dataset(name, data=parts[name], **packed)
                        attrs = old[name].attrs
                        kept = [key for key in attrs if h5py.check_ref_dtype(attrs.get_id(key).dtype) is None]
                        new[name].attrs.update({key: attrs[key] for key in kept if key not in REFERENCES})
                    elif isinstance(link := old.get(name, getlink=True), h5py.HardLink):
                        old.copy(name, new)
                    else:
                        new[name] = link
                new.attrs.update(old.attrs)


def _numbers(path: Path, name: str) -> NDArray:
    try:
        return _array(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} must have a file of {path.stem}, got none in {path.parent}") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: {name} must be readable as .npy, got {error}") from error


def _column(folder: Path, name: str) -> NDArray[np.float64]:
    """Scores of a bag."""
    for suffix in (".npy", ".txt", ".csv"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            if suffix == ".npy":
                values: Any = _numbers(path, "scores")
            else:
                values = path.read_bytes().removeprefix(codecs.BOM_UTF8).split()
            try:
                return np.asarray(values, np.float64)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: scores must be one number a line, got {error}") from error
    raise FileNotFoundError(f"scores must have a file of {name}, got none in {folder}")
