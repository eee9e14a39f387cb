"""The model of engine "triton": scan, selection and features of sites in C++, all else on the device.

What crosses the bus is 13 bytes a candidate in, 8 out (logit and key, which the selector reads), and the selected rows
with what they are as sites. One-hot windows are only ever made of those, on the device.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
import triton
from numpy.typing import NDArray
from pairformer.kernels import use_kernels
from pairformer.kernels.cheap_scan import CheapScan, windows
from pairformer.kernels.duplex import duplex_energy
from pairformer.kernels.esa_scan import DevicePairs, Rows, moved
from torch import Tensor

from pairformer.bags import Candidates
from pairformer.models import PairFormer
from pairformer.models.additive import LEAST_SHARE
from pairformer.models.pair_former import GPU_CHUNK, Tokens, chunks, site_facts

SIZES = 8  # of chunks of windows, and powers of two below: a convolution is planned anew for every size


class FusedPairFormer(PairFormer):
    """A PairFormer for inference whose cheap encoder and attention are kernels; call :meth:`fuse` when it is loaded.

    Source: PAIR-Former Algorithm 2.
    """

    def fuse(self, dtype: torch.dtype = torch.float32) -> FusedPairFormer:
        """Take the weights as they are now.

        ``dtype`` is of the expensive encoder and the aggregators; cheap logits and additive heads are float32.
        """
        use_kernels(self)
        self.aggregators.to(dtype)
        self._cheap = CheapScan(self.cheap, self.config.selector.rng_seed, self.device)
        self._gate = np.array([[gate.bias.item(), gate.slope.item()] for gate in self.gates]).reshape(-1, 2, 1)
        self.dtype = dtype
        self._last = threading.local()
        self.expensive.to(dtype)
        return self.eval()

    def cheap_scan(self, candidates: Candidates) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        logit, keys = self._cheap(*self._candidates(candidates))
        both = torch.stack((logit.view(torch.int32), keys)).cpu().numpy()  # one copy, one wait
        return both[0].view(np.float32), both[1].view(np.uint32)

    def encode_selected(self, candidates: Candidates, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        selected, (pairs, scanned) = self.moved(rows), self._candidates(candidates)
        embedding = torch.empty(len(rows), self.config.expensive.width, dtype=torch.float32, device=self.device)
        logit = embedding.new_empty(len(rows))
        for chunk in chunks(len(rows), GPU_CHUNK):
            part = selected[chunk]
            unit = min(GPU_CHUNK // SIZES, triton.next_power_of_2(len(part)))
            filled = F.pad(part, (0, -len(part) % unit))
            found = self.expensive(windows(pairs, scanned, filled, self.dtype))
            embedding[chunk], logit[chunk] = (values[: len(part)] for values in found)
        return embedding, logit

    def site_facts(
        self, candidates: Candidates, rows: NDArray[np.int64], offsets: NDArray[np.int64], threads: int = 0
    ) -> Tensor:
        facts = self.moved(site_facts(candidates, rows, offsets, threads=threads))
        if "duplex" in self.config.token:
            facts[:, 2] = duplex_energy(*self._candidates(candidates), self.moved(rows)) / 10
        return facts

    def tokenize(
        self, candidates: Candidates, rows: NDArray[np.int64], offsets: NDArray[np.int64], embedding: Tensor,
        logit: Tensor, threads: int = 0,
    ) -> Tokens:  # fmt: skip
        """The same; bags for which aggregators count are found here, where nobody waits for the device to say."""
        tokens, batch = super().tokenize(candidates, rows, offsets, embedding, logit, threads), candidates.batch
        if not self.gates:
            return tokens
        length = np.diff(batch.utr_offsets)[batch.bag_utr]
        share = 10 * (self._gate[:, 0] - self._gate[:, 1] * np.log((1.0 + length) / 51))  # (E, B) before its sigmoid
        asked = (share > math.log(LEAST_SHARE) - 1).any(0)  # some more than count, whatever rounding says
        return replace(tokens, asked=self.moved(np.flatnonzero(asked)))

    def relational(self, padded: Tensor, mask: Tensor) -> Tensor:
        return super().relational(padded.to(self.dtype), mask).float()

    def moved(self, array: NDArray) -> Tensor:
        return moved(array, self.device)

    def _candidates(self, candidates: Candidates) -> tuple[DevicePairs, Rows]:
        """The candidates on the device; those moved last by this thread are there."""
        if getattr(self._last, "candidates", None) is not candidates:
            self._last.candidates = candidates
            self._last.moved = DevicePairs.of(candidates.batch, self.device), Rows.of(candidates, self.device)
        return self._last.moved
