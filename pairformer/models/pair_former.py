"""PAIR-Former: cheap scan of all candidates, selection, expensive encoding of few, aggregation."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pairformer.bags import Candidates
from pairformer.config import CONTEXT_FEATURES, SITE_FEATURES, ModelConfig
from pairformer.models.additive import AdditiveHead, LengthGate
from pairformer.models.encoders import CheapEncoder, ExpensiveEncoder
from pairformer.models.pooling import DeepSets, GatedAttention
from pairformer.models.saved_module import SavedModule
from pairformer.models.set_transformer import SetTransformer
from pairformer.selector import Selection, STSelector
from pairformer.sites import select_sites

AGGREGATORS = {"set_transformer": SetTransformer, "deep_sets": DeepSets, "gated_attention": GatedAttention}
CHEAP_CHUNK, EXPENSIVE_CHUNK = 512, 256  # windows encoded at once: their activations stay in a CPU's cache
GPU_CHUNK = 1 << 14  # on a device: few launches, and 100 MiB of one-hot columns and activations


@dataclass(frozen=True)
class Tokens:
    """What an aggregator reads of B bags, M rows of which are selected, at most K of one bag."""

    padded: Tensor
    """(B, K, T) tokens, zero where there is none."""
    mask: Tensor
    """(B, K) True = real."""
    site: Tensor
    """(M, 13) site features, then context."""
    bag: Tensor
    """(B, 12) bag features."""
    asked: Tensor | None = None
    """(A,) int64 bags to ask aggregators about, all among them for which one counts; None: not known yet."""


@dataclass(frozen=True)
class Pooled:
    """What the aggregators say of B bags, averaged over the members."""

    logit: Tensor
    """(B,) float32."""
    repression: Tensor | None
    """(B,) of the additive head, 0 for a bag without rows; None without one."""
    contribution: Tensor | None
    """(M,) of each row to it; None likewise."""


@dataclass(frozen=True)
class Budgeted:
    """What the budgeted forward computed for B bags, N candidates, M of them selected."""

    pooled: Pooled
    """Logit, repression and contributions."""
    selection: Selection
    """Rows read by the expensive encoder."""
    cheap_logit: NDArray[np.float32]
    """(N,)."""
    logit: Tensor
    """(M,) expensive logit z of the selected rows."""
    tokens: Tokens
    """What was aggregated."""


class PairFormer(SavedModule):
    """One miRNA and one 3'UTR -> one logit, reading at most ``k_max`` candidates with the expensive encoder.

    Source: PAIR-Former Algorithm 2; token t = [h | z | esa | p], eq. 4.
    """

    kind = ModelConfig

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.metadata: dict = {}
        self.expensive = ExpensiveEncoder(config.expensive)
        self.cheap = CheapEncoder(config.cheap)
        self.aggregators, self.additives, self.gates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.new_aggregators()

    def new_aggregators(self) -> None:
        """Aggregators and additive heads with new initial weights."""
        config = self.config.aggregator
        members = range(config.members)
        self.aggregators = nn.ModuleList(
            AGGREGATORS[config.kind](self.config.token_width, config, self.config.empty_logit)
            for _ in members
            if config.kind != "none"
        )
        heads = [AdditiveHead(config.additive, config.dropout) for _ in members] if config.additive else []
        self.additives = nn.ModuleList(heads)
        self.gates = nn.ModuleList(LengthGate(config.length_gate) for _ in self.aggregators if config.length_gate)
        self.to(self.device)

    @torch.no_grad()
    def forward(self, candidates: Candidates, k_max: int | None = None, threads: int = 0) -> Budgeted:
        """Score bags of candidates.

        Args:
            candidates: B bags from :func:`pairformer.scan`.
            k_max: budget per bag; None for the model's own.
            threads: of selection and features, 0 for all; torch has its own setting.

        Returns:
            Budgeted; a bag without candidates has ``config.empty_logit``.
        """
        cheap_logit, keys = self.cheap_scan(candidates)
        selection = self.select(candidates, cheap_logit, keys, k_max, threads)
        embedding, logit = self.encode_selected(candidates, selection.rows)
        tokens = self.tokenize(candidates, selection.rows, selection.offsets, embedding, logit, threads)
        return Budgeted(self.aggregate(tokens), selection, cheap_logit, logit, tokens)

    @property
    def device(self) -> torch.device:
        return self.expensive.head.weight.device

    @torch.no_grad()
    def cheap_scan(self, candidates: Candidates) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
        """Cheap logit (N,) and selector key (N,) of every candidate; only a chunk of windows exists at once."""
        count = len(candidates.start)
        logits, keys = np.empty(count, np.float32), np.empty(count, np.uint32)
        selector = STSelector.from_config(self.config.selector)
        for rows in chunks(count, self._chunk(CHEAP_CHUNK)):
            logit, embedding = self.cheap(
                self._windows(candidates, rows),
                self.moved(candidates.esa_score[rows]),
                self.moved(candidates.position[rows]),
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
        some = chunks(len(rows), self._chunk(EXPENSIVE_CHUNK))
        parts = [self.expensive(self._windows(candidates, rows[chunk])) for chunk in some]
        if not parts:
            empty = torch.empty(0, self.config.expensive.width, dtype=torch.float32, device=self.device)
            return empty, empty[:, 0]
        return torch.cat([h for h, _ in parts]), torch.cat([z for _, z in parts])

    def tokenize(
        self,
        candidates: Candidates,
        rows: NDArray[np.int64],
        offsets: NDArray[np.int64],
        embedding: Tensor,
        logit: Tensor,
        threads: int = 0,
    ) -> Tokens:
        """Tokens of the given rows (M,), bag by bag at ``offsets`` (B + 1,)."""
        facts = self.site_facts(candidates, rows, offsets, threads)
        return self.pack(facts, self.moved(candidates.bag_features()), offsets, embedding, logit)

    def site_facts(
        self, candidates: Candidates, rows: NDArray[np.int64], offsets: NDArray[np.int64], threads: int = 0
    ) -> Tensor:
        """What :func:`site_facts` says of the parts that this model's tokens have."""
        return self.moved(site_facts(candidates, rows, offsets, self.config.token, threads))

    def moved(self, array: NDArray) -> Tensor:
        """A copy on the model's device."""
        return torch.from_numpy(array).to(self.device)

    def _chunk(self, size: int) -> int:
        return size if self.device.type == "cpu" else GPU_CHUNK

    def _windows(self, candidates: Candidates, rows) -> Tensor:
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return self.moved(candidates.encode(rows))

    def pack(self, facts: Tensor, bag: Tensor, offsets: NDArray[np.int64], embedding: Tensor, logit: Tensor) -> Tokens:
        """Tokens from :func:`site_facts` (M, 16), bag features (B, 12) and what the encoder says."""
        esa, position, duplex, site, context = facts.split((1, 1, 1, SITE_FEATURES, CONTEXT_FEATURES), 1)
        columns = {"embedding": embedding, "logit": logit[:, None], "esa": esa, "position": position, "site": site,
                   "context": context, "duplex": duplex}  # fmt: skip
        tokens = torch.cat([columns[part] for part in self.config.token], 1)
        padded, mask = pack_tokens(tokens, offsets, self.moved)
        return Tokens(padded, mask, facts[:, 3:], bag)

    def aggregate(self, tokens: Tokens) -> Pooled:
        """Logit, and with an additive head repression and contributions, averaged over the members."""
        found = self.members(tokens)
        repression, contribution = (None if part is None else part.mean(0) for part in found[1:])
        return Pooled(found[0].mean(0), repression, contribution)

    def members(self, tokens: Tokens) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What each of E members says: logit (E, B), repression (E, B) or None, contribution (E, M) or None.

        The logit is that of its aggregator, times its gate, plus ``gain`` times its repression; a bag without rows has
        ``config.empty_logit`` and repression 0.
        """
        filled = tokens.mask.any(1)
        none = tokens.bag.new_zeros(len(self.additives), len(tokens.bag))
        logit = self._gated(tokens) if self.aggregators else none
        if not self.additives:
            return logit, None, None
        count = tokens.mask.sum(1)
        heads = [head(tokens.site, count, tokens.bag) for head in self.additives]
        repression, contribution = (torch.stack(part) for part in zip(*heads, strict=True))
        logit = torch.where(filled, logit + self._gain * repression, self.config.empty_logit)
        return logit, torch.where(filled, repression, 0.0), contribution

    def relational(self, padded: Tensor, mask: Tensor) -> Tensor:
        """(E, B) what each member's aggregator says of tokens (B, K, T) and mask (B, K)."""
        return torch.stack([aggregator(padded, mask) for aggregator in self.aggregators])

    def _gated(self, tokens: Tokens) -> Tensor:
        """(E, B) the same of tokens, times what it counts for; a bag for which none counts is not asked about."""
        shares = self._shares(tokens.bag)
        asked: Any = tokens.asked
        if asked is None:
            asked = shares.any(0).nonzero()[:, 0] if self.gates else slice(None)
        said = torch.zeros_like(shares)
        if isinstance(asked, Tensor) and not len(asked) and not torch.is_grad_enabled():  # so with most long UTRs
            return said
        said[:, asked] = self.relational(tokens.padded[asked], tokens.mask[asked])
        return shares * said

    def _shares(self, bag: Tensor) -> Tensor:
        """(E, B) what each member's aggregator counts for."""
        alike = bag.new_ones(len(self.aggregators), len(bag))
        return torch.stack([gate(bag) for gate in self.gates]) if self.gates else alike

    @property
    def _gain(self) -> Tensor:
        """(E, 1) of each member's additive head."""
        return torch.stack([dict(head.named_parameters())["gain"] for head in self.additives])[:, None]

    @torch.no_grad()
    def weights(self, budgeted: Budgeted) -> Tensor:
        """(M,) pair logit minus the pair logit without this row's token, the others as they are."""
        tokens = budgeted.tokens
        weight = tokens.padded.new_zeros(int(tokens.mask.sum()))
        contribution = self.members(tokens)[2]
        if contribution is not None:
            weight += (self._gain * contribution).mean(0)
        shares = self._shares(tokens.bag)
        asked = shares.any(0).tolist()
        for bag, (begin, end) in enumerate(pairwise(budgeted.selection.offsets.tolist())):
            count = end - begin
            if count == 1:
                weight[begin] = budgeted.pooled.logit[bag] - self.config.empty_logit
            elif count and asked[bag]:
                padded = tokens.padded[bag, :count]
                keep = ~torch.eye(count, dtype=torch.bool, device=padded.device)
                # A few masks at a time: every one of them needs all tokens again.
                parts = keep.split(max(1, 4096 // count))
                without = torch.cat([self.relational(padded.expand(len(part), -1, -1), part) for part in parts], 1)
                lost = self.relational(padded[None], keep.new_ones(1, count)) - without  # (E, n)
                weight[begin:end] += (shares[:, bag, None] * lost).mean(0)
        return weight


def site_facts(
    candidates: Candidates, rows: NDArray[np.int64], offsets: NDArray[np.int64], token: Collection[str] = (),
    threads: int = 0,
) -> NDArray[np.float32]:  # fmt: skip
    """(M, 16) what no encoder is needed for: ESA score, position, duplex energy over 10, or 0 where it is not in
    ``token``, site features, context; see Candidates."""
    energy: NDArray[np.floating] = np.zeros(len(rows), np.float32)
    if "duplex" in token:
        energy = candidates.duplex_energy(rows, threads) / 10
    columns = (candidates.esa_score[rows, None], candidates.position[rows, None], energy[:, None],
               candidates.site_features(rows, threads), candidates.site_context(rows, offsets))  # fmt: skip
    return np.hstack(columns, dtype=np.float32)


def pack_tokens(
    tokens: Tensor, offsets: NDArray[np.int64], moved: Callable[[NDArray], Tensor] = torch.from_numpy
) -> tuple[Tensor, Tensor]:
    """Pad ragged tokens once.

    Args:
        tokens: (M, T), bag by bag.
        offsets: (B + 1,) int64.
        moved: array -> tensor, on the tokens' device where that is to know of no waiting.

    Returns:
        tokens (B, K, T) with zeros where there is none, mask (B, K) True = real; K is the longest bag.
    """
    sizes = np.diff(offsets)
    mask = np.arange(sizes.max(initial=0)) < sizes[:, None]
    place = moved(np.flatnonzero(mask)).to(tokens.device)  # numbers, as by a mask PyTorch waits for their count
    padded = tokens.new_zeros(mask.size, tokens.shape[1]).index_copy(0, place, tokens)
    return padded.view(*mask.shape, tokens.shape[1]), moved(mask).to(tokens.device)


def chunks(count: int, size: int) -> list[slice]:
    """Rows 0 .. count - 1 in slices of at most ``size``."""
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]
