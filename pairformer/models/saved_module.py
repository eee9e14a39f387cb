"""Modules that are saved with their config, such as the models that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import save
from torch import nn

from pairformer.saved import NAMES, read_model, write_model

Saved = TypeVar("Saved", bound="SavedModule")


class SavedModule(nn.Module):
    """A module made of a config alone, with :meth:`save` and :meth:`load`."""

    kind: ClassVar[type]
    """Of its config."""
    config: Any
    metadata: dict

    def save(self, directory: str | Path, metadata: dict | None = None, half: bool = True) -> None:
        """Write ``model.safetensors`` (half precision unless told) and ``config.json`` (config + metadata)."""
        dtype = torch.float16 if half else torch.float32
        weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in self.state_dict().items()}
        values = {"config": self.config.to_dict(), **(metadata or self.metadata)}
        values.pop("model_sha256", None)  # of the files this model was read from
        write_model(directory, values, save(weights))

    @classmethod
    def load(cls: type[Saved], name_or_path: str | Path | None = None) -> Saved:
        """Read a saved model, in float32 and evaluation mode.

        Args:
            name_or_path: a name of weights shipped with the package, or a directory; None for the first such name,
                "default" of PairFormer and "fold" of RNAformer.

        Raises:
            FileNotFoundError: the directory has no model.
            ValueError: a file is damaged, or weights and config disagree.
        """
        name_or_path = NAMES[cls.kind][0] if name_or_path is None else name_or_path
        config, metadata, arrays = read_model(name_or_path, cls.kind)
        model = cls(config).float()  # whatever PyTorch's default is
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        found = {name: array.shape for name, array in arrays.items()}
        if expected != found:
            wrong = sorted(set(expected.items()) ^ set(found.items()))
            raise ValueError(
                f"model.safetensors must hold the arrays of config.json, got {wrong[0]}; in {name_or_path}"
            )
        model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        model.metadata = metadata
        return model.eval()
