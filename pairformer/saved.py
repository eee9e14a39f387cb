"""Saved models, ``model.safetensors`` and ``config.json`` in one directory; files that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
from numpy.typing import NDArray

from pairformer.config import ModelConfig
from pairformer.fold_config import FoldConfig

Config = TypeVar("Config", ModelConfig, FoldConfig)
WEIGHTS = Path(__file__).parent / "weights"
NAMES: dict[type, tuple[str, ...]] = {ModelConfig: ("default", "paper"), FoldConfig: ("fold",)}
SAVED = {ModelConfig: "PairFormer", FoldConfig: "RNAformer"}
FILES = ("config.json", "model.safetensors")


def model_directory(name_or_path: str | Path, kind: type = ModelConfig, also: tuple[str, ...] = ()) -> Path:
    """Directory of a model, whose config is of a kind, by name or path; FileNotFoundError where there is none, which
    tells what ``also`` could be asked for."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"model must be a name or a directory, got {name_or_path!r}")
    directory = WEIGHTS / name_or_path if str(name_or_path) in NAMES[kind] else Path(name_or_path)
    for name in FILES:
        if not (directory / name).is_file():
            names = ", ".join(NAMES[kind] + also)
            raise FileNotFoundError(f"model must be {names} or a directory with {name}, got {name_or_path}")
    return directory


def model_files(name_or_path: str | Path, kind: type = ModelConfig) -> tuple[Path, tuple[tuple[int, int], ...]]:
    """Directory of a model, and what changes when its files do: what a model that was read can be kept by."""
    also = ("energies",) if kind is FoldConfig else ()  # which fold without a model
    directory = model_directory(name_or_path, kind, also).resolve()
    stats = [(directory / name).stat() for name in FILES]
    return directory, tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)


def read_model(name_or_path: str | Path, kind: type[Config]) -> tuple[Config, dict, dict[str, NDArray[np.float32]]]:
    """Read a saved model.

    Args:
        name_or_path: "default", "paper" or "fold" for weights shipped with the package, or a directory.
        kind: class of its config.

    Returns:
        config; what else config.json says, and ``model_sha256`` of both files; arrays by name, as float32.

    Raises:
        FileNotFoundError: the directory has no model.
        ValueError: a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    directory = model_directory(name_or_path, kind)
    config_bytes, model_bytes = ((directory / name).read_bytes() for name in FILES)
    try:
        metadata = json.loads(config_bytes)
        config = kind.from_dict(metadata.pop("config"))
        stored = load(model_bytes)
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"model must be as {SAVED[kind]}.save wrote it, got {directory}; {type(error).__name__}: {error}"
        ) from error
    for name, array in stored.items():
        if array.dtype.kind != "f":
            raise ValueError(f"{name} must hold floating-point numbers, got {array.dtype}; in {directory}")
    arrays = {name: np.asarray(array, np.float32) for name, array in stored.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must hold finite numbers, got inf or NaN; in {directory}")
    metadata["model_sha256"] = hashlib.sha256(config_bytes + model_bytes).hexdigest()
    return config, metadata, arrays


def write_model(directory: str | Path, config: dict, weights: bytes) -> None:
    """``config.json`` and ``model.safetensors``, each whole."""
    for name, content in zip(FILES, ((json.dumps(config, indent=2) + "\n").encode(), weights), strict=True):
        with whole_file(Path(directory) / name) as file:
            file.write(content)


@contextlib.contextmanager
def whole_file(path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """A file to write that is at ``path`` whole or not at all, whatever stops or writes beside this process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f"{secrets.token_hex(8)}.tmp")
    try:
        with place.open("x+b") as out:
            yield out
        if mode is not None:
            place.chmod(mode)
        os.replace(place, path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
