"""The model of engine "triton": scan, selection and features of sites in C++, all else on the device.

What crosses the bus is 13 bytes a candidate in, 8 out (logit and key, which the selector reads), and the selected rows
with what they are as sites. One-hot windows are only ever made of those, on the device.
"""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray
from pairformer.kernels import use_kernels
from pairformer.kernels.cheap_scan import CheapScan, windows
from pairformer.kernels.duplex import duplex_energy
from pairformer.kernels.esa_scan import DevicePairs, Rows, moved
from torch import Tensor

from pairformer.bags import Candidates
from pairformer.models import PairFormer
from pairformer.models.pair_former import chunks, site_facts

MOST_WINDOWS = 1 << 14  # encoded at once: few launches, and 100 MiB of one-hot columns and activations


class FusedPairFormer(PairFormer):
    """A PairFormer for inference whose cheap encoder and attention are kernels; call :meth:`fuse` when it is loaded.

    Source: PAIR-Former Algorithm 2.
    """

    def fuse(self, dtype: torch.dtype = torch.float32) -> FusedPairFormer:
        """Take the weights as they are now.

        ``dtype`` is of the expensive encoder and of products in the aggregators; cheap logits and additive heads are
        float32.
        """
        use_kernels(self)
        self._cheap = CheapScan(self.cheap, self.config.selector.rng_seed, self.device)
        self.dtype = dtype
        self._last = threading.local()
        self.expensive.to(dtype)
        return self.eval()

    def cheap_scan(self, candidates: Candidates) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        logit, keys = self._cheap(*self._candidates(candidates))
        return logit.cpu().numpy(), keys.cpu().numpy().view(np.uint32)

    def encode_selected(self, candidates: Candidates, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        selected, (pairs, scanned) = self.moved(rows), self._candidates(candidates)
        embedding = torch.empty(len(rows), self.config.expensive.width, device=self.device)
        logit = embedding.new_empty(len(rows))
        for chunk in chunks(len(rows), MOST_WINDOWS):
            embedding[chunk], logit[chunk] = self.expensive(windows(pairs, scanned, selected[chunk], self.dtype))
        return embedding, logit

    def site_facts(self, candidates: Candidates, rows: NDArray[np.int64], offsets: NDArray[np.int64]) -> Tensor:
        facts = self.moved(site_facts(candidates, rows, offsets))
        if "duplex" in self.config.token:
            facts[:, 2] = duplex_energy(*self._candidates(candidates), self.moved(rows)) / 10
        return facts

    def relational(self, padded: Tensor, mask: Tensor) -> Tensor:
        # No cache of weights cast to the type: it is the process's, and threads work on streams of their own.
        half = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=half, cache_enabled=False):
            return super().relational(padded, mask).float()

    def moved(self, array: NDArray) -> Tensor:
        return moved(array, self.device)

    def _candidates(self, candidates: Candidates) -> tuple[DevicePairs, Rows]:
        """The candidates on the device; those moved last by this thread are there."""
        if getattr(self._last, "candidates", None) is not candidates:
            self._last.candidates = candidates
            self._last.moved = DevicePairs.of(candidates.batch, self.device), Rows.of(candidates, self.device)
        return self._last.moved
