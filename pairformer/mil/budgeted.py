"""A cheap look at every instance of a bag, an expensive one at few: the budgeted forward for any bags."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairformer.mil.forms import Form
from pairformer.mil.selectors import Selection, Selector
from pairformer.models.pair_former import pack_tokens


@dataclass(frozen=True)
class BudgetedOutput:
    """What BudgetedMIL computed for B bags, N instances, M of them selected."""

    logits: Tensor
    """(B,)."""
    scores: Tensor
    """(N,) of the scorer."""
    selection: Selection
    """Which instances the encoder read, in the form of ``x``; CPU tensors."""
    attention: Tensor | None = None
    """(N,) of the aggregator, 0 for what was not selected, where it was asked for."""


class BudgetedMIL(nn.Module):
    """Score every instance cheaply, select at most K per bag, encode these, aggregate their tokens.

    Selection passes no gradient. How the scorer learns:

    - ``train="straight-through"``: tokens are multiplied by 1 + g - stop_gradient(g), g = sigmoid(score), which is 1,
      so that the loss of the bag reaches the scores of what was selected. One loss trains all parts.
    - ``train="alternating"``: in training mode :meth:`loss` trains the scorer alone on its even calls, on
      log(mean(exp(score))) of each bag as its logit, and encoder and aggregator on the odd ones. Even calls skip the
      encoder.

    A scorer that starts wrong would never show the encoder what it misses. So in training mode selection adds
    ``explore`` times Gumbel noise to the scores: at 1, top-K then samples from softmax(scores) without replacement.
    Straight-through can still settle on such a scorer where evidence is rare; alternating cannot, as its scorer sees
    every instance.

    Args:
        scorer: instances (N, ...) -> scores (N,) or (N, 1); or (scores, embeddings (N, D)) for the selector to cover.
            Where it gives scores alone and instances are vectors, the selector covers the instances themselves.
        encoder: instances (M, ...) -> tokens (M, E).
        aggregator: tokens (B, K, E), mask (B, K) -> logits (B,), such as :class:`pairformer.mil.SetAggregator`.
        selector: any of ``pairformer.mil``.
        train: as above.
        explore: as above; 0 for none.

    Raises:
        ValueError: ``train`` is neither, or ``explore`` is negative.
        TypeError: ``selector`` is no ``Selector`` of ``pairformer.mil``.

    Source: PAIR-Former Algorithm 2. Gate, alternation and noise are this package's: the paper trains its scorer by
    distillation.
    """

    def __init__(
        self, scorer: nn.Module, encoder: nn.Module, aggregator: nn.Module, selector: Selector,
        train: str = "straight-through", explore: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if train not in ("straight-through", "alternating"):
            raise ValueError(f"train must be straight-through or alternating, got {train!r}")
        self.scorer, self.encoder, self.aggregator, self.selector = scorer, encoder, aggregator, selector
        if not explore >= 0:
            raise ValueError(f"explore must be 0 or more, got {explore}")
        if not isinstance(selector, Selector):
            raise TypeError(f"selector must be one of pairformer.mil, such as mil.STSelector(64), got {selector!r}")
        self.explore = explore
        self.straight_through = train == "straight-through"
        self.calls = 0

    def forward(
        self, x: Tensor, mask: Tensor | None = None, return_att: bool = False, *, offsets: Any = None,
        positions: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """Logits (B,), and with ``return_att`` the aggregator's attention as ``SetAggregator`` gives it, 0 for what was
        not selected; arguments as for :meth:`run`."""
        found = self.run(x, mask, return_att, offsets=offsets, positions=positions)
        if found.attention is None:
            return found.logits
        if mask is None:
            return found.logits, found.attention
        real = torch.as_tensor(mask, device=found.attention.device).bool()
        attention = found.attention.new_zeros(real.shape)
        attention[real] = found.attention
        return found.logits, attention

    def run(
        self, x: Tensor, mask: Tensor | None = None, return_att: bool = False, *, offsets: Any = None,
        positions: Any = None,
    ) -> BudgetedOutput:  # fmt: skip
        """The forward pass with what it found on its way.

        Args:
            x: (N, ...) with ``offsets`` (B + 1,), (B, P, ...) with ``mask`` (B, P), True = real, or jagged.
            mask, offsets: one of them, or neither for jagged ``x``.
            return_att: also give the aggregator's attention, if its forward takes ``return_att``.
            positions: of the instances, in the same form, on the CPU; or None. See ``Selector.select``.

        Raises:
            ValueError, TypeError: as ``Selector.select``; the scorer gave no score per instance or one not finite.
        """
        form = Form.of(x, offsets, mask, name="x")
        rows = form.rows("x", x)
        scores, embeddings = self._score(rows)
        places = None if positions is None else form.rows("positions", positions)
        noise = torch.zeros_like(scores)
        if self.training and self.explore:
            noise = -self.explore * torch.empty_like(scores).exponential_().log()  # Gumbel
        selection = self.selector.select(
            (scores + noise).detach().cpu(),
            None if embeddings is None else embeddings.detach().cpu(),
            places,
            form.offsets,
        )
        chosen = selection.rows.to(rows.device)
        tokens = self.encoder(rows[chosen])
        if self.straight_through:
            gate = scores[chosen].sigmoid()
            tokens = tokens * (1 + (gate - gate.detach()))[:, None]
        padded, real = pack_tokens(tokens, selection.offsets.numpy())
        if not return_att:
            return BudgetedOutput(self.aggregator(padded, real), scores, replace(selection, form=form))
        logits, of_selected = self.aggregator(padded, real, return_att=True)
        attention = of_selected.new_zeros(len(scores)).index_copy(0, chosen, of_selected[real])
        return BudgetedOutput(logits, scores, replace(selection, form=form), attention)

    def loss(
        self, x: Tensor, labels: Tensor, mask: Tensor | None = None, *, offsets: Any = None, positions: Any = None
    ) -> Tensor:
        """Binary cross-entropy of labels (B,) 0 or 1: in training of the part whose turn it is, counting calls; in
        evaluation mode always of the logits.

        Raises:
            ValueError: labels are of another shape, or one is neither 0 nor 1.
        """
        labels = torch.as_tensor(labels)
        wrong = labels[(labels != 0) & (labels != 1)]
        if len(wrong):
            raise ValueError(f"labels must be 0 or 1, got {wrong[0].item():g}; pass (labels == positive).float()")
        scorer_only = self.training and not self.straight_through and self.calls % 2 == 0
        self.calls += self.training
        if not scorer_only:
            return _cross_entropy(self(x, mask, offsets=offsets, positions=positions), labels)
        form = Form.of(x, offsets, mask, name="x")
        scores, _ = self._score(form.rows("x", x))
        padded, real = pack_tokens(scores[:, None], form.offsets)
        lowest = torch.finfo(scores.dtype).min
        total = F.pad(padded[:, :, 0].masked_fill(~real, lowest), (0, 1), value=lowest).logsumexp(1)
        # An empty bag has even odds, whatever the scorer.
        logits = torch.where(real.any(1), total - real.sum(1).clamp(min=1).log(), 0.0)
        return _cross_entropy(logits, labels)

    def _score(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores (N,) and embeddings (N, D) or None."""
        found = self.scorer(rows)
        scores, embeddings = found if isinstance(found, tuple) else (found, None)
        if scores.shape == (len(rows), 1):
            scores = scores[:, 0]
        if scores.shape != rows.shape[:1]:
            raise ValueError(f"scorer must give {len(rows)} scores, got shape {tuple(scores.shape)}")
        if embeddings is None and rows.ndim == 2 and rows.dtype.is_floating_point:
            embeddings = rows
        return scores, embeddings


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != logits.shape:
        raise ValueError(f"labels must have shape {tuple(logits.shape)}, one a bag, got {tuple(labels.shape)}")
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits))


def check_one_loss(module: nn.Module) -> None:
    """ValueError for a module that a criterion of its logits does not train whole."""
    if any(isinstance(part, BudgetedMIL) and not part.straight_through for part in module.modules()):
        raise ValueError("module must be trained by a loss of its logits, got a BudgetedMIL that alternates; make it "
                         "straight-through")  # fmt: skip
