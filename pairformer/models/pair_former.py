"""PAIR-Former: cheap scan of all candidates, selection, expensive encoding of few, aggregation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from pairformer.bags import Candidates, padded_rows
from pairformer.config import ModelConfig
from pairformer.models.encoders import CheapEncoder, ExpensiveEncoder
from pairformer.models.pooling import DeepSets, GatedAttention
from pairformer.models.set_transformer import SetTransformer
from pairformer.saved import read_model
from pairformer.selector import Selection, STSelector
from pairformer.sites import select_sites

AGGREGATORS = {"set_transformer": SetTransformer, "deep_sets": DeepSets, "gated_attention": GatedAttention}
CHEAP_CHUNK, EXPENSIVE_CHUNK = 512, 256  # windows encoded at once: their activations stay in the cache


@dataclass(frozen=True)
class Budgeted:
    """What the budgeted forward computed for B bags, N candidates, M of them selected."""

    pair_logit: Tensor
    """(B,) float32."""
    selection: Selection
    """Rows read by the expensive encoder."""
    cheap_logit: NDArray[np.float32]
    """(N,)."""
    logit: Tensor
    """(M,) expensive logit z of the selected rows."""
    tokens: Tensor
    """(B, K, T) padded tokens."""
    mask: Tensor
    """(B, K) True = real."""


class PairFormer(nn.Module):
    """One miRNA and one 3'UTR -> one logit, reading at most ``k_max`` candidates with the expensive encoder.

    Source: PAIR-Former Algorithm 2; token t = [h | z | esa | p], eq. 4.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.metadata: dict = {}
        self.expensive = ExpensiveEncoder(config.expensive)
        self.cheap = CheapEncoder(config.cheap)
        aggregator = AGGREGATORS[config.aggregator.kind]
        self.aggregator = aggregator(config.token_width, config.aggregator, config.empty_logit)

    @torch.no_grad()
    def forward(self, candidates: Candidates, k_max: int | None = None, threads: int = 0) -> Budgeted:
        """Score bags of candidates.

        Args:
            candidates: B bags from :func:`pairformer.scan`.
            k_max: budget per bag; None for the model's own.
            threads: of scan and selection; torch has its own setting.

        Returns:
            Budgeted; a bag without candidates has ``config.empty_logit``.
        """
        cheap_logit, keys = self.cheap_scan(candidates)
        selection = self.select(candidates, cheap_logit, keys, k_max, threads)
        embedding, logit = self.encode_selected(candidates, selection.rows)
        tokens = self.tokenize(candidates, selection.rows, embedding, logit)
        padded, mask = pack_tokens(tokens, selection.offsets)
        return Budgeted(self.aggregator(padded, mask), selection, cheap_logit, logit, padded, mask)

    @property
    def device(self) -> torch.device:
        return self.expensive.head.weight.device

    @torch.no_grad()
    def cheap_scan(self, candidates: Candidates) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Cheap logit (N,) and selector key (N,) of every candidate; only ``CHEAP_CHUNK`` windows exist at once."""
        count = len(candidates.start)
        logits, keys = np.empty(count, np.float32), np.empty(count, np.uint32)
        selector = STSelector.from_config(self.config.selector)
        for rows in chunks(count, CHEAP_CHUNK):
            logit, embedding = self.cheap(
                self._windows(candidates, rows),
                torch.from_numpy(candidates.esa_score[rows]).to(self.device),
                torch.from_numpy(candidates.position[rows]).to(self.device),
            )
            logits[rows] = logit.cpu().numpy()
            keys[rows] = selector.keys(embedding.cpu().numpy(), threads=1)
        return logits, keys

    def select(
        self,
        candidates: Candidates,
        cheap_logit: NDArray[np.float32],
        keys: NDArray[np.uint32],
        k_max: int | None = None,
        threads: int = 0,
    ) -> Selection:
        """At most ``k_max`` rows per bag from cheap signals."""
        return select_sites(self.config, candidates, cheap_logit, keys, k_max, threads)

    def encode_selected(self, candidates: Candidates, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Expensive embedding (M, 384) and logit (M,) of the given rows."""
        parts = [self.expensive(self._windows(candidates, rows[chunk])) for chunk in chunks(len(rows), EXPENSIVE_CHUNK)]
        if not parts:
            empty = torch.empty(0, self.config.expensive.width, device=self.device)
            return empty, empty[:, 0]
        return torch.cat([h for h, _ in parts]), torch.cat([z for _, z in parts])

    def tokenize(self, candidates: Candidates, rows: NDArray[np.int64], embedding: Tensor, logit: Tensor) -> Tensor:
        """Tokens (M, T) of the given rows, parts in the order of ``config.token``."""
        columns = {
            "embedding": lambda: embedding,
            "logit": lambda: logit[:, None],
            "esa": lambda: torch.from_numpy(candidates.esa_score[rows]).to(embedding)[:, None],
            "site": lambda: torch.from_numpy(candidates.site_features(rows)).to(embedding),
            "position": lambda: torch.from_numpy(candidates.position[rows]).to(embedding)[:, None],
        }
        return torch.cat([columns[part]() for part in self.config.token], 1)

    def _windows(self, candidates: Candidates, rows) -> Tensor:
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return torch.from_numpy(candidates.encode(rows)).to(self.device)

    @torch.no_grad()
    def masked_logits(self, tokens: Tensor, count: int) -> Tensor:
        """Pair logit of one bag with each of its tokens left out in turn.

        Args:
            tokens: (K, T) padded tokens of the bag.
            count: real tokens, the first ``count``.

        Returns:
            (count,) float32.
        """
        keep = ~torch.eye(count, dtype=torch.bool, device=tokens.device)
        # A few masks at a time: every one of them needs all tokens again.
        parts = keep.split(max(1, 4096 // max(1, count)))
        return torch.cat([self.aggregator(tokens[:count].expand(len(part), -1, -1), part) for part in parts])

    def save(self, directory: str | Path, metadata: dict | None = None, half: bool = True) -> None:
        """Write ``model.safetensors`` (half precision unless told) and ``config.json`` (config + metadata)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        dtype = torch.float16 if half else torch.float32
        weights = {name: value.detach().cpu().to(dtype).contiguous() for name, value in self.state_dict().items()}
        save_file(weights, directory / "model.safetensors")
        (directory / "model.safetensors").chmod(0o644)  # the library writes it for its owner alone
        values = {"config": self.config.to_dict(), **(metadata or self.metadata)}
        values.pop("model_sha256", None)  # of the files this model was read from
        text = json.dumps(values, indent=2)
        (directory / "config.json").write_text(text + "\n")

    @classmethod
    def load(cls, name_or_path: str | Path = "default") -> PairFormer:
        """Read a saved model, in float32 and evaluation mode.

        Args:
            name_or_path: "default" for the weights shipped with the package, or a directory.

        Raises:
            FileNotFoundError: the directory has no model.
            ValueError: a file is damaged, or weights and config disagree.
        """
        config, metadata, arrays = read_model(name_or_path)
        model = cls(config)
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


def pack_tokens(tokens: Tensor, offsets: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Pad ragged tokens once.

    Args:
        tokens: (M, T), bag by bag.
        offsets: (B + 1,) int64.

    Returns:
        tokens (B, K, T) with zeros where there is none, mask (B, K) True = real; K is the longest bag.
    """
    sizes = np.diff(offsets)
    rows, mask = padded_rows(offsets, int(sizes.max(initial=0)))
    real = torch.from_numpy(mask).to(tokens.device)
    padded = tokens.new_zeros(*rows.shape, tokens.shape[1])
    padded[real] = tokens
    return padded, real


def chunks(count: int, size: int) -> list[slice]:
    """Rows 0 .. count - 1 in slices of at most ``size``."""
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]
